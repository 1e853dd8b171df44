"""No program of this project loads TensorFlow and torch in one process: their libraries (CUDA builds above all) do
not always live together.

Read from the sources: every import that a program can reach, those inside functions included, so that no run is
needed and no branch is missed. Worker modules that are named by text run in processes of their own.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("parity", "tf_d2", "weights")
FRAMEWORKS = {"tensorflow": "TensorFlow", "keras": "TensorFlow"} | dict.fromkeys(
    ("torch", "torchvision", "detectron2"), "torch"
)


def module_file(name, root=ROOT):
    path = root.joinpath(*name.split("."))
    return next((p for p in (path / "__init__.py", path.with_suffix(".py")) if p.is_file()), None)


def for_types_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def statements(tree):
    """All nodes but those that only type checkers read."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        if for_types_only(node):
            todo += node.orelse  # type: ignore[attr-defined]
        else:
            todo += ast.iter_child_nodes(node)


@cache
def imports(path, package):
    """Absolute names that a file imports anywhere; ``from a import b`` gives both a and a.b."""
    names = set()
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return names


def frameworks(program, root=ROOT):
    """Framework -> the chain of modules by which a program reaches it first."""
    found, chains = {}, {program: (program,)}
    todo = [program]
    while todo:
        name = todo.pop(0)
        path = module_file(name, root)
        assert path is not None, name
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for other in sorted(imports(path, package)):
            framework = FRAMEWORKS.get(other.split(".")[0])
            if framework:
                found.setdefault(framework, (*chains[name], other))
            elif other.split(".")[0] in PACKAGES:
                parts = other.split(".")
                for n in range(1, len(parts) + 1):  # importing a.b.c runs a and a.b first
                    inner = ".".join(parts[:n])
                    if inner not in chains and module_file(inner, root):
                        chains[inner] = (*chains[name], inner)
                        todo.append(inner)
    return found


def programs():
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if any(
                isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
                for node in ast.parse(path.read_text()).body
            ):
                yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("program", [*programs(), "parity.cli", "tf_d2.beam"])
def test_a_program_loads_one_framework(program):
    found = frameworks(program)
    assert len(found) < 2, "\n".join(f"{name}: {' -> '.join(chain)}" for name, chain in found.items())


def test_the_workers_are_among_the_programs_and_their_frameworks_are_seen():
    assert {"parity.backends.tf", "parity.backends.torch", "tf_d2.cli"} <= set(programs())
    assert set(frameworks("parity.backends.tf")) == {"TensorFlow"}
    assert set(frameworks("parity.backends.torch")) == {"torch"}
    assert set(frameworks("parity.backends.detectron2")) == {"torch"}


def test_a_program_that_loads_both_is_seen(tmp_path):
    (tmp_path / "parity").mkdir()
    (tmp_path / "parity" / "__init__.py").write_text("from typing import TYPE_CHECKING\n")
    (tmp_path / "parity" / "both.py").write_text("from . import inner\ndef f():\n    import torch\n")
    (tmp_path / "parity" / "inner.py").write_text("import importlib\nx = importlib.import_module('keras')\n")
    (tmp_path / "parity" / "typed.py").write_text("import keras\nif TYPE_CHECKING:\n    import torch\n")
    assert frameworks("parity.both", tmp_path) == {
        "torch": ("parity.both", "torch"),
        "TensorFlow": ("parity.both", "parity.inner", "keras"),
    }
    assert set(frameworks("parity.typed", tmp_path)) == {"TensorFlow"}


def test_no_test_imports_torch_beside_tensorflow():
    """It asks torch in a process of its own (``support.torch_process``), reads recorded numbers, or is a torch_*.py."""
    tests = ROOT / "tests"
    found = [
        path.relative_to(tests).as_posix()
        for path in tests.rglob("*.py")
        if path.name.startswith(("test_", "conftest"))
        and any(FRAMEWORKS.get(name.split(".")[0]) == "torch" for name in imports(path, ""))
    ]
    assert found == []
