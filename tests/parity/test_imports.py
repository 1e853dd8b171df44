"""The core runs where no framework is installed; only the worker modules import one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import parity

CORE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "torch", "torchvision", "detectron2", "tf_d2"):
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
import parity
for name in parity.__all__:
    getattr(parity, name)
import parity.bench.bench, parity.running.bisect, parity.cli.parity, parity.selftest.mutation_run, parity.running.ops
import parity.report.html, parity.core.units
import parity.backends.tf_ops, parity.backends.savedmodel, parity.backends.serving, parity.backends.tf
import parity.backends.driver, parity.backends.tf_tools, parity.bench.tf_worker, parity.selftest.tf_mutants
"""


def test_the_core_needs_no_framework():
    result = subprocess.run([sys.executable, "-c", CORE], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


# Which folders of parity each one may import from, as ARCHITECTURE.md says.
ARROWS = {
    "core": set(),
    "judge": {"core"},
    "report": {"core"},
    "backends": {"core", "selftest"},
    "running": {"core", "judge", "backends", "selftest"},
    "selftest": {"core", "judge", "running", "backends"},
    "bench": {"core", "judge", "running", "backends", "report", "selftest"},
    "cli": {"core", "judge", "running", "report", "bench", "selftest"},
}
ROOT = Path(parity.__file__).parent


def imported(path: Path) -> set[str]:
    """Folders of parity that a module names in any import."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("parity.")}
    return found & set(ARROWS)


@pytest.mark.parametrize("folder", ARROWS)
def test_folders_import_as_the_architecture_says(folder: str) -> None:
    modules = list((ROOT / folder).rglob("*.py"))
    assert modules
    wrong = {str(m.relative_to(ROOT)): imported(m) - ARROWS[folder] - {folder} for m in modules}
    assert {name: found for name, found in wrong.items() if found} == {}
