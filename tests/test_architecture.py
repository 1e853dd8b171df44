"""Every file and name that ARCHITECTURE.md and CONTRIBUTING.md speak of is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import weights

ROOT = Path(weights.__file__).parents[1]
PAGES = ("ARCHITECTURE.md", "CONTRIBUTING.md")
# Roots of paths that are written short, as the text around them says.
HOMES = (
    "",
    "tf_d2/",
    "tf_d2/config/",
    "tf_d2/serving/",
    "parity/",
    "parity/core/",
    "parity/core/units/",
    "parity/judge/",
)


def marked(page: str) -> list[str]:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    return re.findall(r"`([^`\n]+)`", text)


def paths(page: str) -> list[str]:
    found = [m for m in marked(page) if re.fullmatch(r"[\w./]+(\.py|\.md|/)", m) and "<" not in m]
    assert len(found) > 2 or page != "ARCHITECTURE.md"
    return found


@pytest.mark.parametrize("page", PAGES)
def test_files_are_there(page):
    assert [p for p in paths(page) if not any((ROOT / home / p).exists() for home in HOMES)] == []


@cache
def defined() -> frozenset[str]:
    """Every function, class, constant, attribute and word in quotes of the packages."""
    found: set[str] = set()
    for package in ("weights", "tf_d2", "parity", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    found.add(node.name)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    found.add(node.id)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
                elif isinstance(node, ast.Attribute):
                    found.add(node.attr)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES)
def test_names_are_there(page):
    names = [m for m in marked(page) if re.fullmatch(r"_?[A-Z]\w*[a-z_]\w*|[a-z]+_\w+", m)]
    assert len(names) > 10 or page != "ARCHITECTURE.md"
    assert sorted({n for n in names if n not in defined() and not (ROOT / n).exists()}) == []


def test_a_name_that_is_gone_is_seen():
    assert "make_layer" in defined() and "_".join(["make", "no", "layer"]) not in defined()
