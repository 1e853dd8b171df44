"""What is said about CPU kernels, and what the command line chooses."""

import os
import platform
import subprocess
import sys

import pytest
import tensorflow as tf

import tf_d2
from tf_d2 import kernels
from tf_d2.commands.options import choose_kernels
from weights import UserError


@pytest.fixture
def machine(monkeypatch):
    """``machine(enabled, **environment)``: an x86-64 processor, oneDNN on or off, and only these two variables."""

    def be(enabled, **environment):
        monkeypatch.setattr(kernels, "onednn_enabled", lambda: enabled)
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
        monkeypatch.setattr(kernels, "keep_memory", lambda: False)
        for name in (kernels.ONEDNN, kernels.FROZEN_WEIGHTS):
            monkeypatch.setenv(
                name, environment.get(name, "")
            )  # so that it is restored whatever happens to it
            if name not in environment:
                del os.environ[name]

    return be


BOTH = "TF_ENABLE_ONEDNN_OPTS=1 TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1"


@pytest.mark.parametrize(
    "enabled, environment, said",
    [
        (False, {}, f"faster with {BOTH} in"),
        (True, {}, "faster with TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1 in"),
        (False, {kernels.FROZEN_WEIGHTS: "1"}, "faster with TF_ENABLE_ONEDNN_OPTS=1 in"),
        (True, {kernels.FROZEN_WEIGHTS: "1"}, None),
        (True, {kernels.FROZEN_WEIGHTS: "0"}, None),
        (False, {kernels.ONEDNN: "0"}, None),
        (None, {}, None),
    ],
)
def test_advice(machine, enabled, environment, said):
    machine(enabled, **environment)
    advice = kernels.advice()
    assert advice is None if said is None else said in advice
    assert "\n" not in (advice or "")


@pytest.mark.parametrize(
    "enabled, environment, said",
    [
        (False, {}, "faster with TF_ENABLE_ONEDNN_OPTS=1 in the environment before TensorFlow is imported"),
        (True, {}, None),
        (False, {kernels.ONEDNN: "0"}, None),
    ],
)
def test_advice_where_the_model_keeps_its_weights_itself(machine, enabled, environment, said):
    machine(enabled, **environment)
    assert kernels.advice(weights_kept=True) == said


def test_no_advice_where_memory_is_kept(machine, monkeypatch):
    machine(False)
    monkeypatch.setattr(kernels, "keep_memory", lambda: True)
    assert kernels.advice(weights_kept=True) is None
    assert "TF_ENABLE_ONEDNN_OPTS=1" in (kernels.advice() or "")


_IMPORTED = """
import importlib, pkgutil
import tensorflow as tf
import tf_d2
for module in pkgutil.walk_packages(tf_d2.__path__, "tf_d2."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError:
            pass  # an extra that is not installed
tf.config.threading.set_intra_op_parallelism_threads(1)
"""


