"""Pictures per second from files on disk to rows: plain loops, `tf-d2 batch`, and one process against two.

tf-d2 bench suite --only files --size 480x640 --torch-python PYTHON_WITH_DETECTRON2 --output parity/results/bench
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity.bench.bench import exported, start
from parity.bench.suite.models import MASK_RCNN, jpeg_file, prepare
from parity.running.sides import BackendError
from parity.running.worker import import_root

if TYPE_CHECKING:
    from parity.bench.suite.measuring import Suite

_PICTURES = 24
_WARM = 2  # pictures of a loop before those that count
_LOOPS = {
    "torch": "PyTorch reference, one picture after the other",
    "detectron2": "detectron2's test loader and COCO results",
    "tf": "`Predictor` in a loop",
}
# Commands at the same time, processes of each, and whether each is kept to a core of its own.
_RUNS: dict[str, tuple[int, int, bool]] = {
    "tf-d2 batch": (1, 1, False),
    "tf-d2 batch --processes 2": (1, 2, False),
    "tf-d2 batch on one core": (1, 1, True),
    "tf-d2 batch twice at once, on a core each": (2, 1, True),
}


def files_part(suite: Suite) -> dict[str, Any]:
    """Every way once over the same files. Loading and the first pictures do not count."""
    (model,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    export = exported("savedmodel", model, suite.options)
    count = max(6, round(_PICTURES * suite.scale))
    out: dict[str, Any] = {"pictures": count, "loops": {}, "runs": {}}
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        pictures = _write_files(jpeg_file(suite.work, suite.size), Path(scratch) / "pictures", count)
        paths = [str(path) for path in pictures]
        for name in (suite.reference, "tf"):
            try:
                out["loops"][name] = _loop(suite, name, replace(model, images=model.images[:1]), paths)
            except BackendError as error:
                if name == "tf":
                    raise
                suite.note(f"{name} is left out: {error}")
        for name, (commands, processes, pinned) in _RUNS.items():
            if pinned and len(_cores()) < commands:
                suite.note(f"{name} is left out: it needs {commands} cores")
                continue
            suite.say(name)
            folder = Path(scratch) / "out"
            shutil.rmtree(folder, ignore_errors=True)
            arguments = ["--model", export, "--input", str(pictures[0].parent), "--output", str(folder)]
            given = [*arguments, "--shard-size", "1", "--processes", str(processes)]
            run_together(given, commands, pinned, Path(scratch))
            out["runs"][name] = rate(folder, count, commands * processes)
    return out


def _write_files(source: Path, folder: Path, count: int) -> list[Path]:
    """``count`` copies of a picture."""
    folder.mkdir(parents=True)
    paths = [folder / f"{k:06d}{source.suffix}" for k in range(count)]
    for path in paths:
        shutil.copyfile(source, path)
    return paths


def _loop(suite: Suite, name: str, model: Any, paths: Sequence[str]) -> float:
    """Pictures per second of a side's own loop."""
    with contextlib.ExitStack() as stack:
        worker = start(stack, name, model, suite.options)
        worker.ask("files", paths=list(paths[:_WARM]))
        return len(paths) / worker.ask("files", paths=list(paths))["seconds"]


def run_together(arguments: Sequence[str], commands: int, pinned: bool, scratch: Path) -> None:
    """The same ``tf-d2 batch`` so many times at once. Raises BackendError where one fails."""
    root = Path(tempfile.mkdtemp(dir=scratch))
    environment = os.environ | {"PYTHONPATH": import_root(root)}
    running = []
    for k in range(commands):
        core = {_cores()[k]} if pinned else set(_cores())
        log = open(root / f"{k}.log", "w")
        process = subprocess.Popen(
            [sys.executable, "-m", "tf_d2.cli", "batch", *arguments],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=root,
            preexec_fn=lambda core=core: os.sched_setaffinity(0, core),
        )
        running.append((process, log))
    for process, log in running:
        process.wait()
        log.close()
    for process, log in running:
        if process.returncode:
            tail = Path(log.name).read_text(errors="replace").strip().splitlines()[-2:]
            raise BackendError(f"tf-d2 batch: status {process.returncode}: {' | '.join(tail)}")


def rate(folder: Path, count: int, processes: int) -> float:
    """Pictures per second by the times at which shards of one picture appeared; the first ones of every process, with
    which it starts, do not count. Raises BackendError where pictures have no shard."""
    times = sorted(path.stat().st_mtime_ns for path in folder.glob("part-*"))
    skipped = _WARM * processes
    if len(times) != count or count <= skipped:
        raise BackendError(f"{len(times)} shards of {count} pictures, of which {skipped} do not count")
    return (count - skipped) / max((times[-1] - times[skipped - 1]) * 1e-9, 1e-9)


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def files_section(part: Mapping[str, Any]) -> str:
    """The table, with every rate over that of the plain loop."""
    from parity.bench.suite.render import grid

    data = part["data"]
    base = data["loops"]["tf"]
    rates = {_LOOPS[name]: value for name, value in data["loops"].items()} | data["runs"]
    rows = [[name, f"{value:.3g}", f"**{value / base:.2f}**"] for name, value in rates.items()]
    text = (
        f"Pictures per second over {data['pictures']} JPEG files of {part['size'][0]}x{part['size'][1]}, from the file "
        "to boxes, scores, classes and masks as COCO's RLE, without loading the model.\n\n"
    )
    one, two = (data["runs"].get(list(_RUNS)[k]) for k in (2, 3))
    scaling = f"\nFrom one process on one core to two on two: {two / one:.2f}.\n" if one and two else ""
    return text + grid(["way", "pictures/s", "of the loop"], rows) + scaling
