"""``tf-d2 parity``: compare two implementations of a model, or judge recorded traces again."""

from __future__ import annotations

import inspect
import json
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from parity.cli import bench as bench_cli
from parity.cli.groups import ParityGroup
from parity.core.status import EXIT_NOT_COMPARABLE
from weights.errors import UserError

if TYPE_CHECKING:  # imported by the functions that need them: --help needs none
    from parity.core.results import Comparison
    from parity.judge.waivers import Waiver

HELP = """Compare a model in TensorFlow with the same model in PyTorch, stage by stage.

Both sides run in processes of their own, on the same weights and pictures; every stage is compared end to
end and once more on the reference's input, so that the first stage that differs is named. Exit status: 0
the same, 1 different, 2 could not be compared, 3 not deterministic.

Examples:

  tf-d2 parity run --config-file mask_rcnn.yaml --weights model.pkl --input street.jpg --output report

  tf-d2 parity rejudge report/reference.h5 report/candidate.h5 --profile semantic

  tf-d2 parity run --config-file mask_rcnn.yaml --weights model.pkl --input pictures/ --output overnight

  tf-d2 parity ops --output report

Without a command, `run` is meant: tf-d2 parity --config-file ...
"""

console = Console(stderr=False)

ProfileOption = Annotated[
    str,
    typer.Option(help="semantic (float64, 1e-12), strict (float32, TF32 off) or production (as shipped)."),
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
Full = Annotated[bool, typer.Option("--full", help="Print passing stages one by one too.")]


def fail(message: str) -> typer.Exit:
    """Print one line about what prevented a comparison; the exit that follows."""
    print(f"tf-d2 parity: {message}", file=sys.stderr)
    return typer.Exit(EXIT_NOT_COMPARABLE)


def register(app: typer.Typer) -> None:
    """Add ``parity`` to a command line application."""
    group = typer.Typer(cls=ParityGroup, help=HELP, add_completion=False, rich_markup_mode=None)
    group.command("run")(compare_models)
    group.command("ops")(ops)
    group.command("bisect")(bisect)
    group.command("rejudge")(rejudge)
    group.command("mutations")(mutations)
    group.command("list-mutations")(list_mutations)
    app.add_typer(group, name="parity")
    bench_cli.register(app)


def compare_models(
    config_file: Annotated[
        str | None, typer.Option("--config-file", help="detectron2 YAML or the name of a published model.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint in any format tf-d2 reads.")] = None,
    input: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="PICTURE ...",
            help="Picture; may be repeated. A folder, a .txt list or a pattern: very many pictures, one after the "
            "other; a run that was stopped goes on.",
        ),
    ] = None,
    output: OutputOption = None,
    reference: Annotated[
        str, typer.Option(help="auto, detectron2, torch, tf, or a recorded trace (.h5).")
    ] = "auto",
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIDE ...",
            help="tf, tf-eager, savedmodel:DIR, serving:http://HOST:8501/MODEL (REST), "
            "serving:grpc://HOST:8500/MODEL or a trace; may be repeated.",
        ),
    ] = None,
    profile: ProfileOption = "strict",
    device: DeviceOption = "cpu",
    torch_python: InterpreterOption = None,
    threads: Annotated[int, typer.Option(help="Threads per side; 0 = all cores.")] = 0,
    noise: Annotated[
        str,
        typer.Option(
            help="How the reference's own noise is measured: truth (float64, threads), threads or none. "
            "Without truth the limits are estimates, which rounding alone may exceed."
        ),
    ] = "truth",
    repeat: Annotated[int, typer.Option(help="Runs per side that must agree bit for bit.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds a side may take.")] = 1800.0,
    proposals: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE ...", help="Boxes (.npy) per picture, for Fast R-CNN models."),
    ] = None,
    opts: Annotated[
        list[str] | None,
        typer.Option("--opts", metavar="KEY VALUE ...", help="Overrides, as in detectron2."),
    ] = None,
    ignore_keys: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-keys",
            metavar="KEY ...",
            help="Keys that detectron2 does not have and that change nothing.",
        ),
    ] = None,
    ignore_tensors: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-tensors",
            metavar="PATTERN ...",
            help="Tensors of the checkpoint that the model has no place for.",
        ),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", help="Which of several models in the checkpoint.")
    ] = None,
    annotations: Annotations = None,
    waive: WaiverOption = None,
    keep_going: KeepGoing = False,
    full: Full = False,
    only_ops: Annotated[bool, typer.Option("--ops", hidden=True, help="As the command ops.")] = False,
    narrow: Annotated[
        bool, typer.Option("--bisect", help="Narrow the first bad stage to a module and write a script.")
    ] = False,
    mutate: Annotated[
        str, typer.Option(help="Plant a named bug in the candidate, to see the harness find it.")
    ] = "",
) -> None:
    """Compare models on pictures: both sides run, then every stage is judged."""
    from parity.core.results import overall_exit_code

    if only_ops:
        run_ops(output, torch_python, device, full)
        return
    if config_file is None or not input or output is None:
        raise fail("needed: --config-file, --input and --output (or --ops, or the sub-command rejudge)")
    options = {
        "reference": reference,
        "candidates": tuple(candidate or ("tf",)),
        "profile": profile,
        "device": device,
        "torch_python": torch_python,
        "threads": threads,
        "noise": noise,
        "repeat": repeat,
        "timeout": timeout,
        "proposals": tuple(proposals or ()),
        "opts": split_opts(opts),
        "early_stop": not keep_going,
        "mutate": mutate,
        "left_out": {
            "ignore_keys": list(ignore_keys or ()),
            "ignore_tensors": list(ignore_tensors or ()),
            "prefix": prefix,
        },
    }
    if _are_many(input):
        single = {"--annotations": annotations, "--proposals": proposals, "--bisect": narrow}
        raise typer.Exit(_run_many(config_file, weights, input, output, waive, options, single))
    truth = open_annotations(annotations)  # before the long part
    comparisons = _run(config_file, weights, input, output, waive, options)
    judge_dataset(comparisons, truth)
    finish(comparisons, output, full)
    if narrow:
        _bisect(comparisons, output, torch_python, mutate)
    raise typer.Exit(overall_exit_code(comparisons))


