"""What the commands of `tf-d2 parity` share: options, how they fail, and how they show what was found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from parity.core.status import EXIT_NOT_COMPARABLE
from weights.errors import UserError

if TYPE_CHECKING:
    from parity.core.results import Comparison
    from parity.judge.waivers import Waiver


console = Console(stderr=False)

ProfileOption = Annotated[
    str,
    typer.Option(help="semantic (float64, 1e-12), strict (float32, TF32 off) or production (as shipped)."),
]
RunProfileOption = Annotated[
    str,
    typer.Option(
        "--profile",
        help="semantic (float64, 1e-12), strict (float32, TF32 off) or production (as shipped); detectron or "
        "maskrcnn-benchmark: strict, against a reference with that project's conventions.",
    ),
]
Annotations = Annotated[
    Path | None,
    typer.Option("--annotations", help="COCO annotations of the pictures: compare average precision too."),
]
WaiverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--waive",
        metavar="WAIVER ...",
        help="A stage known to differ: STAGE=REASON@YYYY-MM-DD. Listed in every report.",
    ),
]
KeepGoing = Annotated[
    bool, typer.Option("--keep-going", help="Judge every stage even when weights or preprocessing differ.")
]
OutputOption = Annotated[Path | None, typer.Option(help="Folder for report, traces and JSON.")]
DeviceOption = Annotated[str, typer.Option(help="cpu or gpu, for both sides.")]
InterpreterOption = Annotated[
    str | None, typer.Option("--torch-python", help="Python interpreter that has torch or detectron2.")
]
Conventions = Literal["detectron2", "detectron", "maskrcnn-benchmark"]
ConventionsOption = Annotated[
    Conventions | None,
    typer.Option(
        "--conventions", help="Whose arithmetic to follow; left out: that of the configuration's project."
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Print passing stages one by one too.")]


def fail(message: str) -> typer.Exit:
    """Print one line about what prevented a comparison; the exit that follows."""
    print(f"tf-d2 parity: {message}", file=sys.stderr)
    return typer.Exit(EXIT_NOT_COMPARABLE)


def read_waivers(texts: list[str] | None) -> list[Waiver]:
    """Waivers of the command line."""
    from parity.judge.waivers import parse_waiver

    return [parse_waiver(t) for t in texts or ()]


def open_annotations(path: Path | None) -> dict[str, Any] | None:
    """COCO annotations where some are given; what is wrong with the file ends the program."""
    if path is None:
        return None
    from parity.judge.dataset import read_annotations

    try:
        return read_annotations(path)
    except UserError as error:
        raise fail(str(error)) from error


def judge_dataset(comparisons: list[Comparison], truth: dict[str, Any] | None) -> None:
    """Add the average precision of both sides where annotations are given."""
    if truth is not None:
        from parity.judge.dataset import add_average_precision

        add_average_precision(comparisons, truth)


def finish(comparisons: list[Comparison], output: Path | None, full: bool) -> None:
    """Show the result, and write JSON, JUnit XML and the HTML report to ``output``."""
    from parity.core.results import to_json
    from parity.report import terminal
    from parity.report.junit import to_junit

    page = None
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "parity.json").write_text(json.dumps(to_json(comparisons), indent=1) + "\n")
        (output / "parity.xml").write_text(to_junit(comparisons))
        page = _report(comparisons, output)
    for comparison in comparisons:
        terminal.show(comparison, console, full)
    if output is not None:
        console.print(f"\nreport: {page or output / 'parity.json'}", markup=False)


def _report(comparisons: list[Comparison], output: Path) -> Path | None:
    try:
        from parity.report.html import write_report
    except ImportError as error:
        hint = f"no HTML report: {error}; install the extra: pip install 'tf-d2[parity]'"
        console.print(hint, style="yellow", markup=False)
        return None
    return write_report(comparisons, output / "report.html")
