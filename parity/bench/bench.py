"""``tf-d2 bench``: time and memory of PyTorch and TensorFlow on the same input, in interleaved runs.

Every side lives in a process of its own and runs when it is told to. One round runs each side once, in an
order that rotates, so that drift and neighbours on the machine touch all sides alike. Ratios are taken
within rounds. What each side detected is compared with what the first one did.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from parity.bench.results import NAMES, Agreement, Bench, Competitor
from parity.core import machine
from parity.running.runner import resolved
from parity.running.sides import BackendChoice, BackendError, Setup, able
from parity.running.worker import Program, call_worker, piped
from weights.errors import UsageError

Progress = Callable[[str], None]

TORCH, _TF = "parity.bench.torch_worker", "parity.bench.tf_worker"
MODULES = {
    "torch": TORCH,
    "detectron2": TORCH,
    "torchscript": TORCH,
    "onnx": TORCH,
    "openvino": TORCH,
    "openvino-default": TORCH,
    "openvino-torch": TORCH,
    "compile": TORCH,
    "tf": _TF,
    "tf-bfloat16": _TF,
    "savedmodel": _TF,
    "savedmodel-untuned": _TF,
}
# How detectron2's exports are written, and the file's ending.
FORMATS = {
    "torchscript": "torchscript",
    "onnx": "onnx",
    "openvino": "onnx",
    "openvino-default": "onnx",
    "openvino-torch": "openvino",
}
_ENDINGS = {"openvino": "xml"}
_EXPORT_SECONDS = 1800.0


@dataclass(frozen=True)
class Subject:
    """What all sides load and run: a full configuration, a checkpoint, pictures, and a folder for exports.
    ``state`` is the checkpoint as a plain state dict where detectron2's side cannot read the user's file."""

    config: str
    weights: str
    images: Sequence[str]
    folder: Path
    state: str = ""
    title: str = ""


@dataclass(frozen=True)
class Options:
    """How to run. ``threads`` 0 leaves the frameworks' choice; ``tf32`` None too."""

    rounds: int = 10
    warmup: int = 2
    threads: int = 0
    device: str = "cpu"
    torch_python: str | None = None
    tf32: bool | None = None
    inter_threads: int = 0
    progress: Progress = lambda text: None

    @property
    def interpreter(self) -> str:
        """The one that has torch or detectron2."""
        return self.torch_python or sys.executable


class Worker:
    """A side's process and the two pipes to it."""

    def __init__(self, process: subprocess.Popen[str], commands: IO[str], answers: IO[str]) -> None:
        self.process, self.commands, self.answers = process, commands, answers

    def next_event(self) -> dict[str, Any]:
        """The next event. Raises BackendError when the process reports an error or ends."""
        for line in self.answers:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # some library printed something
            if isinstance(event, dict) and "event" in event:
                if event["event"] == "error":
                    raise BackendError(str(event["message"]))
                return event
        raise BackendError(f"the process ended with status {self.process.wait()}")

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Let the worker do one thing; its answer. Raises BackendError where it cannot."""
        line = json.dumps({"do": what, **arguments}) if arguments else what
        try:
            self.commands.write(line + "\n")
            self.commands.flush()
        except BrokenPipeError as error:
            raise BackendError(f"the process ended with status {self.process.wait()}") from error
        return self.next_event()


@contextlib.contextmanager
def started(module: str, interpreter: str, job: Mapping[str, Any], log: Path) -> Iterator[Worker]:
    """A worker that has loaded its model."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        path = Path(scratch) / "job.json"
        path.write_text(json.dumps(job))
        threads = {"OMP_NUM_THREADS": str(job["threads"])} if job["threads"] else {}
        process = piped([interpreter, "-m", module, "--job", str(path)], Path(scratch), log, threads)
        assert process.stdin is not None and process.stdout is not None
        with process.stdin as commands, process.stdout as answers:
            try:
                yield Worker(process, commands, answers)
            finally:
                with contextlib.suppress(BrokenPipeError):
                    commands.close()
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def run_bench(asked: Setup, output: Path, backends: Sequence[str], options: Options = Options()) -> Bench:
    """Bench a user's model on its picture: resolve configuration and weights, then :func:`run_sides`."""
    check_names(backends)
    output.mkdir(parents=True, exist_ok=True)
    output = output.resolve()
    setup = resolved(asked, output, options.progress)
    for name in backends:
        able(BackendChoice(name), setup)
    pictures = [str(Path(image).resolve()) for image in asked.images]
    title = Path(asked.config).stem
    model = Subject(setup.config, setup.weights or "", pictures, output, setup.state, title)
    return run_sides(model, backends, options)


def check_names(backends: Sequence[str]) -> None:
    """Raise UsageError where there is no side or one is called what none is called."""
    unknown = [b for b in backends if b.partition(":")[0] not in MODULES]
    if unknown or not backends:
        raise UsageError(
            f"no bench side is called {', '.join(unknown) or '(none)'}; known: {', '.join(MODULES)}"
        )


def run_sides(model: Subject, backends: Sequence[str], options: Options) -> Bench:
    """Run ``options.rounds`` interleaved rounds after the warm-up.

    Names in ``backends`` may carry a file: ``savedmodel:DIR``, ``onnx:FILE``, ``openvino:FILE``, ``torchscript:FILE``
    (left out: exported first). The first is what ratios refer to. A side that cannot run is listed with its error; the
    others still run. Raises ValueError for unknown names.
    """
    check_names(backends)
    bench = Bench([], model.title, options.threads, options.device, machine.facts())
    with contextlib.ExitStack() as stack:
        workers: list[Worker] = []
        failed: list[Competitor] = []
        for text in backends:
            side = Competitor(NAMES[text.partition(":")[0]])
            try:
                worker = start(stack, text, model, options, side)
            except (BackendError, OSError) as error:
                side.error = str(error)
                failed.append(side)
                continue
            workers.append(worker)
            bench.sides.append(side)
        if workers:
            _rounds(bench, workers, options, failed)
            _compare(bench, workers, model.folder)
        bench.sides += failed
    return bench


