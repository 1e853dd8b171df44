"""ONNX Runtime as a backend: `onnxruntime:FILE.onnx` (see `parity.backends.onnx_file`). Results only.

python -m parity.backends.onnxruntime --job job.json
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


class _OnnxRuntime(OnnxFile):
    """An inference session on the CPU or a GPU."""

    name = "onnxruntime"

    def __init__(self, job: Job, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        try:
            onnxruntime: Any = import_module("onnxruntime")
        except ImportError as error:
            raise JobError(
                f"onnxruntime is not installed for {sys.executable}: pip install onnxruntime"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads or 0
        provider = "CUDAExecutionProvider" if job.device == "gpu" else "CPUExecutionProvider"
        self.session = onnxruntime.InferenceSession(job.target, options, providers=[provider])
        if provider not in self.session.get_providers():
            raise JobError(f"device {job.device}: this onnxruntime has no {provider}")
        self.version = onnxruntime.__version__

    def infer(self, image: np.ndarray) -> Sequence[np.ndarray]:
        """The file's outputs in order."""
        return self.session.run(None, {self.session.get_inputs()[0].name: image})

    def facts(self) -> dict[str, Any]:
        """Versions."""
        return {"versions": {**super().facts()["versions"], "onnxruntime": self.version}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    return driver.main(_OnnxRuntime, arguments)


if __name__ == "__main__":
    sys.exit(main())
