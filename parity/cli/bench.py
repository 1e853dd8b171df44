"""``tf-d2 bench``: a user's model on both frameworks, or everything that the committed tables show."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from parity.cli.groups import BenchGroup
from parity.core.checkout import from_a_checkout
from parity.core.status import EXIT_NOT_COMPARABLE
from weights.errors import UsageError, UserError

if TYPE_CHECKING:
    from parity.bench.bench import Options
    from parity.bench.suite.measuring import Suite
    from parity.running.sides import Setup

_HELP = """Time and memory of PyTorch and TensorFlow on the same input, in interleaved runs.

run: one model (left out: the embedded one) on the sides named by --backend. suite: published configurations with
made weights; every part is written to the output folder as JSON, and tables and plots are made again from all parts
that are there.

Examples:

  tf-d2 bench run --config-file mask_rcnn.yaml --weights model.pkl --output bench

  tf-d2 bench suite --all --torch-python PYTHON_WITH_DETECTRON2 --output parity/results/bench

  tf-d2 bench suite --prepare --torch-python PYTHON_WITH_DETECTRON2 --output parity/results/bench   (before --all, if
  the machine is to be quiet for as short as possible)

  tf-d2 bench suite --render --output parity/results/bench

Without a command, --all, --only, --prepare and --render mean suite, and everything else means run.
"""

console = Console(stderr=False)
_SUITE = "the measurements behind the repository's tables"


def register(app: typer.Typer) -> None:
    """Add ``bench`` to a command line application."""
    group = typer.Typer(cls=BenchGroup, help=_HELP, add_completion=False, rich_markup_mode=None)
    group.command("run")(_one_model)
    group.command("suite")(suite)
    app.add_typer(group, name="bench")


OutputOption = Annotated[Path, typer.Option(help="Folder for tables, plots and numbers.")]
_WarmupOption = Annotated[int, typer.Option(help="Rounds before them that do not.")]
DeviceOption = Annotated[str, typer.Option(help="cpu or gpu, for all sides.")]
InterpreterOption = Annotated[
    str | None, typer.Option("--torch-python", help="Python interpreter that has torch or detectron2.")
]


def _one_model(
    output: OutputOption,
    config_file: Annotated[
        str | None, typer.Option("--config-file", help="detectron2 YAML; left out: the embedded checkpoint.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Checkpoint of the configuration.")] = None,
    input: Annotated[str | None, typer.Option("--input", help="Picture; left out: a drawn one.")] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="torch, detectron2, torchscript, onnx[:FILE], openvino[:FILE], openvino-default, "
            "openvino-torch, compile, tf, tf-bfloat16, savedmodel[:DIR], savedmodel-untuned[:DIR]; may be repeated. "
            "Ratios refer to the first."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds that count.")] = 10,
    warmup: _WarmupOption = 2,
    threads: Annotated[int, typer.Option(help="Threads per side; 0 = the framework's choice.")] = 0,
    device: DeviceOption = "cpu",
    torch_python: InterpreterOption = None,
    opts: Annotated[
        list[str] | None, typer.Option("--opts", metavar="KEY VALUE ...", help="Overrides, as in detectron2.")
    ] = None,
) -> None:
    """Measure one model on several sides."""
    options = _options(rounds, warmup, threads, device, torch_python)

    def work() -> bool:
        from parity.bench.bench import check_names

        if backend:
            check_names(backend)  # before anything is written
        return _single(_setup(config_file, weights, input, opts, output), output, backend, options)

    _end(work)


def suite(
    output: OutputOption,
    everything: Annotated[bool, typer.Option("--all", help="Every part of the committed results.")] = False,
    only: Annotated[
        str,
        typer.Option(
            help="Parts, with commas: main, agreement, families, endtoend, batch, files, curves, startup, profile, gpu."
        ),
    ] = "",
    render: Annotated[
        bool, typer.Option("--render", help="Make tables and plots from the stored numbers; run nothing.")
    ] = False,
    prepare: Annotated[
        bool,
        typer.Option("--prepare", help="Only make what --all needs and keeps: models, pictures, exports."),
    ] = False,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of the main table that count.")] = 10,
    warmup: _WarmupOption = 2,
    threads: Annotated[int, typer.Option(help="Threads per side; 0 = one per core.")] = 0,
    device: DeviceOption = "cpu",
    torch_python: InterpreterOption = None,
    size: Annotated[str, typer.Option(help="Picture and network input, HEIGHTxWIDTH.")] = "800x1216",
    scale: Annotated[float, typer.Option(help="Scale of the curves' ranges, for trials.")] = 1.0,
    families: Annotated[
        str, typer.Option(help="Only families with one of these words in their name, with commas.")
    ] = "",
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Also detectron2 with its backbone compiled.")
    ] = False,
    work: Annotated[
        Path | None, typer.Option(help="Folder for models and exports, kept; left out: the cache.")
    ] = None,
) -> None:
    """Measure what this repository's tables show, or draw them again."""
    if not (everything or only or render or prepare):
        everything = True
    options = _options(rounds, warmup, threads, device, torch_python)

    def work_on() -> bool:
        with from_a_checkout(_SUITE):
            from parity.bench.suite import suite as bench_suite
            from parity.bench.suite.measuring import Suite
        made = Suite(
            output.resolve(),
            (work or bench_suite.default_work()).resolve(),
            replace(options, threads=options.threads or len(os.sched_getaffinity(0))),
            _size(size),
            compiled,
            _families(families),
            scale,
            public_command(sys.argv[1:]),
        )
        return _prepare(made) if prepare else _measure(made, everything, only)

    _end(work_on)


