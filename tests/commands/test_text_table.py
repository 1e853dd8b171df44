"""Plain tables, and what the commands that print them do without."""

import io
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from tf_d2.commands.text_table import Column, print_table

DEMO = Path(str(files("tf_d2"))) / "data" / "demo"
ROWS = [("a.weight", "yes", "1.5"), ("backbone.long.name.weight", "no", "22")]


@pytest.fixture
def printed(monkeypatch):
    """``printed(terminal, width, columns)``: the table as written to a terminal of that width, or to a file."""

    def write(terminal, width, *columns, styles=()):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.delenv("NO_COLOR", raising=False)
        out = io.StringIO()
        out.isatty = lambda: terminal
        print_table(out, columns, ROWS, styles)
        return out.getvalue()

    return write


def test_columns_are_as_wide_as_their_cells(printed):
    assert printed(False, 10, Column("name"), Column("runs"), Column("n", right=True)).splitlines() == [
        "name                       runs    n",
        "-------------------------  ----  ---",
        "a.weight                   yes   1.5",
        "backbone.long.name.weight  no     22",
    ]


def test_what_a_file_says_does_not_command_the_terminal():
    out = io.StringIO()
    print_table(out, [Column("name")], [("a\x1b[2Jb\n\udc80é",)])
    assert out.getvalue().splitlines()[2:] == ["a\\x1b[2Jb\\n\\udc80é"]


def test_a_narrow_terminal_folds_and_colours(printed):
    columns = Column("name", folded=True), Column("runs"), Column("n")
    assert printed(True, 24, *columns, styles=["", "red"]).splitlines() == [
        "\x1b[1mname           runs  n\x1b[0m",
        "\x1b[2m-------------  ----  ---\x1b[0m",
        "a.weight       yes   1.5",
        "\x1b[31mbackbone.long  no    22\x1b[0m",
        "\x1b[31m.name.weight\x1b[0m",
    ]


def test_the_zoo_is_listed_without_numpy_and_inspect_without_scipy():
    code = """
import sys
from tf_d2.cli import main
try:
    main(sys.argv[2:])
except SystemExit as end:
    assert end.code in (None, 0), end.code
print([name for name in sys.argv[1].split(",") if name in sys.modules], file=sys.stderr)
"""
    for unwanted, *words in (
        ("numpy,h5py,scipy,tensorflow,rich.console", "zoo", "list"),
        ("scipy,tensorflow,h5py,rich.console,rich.progress", "inspect", str(DEMO / "shapes.pkl")),
    ):
        done = subprocess.run([sys.executable, "-c", code, unwanted, *words], capture_output=True, text=True)
        assert done.stderr.strip() == "[]"
