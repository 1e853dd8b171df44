"""``tf-d2 export``: a folder that a stock TensorFlow Serving loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tf_d2.commands.options import (
    ConfigOption,
    ConventionsOption,
    IgnoreKeysOption,
    IgnoreTensorsOption,
    NonfiniteOption,
    OptsArgument,
    OverwriteOption,
    PrefixOption,
    WeightsOption,
    checked_opts,
    import_tensorflow,
    native_notices_hidden,
    terminated_by_exception,
)
from tf_d2.export_folder import check_target
from tf_d2.serving_contract import BadImages, BoxFormat, ExportOptions, Masks, Precision, SemSeg

DEFAULTS = ExportOptions()


def register(app: typer.Typer) -> None:
    """Add ``export`` to the command line."""
    app.command("export")(export)


def export(
    config_file: ConfigOption,
    output: Annotated[Path, typer.Option("--output", help="Folder of the model; versions go below it.")],
    weights: WeightsOption = None,
    version: Annotated[int, typer.Option(help="Version number, a folder of its own.")] = 1,
    name: Annotated[
        str | None, typer.Option(help="Name on the server; left out: that of the folder.")
    ] = None,
    overwrite: OverwriteOption = False,
    max_detections: Annotated[
        int | None, typer.Option(help="Rows per image; left out: what the configuration detects at most.")
    ] = None,
    masks: Annotated[
        Masks,
        typer.Option(help="roi: probabilities in the box; full: maps of the image; png: as files."),
    ] = DEFAULTS.masks,
    sem_seg: Annotated[
        SemSeg, typer.Option(help="labels: best class per pixel; logits: all classes.")
    ] = DEFAULTS.sem_seg,
    precision: Annotated[
        Precision,
        typer.Option(
            help="dtype of the network; bfloat16 finds nearly the same objects, not the same numbers."
        ),
    ] = DEFAULTS.precision,
    box_format: Annotated[
        BoxFormat,
        typer.Option(help="xyxy: pixels; tf: y1 x1 y2 x2 as fractions of the image, pixels beside them."),
    ] = DEFAULTS.box_format,
    pad_independent: Annotated[
        bool, typer.Option("--pad-independent", help="Answers do not depend on the rest of the batch.")
    ] = False,
    bad_images: Annotated[
        BadImages, typer.Option(help="status: answer the others; error: fail the request.")
    ] = DEFAULTS.bad_images,
    max_image_pixels: Annotated[
        int | None, typer.Option(help="Refuse larger images; left out: 50 million, fewer for large maps.")
    ] = None,
    step_pixels: Annotated[
        int,
        typer.Option(help="Pixels of a batch that go through the network together; more pay on a GPU only."),
    ] = DEFAULTS.step_pixels,
    allow_nonfinite: NonfiniteOption = False,
    ignore_keys: IgnoreKeysOption = None,
    ignore_tensors: IgnoreTensorsOption = None,
    prefix: PrefixOption = None,
    conventions: ConventionsOption = None,
    opts: OptsArgument = None,
) -> None:
    """Write a SavedModel with everything a server needs. A failed export leaves nothing behind."""
    from rich.console import Console

    from tf_d2.config.parts.conventions import with_conventions

    words = with_conventions(checked_opts(opts), conventions)
    target = output.absolute()
    check_target(target, version, target.name if name is None else name, overwrite)
    import_tensorflow()
    from tf_d2.serving import export as write

    with terminated_by_exception(), native_notices_hidden():
        report = write(
            config_file,
            weights,
            output,
            version=version,
            name=name,
            overwrite=overwrite,
            max_detections=max_detections,
            masks=masks,
            sem_seg=sem_seg,
            precision=precision,
            box_format=box_format,
            pad_independent=pad_independent,
            bad_images=bad_images,
            max_image_pixels=max_image_pixels,
            step_pixels=step_pixels,
            opts=words,
            allow_nonfinite=allow_nonfinite,
            ignore_keys=ignore_keys or (),
            ignore_tensors=ignore_tensors or (),
            prefix=prefix,
        )
    Console().print(_table(report))


def _table(report: Any) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, show_edge=False, pad_edge=False)
    for label, value in (
        ("written", escape(str(report.path))),
        ("model", f"{report.name} version {report.version}"),
        ("size", f"{report.size / 1e6:.1f} MB"),
        ("load", f"{report.load_seconds:.2f} s"),
        ("first request", f"{report.first_request_seconds:.2f} s"),
        ("second request", f"{report.second_request_seconds:.2f} s"),
        ("rows per image", str(report.max_detections)),
        ("largest image", f"{report.max_image_pixels:,} pixels"),
        ("ops", f"{len(report.ops)} kinds, all stock"),
    ):
        table.add_row(label, value)
    return table
