"""What a trace says about itself, the same for every backend."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity.core import machine
from parity.core.feed import array_sha256
from parity.core.job import Job, file_sha256


def _versions() -> dict[str, Any]:
    return {"python": platform.python_version(), "numpy": np.__version__}


@dataclass
class Manifest:
    """One run of a backend.

    scope: "all" arrays, "outputs", or "served". tensors: `tensor_hash` of each weight, read back from the model after
    loading. seconds: "load", and "runs" (per image, per repetition). repeat: "runs", and the arrays that were
    "nondeterministic". forced: see `parity.core.feed`. canaries: small products that show the precision at which the
    device computes. environment: variables that change it. mutation: the planted bug.
    """

    backend: str
    scope: str
    dtype: str
    profile: str
    device: str
    images: list[str]
    images_sha256: list[str]
    config_file_sha256: str
    state_file_sha256: str
    weights_sha256: str | None
    tensors: dict[str, str]
    seconds: dict[str, Any]
    repeat: dict[str, Any]
    peak_memory_mib: float
    mutation: str | None = None
    forced: dict[str, Any] | None = None
    threads: int | None = None
    versions: dict[str, Any] = field(default_factory=_versions)
    machine: dict[str, Any] = field(default_factory=machine.facts)
    flags: dict[str, Any] = field(default_factory=dict)
    canaries: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    accelerator: dict[str, Any] | None = None
    peak_device_memory_mib: float | None = None
    written: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    def to_json(self) -> dict[str, Any]:
        """The entries that are known."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def read_files(job: Job, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """Entries about what a job names: files, pictures, profile, device."""
    return {
        "profile": job.profile,
        "device": job.device,
        "threads": job.threads,
        "images": [Path(path).name for path in job.images],
        "images_sha256": [array_sha256(picture) for picture in pictures],
        "config_file_sha256": file_sha256(job.config_yaml),
        "state_file_sha256": file_sha256(job.weights),
        "weights_sha256": job.weights_sha256,
    }


def threads_of(manifest: Mapping[str, Any]) -> int | None:
    """Threads inside an operation, as a trace says; older ones of TensorFlow said it in an object."""
    threads = manifest.get("threads")
    return threads.get("intra_op") if isinstance(threads, Mapping) else threads
