"""What public docstrings say of arguments and errors is what the code has: names, order, and sections in their form."""

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import weights

ROOT = Path(weights.__file__).parents[1]
PACKAGES = ("weights", "tf_d2", "parity")
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
_HEADER = re.compile(rf"^({'|'.join(SECTIONS)}|Arguments|Parameters|Return|Raise|Yield):")
_ENTRY = re.compile(r"^([\w.*`, ()]+?): \S")
# A line that was joined to the one before it by a careless wrap.
_JOINED = re.compile(rf"\S +(?:{'|'.join(SECTIONS)}):(?: |$)|[.;] [A-Z]\w+(?:Error|Exception): ")


class Documented(NamedTuple):
    place: str
    text: str
    parameters: list[str] | None  # None: of a class without a constructor of its own


def public(tree: ast.Module, path: str) -> Iterator[Documented]:
    """Public functions, classes and methods with a docstring."""

    def of(body: list[ast.stmt], prefix: str) -> Iterator[Documented]:
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            if node.name.startswith("_") and node.name != "__init__" and node.name != "__call__":
                continue
            text, place = ast.get_docstring(node), f"{path}:{node.lineno} {prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                if text:
                    yield Documented(place, text, constructor(node))
                yield from of(node.body, f"{prefix}{node.name}.")
            elif text:
                yield Documented(place, text, names_of(node.args))

    yield from of(tree.body, "")


def names_of(arguments: ast.arguments) -> list[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    rest = [arguments.vararg] if arguments.vararg else []
    rest += [*arguments.kwonlyargs, *([arguments.kwarg] if arguments.kwarg else [])]
    return [a.arg for a in [*positional, *rest] if a.arg not in ("self", "cls")]


def constructor(node: ast.ClassDef) -> list[str] | None:
    """Names a class's "Args" and "Attributes" may have: of its constructor, fields and what it sets on itself."""
    found: list[str] = []
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            found += names_of(item.args) if item.name == "__init__" else []
            found += [item.name]
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found.append(item.target.id)
    for item in ast.walk(node):
        if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store):
            found.append(item.attr)
    return found or None


def sections(text: str) -> dict[str, list[str]]:
    """Section -> its lines, as they are indented."""
    found: dict[str, list[str]] = {}
    current = None
    for line in text.split("\n"):
        header = _HEADER.match(line)
        if header:
            current = found.setdefault(header.group(1), [])
            if line[header.end() :].strip():
                current.append("    " + line[header.end() :].strip())
        elif line.strip() and not line.startswith(" "):
            current = None
        elif current is not None and line.strip():
            current.append(line)
    return found


def entries(lines: list[str]) -> list[str]:
    """Names before the colon of every line at the section's own indentation."""
    indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    own = [line.strip() for line in lines if len(line) - len(line.lstrip()) == indent]
    return [m.group(1) if (m := _ENTRY.match(line)) else f"?{line}" for line in own]


def split(names: str) -> list[str]:
    return [
        re.sub(r"\(.*?\)|[`*]", "", n).strip()
        for n in re.split(r",| or | and ", re.sub(r"\(.*?\)", "", names))
    ]


def problems(documented: Documented, errors: set[str]) -> list[str]:
    """What is wrong with one docstring."""
    found = sections(documented.text)
    wrong = [f"section {name!r}" for name in found if name not in SECTIONS]
    wrong += [f"joined lines: {m.group()!r}" for m in _JOINED.finditer(documented.text)]
    for section in ("Args", "Attributes"):
        listed = [split(e) for e in entries(found.get(section, []))]
        named, allowed = [n for names in listed for n in names], documented.parameters or []
        wrong += [f"{section}: {n!r} is none of {allowed}" for n in named if n not in allowed]
        alone = [allowed.index(n) for names in listed for n in names if len(names) == 1 and n in allowed]
        if section == "Args" and alone != sorted(alone):
            wrong.append(f"Args: {named} are not in the order of the signature")
        body = " ".join(line.strip() for line in found.get(section, []))
        wrong += [
            f"{section}: {n!r} stands behind another"
            for n in allowed
            if f". {n}: " in body and n not in named
        ]
    for error in [n for e in entries(found.get("Raises", [])) for n in split(e)]:
        if error.split(".")[-1] not in errors and not error.startswith("tf.errors."):
            wrong.append(f"Raises: {error!r} is no exception")
    wrong += [f"{name}: empty" for name in SECTIONS if name in found and not found[name]]
    return wrong


def exceptions() -> set[str]:
    """Names of exceptions: Python's and those that the packages define."""
    found = {n for n, c in vars(builtins).items() if isinstance(c, type) and issubclass(c, BaseException)}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.bases}
    return {n for n in found if n.endswith(("Error", "Exception", "Notice", "Exit", "Keys", "Interrupt"))}


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_name_what_is_there(package: str) -> None:
    errors, wrong, seen = exceptions(), [], 0
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for documented in public(tree, path.relative_to(ROOT).as_posix()):
            seen += 1
            wrong += [f"{documented.place}: {text}" for text in problems(documented, errors)]
    assert seen > 50
    assert wrong == []


GOOD = """Add.

Args:
    a, b: the summands,
        both finite.
    c: a third.

Returns:
    The sum: a + b + c.

Raises:
    ValueError: never.
"""


def told(text: str, *parameters: str) -> list[str]:
    return problems(Documented("here", text, list(parameters)), {"ValueError"})


def test_a_docstring_in_order_is_passed():
    assert told(GOOD, "a", "b", "c") == []


@pytest.mark.parametrize(
    "text, parameters, expected",
    [
        (GOOD, ("a", "b"), "'c' is none of"),
        ("Add.\n\nArgs:\n    a: one.\n    b: two.", ("b", "a"), "not in the order"),
        (GOOD.replace("ValueError", "ValeuError"), ("a", "b", "c"), "'ValeuError' is no exception"),
        (GOOD.replace("Args", "Arguments"), ("a", "b", "c"), "section 'Arguments'"),
        ("Add. Raises: ValueError: never.", (), "joined lines"),
        (
            "Add.\n\nRaises:\n    KeyError, IsADirectoryError: from opening. ValueError: never.",
            (),
            "joined lines",
        ),
        ("Add.\n\nReturns:\n", (), "Returns: empty"),
        ("Add.\n\nArgs:\n    a: one. b: the other.", ("a", "b"), "'b' stands behind another"),
    ],
)
def test_a_docstring_out_of_order_is_found(text: str, parameters: tuple[str, ...], expected: str) -> None:
    assert any(expected in line for line in told(text, *parameters)), told(text, *parameters)
