"""``tf-d2 bench``: time and memory of PyTorch and TensorFlow on the same input, in interleaved runs.

Every side lives in a process of its own and runs when it is told to. One round runs each side once, in an
order that rotates, so that drift and neighbours on the machine touch all sides alike. Ratios are taken
within rounds.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

from parity import machine
from parity.runner import BackendError, Setup, absolute_path, call_worker, import_root, resolved

Progress = Callable[[str], None]

MODULES = {
    "torch": "parity.workers.bench_torch",
    "detectron2": "parity.workers.bench_torch",
    "torchscript": "parity.workers.bench_torch",
    "onnx": "parity.workers.bench_torch",
    "tf": "parity.workers.bench_tf",
    "tf-bfloat16": "parity.workers.bench_tf",
    "savedmodel": "parity.workers.bench_tf",
}
NAMES = {
    "torch": "PyTorch reference, eager",
    "detectron2": "detectron2, eager",
    "torchscript": "detectron2, TorchScript",
    "onnx": "ONNX Runtime",
    "tf": "TensorFlow, tf.function",
    "tf-bfloat16": "TensorFlow, bfloat16",
    "savedmodel": "TensorFlow, SavedModel",
}


@dataclass
class Side:
    """One competitor: what it said about itself and its runs."""

    name: str
    load_seconds: float = 0.0
    first_seconds: float = 0.0
    base_mib: float = 0.0
    peak_mib: float = 0.0
    detections: int = 0
    version: str = ""
    seconds: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float:
        """Median seconds of a run after the first."""
        return median(self.seconds) if self.seconds else float("nan")


@dataclass
class Bench:
    """Interleaved runs of several sides. ``seconds[k]`` of all sides belong to the same round."""

    sides: list[Side]
    title: str = ""
    threads: int = 0
    device: str = "cpu"
    machine: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def ratios(self, side: Side) -> list[float]:
        """Seconds of ``side`` over those of the first side, round by round."""
        return [a / b for a, b in zip(side.seconds, self.sides[0].seconds, strict=True)]


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

    def run(self) -> dict[str, Any]:
        """Run the model once."""
        self.commands.write("run\n")
        self.commands.flush()
        return self.next_event()


@contextlib.contextmanager
def started(module: str, interpreter: str, job: Mapping[str, Any], log: Path) -> Iterator[Worker]:
    """A worker that has loaded its model."""
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, open(log, "w") as errors:
        path = Path(scratch) / "job.json"
        path.write_text(json.dumps(job))
        environment = os.environ | {"PYTHONPATH": import_root(Path(scratch)), "PYTHONUNBUFFERED": "1"}
        if job["threads"]:
            environment |= {"OMP_NUM_THREADS": str(job["threads"])}
        process = subprocess.Popen(
            [interpreter, "-m", module, "--job", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            cwd=scratch,
        )
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


def run_bench(
    config: str,
    weights: str | None,
    image: str,
    *,
    output: Path,
    backends: Sequence[str] = ("torch", "tf"),
    rounds: int = 10,
    warmup: int = 2,
    threads: int = 0,
    device: str = "cpu",
    torch_python: str | None = None,
    opts: Sequence[Any] = (),
    title: str = "",
    progress: Progress = lambda text: None,
) -> Bench:
    """Run ``rounds`` interleaved rounds after ``warmup`` ones. Names in ``backends`` may carry a file:
    ``savedmodel:DIR`` (left out: exported first), ``onnx:FILE``. The first is what ratios refer to. A side
    that cannot run is listed with its error; the others still run. Raises ValueError for unknown names."""
    unknown = [b for b in backends if b.partition(":")[0] not in MODULES]
    if unknown or not backends:
        raise ValueError(
            f"no bench side is called {', '.join(unknown) or '(none)'}; known: {', '.join(MODULES)}"
        )
    output.mkdir(parents=True, exist_ok=True)
    output = output.resolve()
    checkpoint = None if weights is None else absolute_path(weights)
    setup = resolved(Setup(absolute_path(config), checkpoint, [image], opts=opts), output, progress)
    bench = Bench([], title or Path(config).stem, threads, device, machine.facts())
    with contextlib.ExitStack() as stack:
        workers: list[Worker] = []
        failed: list[Side] = []
        for text in backends:
            side = Side(NAMES[text.partition(":")[0]])
            try:
                worker = _start(
                    stack, text, setup, image, output, torch_python, threads, device, side, progress
                )
            except (BackendError, OSError) as error:
                side.error = str(error)
                failed.append(side)
                continue
            workers.append(worker)
            bench.sides.append(side)
        if workers:
            _rounds(bench, workers, rounds, warmup, progress)
        bench.sides += failed
    return bench


def _start(
    stack: contextlib.ExitStack,
    text: str,
    setup: Setup,
    image: str,
    output: Path,
    torch_python: str | None,
    threads: int,
    device: str,
    side: Side,
    progress: Progress,
) -> Worker:
    """Start one side and note what it says about itself."""
    name, _, target = text.partition(":")
    progress(f"loading {side.name}")
    if name == "savedmodel" and not target:
        target = str(_exported(setup, output))
    job = {
        "backend": name.partition("-")[0] if name.startswith("tf") else name,
        "dtype": "bfloat16" if name == "tf-bfloat16" else "",
        "config_yaml": setup.config,
        "weights": setup.weights,
        "state": setup.state,
        "image": str(Path(image).resolve()),
        "threads": threads,
        "device": device,
        "target": str(Path(target).resolve()) if target else "",
    }
    interpreter = (torch_python or sys.executable) if "torch" in MODULES[name] else sys.executable
    worker = stack.enter_context(started(MODULES[name], interpreter, job, output / f"bench_{name}.log"))
    ready = worker.next_event()
    side.load_seconds, side.base_mib, side.version = (
        ready[k] for k in ("load_seconds", "base_mib", "version")
    )
    return worker


def _exported(setup: Setup, output: Path) -> Path:
    """The model exported to ``output/export`` by the TensorFlow worker."""
    folder = output / "export"
    if not folder.exists():
        job = {
            "mode": "export",
            "config_yaml": setup.config,
            "weights": setup.weights,
            "images": list(setup.images),
        }
        call_worker("parity.workers.tf_worker", sys.executable, job, folder, setup.timeout)
    return folder


def _rounds(bench: Bench, workers: Sequence[Worker], rounds: int, warmup: int, progress: Progress) -> None:
    """Warm up, then run every side once per round, each round starting with the next side."""
    count = len(workers)
    for k in range(warmup + rounds):
        progress(f"round {k - warmup + 1} of {rounds}" if k >= warmup else "warming up")
        for place in range(count):
            index = (k + place) % count
            answer, side = workers[index].run(), bench.sides[index]
            if k == 0:
                side.first_seconds = answer["seconds"]
            if k >= warmup:
                side.seconds.append(answer["seconds"])
            side.peak_mib, side.detections = answer["peak_mib"], answer["detections"]


COLUMNS = "side|ratio|median s|spread s|images/s|first s|load s|peak MiB|memory ratio|found".split("|")


def table(bench: Bench) -> str:
    """The result in Markdown, ratios first."""
    first, facts = bench.sides[0], bench.machine
    threads = bench.threads or facts.get("cores")
    lines = [
        f"## {bench.title}",
        "",
        f"{len(first.seconds)} interleaved rounds, batch 1, {threads} threads, {bench.device}; "
        f"{facts.get('cpu')}. Ratios are medians over rounds of seconds over those of {first.name}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- |" + " ---: |" * (len(COLUMNS) - 1),
    ]
    return "\n".join([*lines, *(_row(bench, s) for s in bench.sides)]) + "\n"


def _row(bench: Bench, side: Side) -> str:
    if not side.seconds:
        return f"| {side.name} | did not run: {side.error} |" + " |" * (len(COLUMNS) - 2)
    cells = [
        f"{side.name} ({side.version})",
        f"**{median(bench.ratios(side)):.2f}**",
        f"{side.median:.3f}",
        f"{min(side.seconds):.3f} to {max(side.seconds):.3f}",
        f"{1 / side.median:.2f}",
        f"{side.first_seconds:.2f}",
        f"{side.load_seconds:.1f}",
        f"{side.peak_mib:.0f}",
        f"{side.peak_mib / bench.sides[0].peak_mib:.2f}",
        str(side.detections),
    ]
    return f"| {' | '.join(cells)} |"


def to_json(bench: Bench) -> dict[str, Any]:
    """Plain data with everything measured."""
    body = asdict(bench)
    for entry, side in zip(body["sides"], bench.sides, strict=True):
        entry["median"] = side.median if side.seconds else None
        entry["ratio"] = median(bench.ratios(side)) if side.seconds else None
    return {"schema": "tf-d2-bench/1", **body}


def write_results(benches: Sequence[Bench], output: Path) -> Path:
    """Write ``bench.md``, ``bench.json`` and ``bench.svg`` and return the first."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "bench.json").write_text(json.dumps([to_json(b) for b in benches], indent=1) + "\n")
    path = output / "bench.md"
    path.write_text("# Time and memory, side by side\n\n" + "\n".join(table(b) for b in benches))
    from parity.plots import bench_plot

    (output / "bench.svg").write_text(bench_plot(benches))
    return path
