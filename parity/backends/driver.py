"""From a job to a trace, for any backend: load, run freely, run on another trace's arrays, repeat, write.

A backend is one file beside this one: a class with what `Backend` asks for, and

    if __name__ == "__main__":
        sys.exit(main(load))

It runs as `python -m parity.backends.<name> --job job.json` under the interpreter that has its framework. Progress
and errors are JSON lines on standard output. Exit status: 0 written, 2 failed. PARITY_TRACEBACK=1 in the
environment shows where it failed. No framework is imported here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity.core import feed as feeds
from parity.core import job as jobs
from parity.core import machine
from parity.core.job import Job, JobError
from parity.core.manifest import Manifest, read_files
from parity.core.trace import Trace, TraceError, TraceWriter
from parity.core.units import Unit, forced_name, stages, units
from parity.core.units.table import PANOPTIC

Arrays = dict[str, np.ndarray]
Segments = list[dict[str, Any]]


class Backend:
    """A loaded model. `run` is what every backend has; the rest has an answer for those that give results only.

    name: as the user writes it. scope: "all" arrays of the unit table, "outputs" only, or "served" (outputs without
    the heat maps of keypoints). dtype: of the network.
    """

    name = ""
    scope = "outputs"
    dtype = "float32"

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[Arrays, Segments]:
        """Every array of one BGR image by name, and its panoptic segments. proposals: (N, 4) xyxy in pixels of the
        network input, for models that are given theirs."""
        raise NotImplementedError

    def compute(self, unit: Unit, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """One unit on given inputs: its arrays in order; a panoptic unit's segments follow as JSON text."""
        raise NotImplementedError

    def read(self, path: str, channels: int) -> np.ndarray:
        """A picture as this side reads it: uint8 (H, W, channels), BGR or grey."""
        return jobs.read_image(path, channels)

    def tensors(self) -> dict[str, str]:
        """`tensor_hash` of every weight as the model holds it, by detectron2's keys."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Further entries of the manifest: versions, flags, canaries, ... (fields of `Manifest`)."""
        return {}

    def recording(self, modules: Sequence[str], into: Arrays) -> contextlib.AbstractContextManager[None]:
        """While inside, what the named modules return is put into `into`, as `steps/<module>`."""
        if modules:
            raise JobError(f"backend {self.name} does not record modules")
        return contextlib.nullcontext()

    def wait(self) -> None:
        """Wait until the device is idle."""


Load = Callable[[Job, Mapping[str, Any]], Backend]  # job, configuration -> model


def main(load: Load, arguments: Sequence[str] | None = None) -> int:
    """Do the job that the command line names and say how it went; returns the exit status."""

    def trace(job: Job) -> None:
        if job.mode not in ("trace", "keep"):
            raise JobError(f"mode {job.mode!r}: this worker writes traces only")
        run_job(job, load)

    return do_job(trace, arguments)


def do_job(do: Callable[[Job], None], arguments: Sequence[str] | None = None) -> int:
    """Read the job that the command line names, do it, and say how it went; returns the exit status."""
    parser = argparse.ArgumentParser(description="do one parity job")
    parser.add_argument("--job", required=True, help="JSON file, see parity.core.job")
    given = parser.parse_args(arguments)
    try:
        job = jobs.read_job(given.job)
        do(job)
    except Exception as error:
        if os.environ.get("PARITY_TRACEBACK"):
            raise
        jobs.say("error", message=f"{type(error).__name__}: {error}")
        return 2
    jobs.say("done", output=job.output)
    return 0


def run_job(job: Job, load: Load) -> None:
    """Run a job and write its trace, or one trace after the other. Raises JobError, TraceError or ValueError saying
    what is wrong."""
    started = time.perf_counter()
    config, _ = jobs.read_config(job.config_yaml)
    backend = load(job, config)
    loaded = time.perf_counter() - started
    if job.mode == "keep":
        _keep_running(job, backend, loaded)
    else:
        write_trace(job, backend, job.output, loaded)