def ops(
    output: OutputOption = None,
    device: DeviceOption = "cpu",
    torch_python: InterpreterOption = None,
    full: Full = False,
) -> None:
    """Compare single operations on generated inputs."""
    run_ops(output, torch_python, device, full)


def bisect(**options: Any) -> None:
    """Compare models on pictures, then narrow the first bad stage to a module and write a script."""
    compare_models(**options, narrow=True)


def _options_of(function: Callable[..., None], without: Collection[str]) -> inspect.Signature:
    """What typer makes options of, where a command takes nearly all of another's."""
    signature = inspect.signature(function, eval_str=True)
    return signature.replace(parameters=[p for n, p in signature.parameters.items() if n not in without])


bisect.__signature__ = _options_of(compare_models, ("only_ops", "narrow"))  # type: ignore[attr-defined]
bisect.__annotations__ = {p.name: p.annotation for p in bisect.__signature__.parameters.values()}  # type: ignore[attr-defined]


def _are_many(inputs: list[str]) -> bool:
    from parity.running.many import is_collection

    return any(map(is_collection, inputs))


def _run_many(
    config: str,
    weights: str | None,
    inputs: list[str],
    output: Path,
    waive: list[str] | None,
    options: dict[str, Any],
    single: dict[str, Any],
) -> int:
    """A folder, list or pattern of pictures; the exit status."""
    from parity.cli.many import compare_many
    from parity.running.many import pictures_of, plan
    from parity.running.sides import Setup, absolute_path

    given = [name for name, value in single.items() if value]
    if given or len(options["candidates"]) > 1:
        text = ", ".join(given) or "several candidates"
        raise fail(
            f"{text}: only with pictures that are named one by one, not with a folder, list or pattern"
        )
    common = ("profile", "device", "threads", "opts", "repeat", "timeout", "left_out")
    try:
        pictures = pictures_of(inputs)
        setup = Setup(
            absolute_path(config),
            None if weights is None else absolute_path(weights),
            pictures[:1],
            **{name: options[name] for name in common},
        )
        made = plan(
            setup,
            options["reference"],
            options["candidates"][0],
            torch_python=options["torch_python"],
            noise=options["noise"],
            mutate=options["mutate"],
            early_stop=options["early_stop"],
            waivers=tuple(read_waivers(waive)),
        )
        return compare_many(made, pictures, output, console).exit_code
    except (UserError, OSError) as error:
        raise fail(str(error)) from error


def split_opts(opts: Sequence[str] | None) -> list[str]:
    """``[KEY, VALUE, ...]``; an odd number of words is an error."""
    words = list(opts or ())
    if len(words) % 2:
        raise fail(f"--opts takes pairs KEY VALUE, got {len(words)} words: {' '.join(words)}")
    return words


