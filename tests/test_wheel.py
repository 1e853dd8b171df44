"""What is installed: the packages of the wheel, all that they import, and what its commands say of the rest."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools

import weights
from parity.core.checkout import NOT_INSTALLED, from_a_checkout
from weights.errors import UsageError

ROOT = Path(weights.__file__).parents[1]


def listed(key: str) -> list[str]:
    """A list of ``[tool.setuptools.packages.find]`` (Python 3.10 has no reader of TOML)."""
    section = (
        (ROOT / "pyproject.toml").read_text().split("[tool.setuptools.packages.find]")[1].split("\n[")[0]
    )
    found = re.search(rf"^{key} = \[(.*)\]$", section, re.M)
    assert found, key
    return re.findall(r'"([^"]+)"', found.group(1))


@pytest.fixture(scope="module")
def packages():
    return setuptools.find_packages(str(ROOT), include=listed("include"), exclude=listed("exclude"))


def test_the_wheel_has_the_three_packages_without_what_tests_this_repository(packages):
    assert {p.split(".")[0] for p in packages} == {"parity", "tf_d2", "weights"}
    assert [p for p in packages if p.startswith(NOT_INSTALLED)] == []
    every = {p.parent for name in ("parity", "tf_d2", "weights") for p in (ROOT / name).rglob("*.py")}
    left_out = sorted(".".join(p.relative_to(ROOT).parts) for p in every)
    left_out = [p for p in left_out if p not in packages]
    assert set(NOT_INSTALLED) <= set(left_out) and all(p.startswith(NOT_INSTALLED) for p in left_out)


@pytest.fixture(scope="module")
def installed(packages, tmp_path_factory):
    """A folder like the site-packages that the wheel fills, made of links."""
    folder = tmp_path_factory.mktemp("site")
    for package in packages:
        source, target = ROOT.joinpath(*package.split(".")), folder.joinpath(*package.split("."))
        target.mkdir(parents=True)
        for path in source.iterdir():
            if path.is_file():
                os.symlink(path, target / path.name)
    os.symlink(ROOT / "tf_d2" / "data", folder / "tf_d2" / "data")
    return folder


# The folder comes first, and the finder of an editable installation, which knows the whole checkout, goes.
ALONE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""


def run(installed, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}
    code = ALONE + "from tf_d2.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, str(installed), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=installed)


@pytest.mark.parametrize(
    "words, what",
    [
        ("parity list-mutations", "planted bugs"),
        ("parity mutations --output out", "planted bugs"),
        ("parity --config-file c --input a.png --mutate relu --output out", "planted bugs"),
        ("bench suite --all --output out", "the measurements behind the repository's tables"),
        ("bench --render --output out", "the measurements behind the repository's tables"),
    ],
)
def test_commands_say_what_is_not_installed(installed, words, what):
    (installed / "a.png").touch()
    done = run(installed, *words.split())
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{what} are no part of the installed package: clone the repository" in done.stderr
    assert "Traceback" not in done.stderr and not (installed / "out").exists()


WALK = """
import importlib, pkgutil
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("parity.selftest", "parity.bench.suite")):
            raise AssertionError("imports " + name)
sys.meta_path.insert(0, Refuse())
import parity
for info in pkgutil.walk_packages(parity.__path__, "parity."):
    if not info.name.startswith(("parity.backends.", "parity.bench.t")):
        importlib.import_module(info.name)
print(parity.__file__)
"""


def test_nothing_installed_imports_what_is_not(installed):
    done = subprocess.run(
        [sys.executable, "-c", ALONE + WALK, str(installed)], capture_output=True, text=True, cwd=installed
    )
    assert done.returncode == 0 and done.stdout.startswith(str(installed)), done.stderr


def test_another_missing_module_is_not_mistaken():
    with pytest.raises(ModuleNotFoundError, match="matplotlib_of_nobody"), from_a_checkout("planted bugs"):
        import matplotlib_of_nobody  # noqa: F401
    with pytest.raises(UsageError, match="planted bugs are no part"), from_a_checkout("planted bugs"):
        raise ModuleNotFoundError("no", name="parity.selftest")
