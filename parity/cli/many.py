"""``tf-d2 parity`` on a folder, a list or a pattern of pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:  # imported by the functions that need them: --help needs none
    from parity.core.collection import Row, Summary
    from parity.running.many import Plan


def compare_many(made: Plan, pictures: list[str], output: Path, console: Console) -> Summary:
    """Run what is missing, show and write the summary of everything in the folder: parity.json, report.html."""
    from parity.core.collection import read_rows, summarize
    from parity.report import collection
    from parity.report.environment import side_lines
    from parity.running.many import run

    with console.status("starting") as status:
        told = _progress(len(pictures), lambda text: status.update(text))
        rows = run(made, pictures, output, done=told, progress=lambda text: status.update(escape(text)))
    summary = summarize(read_rows(rows))
    facts = output / "sides.json"
    sides: list[dict[str, Any]] = json.loads(facts.read_text()) if facts.exists() else []
    (output / "parity.json").write_text(json.dumps(summary.to_json() | {"sides": sides}, indent=1) + "\n")
    page = collection.write_report(summary, side_lines(sides), output / "report.html")
    collection.show(summary, console)
    console.print(f"\nreport: {page}", markup=False)
    return summary


def _progress(total: int, say: Callable[[str], None]) -> Callable[[int, Row], None]:
    begin, first = time.monotonic(), 0

    def told(count: int, row: Row) -> None:
        nonlocal first
        first = first or count - 1
        each = (time.monotonic() - begin) / (count - first)
        left = time.strftime("%H:%M:%S", time.gmtime(each * (total - count)))
        say(f"{count} of {total} pictures, {each:.1f} s each, about {left} left; last: {row['status']}")

    return told