def _run(
    config: str,
    weights: str | None,
    images: list[str],
    output: Path,
    waive: list[str] | None,
    options: dict[str, Any],
) -> list[Comparison]:
    from parity.running.runner import run

    missing = [i for i in images if not Path(i).is_file()]
    if missing:
        raise fail(f"no such picture: {', '.join(missing)}")
    with console.status("starting") as status:
        try:
            return run(
                config,
                weights,
                images,
                output=output,
                waivers=read_waivers(waive),
                progress=lambda text: status.update(escape(text)),
                **options,
            )
        except (UserError, OSError) as error:
            raise fail(str(error)) from error


def read_waivers(texts: list[str] | None) -> list[Waiver]:
    """Waivers of the command line."""
    from parity.judge.waivers import parse_waiver

    return [parse_waiver(t) for t in texts or ()]


def rejudge(
    reference: Annotated[str, typer.Argument(help="Trace of the reference.")],
    candidate: Annotated[str, typer.Argument(help="Trace of the candidate.")],
    profile: ProfileOption = "strict",
    noise: Annotated[
        list[str] | None, typer.Option(help="Further traces of the reference that show its own noise.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report; left out: terminal only.")
    ] = None,
    scope: Annotated[str, typer.Option(help="all stages, or outputs only.")] = "",
    annotations: Annotations = None,
    waive: WaiverOption = None,
    keep_going: KeepGoing = False,
    full: Full = False,
) -> None:
    """Judge two recorded traces again, without running anything."""
    from parity.core.results import overall_exit_code
    from parity.judge.judge import compare

    truth = open_annotations(annotations)
    try:
        comparisons = compare(
            reference,
            candidate,
            profile=profile,
            noise=noise or (),
            scope=scope,
            waivers=read_waivers(waive),
            early_stop=not keep_going,
        )
    except (UserError, OSError) as error:
        raise fail(str(error)) from error
    judge_dataset(comparisons, truth)
    words = ["tf-d2", "parity", "rejudge", reference, candidate, "--profile", profile]
    words += [w for n in noise or () for w in ("--noise", n)] + [
        w for t in waive or () for w in ("--waive", t)
    ]
    words += ["--annotations", str(annotations)] if annotations else []
    words += (["--scope", scope] if scope else []) + (["--keep-going"] if keep_going else [])
    for comparison in comparisons:
        comparison.command = shlex.join(words)
    finish(comparisons, output, full)
    raise typer.Exit(overall_exit_code(comparisons))


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


def run_ops(output: Path | None, torch_python: str | None, device: str, full: bool) -> None:
    """``--ops``: every operation against PyTorch on generated inputs."""
    from parity.running.ops import run_ops as compare_ops

    try:
        with console.status("running the operations on both sides"):
            comparison = compare_ops(output=output, torch_python=torch_python, device=device)
    except UserError as error:
        raise fail(str(error)) from error
    finish([comparison], output, full)
    raise typer.Exit(comparison.exit_code)


def _bisect(comparisons: list[Comparison], output: Path, torch_python: str | None, mutate: str) -> None:
    from parity.running.bisect import bisect

    try:
        found = bisect(comparisons, output, torch_python, mutate)
    except (UserError, ValueError, OSError) as error:  # the report is there already
        console.print(f"bisect: {error}", style="yellow", markup=False)
        return
    console.print(found, highlight=False, markup=False)


def list_mutations() -> None:
    """Names of the bugs that --mutate can plant."""
    from parity.selftest.mutations import MUTATIONS

    for mutation in MUTATIONS:
        typer.echo(f"{mutation.name:28} {' or '.join(mutation.blame):44} {mutation.what}")


def mutations(
    output: Annotated[Path, typer.Option(help="Folder for the kill table and its working files.")],
    only: Annotated[list[str] | None, typer.Option(help="Bug to plant; may be repeated.")] = None,
    torch_python: Annotated[
        str | None, typer.Option("--torch-python", help="Python interpreter that has torch.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads per side.")] = 1,
) -> None:
    """Plant known bugs one by one and see that each is found at the stage where it was planted."""
    from parity.selftest import mutation_run

    try:
        outcomes = mutation_run.run_mutations(
            output,
            only or (),
            torch_python,
            threads,
            progress=lambda t: console.print(t, highlight=False, markup=False),
        )
    except UserError as error:
        raise fail(str(error)) from error
    console.print(f"table: {mutation_run.write_results(outcomes, output)}", markup=False)
    raise typer.Exit(0 if all(o.blamed for o in outcomes) else 1)
