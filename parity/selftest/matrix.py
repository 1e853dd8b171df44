"""The same answer on every machine: models under every setting of the kernels, and under several TensorFlows.

`python -m parity.selftest.matrix --output DIR` compares each model with the PyTorch reference under each setting that
the processor has. The models of a setting share a process, one after the other. It writes DIR/matrix.json (after each
cell; a second start goes on from there) and DIR/matrix.md. `--tensorflow NAME=PYTHON` adds an interpreter that has
another TensorFlow; it needs h5py, Pillow, PyYAML, scipy and pycocotools, too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from parity.backends import BACKENDS
from parity.core import machine
from parity.core.demo import embedded_demo, sample_picture
from parity.core.results import Comparison
from parity.judge.judge import compare
from parity.running.runner import resolved
from parity.running.sides import BackendChoice, Setup
from parity.running.worker import Call, Program, job_of
from parity.selftest.narrow import narrow
from parity.selftest.shared import Shared
from weights.errors import UserError

# Environments of the TensorFlow side. oneDNN takes no more of the processor than it has.
_SETTINGS: dict[str, Mapping[str, str]] = {
    "oneDNN off": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "oneDNN off, 2 threads": {"TF_ENABLE_ONEDNN_OPTS": "0", "THREADS": "2"},
    "oneDNN SSE41": {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "oneDNN AVX2": {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "oneDNN AVX512_CORE": {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "1"},
    "oneDNN, 2 threads": {"TF_ENABLE_ONEDNN_OPTS": "1", "THREADS": "2"},
}
# Environments of the reference: what PyTorch's own kernels may use.
_CAPABILITIES = ("default", "avx2", "avx512")

_Key = tuple[str, str, str, str]  # model, setting, TensorFlow, capability


@dataclass(frozen=True)
class Cell:
    """One model under one setting. ``exit_code`` as of `tf-d2 parity`; 2 with ``error`` where it did not run."""

    model: str
    setting: str
    tensorflow: str
    capability: str
    exit_code: int
    worst_px: float | None = None
    worst_score: float | None = None
    first_bad: str = ""
    error: str = ""
    processor: str = ""

    @property
    def key(self) -> _Key:
        return self.model, self.setting, self.tensorflow, self.capability


@dataclass(frozen=True)
class Axes:
    """What is combined; ``tensorflows``: name -> interpreter."""

    models: Sequence[str]
    settings: Sequence[str]
    tensorflows: Mapping[str, str]
    capabilities: Sequence[str]
    detectron2: str = ""  # an interpreter that has it, for the models of its projects
    published: Sequence[str] = ()  # of these the table names the ones that have no row

    def keys(self, model: str) -> list[_Key]:
        """The cells of a model. Other kernels of PyTorch are tried against the first setting only."""
        return [
            (model, setting, name, capability)
            for capability in self.capabilities
            for name in self.tensorflows
            for setting in self.settings
            if capability == self.capabilities[-1] or setting == self.settings[0]
        ]


def run_matrix(output: Path, axes: Axes) -> list[Cell]:
    """Run the cells that ``output`` does not hold yet; a cell that cannot run is one with an error."""
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    table = output / "matrix.json"
    cells = [Cell(**row) for row in json.loads(table.read_text())] if table.is_file() else []
    with Shared() as shared:
        for model in axes.models:
            missing = [key for key in axes.keys(model) if key not in {cell.key for cell in cells}]
            folder = output / "work" / model.replace("/", "_")
            for key in missing:
                folder.mkdir(parents=True, exist_ok=True)
                torch = reference(model, axes.detectron2)
                cell = _cell(key, Files(folder, axes.tensorflows[key[2]], torch), shared.call)
                cells.append(replace(cell, processor=_processor()))
                table.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
                (output / "matrix.md").write_text(render(cells, axes.published))
                said = cells[-1].first_bad or cells[-1].error
                print(f"{' / '.join(key)}: {cells[-1].exit_code} {said}", flush=True)
    return cells


def reference(model: str, detectron2: str) -> BackendChoice:
    """What a model is compared with: detectron2 itself for the models of its projects."""
    if model.startswith("projects/"):
        return BackendChoice("detectron2", "", detectron2 or sys.executable)
    return BackendChoice("torch", "", sys.executable)


@dataclass(frozen=True)
class Files:
    """Where a cell works: its model's folder, the interpreter of its TensorFlow, and its reference."""

    folder: Path
    tensorflow: str
    torch: BackendChoice


