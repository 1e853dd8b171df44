"""Each package works without what it must not import, and the light parts start without TensorFlow."""

import os
import subprocess
import sys

import pytest

BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Block())
{code}
loaded = {{name.split(".")[0] for name in sys.modules}} & set({blocked!r})
assert not loaded, loaded
"""

WALK = """
import importlib, pkgutil
def everything(package, skip=()):
    module = importlib.import_module(package)
    for info in pkgutil.walk_packages(module.__path__, package + "."):
        if not info.name.startswith(tuple(skip)) and not info.name.endswith("__main__"):
            importlib.import_module(info.name)
"""


def run_blocked(code, blocked):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    program = BLOCKED.format(code=code, blocked=tuple(blocked))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_block_blocks():
    with pytest.raises(AssertionError, match="blocked: json"):
        run_blocked("import json", ["json"])


def test_weights_need_no_framework():
    run_blocked(WALK + "everything('weights')", ["tensorflow", "keras", "torch", "tf_d2", "parity"])


def test_tf_d2_needs_neither_torch_nor_parity():
    # tf_d2.beam needs Apache Beam, which is an extra.
    run_blocked(
        WALK + "everything('tf_d2', ('tf_d2.beam',))", ["torch", "torchvision", "detectron2", "parity"]
    )


def test_the_core_of_parity_needs_no_framework():
    """Everything but the workers and the torch reference, which the workers import."""
    programs = ("parity.backends", "parity.bench.t", "parity.bench.suite.weights", "parity.selftest.tf_")
    code = WALK + f"everything('parity', {programs})"
    run_blocked(code, ["tensorflow", "keras", "torch", "torchvision", "detectron2", "tf_d2"])


def test_the_torch_side_of_parity_needs_no_tensorflow():
    pytest.importorskip("torch")
    run_blocked(
        "import parity.backends.torch, parity.backends.torch_reference",
        ["tensorflow", "keras", "tf_d2"],
    )


@pytest.mark.parametrize(
    "code", ["import tf_d2", "import tf_d2.cli; tf_d2.cli.make_app()", "import tf_d2.config"]
)
def test_these_start_without_tensorflow(code):
    run_blocked(code, ["tensorflow", "keras", "torch"])


def test_public_names_exist():
    import tf_d2

    assert all(hasattr(tf_d2, name) for name in tf_d2.__all__)
    assert set(tf_d2.__all__) <= set(dir(tf_d2))


def test_an_unknown_name_is_an_attribute_error():
    import tf_d2

    with pytest.raises(AttributeError, match="has no attribute 'predict'"):
        tf_d2.predict  # noqa: B018


LIGHT = """
import sys
from tf_d2 import cli
for line in {lines!r}:
    try:
        cli.main(line.split("|"))
    except SystemExit as stop:
        assert stop.code in (None, 0), (line, stop.code)
loaded = set({heavy!r}) & set(sys.modules)
assert not loaded, sorted(loaded)
"""
HEAVY = (
    "tensorflow",
    "keras",
    "torch",
    "scipy",
    "matplotlib",
    "jinja2",
    "parity.judge",
    "parity.running.runner",
)
COMMANDS = ("predict", "batch", "convert", "inspect", "export", "zoo", "demo", "parity", "bench")


def run_light(lines, heavy):
    program = LIGHT.format(lines=tuple(lines), heavy=tuple(heavy))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_help_needs_no_heavy_module():
    inner = (
        "batch|merge",
        "zoo|list",
        "zoo|show",
        "parity|rejudge",
        "parity|mutations",
        "parity|list-mutations",
    )
    run_light(
        [f"{name}|--help" for name in (*COMMANDS, *inner)] + ["--help"],
        (*HEAVY, "weights.checkpoint", "h5py"),
    )


def test_inspect_and_zoo_need_no_heavy_module(demo_files):
    checkpoint = demo_files / "shapes.pkl"
    run_light(
        [f"inspect|{checkpoint}", f"inspect|--diff|{checkpoint}|{checkpoint}", "zoo|list", "zoo"], HEAVY
    )


def test_the_help_imports_no_command():
    out = run_light(
        ["--help"], [*(f"tf_d2.commands.{name}" for name in COMMANDS), "parity.cli.demo", "numpy"]
    )
    assert all(name in out for name in COMMANDS)


def test_a_command_imports_no_other():
    run_light(["zoo|list"], ["tf_d2.commands.convert", "tf_d2.commands.inspect", "parity", "parity.cli"])


def test_a_light_command_that_loads_a_heavy_module_is_seen():
    with pytest.raises(AssertionError, match=r"tf_d2\.commands\.zoo"):
        run_light(["zoo|list"], ["tf_d2.commands.zoo"])
