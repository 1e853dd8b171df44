"""Threads, device and numeric flags of a PyTorch process: set for a profile, then reported as observed.

The order matters: environment variables that CUDA reads once are set before the device is touched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from parity.core.job import Job, JobError

# A product that float32 holds and TF32 (10 bits of mantissa) rounds to 1.
_CANARY = 1.0 + 2.0**-12


def set_up(job: Job, *, deterministic_or_error: bool = True) -> torch.device:
    """Set threads and flags for the job's profile and return its device.

    deterministic_or_error: whether an operation without a deterministic form is an error (else a warning).
    Raises JobError when the job wants a GPU that is not there.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    if job.device == "gpu" and not torch.cuda.is_available():
        build = torch.version.cuda or "none"
        raise JobError(
            f"device gpu: torch {torch.__version__} (CUDA {build}) sees no usable GPU; use device cpu, or an "
            "interpreter whose torch sees one"
        )
    if job.profile != "production":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.use_deterministic_algorithms(True, warn_only=not deterministic_or_error)
    return torch.device("cuda" if job.device == "gpu" else "cpu")


def versions() -> dict[str, Any]:
    """Versions of torch and of what it was built with."""
    cudnn = torch.backends.cudnn
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version() if cudnn.is_available() else None,
    }


def observe(device: torch.device) -> dict[str, Any]:
    """Manifest entries: device, threads, flags as they are now, canaries."""
    return {
        "accelerator": _accelerator(device),
        "threads": torch.get_num_threads(),
        "flags": _flags(),
        "environment": {key: os.environ[key] for key in _VARIABLES if key in os.environ},
        "canaries": canaries(device),
    }


_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE")


def _flags() -> dict[str, Any]:
    return {
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "mkldnn": bool(getattr(torch.backends.mkldnn, "enabled", torch.backends.mkldnn.is_available())),
        "inter_op_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _accelerator(device: torch.device) -> dict[str, Any] | None:
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
        "driver": _driver(),
    }


def _driver() -> str | None:
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            return file.readline().strip()
    except OSError:
        return None


def canaries(device: torch.device) -> dict[str, Any]:
    """Small products on the device whose error says at what precision matrix products and convolutions
    run."""
    value = torch.full((64, 64), _CANARY, device=device)
    product = value @ torch.eye(64, device=device)
    image = torch.full((1, 64, 8, 8), _CANARY, device=device)
    kernel = torch.eye(64, device=device)[:, :, None, None].contiguous()
    convolved = torch.nn.functional.conv2d(image, kernel)
    errors = {
        "matmul_error": (product - _CANARY).abs().max().item(),
        "conv_error": (convolved - _CANARY).abs().max().item(),
    }
    return {**errors, "reduced_precision": max(errors.values()) > 2.0**-14}


def check_canaries(job: Job, observed: Mapping[str, Any]) -> None:
    """Raise JobError when the profile forbids reduced precision and the canaries show it."""
    if job.profile != "production" and observed["canaries"]["reduced_precision"]:
        raise JobError(
            f"profile {job.profile}: float32 products lose bits on this device although TF32 was switched "
            f"off ({observed['canaries']}); is NVIDIA_TF32_OVERRIDE=1 set?"
        )


def synchronize(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_device_memory_mib(device: torch.device) -> float | None:
    """The most memory that torch held on a GPU, in MiB; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
