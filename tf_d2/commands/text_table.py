"""Tables of hundreds of rows as text, at once: rich's import and layout take longer than everything before them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import TextIO

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


def print_table(
    out: TextIO,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[int] = (),
    folded: Sequence[int] = (),
    styles: Sequence[str] = (),
) -> None:
    """Print rows in columns as wide as their longest cell, with a header.

    Args:
        right: columns that are aligned right.
        folded: columns that are broken over several lines where the terminal is too narrow, the widest ones most.
        styles: of each row, as in :func:`styled`.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    room = terminal_width(out)
    excess = 0 if room is None else sum(widths) + len(_GAP) * (len(widths) - 1) - room
    for column in sorted(folded, key=lambda c: -widths[c]):
        taken = max(min(excess, widths[column] - _NARROWEST), 0)
        widths[column] -= taken
        excess -= taken
    lines = []
    for k, row in enumerate([header, ["-" * width for width in widths], *rows]):
        style = "bold" if k == 0 else "dim" if k == 1 else styles[k - 2] if styles else ""
        lines += [styled(out, text, style) for text in _lines(row, widths, right)]
    out.write("\n".join(lines) + "\n")


def _lines(row: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> list[str]:
    """One row; a cell longer than its column goes on below."""
    parts = [
        [cell[i : i + width] for i in range(0, len(cell), width)] or [""]
        for cell, width in zip(row, widths, strict=True)
    ]
    made = []
    for level in range(max(map(len, parts))):
        cells = (p[level] if level < len(p) else "" for p in parts)
        aligned = [
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        made.append(_GAP.join(aligned).rstrip())
    return made
