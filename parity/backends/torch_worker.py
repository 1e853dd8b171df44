"""Runs the PyTorch reference (`parity.backends.torch_reference`) on a job and writes its trace.

`python -m parity.backends.torch_worker --job job.json`, see `parity.core.job`. Progress and errors are JSON lines
on standard output. Exit status: 0 written, 2 failed. PARITY_TRACEBACK=1 in the environment shows where it
failed.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.backends import torch_reference
from parity.backends.torch_reference.ops import torchvision_ops
from parity.backends.torch_run import Arrays, serve
from parity.core import job as jobs
from parity.core.job import Job


class Reference:
    """The reference model as a backend of `parity.backends.torch_run`."""

    name = "torch"

    def __init__(
        self, config: Mapping[str, Any], state: Mapping[str, np.ndarray], device: torch.device
    ) -> None:
        self.model = torch_reference.build(config)
        torch_reference.load_state(self.model, state)
        self.module: nn.Module = self.model.to(device)
        self.config: Mapping[str, Any] = config
        own = torchvision_ops() is None
        self.versions: Mapping[str, Any] = {
            "torchvision": None if own else importlib.metadata.version("torchvision")
        }

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[Arrays, list[dict[str, Any]]]:
        """Every stage of one image by name, and its panoptic segments."""
        values, segments = torch_reference.run_free(self.model, image, proposals)
        return {name: value.cpu().numpy() for name, value in values.items()}, segments

    def forced(self, feed: Mapping[str, np.ndarray]) -> tuple[Arrays, dict[str, list[str]]]:
        """Stages computed from another trace's arrays; and which inputs that trace lacked and were
        computed."""
        values, derived = torch_reference.run_forced(self.model, feed)
        return {name: value.cpu().numpy() for name, value in values.items()}, derived


def make(job: Job, config: dict[str, Any], device: torch.device) -> Reference:
    """The job's model with its weights, in float32 on the device."""
    return Reference(config, jobs.read_state(job.weights), device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    return serve(make, arguments, deterministic_or_error=True)


if __name__ == "__main__":
    sys.exit(main())
