"""What a module shows is used elsewhere: a name that only its own module needs has an underscore.

A public name is a function, class or variable at the top of a module of ours. It is used where another module, a test
or an example imports it, asks for an attribute of that name or has it as a word in a string (planted bugs, entry
points, ``"module:Class"``), and where the README or the docs say it. Functions under a decorator that enters them in a
table are found there. Told apart by name alone: of two that are called alike, one use is enough for both.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("weights", "tf_d2", "parity")
MOST = 19
WORD = re.compile(r"[A-Za-z]\w*")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def defined(module: ast.Module) -> Iterator[str]:
    """Public names at the top of a module."""
    for node in module.body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if isinstance(node, ast.ClassDef) or not node.decorator_list:
                yield from [node.name] * (not node.name.startswith("_"))
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and not name.id.startswith("_"):
                    yield name.id


def docstrings(module: ast.Module) -> set[int]:
    """Strings that stand alone, by identity."""
    return {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}


@cache
def used(path: Path) -> frozenset[str]:
    """Names that a module takes from others, and the words of its strings."""
    found: set[str] = set()
    prose = docstrings(tree(path))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found.update(WORD.findall(node.value))
    return frozenset(found)


def told() -> set[str]:
    """Words of the pages that users read, and of what is installed by name."""
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "pyproject.toml"]
    return {word for page in pages for word in WORD.findall(page.read_text(encoding="utf-8"))}


def lonely() -> list[str]:
    """``path: name`` of every public name that nothing else uses."""
    modules = sources(*PACKAGES)
    users: dict[str, list[Path]] = {}
    for path in [*modules, *sources("tests", "examples", "deploy")]:
        for name in used(path):
            users.setdefault(name, []).append(path)
    known = told()
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules
        for name in dict.fromkeys(defined(tree(path)))
        if name not in known and all(user == path for user in users.get(name, ()))
    ]


def test_public_names_are_used():
    found = lonely()
    assert len(found) <= MOST, "\n".join(["give these an underscore, or take them away:", *found])


def test_a_name_of_its_own_module_is_found():
    module = ast.parse(
        "A = 1\n_b = 2\nC: int = 3\ndef d(): pass\ndef _e(): pass\n@op\ndef f(): pass\nclass G: pass"
    )
    assert list(defined(module)) == ["A", "C", "d", "G"]
