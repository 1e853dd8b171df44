"""Tables of hundreds of rows as text, at once: laying one out with rich takes longer than everything before it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

_CODES = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}
_NARROWEST = 8
_GAP = "  "


def print_table(
    console: Console,
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
        folded: columns that are broken over several lines where the terminal is too narrow, the first ones most.
        styles: of each row (red, green, yellow, dim or nothing), shown on terminals only.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - console.width
    for column in sorted(folded, key=lambda c: -widths[c]):
        taken = max(min(excess, widths[column] - _NARROWEST), 0) if console.is_terminal else 0
        widths[column] -= taken
        excess -= taken
    coloured = console.is_terminal and not console.no_color
    lines = []
    for k, row in enumerate([header, ["-" * width for width in widths], *rows]):
        style = "bold" if k == 0 else "dim" if k == 1 else styles[k - 2] if styles else ""
        code = _CODES.get(style, "") if coloured else ""
        for text in _lines(row, widths, right):
            lines.append(f"\x1b[{code}m{text}\x1b[0m" if code else text)
    console.file.write("\n".join(lines) + "\n")


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
