"""docs/batch.md: its queries give what they say, and its table is what its formula gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tf_d2.batch.formats import write_shard
from tf_d2.batch.rows import COLUMNS, failed, usable

DOCUMENT = Path(__file__).parents[1] / "docs" / "batch.md"


def snippet(word: str) -> str:
    """The only Python block with a word."""
    (found,) = [
        c for c in re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S) if word in c
    ]
    return found


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures in two shards: two objects of class 1 in one of them, a weak one of class 7, a broken picture."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    box, common = [0.0, 1.0, 2.0, 3.0], {"masks": None, "keypoints": None}
    two = usable("a.jpg", 4, 5) | {"boxes": [box, box], "scores": [0.9, 0.75], "classes": [1, 1], **common}
    weak = usable("b.jpg", 4, 5) | {"boxes": [box] * 2, "scores": [0.6, 0.25], "classes": [1, 7], **common}
    none = usable("c.jpg", 4, 5) | {"boxes": [], "scores": [], "classes": [], **common}
    write_shard("parquet", [two, failed("x.jpg", "not a picture")], folder / "part-00000.parquet", [])
    write_shard("parquet", [weak, none], folder / "part-00001.parquet", [])
    monkeypatch.chdir(tmp_path)


def test_pandas(results: None) -> None:
    pytest.importorskip("pandas", reason="needs the package pandas")
    scope: dict[str, Any] = {}
    exec(snippet("import pandas"), scope)
    assert scope["broken"].to_numpy().tolist() == [["x.jpg", "not a picture"]]
    assert scope["confident"].reset_index().to_numpy().tolist() == [[1, 3, 2]]
    assert len(scope["found"]) == 4


def test_duckdb(results: None) -> None:
    pytest.importorskip("duckdb", reason="needs the package duckdb")
    pytest.importorskip("pandas", reason="needs the package pandas")
    scope: dict[str, Any] = {}
    exec(snippet("import duckdb"), scope)
    assert scope["objects"].to_numpy().tolist() == [[1, 3, 2]]


def test_the_table_is_what_the_formula_gives() -> None:
    scope: dict[str, Any] = {}
    exec(snippet("def plan"), scope)
    table = re.findall(r"^\| ([\d,]+) \| (\d+) (?:of|with)[^|]* \| (.*) \|$", DOCUMENT.read_text(), re.M)
    assert len(table) == 7
    row_bytes = 1000 * int(re.findall(r"a row as (\d+) kB", DOCUMENT.read_text())[0])
    for pictures, machines, cells in table:
        rate, hours, read, written, each = map(float, cells.split(" | "))
        expected = scope["plan"](int(pictures.replace(",", "")), rate, int(machines), 200_000, row_bytes)
        for told, number in zip((hours, read, written, each), expected, strict=True):
            assert told == pytest.approx(number, rel=5e-3)


def test_every_column_is_described() -> None:
    described = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", DOCUMENT.read_text(), re.M)
    assert tuple(name.strip("`") for cell in described for name in cell.split(", ")) == COLUMNS