def test_no_import_makes_a_tensor():
    """After the first one TensorFlow takes no settings of its user any more, nor ours."""
    done = subprocess.run([sys.executable, "-c", _IMPORTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


_MEMORY = """
import os
import tensorflow as tf
from tf_d2 import kernels
{before}
names = set(os.environ)
found = kernels.keep_memory()
tf.ones([64, 64])
try:
    kept = tf.config.experimental.get_memory_info("CPU:0")["peak"] > 0
except ValueError:
    kept = False
assert set(os.environ) == names
print("found", found, "kept", kept)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in kernels.X86_64, reason="not measured there"
)
@pytest.mark.parametrize(
    ("before", "environment", "kept"),
    [
        ("", {"TF_ENABLE_ONEDNN_OPTS": "0"}, True),
        pytest.param("", {"TF_ENABLE_ONEDNN_OPTS": "1"}, True, marks=pytest.mark.wide),
        pytest.param("tf.ones([1])", {"TF_ENABLE_ONEDNN_OPTS": "0"}, False, marks=pytest.mark.wide),
        ("", {"TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPU_ALLOCATOR_USE_BFC": "0"}, False),
    ],
)
def test_memory_of_feature_maps_is_kept(before, environment, kept):
    """In a process that has made no tensor and whose user said nothing; the environment is as it was afterwards."""
    code = _MEMORY.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.stdout.strip() == f"found {kept} kept {kept}", done.stderr[-2000:]


def test_advice_is_for_one_kind_of_processor(machine, monkeypatch):
    machine(False)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert kernels.advice() is None


def test_advice_is_given_once(machine, caplog):
    machine(True)
    kernels.advise.cache_clear()
    for _ in range(2):
        kernels.advise()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_tensorflow_tells_what_it_runs():
    """A part of TensorFlow that is not public: if it goes, nothing is said any more."""
    assert kernels.onednn_enabled() in (True, False)


@pytest.mark.parametrize(
    "environment, chosen",
    [
        ({}, ("1", "1")),
        ({kernels.ONEDNN: "0"}, ("0", "1")),
        ({kernels.FROZEN_WEIGHTS: "0"}, (None, "0")),
    ],
)
def test_command_line_chooses(machine, environment, chosen):
    machine(None, **environment)
    choose_kernels()
    assert tuple(os.environ.get(name) for name in (kernels.ONEDNN, kernels.FROZEN_WEIGHTS)) == chosen


def test_bfloat16_is_refused_where_it_does_not_run(monkeypatch):
    """ONEDNN_MAX_CPU_ISA=AVX2 on a processor with AVX-512 is such a setting."""

    def fail(*arguments):
        raise tf.errors.AbortedError(None, None, "could not create a primitive descriptor")

    kernels.bfloat16_runs.cache_clear()
    monkeypatch.setattr(tf.nn, "conv2d", fail)
    with pytest.raises(ValueError, match="ONEDNN_MAX_CPU_ISA"):
        tf_d2.load_model("COCO-Detection/faster_rcnn_R_50_FPN_1x", dtype="bfloat16")
    kernels.bfloat16_runs.cache_clear()


@pytest.mark.parametrize(
    "environment, file, runs",
    [
        ({}, None, True),
        ({}, '{"backend": "torch"}', False),
        ({}, '{"backend": "tensorflow"}', True),
        ({}, "not JSON", True),
        ({"KERAS_BACKEND": "jax"}, None, False),
        ({"KERAS_BACKEND": "tensorflow"}, '{"backend": "torch"}', True),
        ({"KERAS_BACKEND": ""}, '{"backend": "jax"}', False),
    ],
)
def test_keras_on_another_framework_is_refused(monkeypatch, tmp_path, environment, file, runs):
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if file is not None:
        (tmp_path / "keras.json").write_text(file)
    if runs:
        kernels.check_keras_backend()
    else:
        with pytest.raises(UserError, match="KERAS_BACKEND=tensorflow"):
            kernels.check_keras_backend()


def test_keras_that_was_imported_already(monkeypatch):
    kernels.check_keras_backend()
    monkeypatch.setattr("keras.backend.backend", lambda: "torch")
    with pytest.raises(UserError, match="run on torch"):
        kernels.check_keras_backend()


def test_keras_is_asked_before_it_is_imported():
    """Keras itself ends in an ImportError where its framework is not installed."""
    done = subprocess.run(
        [sys.executable, "-c", "import tf_d2; tf_d2.Predictor"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"KERAS_BACKEND": "jax"},
    )
    assert "UsageError: Keras is set to run on jax" in done.stderr


def test_a_model_is_not_made_inside_a_graph(demo_files):
    with tf.Graph().as_default(), pytest.raises(UserError, match="executes eagerly"):
        tf_d2.load_model(demo_files / "shapes.yaml", demo_files / "shapes.pkl")


@pytest.mark.parametrize(("value", "told"), [("BF16", True), ("any", True), ("strict", False), ("", False)])
def test_rounding_that_the_environment_allows_is_told(monkeypatch, caplog, value, told):
    monkeypatch.setenv("DNNL_DEFAULT_FPMATH_MODE", value)
    kernels.warn_of_rounding.cache_clear()
    for _ in range(2):
        kernels.warn_of_rounding()
    assert len(caplog.records) == told and all(
        "DNNL_DEFAULT_FPMATH_MODE" in r.message for r in caplog.records
    )
    kernels.warn_of_rounding.cache_clear()
