"""``tf-d2 parity``: compare two implementations of a model, or judge recorded traces again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.markup import escape

from parity.cli import bench as bench_cli
from parity.cli.common import (
    Annotations,
    Conventions,
    ConventionsOption,
    DeviceOption,
    Full,
    InterpreterOption,
    KeepGoing,
    OutputOption,
    RunProfileOption,
    WaiverOption,
    console,
    fail,
    finish,
    judge_dataset,
    open_annotations,
    read_waivers,
)
from parity.cli.groups import ParityGroup
from parity.cli.planted import list_mutations, mutations
from parity.cli.rejudge import rejudge
from weights.errors import UserError

if TYPE_CHECKING:
    from parity.core.results import Comparison
    from parity.judge.waivers import Waiver


_HELP = """Compare a model in TensorFlow with the same model in PyTorch, stage by stage.

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


def register(app: typer.Typer) -> None:
    """Add ``parity`` to a command line application."""
    group = typer.Typer(cls=ParityGroup, help=_HELP, add_completion=False, rich_markup_mode=None)
    group.command("run")(_compare_models)
    group.command("ops")(ops)
    group.command("bisect")(bisect)
    group.command("rejudge")(rejudge)
    group.command("mutations")(mutations)
    group.command("list-mutations")(list_mutations)
    app.add_typer(group, name="parity")
    bench_cli.register(app)


def _compare_models(
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
    profile: RunProfileOption = "strict",
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
    conventions: ConventionsOption = None,
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
    limits, whose = _profile_of(profile, conventions)
    options = {
        "config": config_file,
        "weights": weights,
        "reference": reference,
        "candidates": tuple(candidate or ("tf",)),
        "profile": limits,
        "device": device,
        "torch_python": torch_python,
        "threads": threads,
        "noise": noise,
        "repeat": repeat,
        "timeout": timeout,
        "proposals": tuple(proposals or ()),
        "opts": _with_conventions(_split_opts(opts), whose),
        "waivers": _waivers(waive),
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
        raise typer.Exit(_run_many(input, output, options, single))
    truth = open_annotations(annotations)  # before the long part
    comparisons = _run(input, output, options)
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
    _compare_models(**options, narrow=True)


def _options_of(function: Callable[..., None], without: Collection[str]) -> inspect.Signature:
    """What typer makes options of, where a command takes nearly all of another's."""
    signature = inspect.signature(function, eval_str=True)
    return signature.replace(parameters=[p for n, p in signature.parameters.items() if n not in without])


bisect.__signature__ = _options_of(_compare_models, ("only_ops", "narrow"))  # type: ignore[attr-defined]
bisect.__annotations__ = {p.name: p.annotation for p in bisect.__signature__.parameters.values()}  # type: ignore[attr-defined]


def _are_many(inputs: list[str]) -> bool:
    from parity.running.many import is_collection

    return any(map(is_collection, inputs))


def _waivers(texts: list[str] | None) -> list[Waiver]:
    try:
        return read_waivers(texts)
    except UserError as error:
        raise fail(str(error)) from error


def _run_many(inputs: list[str], output: Path, options: dict[str, Any], single: dict[str, Any]) -> int:
    """A folder, list or pattern of pictures; the exit status. ``options``: of ``parity.run``; ``single``: those of
    the command line that are not for many pictures."""
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
        weights = options["weights"]
        setup = Setup(
            absolute_path(options["config"]),
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
            waivers=tuple(options["waivers"]),
        )
        return compare_many(made, pictures, output, console).exit_code
    except (UserError, OSError) as error:
        raise fail(str(error)) from error


def _split_opts(opts: Sequence[str] | None) -> list[str]:
    """``[KEY, VALUE, ...]``; an odd number of words is an error."""
    words = list(opts or ())
    if len(words) % 2:
        raise fail(f"--opts takes pairs KEY VALUE, got {len(words)} words: {' '.join(words)}")
    return words


_CONVENTIONS = "MODEL.CONVENTIONS"


def _profile_of(profile: str, conventions: str | None) -> tuple[str, str | None]:
    """Profile and conventions, where a profile named after a project stands for both: strict, as that one computes."""
    if profile not in get_args(Conventions):
        return profile, conventions
    if conventions not in (None, profile):
        raise fail(f"--profile {profile} contradicts --conventions {conventions}")
    return "strict", profile


def _with_conventions(opts: list[str], conventions: str | None) -> list[str]:
    """Options with MODEL.CONVENTIONS, where it is given; two that contradict each other end the program."""
    said = [value for key, value in zip(opts[0::2], opts[1::2], strict=True) if key == _CONVENTIONS]
    if conventions is None:
        return opts
    if said and said[-1] != conventions:
        raise fail(f"--conventions {conventions} contradicts --opts {_CONVENTIONS} {said[-1]}")
    return [*opts, _CONVENTIONS, conventions]


def _run(images: list[str], output: Path, options: dict[str, Any]) -> list[Comparison]:
    from parity.running.runner import run

    missing = [i for i in images if not Path(i).is_file()]
    if missing:
        raise fail(f"no such picture: {', '.join(missing)}")
    with console.status("starting") as status:
        try:
            return run(
                images=images, output=output, progress=lambda text: status.update(escape(text)), **options
            )
        except (UserError, OSError) as error:
            raise fail(str(error)) from error


def run_ops(output: Path | None, torch_python: str | None, device: str, full: bool) -> None:
    """``--ops``: every operation against PyTorch on generated inputs."""
    from parity.running.ops import Cases
    from parity.running.ops import run_ops as compare_ops

    try:
        with console.status("running the operations on both sides"):
            comparison = compare_ops(output, Cases(device=device), torch_python=torch_python)
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