def _keep_running(job: Job, backend: Backend, loaded: float) -> None:
    """Write a trace for every line of standard input: a JSON object with the `images`, `output` and `feed` of that
    trace. Each is answered by a line: "written", or "failed" with a message. Ends with its input.
    """
    tensors = backend.tensors()  # of weights that do not change any more
    backend.tensors = lambda: tensors
    jobs.say("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        one = replace(job, images=tuple(asked["images"]), output=asked["output"], feed=asked["feed"])
        try:
            write_trace(one, backend, one.output, loaded)
        except Exception as error:  # of this picture; the next one is another matter
            jobs.say("failed", message=f"{type(error).__name__}: {error}")
        else:
            jobs.say("written", output=one.output)


def write_trace(job: Job, backend: Backend, output: str, loaded: float | None = None) -> None:
    """Run every image of a job and write the trace to `output`. loaded: seconds that loading took."""
    config, text = jobs.read_config(job.config_yaml)
    pictures = [backend.read(path, jobs.channels_of(config)) for path in job.images]
    with contextlib.ExitStack() as stack:
        feed = stack.enter_context(Trace(job.feed)) if job.feed else None
        if feed is not None and len(feed.images) != len(pictures):
            raise TraceError(f"feed {job.feed} holds {len(feed.images)} images, the job {len(pictures)}")
        writer = stack.enter_context(TraceWriter(output, len(pictures), job.roi_rows))
        runner = _Runner(job, backend, config, writer, feed)
        runs = [runner.image(k, picture) for k, picture in enumerate(pictures)]
        manifest = Manifest(
            backend=backend.name,
            scope=backend.scope,
            dtype=backend.dtype,
            tensors=backend.tensors(),
            seconds={"load": loaded, "runs": [run.seconds for run in runs]},
            repeat={"runs": job.repeat, "nondeterministic": sorted(set().union(*(r.unstable for r in runs)))},
            peak_memory_mib=machine.peak_memory_mib(),
            mutation=job.mutate or None,
            **read_files(job, pictures),
        )
        for name, value in backend.facts().items():
            own = getattr(manifest, name)
            setattr(manifest, name, {**own, **value} if isinstance(own, dict) and value else value)
        if feed is not None and backend.scope == "all":
            manifest.forced = feeds.entry(feed, [r.inputs for r in runs], [r.derived for r in runs])
        writer.finish(manifest.to_json(), text)


@dataclass
class _Run:
    """What is to be told about one image."""

    seconds: list[float] = field(default_factory=list)
    unstable: set[str] = field(default_factory=set)
    inputs: dict[str, str] = field(default_factory=dict)
    derived: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class _Runner:
    job: Job
    backend: Backend
    config: Mapping[str, Any]
    writer: TraceWriter
    feed: Trace | None

    def image(self, index: int, picture: np.ndarray) -> _Run:
        """Run one image as often as the job says and store the first run; then its units on the fed arrays."""
        job, backend, told = self.job, self.backend, _Run()
        jobs.say("progress", done=index, of=len(job.images), what=Path(job.images[index]).name)
        proposals = given_proposals(job, self.feed, index)
        first: Arrays = {}
        for run in range(job.repeat):
            modules: Arrays = {}
            with backend.recording(() if run else job.modules, modules):
                backend.wait()
                begin = time.perf_counter()
                arrays, segments = backend.run(picture, proposals)
                backend.wait()
                told.seconds.append(time.perf_counter() - begin)
            if run:
                told.unstable.update(jobs.differing(first, arrays))
                continue
            first = arrays
            self._store(index, {**modules, **arrays}, segments)
        if self.feed is not None and backend.scope == "all":
            table = units(self.config)
            given = feeds.given_to(table, self.feed.images[index], job.profile)
            told.inputs = feeds.hashes(given)
            forced, told.derived = run_forced(backend, table, given)
            for name, array in forced.items():
                self.writer.put(forced_name(name), array, index)
        return told

    def _store(self, index: int, arrays: Arrays, segments: Segments) -> None:
        cut = self.job.roi_rows is not None
        long = {stage.name for stage in stages(self.config) if stage.roi_features} if cut else set()
        for name, array in arrays.items():
            self.writer.put(name, array, index, shorten=name in long)
        if PANOPTIC in arrays:
            self.writer.put_segments_info(segments, index)


def given_proposals(job: Job, feed: Trace | None, index: int) -> np.ndarray | None:
    """Boxes for a model without a proposal generator, xyxy in network pixels: of the job, or of the fed trace."""
    if job.proposals:
        return jobs.read_proposals(job.proposals[index])
    if feed is not None and "steps/input_proposals" in feed.images[index]:
        return feed.images[index]["steps/input_proposals"]
    return None


def run_units(backend: Backend, table: Sequence[Unit], given: Arrays) -> tuple[Arrays, Segments]:
    """A free run, unit by unit, each fed with what the units before it gave; and the panoptic segments."""
    values, segments = dict(given), []
    for unit in table:
        outputs = backend.compute(unit, [values[name] for name in unit.inputs])
        values |= dict(zip(unit.outputs, outputs, strict=False))
        for text in outputs[len(unit.outputs) :]:
            segments = json.loads(str(text))
    return values, segments


def run_forced(
    backend: Backend, table: Sequence[Unit], feed: Mapping[str, np.ndarray]
) -> tuple[Arrays, dict[str, list[str]]]:
    """Every unit on the fed trace's arrays.

    An array that the feed lacks is computed from those it has; which arrays needed that, and for which inputs, is the
    second result. A unit whose inputs can be neither read nor computed is left out.
    """
    computed: Arrays = {}
    derived: dict[str, list[str]] = {}
    for unit in table:
        inputs = [feed[name] if name in feed else computed.get(name) for name in unit.inputs]
        known = [x for x in inputs if x is not None]
        if len(known) < len(inputs):
            continue
        outputs = backend.compute(unit, known)
        if len(outputs) < len(unit.outputs):
            raise AssertionError(f"unit {unit.name}: {len(outputs)} arrays, not {len(unit.outputs)}")
        computed |= dict(zip(unit.outputs, outputs, strict=False))
        lacking = [name for name in unit.inputs if name not in feed]
        derived |= {name: lacking for name in unit.outputs if lacking}
    return computed, derived
