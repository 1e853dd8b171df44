"""OpenVINO as a backend: `openvino:FILE.onnx` (see `parity.backends.onnx_file`). Results only.

python -m parity.backends.openvino --job job.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from parity.backends import driver
from parity.backends.onnx_file import OnnxFile
from parity.core.job import Job, JobError


class _OpenVino(OnnxFile):
    """A model compiled for the CPU or Intel's GPU, in float32."""

    name = "openvino"

    def __init__(self, job: Job, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        try:
            openvino: Any = import_module("openvino")
        except ImportError as error:
            raise JobError(f"openvino is not installed for {sys.executable}: pip install openvino") from error
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if job.threads and job.device == "cpu":
            settings["INFERENCE_NUM_THREADS"] = job.threads
        core = openvino.Core()
        self.model = core.compile_model(job.target, job.device.upper(), settings)
        self.version = openvino.__version__

    def infer(self, image: np.ndarray) -> Sequence[np.ndarray]:
        """The file's outputs in order."""
        answer = self.model([image])
        return [np.array(answer[output]) for output in self.model.outputs]

    def facts(self) -> dict[str, Any]:
        """Versions."""
        return {"versions": {**super().facts()["versions"], "openvino": self.version}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    return driver.main(_OpenVino, arguments)


if __name__ == "__main__":
    sys.exit(main())
