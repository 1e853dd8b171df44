"""What the PyTorch workers have in common: from a job to a trace, for any backend that can run one image."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from parity.backends import torch_environment as environment
from parity.core import feed as feeds
from parity.core import job as jobs
from parity.core import machine
from parity.core.job import Job, JobError
from parity.core.trace import Trace, TraceError, TraceWriter
from parity.core.units import forced_name
from parity.core.units import stages as stages_of
from parity.core.units import units as units_of

Arrays = dict[str, np.ndarray]


class Backend(Protocol):
    """A loaded model. `module`: the torch module whose submodules have detectron2's names."""

    name: str
    module: nn.Module
    config: Mapping[str, Any]
    versions: Mapping[str, Any]

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[Arrays, list[dict[str, Any]]]:
        """Every stage of one image by name, and its panoptic segments."""
        ...

    def forced(self, feed: Mapping[str, np.ndarray]) -> tuple[Arrays, dict[str, list[str]]]:
        """Stages computed from another trace's arrays; and which inputs that trace lacked and were
        computed."""
        ...


Make = Callable[[Job, dict[str, Any], torch.device], Backend]


def serve(make: Make, arguments: Sequence[str] | None, *, deterministic_or_error: bool) -> int:
    """Do the job that the command line names and say how it went; returns the exit status."""
    parser = argparse.ArgumentParser(description="run one parity job and write its trace")
    parser.add_argument("--job", required=True, help="JSON file, see parity.core.job")
    given = parser.parse_args(arguments)
    try:
        job = jobs.read_job(given.job)
        run_job(job, make, deterministic_or_error=deterministic_or_error)
    except Exception as error:
        if os.environ.get("PARITY_TRACEBACK"):
            raise
        jobs.say("error", message=f"{type(error).__name__}: {error}")
        return 2
    jobs.say("done", output=job.output)
    return 0


def run_job(job: Job, make: Make, *, deterministic_or_error: bool) -> None:
    """Run a job and write its trace. Raises JobError, TraceError or ValueError saying what is wrong."""
    started = time.perf_counter()
    device = environment.set_up(job, deterministic_or_error=deterministic_or_error)
    config, text = jobs.read_config(job.config_yaml)
    images = [jobs.read_image(path) for path in job.images]
    observed = environment.observe(device)
    environment.check_canaries(job, observed)
    backend = make(job, config, device)
    manifest = jobs.base_manifest(backend.name, job, images, _tensors(backend.module))
    manifest |= observed
    manifest["versions"] = {**manifest["versions"], **environment.versions(), **backend.versions}
    loaded = time.perf_counter() - started
    backend.module.to(torch.float64 if job.profile == "semantic" else torch.float32)
    with contextlib.ExitStack() as stack:
        feed = stack.enter_context(Trace(job.feed)) if job.feed else None
        if feed is not None and len(feed.images) != len(images):
            raise TraceError(f"feed {job.feed} holds {len(feed.images)} images, the job {len(images)}")
        writer = stack.enter_context(TraceWriter(job.output, len(images), job.roi_rows))
        reports = [_one_image(backend, job, device, image, k, feed, writer) for k, image in enumerate(images)]
        manifest |= _summary(job, reports, loaded)
        if feed is not None:
            inputs, derived = ([report[key] for report in reports] for key in ("inputs", "derived"))
            manifest["forced"] = feeds.entry(feed, inputs, derived)
        manifest["peak_device_memory_mib"] = environment.peak_device_memory_mib(device)
        writer.finish(manifest, text)


def _tensors(module: nn.Module) -> dict[str, str]:
    """Hash of every weight, read back from the model."""
    return {key: jobs.tensor_hash(value.cpu().numpy()) for key, value in module.state_dict().items()}