def _options(rounds: int, warmup: int, threads: int, device: str, torch_python: str | None) -> Options:
    from parity.bench.bench import Options

    return Options(
        rounds,
        warmup,
        threads,
        device,
        torch_python,
        progress=lambda t: console.print(t, style="dim", markup=False),
    )


def _end(work: Callable[[], bool]) -> None:
    """Do the work and end the program with the status of it: 0, or 2 where something could not be measured."""
    try:
        failed = work()
    except (UserError, OSError) as error:
        print(f"tf-d2 bench: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_NOT_COMPARABLE) from error
    raise typer.Exit(EXIT_NOT_COMPARABLE if failed else 0)


def _size(text: str) -> tuple[int, int]:
    """(height, width). Raises UsageError."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise UsageError(f"--size {text} is not like 800x1216")
    return int(height), int(width)


def _families(text: str) -> tuple[str, ...]:
    """The words, each of which a family has. Raises UsageError."""
    from parity.bench.suite.models import families_named

    words = tuple(w for w in text.split(",") if w)
    families_named(words)
    return words


def _prepare(suite: Suite) -> bool:
    from parity.bench.suite import suite as bench_suite

    bench_suite.prepare_all(suite)
    console.print(f"ready: {suite.work}", markup=False)
    return False


def _measure(suite: Suite, everything: bool, only: str) -> bool:
    """Measure the parts asked for, make tables and plots; whether a part failed."""
    from parity.bench.suite import render as bench_render
    from parity.bench.suite import suite as bench_suite

    names = list(bench_suite.PARTS) if everything else [n.strip() for n in only.split(",") if n.strip()]
    bench_suite.run_parts(suite, names)
    parts = bench_render.read_parts(suite.output)
    console.print(f"results: {bench_render.write_page(parts, suite.output)}", markup=False)
    return any(parts[n]["error"] for n in names)


_HIDDEN = {"--torch-python": "PYTHON_WITH_DETECTRON2", "--work": "FOLDER", "--output": "FOLDER"}


def public_command(arguments: Sequence[str]) -> str:
    """The command line without this machine's paths."""
    words, hidden = ["tf-d2"], ""
    for word in arguments:
        option, equals, _ = word.partition("=")
        words.append(hidden or (f"{option}={_HIDDEN[option]}" if equals and option in _HIDDEN else word))
        hidden = _HIDDEN.get(word, "")
    return " ".join(words)


def _setup(
    config: str | None, weights: str | None, picture: str | None, opts: list[str] | None, output: Path
) -> Setup:
    """The model and the picture that are named, or the embedded one and a drawn one in ``output``."""
    import numpy as np

    from parity.core.demo import embedded_demo, sample_picture
    from parity.running.sides import Setup, absolute_path

    if opts and len(opts) % 2:
        raise UsageError(f"--opts takes pairs KEY VALUE, got {len(opts)} words: {' '.join(opts)}")
    output.mkdir(parents=True, exist_ok=True)
    if picture is None:
        picture = str(output / "picture.npy")
        np.save(picture, sample_picture())
    if config is None:
        demo = embedded_demo()
        config, weights = str(demo / "shapes.yaml"), str(demo / "shapes.pkl")
    checkpoint = None if weights is None else absolute_path(weights)
    return Setup(absolute_path(config), checkpoint, [picture], opts=opts or [])


def _single(asked: Setup, output: Path, backends: list[str] | None, options: Options) -> bool:
    """One model on several sides; whether one of them failed."""
    from parity.bench.bench import run_bench
    from parity.bench.results import table, write_results
    from parity.running.sides import auto_reference

    sides = backends or [auto_reference(options.interpreter).name, "tf", "savedmodel"]
    result = run_bench(asked, output, sides, options)
    console.print(table(result), highlight=False, markup=False, soft_wrap=True)
    console.print(f"results: {write_results([result], output)}", markup=False)
    return any(s.error for s in result.sides)
