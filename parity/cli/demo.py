"""``tf-d2 demo``: everything the project does, on a checkpoint and a picture that come with it. No network.

Lives here because it compares frameworks; the other steps are the ordinary commands, each in its own process.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from weights.errors import UserError

if TYPE_CHECKING:
    from parity.core.results import Comparison

console = Console()
EXIT_NOT_COMPARABLE = 2


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    output: Annotated[Path, typer.Option("--output", help="Folder for everything the demo writes.")] = Path(
        "tf-d2-demo"
    ),
    export: Annotated[bool, typer.Option(help="Also export for TensorFlow Serving.")] = True,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Write over what is in the folder; without it, that is an error."),
    ] = False,
) -> None:
    """Predict, draw, prove it equals detectron2, export: with the embedded checkpoint. Exit 1 if anything differs."""
    from parity.cli.common import finish
    from parity.core.demo import embedded_demo
    from parity.core.results import overall_exit_code
    from parity.report import terminal
    from parity.report.environment import environment_lines

    started = time.monotonic()
    data = embedded_demo()
    model = ["--config-file", str(data / "shapes.yaml"), "--weights", str(data / "shapes.pkl")]
    _check_empty(output, overwrite)
    output.mkdir(parents=True, exist_ok=True)

    console.rule("1. Detect: a Mask R-CNN trained in detectron2, run in TensorFlow")
    picture = data / "shapes.png"
    shown = ["--confidence-threshold", "0.5", "--class-names", str(data / "classes.txt")]
    _command("predict", *model, "--input", str(picture), "--output", str(output), *shown)
    console.print(f"drawn: {output / 'shapes.detections.png'}", markup=False)

    target = output / "serving" / "shapes"
    exporting = _start("export", *model, "--output", str(target), "--overwrite") if export else None

    console.rule("2. Prove it: stage by stage against what detectron2 recorded")
    recorded = data / "shapes_detectron2.h5"
    comparisons = _compare(str(recorded), "tf", output / "parity", data)
    finish(comparisons, output / "parity", full=True)

    if importlib.util.find_spec("torch") is not None:
        console.rule("3. Prove it again: against PyTorch, running now")
        # The candidate runs again: on the same input it is compared only with what it was fed by.
        live = _compare("torch", "tf", output / "parity-torch", data)
        for comparison in live:
            terminal.show(comparison, console)
        comparisons += live
    else:
        console.rule("3. Against PyTorch, running now: left out, torch is not installed")
    if exporting is not None:
        console.rule("4. Export for TensorFlow Serving")
        _finish(exporting)

    same = overall_exit_code(comparisons) == 0
    console.rule()
    verdict = "[green]the same detections as detectron2" if same else "[bold red]NOT the same as detectron2"
    console.print(f"{verdict}[/] ({time.monotonic() - started:.0f} s). Results in {escape(str(output))}/")
    for line in environment_lines(comparisons):
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(overall_exit_code(comparisons))


def _check_empty(output: Path, overwrite: bool) -> None:
    """A usage error where the folder cannot be written to, or holds something that is not to be overwritten."""
    if output.exists() and not output.is_dir():
        raise typer.BadParameter(f"{output} is a file; give a folder", param_hint="--output")
    held = sorted(p.name for p in output.iterdir()) if output.exists() else []
    if held and not overwrite:
        raise typer.BadParameter(
            f"{output} is not empty ({', '.join(held[:3])}); name another folder with --output, or write over it with "
            "--overwrite",
            param_hint="--output",
        )


def _command(*words: str) -> None:
    """Run ``tf-d2`` in a process of its own; its failure is this command's."""
    code = subprocess.run([sys.executable, "-m", "tf_d2.cli", *words]).returncode
    if code:
        raise typer.Exit(code)


def _start(*words: str) -> subprocess.Popen[str]:
    """Start ``tf-d2`` beside what follows; :func:`_finish` shows what it said."""
    command = [sys.executable, "-m", "tf_d2.cli", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    out, err = process.communicate()
    print(out, end="")
    if process.returncode:
        print(err, end="", file=sys.stderr)
        raise typer.Exit(process.returncode)


def _compare(reference: str, candidate: str, output: Path, data: Path) -> list[Comparison]:
    from parity.running.runner import run

    try:
        with console.status("starting") as status:
            return run(
                data / "shapes.yaml",
                data / "shapes.pkl",
                [data / "shapes.png"],
                output=output,
                reference=reference,
                candidates=(candidate,),
                progress=lambda text: status.update(escape(text)),
            )
    except UserError as error:
        console.print(f"could not compare: {error}", style="bold red", markup=False)
        raise typer.Exit(EXIT_NOT_COMPARABLE) from error
