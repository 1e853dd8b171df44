"""Tables of hundreds of rows as text, at once: rich's import and layout take longer than everything before them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import NamedTuple, TextIO

_CODES = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}
_NARROWEST = 8
_GAP = "  "


def terminal_width(out: TextIO) -> int | None:
    """Columns of the terminal that ``out`` is; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if out.isatty() else None


def visible(text: str) -> str:
    """``text`` with what a file's author could move the cursor or change colours with spelled out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def styled(out: TextIO, text: str, style: str) -> str:
    """``text`` in a style (red, green, yellow, dim, bold or nothing) where ``out`` is a terminal that shows colours."""
    code = _CODES.get(style, "")
    plain = not code or terminal_width(out) is None or os.environ.get("NO_COLOR")
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"


class Column(NamedTuple):
    """A title, and how the cells below it are printed.

    Attributes:
        right: aligned right.
        folded: broken over several lines where the terminal is too narrow, the widest columns most.
    """

    title: str
    right: bool = False
    folded: bool = False


def print_table(
    out: TextIO, columns: Sequence[Column], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()
) -> None:
    """Print rows in columns as wide as their longest cell, with a header.

    Args:
        styles: of each row, as in :func:`styled`.
    """
    header = [column.title for column in columns]
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    room = terminal_width(out)
    excess = 0 if room is None else sum(widths) + len(_GAP) * (len(widths) - 1) - room
    folded = [k for k, column in enumerate(columns) if column.folded]
    for k in sorted(folded, key=lambda k: -widths[k]):
        taken = max(min(excess, widths[k] - _NARROWEST), 0)
        widths[k] -= taken
        excess -= taken
    lines = []
    for k, row in enumerate([header, ["-" * width for width in widths], *rows]):
        style = "bold" if k == 0 else "dim" if k == 1 else styles[k - 2] if styles else ""
        lines += [styled(out, text, style) for text in _lines(row, widths, columns)]
    out.write("\n".join(lines) + "\n")


def _lines(row: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> list[str]:
    """One row; a cell longer than its column goes on below."""
    parts = [
        [cell[i : i + width] for i in range(0, len(cell), width)] or [""]
        for cell, width in zip(row, widths, strict=True)
    ]
    made = []
    for level in range(max(map(len, parts))):
        cells = (p[level] if level < len(p) else "" for p in parts)
        aligned = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells, widths, columns, strict=True)
        ]
        made.append(_GAP.join(aligned).rstrip())
    return made