def start(
    stack: contextlib.ExitStack, text: str, model: Subject, options: Options, side: Competitor | None = None
) -> Worker:
    """Start one side, which ends with ``stack``, and note what it says about itself. Raises BackendError."""
    name, _, target = text.partition(":")
    options.progress(f"{model.title}: loading {NAMES[name]}")
    target = target or exported(name, model, options)
    job = {
        "backend": name.partition("-")[0] if name.startswith("tf") else name,
        "dtype": "bfloat16" if name == "tf-bfloat16" else "",
        "config_yaml": model.config,
        "weights": model.weights,
        "state": model.state,
        "images": list(model.images),
        "threads": options.threads,
        "inter_threads": options.inter_threads,
        "device": options.device,
        "tf32": options.tf32,
        "target": str(Path(target).resolve()) if target else "",
    }
    log = model.folder / f"bench_{name}.log"
    worker = stack.enter_context(started(MODULES[name], _interpreter(name, options), job, log))
    ready = worker.next_event()
    if side is not None:
        for key in ("load_seconds", "base_mib", "version", "accelerator"):
            setattr(side, key, ready.get(key, getattr(side, key)))
    return worker


def _interpreter(name: str, options: Options) -> str:
    return options.interpreter if MODULES[name] == TORCH else sys.executable


def exported(name: str, model: Subject, options: Options) -> str:
    """The file or folder a side loads, made where it is missing: detectron2's exports of these weights stay the
    same, ours is written anew every time. "" for sides that need none. Raises BackendError."""
    if name.startswith("savedmodel"):
        folder = model.folder / f"export{name.removeprefix('savedmodel')}"
        shutil.rmtree(folder, ignore_errors=True)
        job = {
            "mode": "export",
            "config_yaml": model.config,
            "weights": model.weights,
            "images": list(model.images),
        }
        call_worker(Program("parity.backends.tf_tools", timeout=_EXPORT_SECONDS), job, folder)
        return str(folder)
    return written(FORMATS[name], model, options) if name in FORMATS else ""


def written(form: str, model: Subject, options: Options) -> str:
    """One of detectron2's exports (see `parity.bench.torch_export`), made where it is missing or older than the
    model. Raises BackendError."""
    path = model.folder / f"detectron2.{_ENDINGS.get(form, form)}"
    sources = (Path(model.weights), Path(model.config), Path(model.images[0]))
    if not path.exists() or path.stat().st_mtime < max(p.stat().st_mtime for p in sources):
        job = {
            "format": form,
            "config_yaml": model.config,
            "weights": model.weights,
            "state": model.state,
            "image": model.images[0],
        }
        program = Program("parity.bench.torch_export", options.interpreter, _EXPORT_SECONDS)
        call_worker(program, job, path)
    return str(path)


def _rounds(bench: Bench, workers: list[Worker], options: Options, failed: list[Competitor]) -> None:
    """Warm up, then run every side once per round, each round starting with the next side. A side that fails on
    the way leaves the bench."""
    for k in range(options.warmup + options.rounds):
        counted = k >= options.warmup
        options.progress(
            f"{bench.title}: round {k - options.warmup + 1} of {options.rounds}"
            if counted
            else f"{bench.title}: warming up"
        )
        count = len(workers)
        for index in [(k + place) % count for place in range(count)]:
            try:
                _one_run(bench.sides[index], workers[index], k, options.warmup)
            except BackendError as error:
                bench.sides[index].error, bench.sides[index].seconds = str(error), []
        for index in reversed(range(count)):
            if bench.sides[index].error:
                failed.append(bench.sides.pop(index))
                workers.pop(index)


def _one_run(side: Competitor, worker: Worker, k: int, warmup: int) -> None:
    if k == warmup:
        side.peak_mib = max(side.peak_mib, worker.ask("settle").get("since_start_mib", 0.0))
    answer = worker.ask("run")
    if k == 0:
        side.first_seconds = answer["seconds"]
    if k >= warmup:
        side.seconds.append(answer["seconds"])
        side.steady_mib = answer["peak_mib"]
    side.peak_mib = max(side.peak_mib, answer["peak_mib"])
    side.detections = answer["detections"]


def _compare(bench: Bench, workers: Sequence[Worker], folder: Path) -> None:
    """Match what every side detected in its last run with what the first side did."""
    first: dict[str, np.ndarray] | None = None
    for k, (side, worker) in enumerate(zip(bench.sides, workers, strict=True)):
        path = folder / f"found_{k}.npz"
        try:
            worker.ask("keep", path=str(path))
        except BackendError:
            continue  # a model without detections
        if path.exists():
            found = dict(np.load(path))
            first = found if k == 0 else first
            side.agreement = agreement(first, found) if first is not None else None


def agreement(reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> Agreement:
    """Detections {"boxes", "scores", "classes"} of two sides, matched one to one within classes."""
    from parity.judge.detections import Items, match

    a, b = (Items(d["boxes"], d["scores"], d["classes"]) for d in (reference, found))
    pairs = match(a, b)
    rows, columns = ([p[k] for p in pairs] for k in (0, 1))
    px = np.abs(a.boxes[rows].astype(np.float64) - b.boxes[columns]).max(initial=0.0)
    score = np.abs(a.scores[rows].astype(np.float64) - b.scores[columns]).max(initial=0.0)
    return Agreement(len(a), len(b), len(pairs), float(px), float(score))