def _one_image(
    backend: Backend,
    job: Job,
    device: torch.device,
    image: np.ndarray,
    index: int,
    feed: Trace | None,
    writer: TraceWriter,
) -> dict[str, Any]:
    """Run one image as often as the job says, store the first run; what to report about it."""
    jobs.say("progress", done=index, of=len(job.images), what=os.path.basename(job.images[index]))
    given = None
    if feed is not None:
        given = feeds.given_to(units_of(backend.config), feed.images[index], job.profile)
    proposals = _proposals(job, feed, index)
    first: Arrays = {}
    seconds, unstable = [], set()
    for run in range(job.repeat):
        modules: Arrays = {}
        with record_modules(backend.module, () if run else job.modules, modules):
            environment.synchronize(device)
            begin = time.perf_counter()
            arrays, segments = backend.run(image, proposals)
            environment.synchronize(device)
            seconds.append(time.perf_counter() - begin)
        if run == 0:
            first = arrays
            _write(writer, backend.config, index, {**modules, **arrays}, segments)
        else:
            unstable.update(jobs.differing(first, arrays))
    report = {"seconds": seconds, "nondeterministic": unstable}
    if given is not None:
        forced, derived = backend.forced(given)
        report |= {"inputs": feeds.hashes(given), "derived": derived}
        for name, array in forced.items():
            writer.put(forced_name(name), array, index)
    return report


def _proposals(job: Job, feed: Trace | None, index: int) -> np.ndarray | None:
    """Boxes for a model without a proposal generator: of the job, or of the fed trace."""
    if job.proposals:
        return jobs.read_proposals(job.proposals[index])
    if feed is not None and "steps/input_proposals" in feed.images[index]:
        return feed.images[index]["steps/input_proposals"]
    return None


def _write(
    writer: TraceWriter,
    config: Mapping[str, Any],
    index: int,
    arrays: Arrays,
    segments: list[dict[str, Any]],
) -> None:
    """Store the arrays of one image; ROI features may be shortened, as the writer was told."""
    long = {stage.name for stage in stages_of(config) if stage.roi_features}
    for name, array in arrays.items():
        writer.put(name, array, index, shorten=name in long)
    if "output/panoptic_seg" in arrays:
        writer.put_segments_info(segments, index)


def _summary(job: Job, reports: Sequence[Mapping[str, Any]], loaded: float) -> dict[str, Any]:
    """Manifest entries about time, memory and repeatability; one list item per image."""
    unstable = sorted({name for report in reports for name in report["nondeterministic"]})
    entries: dict[str, Any] = {
        "seconds": {
            "load": loaded,
            "images": [report["seconds"][0] for report in reports],
            "runs": [report["seconds"] for report in reports],
        },
        "peak_memory_mib": machine.peak_memory_mib(),
        "repeat": {"runs": job.repeat, "nondeterministic": unstable},
    }
    return entries


# ------------------------------------------------------------------------------------------------- modules


@contextlib.contextmanager
def record_modules(model: nn.Module, wanted: Sequence[str], into: Arrays) -> Iterator[None]:
    """Record what the modules named in `wanted` (or below them; "all" for every one) return, as
    `steps/<module>`. Raises JobError for a name that matches no module."""
    modules = {name: module for name, module in model.named_modules() if name}
    unknown = [
        part for part in wanted if part != "all" and not any(_matches(name, [part]) for name in modules)
    ]
    if unknown:
        raise JobError(f"the model has no module {', '.join(unknown)}")
    handles = [
        module.register_forward_hook(recorder(name, into))
        for name, module in modules.items()
        if _matches(name, wanted)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _matches(name: str, wanted: Sequence[str]) -> bool:
    return any(part in ("all", name) or name.startswith(part + ".") for part in wanted)


def recorder(name: str, into: Arrays) -> Callable[[nn.Module, Any, Any], None]:
    """A forward hook that stores a module's output; further calls get `#1`, `#2`, ... after the name.

    The values are copied at once: detectron2 changes some of them in place later.
    """
    calls = 0

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal calls
        target = f"steps/{name}" + (f"#{calls}" if calls else "")
        calls += 1
        for suffix, value in flatten(output):
            into[target + suffix] = value.detach().cpu().numpy().copy()

    return hook


def flatten(output: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors inside nested lists, tuples, dicts and detectron2 structures, with their path (`/0/p2`)."""
    if isinstance(output, Tensor):
        yield "", output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from ((f"/{key}{suffix}", tensor) for suffix, tensor in flatten(value))
    elif isinstance(output, (list, tuple)):
        for index, value in enumerate(output):
            yield from ((f"/{index}{suffix}", tensor) for suffix, tensor in flatten(value))
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):  # DensePose's outputs
        yield from flatten({f.name: getattr(output, f.name) for f in dataclasses.fields(output)})
    elif callable(fields := getattr(output, "get_fields", None)):  # detectron2.structures.Instances
        yield from flatten(fields())
    elif isinstance(tensor := getattr(output, "tensor", None), Tensor):  # Boxes and the like
        yield "", tensor
