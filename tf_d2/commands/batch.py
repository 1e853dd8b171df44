"""``tf-d2 batch``: a folder of pictures through an exported model; ``tf-d2 batch merge``: one COCO results file."""

from __future__ import annotations

import subprocess
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tf_d2.commands.options import choose_kernels, import_tensorflow, terminated_by_exception
from weights.errors import UsageError

if TYPE_CHECKING:
    from tf_d2.batch.run import Folder, Summary

_SAY_EVERY = 30.0  # seconds, where there is no terminal to draw a bar on


class _FormatChoice(str, Enum):
    parquet = "parquet"
    jsonl = "jsonl"
    tfrecord = "tfrecord"
    coco = "coco"


_HELP = """Detect on many pictures with an exported model, in shards that can be continued after any interruption.

Run the same command again to do what is missing; run it twice at once to use two processes. A picture that cannot be
used is a row with the reason in FAILURE and no detections.

Example: tf-d2 batch --model serving/my_model --input photos/ --output results
"""


def register(app: typer.Typer) -> None:
    """Add ``batch`` and ``batch merge`` to the command line."""
    group = typer.Typer(help=_HELP, invoke_without_command=True, add_completion=False, rich_markup_mode=None)
    group.callback()(batch)
    group.command("merge")(merge)
    app.add_typer(group, name="batch")


def batch(
    context: typer.Context,
    model: Annotated[Path | None, typer.Option(help="Folder that tf-d2 export wrote.")] = None,
    input: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="FOLDER ...",
            help="Folders, patterns, lists (.txt), TFRecord files or pictures.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the shards.")] = None,
    format: Annotated[_FormatChoice, typer.Option(help="Kind of the shards.")] = _FormatChoice.parquet,
    shard_size: Annotated[int, typer.Option(min=1, help="Pictures per shard.")] = 256,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    max_failures: Annotated[
        int | None, typer.Option(min=0, help="Stop when more pictures than this failed.")
    ] = None,
) -> None:
    if context.invoked_subcommand is not None:
        return
    wanted = {"--model": model, "--input": input, "--output": output}
    missing = [name for name, value in wanted.items() if not value]
    if missing:
        raise UsageError(f"batch needs {', '.join(missing)} (tf-d2 batch --help)")
    assert model is not None and input and output is not None
    if format is _FormatChoice.parquet:
        _need_pyarrow()
    choose_kernels()
    import_tensorflow()
    from tf_d2.batch import run as work
    from tf_d2.batch.model import Detector

    with terminated_by_exception():
        folder = work.prepare(model, input, output, work.Options(format.value, shard_size))
        others = [_another(sys.argv[1:]) for _ in range(processes - 1)]
        with _Shown(folder) as shown:
            summary = work.run(folder, Detector(model), max_failures=max_failures, progress=shown.update)
        codes = [process.wait() for process in others]
    print(_said(summary, output))
    if any(codes):
        raise typer.Exit(max(codes))


def _need_pyarrow() -> None:
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise UsageError(
            "Parquet needs pyarrow: pip install 'tf-d2[batch]', or choose --format jsonl, tfrecord or coco"
        )


def _another(arguments: list[str]) -> subprocess.Popen[bytes]:
    """The same command in one more process, which does not start further ones and says nothing."""
    kept, skip = [], False
    for word in arguments:
        if skip:
            skip = False
        elif word == "--processes":
            skip = True
        elif not word.startswith("--processes="):
            kept.append(word)
    return subprocess.Popen([sys.executable, "-m", "tf_d2.cli", *kept], stdout=subprocess.DEVNULL)


class _Shown:
    """Pictures per second and time left: a bar on a terminal, else a line from time to time."""

    def __init__(self, folder: Folder) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("detecting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("", total=len(folder.index), rate="")
        self._lines, self._total = not console.is_terminal, len(folder.index)
        self._begin = self._said = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> _Shown:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, summary: Summary) -> None:
        """Show where the work stands."""
        if self._first is None:
            self._first, self._begin = summary.pictures, time.monotonic()
        seconds = max(time.monotonic() - self._begin, 1e-9)
        rate = (summary.pictures - self._first) / seconds
        self._bar.update(self._task, completed=summary.pictures, rate=f"{rate:.1f} pictures/s")
        if self._lines and time.monotonic() - self._said > _SAY_EVERY and rate > 0:
            left = (self._total - summary.pictures) / rate
            self._said = time.monotonic()
            print(
                f"{summary.pictures} of {self._total} pictures, {rate:.1f} per second, {left:.0f} s left, "
                f"{summary.failures} failed",
                file=sys.stderr,
            )


def _said(summary: Summary, output: Path) -> str:
    parts = [f"{summary.pictures} pictures, {summary.detections} detections, {summary.failures} failed"]
    if summary.examples:
        parts.append(f"for instance {summary.examples[0]}")
    if summary.done_before:
        parts.append(f"{summary.done_before} of {summary.shards} shards were there before")
    if summary.busy_elsewhere:
        parts.append(f"{summary.busy_elsewhere} shards are another process's")
    return f"{output}: {'; '.join(parts)}"


def merge(
    folder: Annotated[Path, typer.Argument(help="What tf-d2 batch wrote.")],
    output: Annotated[Path, typer.Option("--output", help="JSON file in COCO's result format.")],
    annotations: Annotated[
        Path | None, typer.Option(help="COCO annotations that give each file name its image number.")
    ] = None,
) -> None:
    """Make one COCO results file of all shards."""
    from tf_d2.batch.merge import merge as join

    written, failures = join(folder, output, annotations)
    print(f"{output}: {written} detections; {failures} pictures failed and have none")
