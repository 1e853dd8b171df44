"""What a module shows is used elsewhere, and functions are told few things.

A name that only its own module needs has an underscore.
A public name is a function, class or variable at the top of a module of ours. It is used where another module imports
it, asks for an attribute of that name or has it as a word in a string (planted bugs, entry points, ``"module:Class"``),
and where a test, an example, the README or the docs say it. Functions under a decorator that enters them in a table are
found there. Told apart by name alone: of two that are called alike, one use is enough for both.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("weights", "tf_d2", "parity")
MOST_LONELY = 19
MANY, MOST_LONG = 6, 20
WORD = re.compile(r"[A-Za-z]\w*")


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Of a file; the module first."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def defined(module: ast.AST) -> Iterator[str]:
    """Public names at the top of a module."""
    assert isinstance(module, ast.Module)
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


@cache
def used(path: Path) -> frozenset[str]:
    """Names that a module takes from others, and the words of its strings but those that stand alone."""
    found: set[str] = set()
    prose: set[int] = set()
    for node in nodes(path):
        if isinstance(node, ast.Expr):
            prose.add(id(node.value))
        elif isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found.update(WORD.findall(node.value))
    return frozenset(found)


def told() -> set[str]:
    """Words of the tests and examples, of the pages that users read, and of what is installed by name."""
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "pyproject.toml"]
    pages += [path for path in sources("tests", "examples", "deploy") if path != Path(__file__)]
    return {word for page in pages for word in WORD.findall(page.read_text(encoding="utf-8"))}


def lonely() -> list[str]:
    """``path: name`` of every public name that nothing else uses."""
    modules = sources(*PACKAGES)
    users: dict[str, list[Path]] = {}
    for path in modules:
        for name in used(path):
            users.setdefault(name, []).append(path)
    known = told()
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules
        for name in dict.fromkeys(defined(nodes(path)[0]))
        if name not in known and all(user == path for user in users.get(name, ()))
    ]


def test_public_names_are_used():
    found = lonely()
    assert len(found) <= MOST_LONELY, "\n".join(["give these an underscore, or take them away:", *found])


def test_a_name_of_its_own_module_is_found():
    module = ast.parse(
        "A = 1\n_b = 2\nC: int = 3\ndef d(): pass\ndef _e(): pass\n@op\ndef f(): pass\nclass G: pass"
    )
    assert list(defined(module)) == ["A", "C", "d", "G"]


def arguments(function: ast.FunctionDef) -> int:
    """How many a caller may give, by position and by name, with a default or without."""
    a = function.args
    positional = [x.arg for x in (*a.posonlyargs, *a.args)]
    own = positional[:1] in (["self"], ["cls"])
    return len(positional) - own + len(a.kwonlyargs)


def is_command(function: ast.FunctionDef) -> bool:
    """Whether its arguments are options of the command line (typer): their number is the command's, and not counted."""
    annotations = [ast.unparse(x.annotation) for x in function.args.args if x.annotation is not None]
    return any(re.search(r"Option\b", text) for text in annotations)


def test_few_functions_take_many_arguments():
    """What users call takes named options, and operations that are named after detectron2's take what those take;
    elsewhere a group of arguments has a name."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {arguments(node)}"
        for path in sources(*PACKAGES)
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef) and arguments(node) >= MANY and not is_command(node)
    ]
    assert len(found) <= MOST_LONG, "\n".join(["give groups of these arguments a name:", *found])


def test_arguments_are_counted():
    first, second, command, told = ast.parse(
        "def f(self, a, b=1, *, c, d=2): pass\ndef g(a, /, b, *rest): pass\n"
        "def h(a: IntOption): pass\ndef i(a: Options): pass"
    ).body
    assert isinstance(first, ast.FunctionDef) and isinstance(second, ast.FunctionDef)
    assert (arguments(first), arguments(second)) == (4, 2)
    assert isinstance(command, ast.FunctionDef) and is_command(command) and not is_command(first)
    assert isinstance(told, ast.FunctionDef) and not is_command(told)