def _processor() -> str:
    found = machine.facts()
    return f"{found['cpu']} ({', '.join(found['instructions'])})"


def _cell(key: _Key, files: Files, call: Call) -> Cell:
    model, setting, _, capability = key
    try:
        setup = _setup(model, files, call)
        with environment(ATEN_CPU_CAPABILITY=capability):
            runs = _references(setup, files, capability, call)
        variables = dict(_SETTINGS[setting])
        threads = int(variables.pop("THREADS", "1"))
        fed = replace(setup, threads=threads, extra={"feed": str(runs[0].resolve())})
        with environment(**variables):
            trace = _run(BackendChoice("tf", "", files.tensorflow), fed, files.folder / "candidate.h5", call)
        comparison = compare(runs[0], trace, noise=runs[1:])[0]
    except (UserError, OSError) as error:
        return Cell(*key, 2, error=str(error)[:300])
    return _judged(key, comparison)


def _run(backend: BackendChoice, setup: Setup, target: Path, call: Call) -> Path:
    """One side's trace."""
    program = Program(BACKENDS[backend.name].module, backend.interpreter, setup.timeout)
    call(program, job_of(backend, setup), target)
    return target


def _judged(key: _Key, comparison: Comparison) -> Cell:
    def worst(name: str) -> float | None:
        found = [s.details[name] for s in comparison.stages if isinstance(s.details.get(name), float)]
        return max(found) if found else None

    first = comparison.first_bad
    return Cell(
        *key,
        comparison.exit_code,
        worst("worst_box_px"),
        worst("worst_score"),
        first.name if first else "",
    )


def _setup(model: str, files: Files, call: Call) -> Setup:
    """Files of a model: the embedded one, or a published configuration made narrow, with random weights. Made once."""
    folder, torch = files.folder, files.torch
    picture, proposals = folder / "picture.npy", folder / "proposals.npy"
    np.save(picture, sample_picture())
    np.save(proposals, np.array([[30, 40, 160, 140], [100, 20, 250, 150], [0, 0, 60, 60]], np.float32))
    given = (str(proposals),) if re.search(r"fast_rcnn|/fast_R", model) else ()
    common = Setup("", None, [str(picture)], threads=1, repeat=1, proposals=given)
    made = folder / "setup.json"
    if made.is_file():
        held = json.loads(made.read_text())
        if Path(held["config"]).is_file():  # the folder may have been moved
            return replace(common, **held)
    if model == "demo":
        demo = embedded_demo()
        setup = replace(common, config=str(demo / "shapes.yaml"), weights=str(demo / "shapes.pkl"))
    else:
        config, weights = folder / "random.yaml", folder / "random.safetensors"
        job: dict[str, Any] = {"mode": "config", "config_yaml": model, "weights": "", "images": ["none"]}
        call(Program("parity.backends.tf_tools"), job | {"opts": narrow(model)}, config)
        random_job = {"config_yaml": str(config), "seed": 7, "reference": torch.name}
        call(Program("parity.backends.torch_random", torch.interpreter), random_job, weights)
        setup = replace(common, config=str(config), weights=str(weights))
    return resolved(setup, folder, lambda text: None, call)


