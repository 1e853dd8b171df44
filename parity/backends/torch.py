"""The PyTorch reference (`parity.backends.torch_reference`) as a backend.

python -m parity.backends.torch --job job.json
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from parity.backends import driver, torch_reference
from parity.backends.driver import Arrays, Segments
from parity.backends.torch_backend import TorchBackend
from parity.backends.torch_reference.ops import torchvision_ops
from parity.backends.torch_reference.run import run_unit
from parity.core import job as jobs
from parity.core.job import Job
from parity.core.units import Unit


class _Reference(TorchBackend):
    """The reference model."""

    name = "torch"

    def __init__(self, job: Job, config: Mapping[str, Any]) -> None:
        super().__init__(job, deterministic_or_error=True)
        self.model = torch_reference.build(config)
        torch_reference.load_state(self.model, jobs.read_state(job.weights))
        self.module = self.model.to(self.device, self.torch_dtype)
        own = torchvision_ops() is None
        self.packages = {"torchvision": None if own else importlib.metadata.version("torchvision")}

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[Arrays, Segments]:
        """Every array of one image by name, and its panoptic segments."""
        values, segments = torch_reference.run_free(self.model, image, proposals)
        return {name: value.cpu().numpy() for name, value in values.items()}, segments

    def compute(self, unit: Unit, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """One unit on given inputs."""
        given = [torch.from_numpy(np.array(x)).to(self.device) for x in inputs]
        values, segments = run_unit(self.model, unit, given)
        told = [np.array(json.dumps(segments))] if unit.op == "panoptic" else []
        return [*(value.cpu().numpy() for value in values.values()), *told]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    return driver.main(_Reference, arguments)


if __name__ == "__main__":
    sys.exit(main())
