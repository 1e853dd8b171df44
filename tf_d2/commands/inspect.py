"""``tf-d2 inspect``: what a checkpoint holds, and how two differ, without running anything in them."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tf_d2.commands.options import PrefixOption
from tf_d2.commands.text_table import Column, print_table, styled, visible
from weights.errors import UsageError

if TYPE_CHECKING:  # imported by the functions that need them: --help does not
    from weights import Checkpoint
    from weights.summary import TensorDifference, TensorSummary


def register(app: typer.Typer) -> None:
    """Add ``inspect`` to the command line."""
    app.command("inspect", no_args_is_help=True)(inspect)


def inspect(
    files: Annotated[list[Path], typer.Argument(help="A checkpoint of any format; two with --diff.")],
    diff: Annotated[bool, typer.Option("--diff", help="Compare two checkpoints tensor by tensor.")] = False,
    ema: Annotated[bool, typer.Option("--ema", help="Take the averaged weights of a training file.")] = False,
    prefix: PrefixOption = None,
    only: Annotated[str, typer.Option("--filter", help="Only tensors whose name matches (regex).")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
) -> None:
    """Show what a checkpoint holds: format, architecture, training step, every tensor, and what is not
    weights.

    With --diff: which tensors of two files differ, and by how much; exit code 1 if any does.
    """
    from weights import CheckpointNotice, read_checkpoint

    if len(files) != (2 if diff else 1):
        raise UsageError(f"inspect takes one file, and two with --diff; got {len(files)}")
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise UsageError(f"--filter {only}: not a regular expression ({error})") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointNotice)  # shown with the other facts
        checkpoints = [read_checkpoint(path, ema=ema, prefix=prefix, several=True) for path in files]
    if diff:
        _show_differences(checkpoints[0], checkpoints[1], pattern, as_json)
    else:
        show(checkpoints[0], pattern, as_json)


def _fact(name: str, value: str) -> None:
    typer.echo(f"{styled(sys.stdout, name, 'bold')}: {visible(value)}")


# --- one file ---------------------------------------------------------------------------------------


def show(checkpoint: Checkpoint, pattern: re.Pattern[str], as_json: bool) -> None:
    """Print the summary of one checkpoint."""
    from weights.summary import summarize

    names = [name for name in checkpoint.state if pattern.search(name)]
    steps: Iterable[str] = names
    if sys.stderr.isatty() and not as_json:
        from rich.console import Console  # slow
        from rich.progress import track

        steps = track(names, "Reading tensors", console=Console(stderr=True), transient=True)
    rows = [summarize(name, checkpoint.state[name]) for name in steps]
    if as_json:
        typer.echo(json.dumps({**_facts(checkpoint), "tensors": [asdict(row) for row in rows]}, indent=1))
        return
    for name, value in _facts(checkpoint).items():
        if value not in (None, False, [], {}):
            _fact(name.replace("_", " "), _text(value))
    _print_tensors(rows)
    bad = sum(row.nan + row.inf for row in rows)
    if bad:
        typer.echo(styled(sys.stdout, f"{bad} NaN or infinite values.", "red"))


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    from weights import harmless_reason
    from weights.summary import guess_architecture

    arrays = checkpoint.state.values()
    ignored = {name: reason for name in checkpoint.state if (reason := harmless_reason(name))}
    return {
        "file": checkpoint.path,
        "format": checkpoint.format,
        "sha256": checkpoint.sha256,
        "architecture": guess_architecture(checkpoint.state),
        "author": checkpoint.author,
        "conventions": _conventions(checkpoint),
        "iteration": checkpoint.iteration,
        "tensor_count": len(arrays),
        "value_count": sum(array.size for array in arrays),
        "bytes": sum(array.nbytes for array in arrays),
        "names_need_matching": checkpoint.matching_heuristics,
        "how_it_was_read": checkpoint.notes,
        "has_config": checkpoint.config is not None,
        "metadata": checkpoint.metadata,
        "other_entries": checkpoint.ignored,
        "not_loaded_for_inference": ignored,
    }


# A detector's own layers, which a classifier's file (a backbone to start a training from) lacks.
_DETECTOR = re.compile(r"(^|\.)(cls_score|bbox_pred|objectness_logits)\.")


def _conventions(checkpoint: Checkpoint) -> str | None:
    """The conventions that a detector needs by the names in its file; None where they do not say."""
    known = {"Caffe2": "detectron", "maskrcnn-benchmark": "maskrcnn-benchmark"}
    is_detector = any(map(_DETECTOR.search, checkpoint.state))
    return known.get(checkpoint.author or "") if is_detector else None


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        shown = [f"{key} ({entry})" for key, entry in list(value.items())[:4]]
        return ", ".join(shown) + (f" and {len(value) - 4} more" if len(value) > 4 else "")
    return str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _print_tensors(rows: list[TensorSummary]) -> None:
    cells, styles = [], []
    for row in rows:
        shape = "x".join(map(str, row.shape)) or "scalar"
        numbers = map(_number, (row.minimum, row.maximum, row.mean))
        cells.append((row.name, shape, row.dtype, *numbers, str(row.nan + row.inf or "")))
        styles.append("red" if row.nan or row.inf else "dim" if row.ignored else "")
    names = [Column(title, folded=True) for title in ("tensor", "shape", "dtype")]
    numbers = [Column(title, right=True) for title in ("min", "max", "mean", "NaN")]
    print_table(sys.stdout, [*names, *numbers], cells, styles)


# --- two files --------------------------------------------------------------------------------------


def _show_differences(one: Checkpoint, other: Checkpoint, pattern: re.Pattern[str], as_json: bool) -> None:
    """Print how two checkpoints differ; exit code 1 if they do."""
    from weights.summary import differences

    rows = [row for row in differences(one.state, other.state) if pattern.search(row.name)]
    unlike = [row for row in rows if row.status != "same"]
    if as_json:
        record = {"a": one.path, "b": other.path, "same": len(rows) - len(unlike)}
        typer.echo(json.dumps({**record, "different": [asdict(row) for row in unlike]}, indent=1))
    else:
        _fact("A", f"{one.path} ({one.format})")
        _fact("B", f"{other.path} ({other.format})")
        if unlike:
            _print_differences(unlike)
        typer.echo(f"{len(rows) - len(unlike)} tensors equal bit by bit, {len(unlike)} differ.")
    if unlike:
        raise typer.Exit(1)


def _print_differences(rows: list[TensorDifference]) -> None:
    cells = [
        (row.name, row.status, _number(row.max_abs), _number(row.relative_l2), row.detail) for row in rows
    ]
    columns = (
        Column("tensor", folded=True),
        Column("differs in"),
        Column("largest", right=True),
        Column("relative L2", right=True),
        Column("detail", folded=True),
    )
    print_table(sys.stdout, columns, cells)
