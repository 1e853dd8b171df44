"""What the PyTorch backends have in common: device and precision, facts about them, hooks on modules."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parity.backends import torch_environment as environment
from parity.backends.driver import Arrays, Backend
from parity.core import job as jobs
from parity.core.job import Job, JobError


class TorchBackend(Backend):
    """A model of PyTorch. `module`: the module whose submodules have detectron2's names, on `device`."""

    scope = "all"
    module: nn.Module

    def __init__(self, job: Job, *, deterministic_or_error: bool) -> None:
        """deterministic_or_error: whether an operation without a deterministic form is an error (else a warning)."""
        self.device = environment.set_up(job, deterministic_or_error=deterministic_or_error)
        self.observed = environment.observe(self.device)
        environment.check_canaries(job, self.observed)
        self.dtype = "float64" if job.profile == "semantic" else "float32"
        self.packages: dict[str, Any] = {}  # versions of what else computes

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the continuous units."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def tensors(self) -> dict[str, str]:
        """Hash of every weight, read back from the model."""
        return {key: jobs.tensor_hash(value.cpu().numpy()) for key, value in self.module.state_dict().items()}

    def facts(self) -> dict[str, Any]:
        """Versions, flags, canaries, memory of the device."""
        return {
            **self.observed,
            "versions": {**environment.versions(), **self.packages},
            "peak_device_memory_mib": environment.peak_device_memory_mib(self.device),
        }

    def recording(self, modules: Sequence[str], into: Arrays) -> contextlib.AbstractContextManager[None]:
        """Hooks on the named modules (see `record_modules`)."""
        return record_modules(self.module, modules, into)

    def wait(self) -> None:
        """Wait until the device is idle."""
        environment.synchronize(self.device)


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
    elif callable(fields := getattr(output, "get_fields", None)):  # detectron2.structures.Instances
        yield from flatten(fields())
    elif isinstance(tensor := getattr(output, "tensor", None), Tensor):  # Boxes and the like
        yield "", tensor
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):  # DensePose's outputs
        yield from flatten({f.name: getattr(output, f.name) for f in dataclasses.fields(output)})
