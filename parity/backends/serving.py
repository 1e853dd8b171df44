"""An exported model behind a URL as a backend: results only.

python -m parity.backends.serving --job job.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.backends import driver
from parity.backends.driver import Arrays, Backend, Segments
from parity.backends.results import named_outputs
from parity.backends.tf import read_image, versions
from parity.core.job import Job, JobError, read_served


class Served(Backend):
    """A model on a server, at an address in one of the forms of ``parity.core.job.read_served``."""

    name = "serving"
    scope = "served"

    def __init__(self, job: Job, config: Mapping[str, Any]) -> None:
        from tf_d2.client import Client

        told = read_served(job.target)
        self.client = Client(told.server, told.model, version=told.version, label=told.label, timeout=600.0)

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[Arrays, Segments]:
        """The results of one BGR image, by trace name, and the panoptic segments."""
        if proposals is not None:
            raise JobError("backend serving does not take proposals in network pixels")
        outputs, segments = named_outputs(self.client.predict(image))
        return {"input/image": image, **outputs}, segments

    def read(self, path: str, channels: int) -> np.ndarray:
        """A picture as tf_d2 reads it."""
        return read_image(path, channels)

    def facts(self) -> dict[str, Any]:
        """Versions of the client."""
        return {"versions": versions()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    return driver.main(Served, arguments)


if __name__ == "__main__":
    sys.exit(main())