def _references(setup: Setup, files: Files, capability: str, call: Call) -> list[Path]:
    """The reference with these kernels of PyTorch, its float64 run on the same input: run once."""
    folder, torch = files.folder, files.torch
    trace, truth = folder / f"reference_{capability}.h5", folder / f"truth_{capability}.h5"
    if not (trace.is_file() and truth.is_file()):
        _run(torch, setup, trace, call)
        fed = {"feed": str(trace.resolve())}
        _run(torch, replace(setup, profile="semantic", extra=fed), truth, call)
    return [trace, truth]


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for the processes that are started inside; those of :data:`_SETTINGS` not named are
    unset."""
    names = {name for setting in _SETTINGS.values() for name in setting} | set(variables)
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def render(cells: Sequence[Cell], published: Sequence[str] = ()) -> str:
    """The table in Markdown: a row for each model and pair of programs, a column for each setting. ``published``:
    models that could be run; those without a row are named."""
    settings = [name for name in _SETTINGS if any(cell.setting == name for cell in cells)]
    same = sum(cell.exit_code == 0 for cell in cells)
    table = {cell.key: cell for cell in cells}
    models = list(dict.fromkeys(cell.model for cell in cells))
    processors = list(dict.fromkeys(cell.processor for cell in cells if cell.processor))
    lines = [
        "# Models under every setting",
        "",
        f"{same} of {len(cells)} runs agree with PyTorch, of {len(models)} models. Each entry: exit status of the "
        "comparison (0 = the same; 1 = different; 2 = it could not run), worst box corner in px, worst score (- where "
        "a model has none); first stage that differs, where one does. An empty entry was not run.",
        "",
        "Regenerate with `python -m parity.selftest.matrix --output DIR`. Published configurations are made narrow, "
        "have random weights, and look at one small picture; demo is the embedded model. Models below projects/ are "
        "compared with detectron2 itself.",
        "",
        *_processors(processors),
        "",
        f"| model | TensorFlow | PyTorch kernels | {' | '.join(settings)} |",
        f"| --- | --- | --- | {' | '.join('---' for _ in settings)} |",
    ]
    for model, name, capability in sorted(
        dict.fromkeys((c.model, c.tensorflow, c.capability) for c in cells),
        key=lambda row: (models.index(row[0]), row[1:]),
    ):
        row = [table.get((model, setting, name, capability)) for setting in settings]
        entries = [_entry(cell, processors) for cell in row]
        lines.append(f"| {model} | {name} | {capability} | {' | '.join(entries)} |")
    left = [name for name in published if name not in models]
    if left:
        lines += ["", f"Not run, {len(left)} of the {len(published)} published models: {', '.join(left)}."]
    return "\n".join(lines) + "\n"


def _processors(names: Sequence[str]) -> list[str]:
    if len(names) < 2:
        return [f"Processor: {name}." for name in names]
    numbered = "; ".join(f"[{k}] {name}" for k, name in enumerate(names, 1))
    return [f"Processors, the first where an entry names none: {numbered}."]


def _entry(cell: Cell | None, processors: Sequence[str]) -> str:
    if cell is None:
        return ""
    other = cell.processor in processors[1:]
    where = f" [{processors.index(cell.processor) + 1}]" if other else ""
    if cell.error:
        return f"**{cell.exit_code}** {cell.error.splitlines()[0][:80]}{where}"
    px, score = ("-" if v is None else f"{v:.1e}" for v in (cell.worst_px, cell.worst_score))
    numbers = f"{px} {score}"
    shown = f"0 {numbers}" if cell.exit_code == 0 else f"**{cell.exit_code}** {numbers} {cell.first_bad}"
    return shown + where


def zoo_models() -> list[str]:
    """The published models that this version runs; of those that differ in training only, the first."""
    from tf_d2.config.zoo import unsupported_reason
    from tf_d2.config.zoo_table import zoo_models as published

    names = [row.name for row in published().values() if unsupported_reason(row) is None]
    return list({re.sub(r"_(\dx|\d+ep)(?=_|$)", "", name): name for name in reversed(names)}.values())[::-1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the table")
    parser.add_argument("--models", nargs="+", help="demo or names of published models; default: all")
    parser.add_argument("--settings", nargs="+", choices=list(_SETTINGS), default=list(_SETTINGS))
    parser.add_argument("--capabilities", nargs="+", choices=_CAPABILITIES, default=["avx2"])
    parser.add_argument("--torch-python", default="", help="interpreter that has detectron2")
    parser.add_argument("--tensorflow", nargs="+", default=[], metavar="NAME=PYTHON")
    options = parser.parse_args(arguments)
    if find_spec("torch") is None:
        parser.error("needs torch: pip install -e '.[test]'")
    tensorflows = dict(pair.split("=", 1) for pair in options.tensorflow) or {
        version("tensorflow"): sys.executable
    }
    from tf_d2.config.zoo import zoo_name

    published = zoo_models()
    unknown = [name for name in options.models or [] if name != "demo" and not zoo_name(name)]
    if unknown:
        parser.error(f"not the name of a published model: {', '.join(unknown)}")
    models = options.models or ["demo", *published]
    if not options.models and not options.torch_python:
        models = [name for name in models if not name.startswith("projects/")]
    axes = Axes(models, options.settings, tensorflows, options.capabilities, options.torch_python, published)
    cells = run_matrix(options.output, axes)
    return max((cell.exit_code for cell in cells), default=0)


if __name__ == "__main__":
    sys.exit(main())
