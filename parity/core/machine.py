"""Facts about the machine, for manifests. Standard library only."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

# Instructions that decide which kernels a framework takes, the oldest first (x86, then ARM).
_INSTRUCTIONS = (
    *(
        "sse4_1",
        "avx",
        "f16c",
        "fma",
        "avx2",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "avx512_fp16",
    ),
    *("amx_tile", "asimd", "asimddp", "bf16", "sve"),
)
# Variables of the environment that change which kernels compute.
_SETTINGS = (
    *("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"),
    *("MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE"),
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"),
)


def facts() -> dict[str, Any]:
    """Processor, its instruction sets, settings, cores, memory, operating system and Python of this machine."""
    return {
        "cpu": _cpu_name(),
        "instructions": instructions(),
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(_total_memory() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def peak_memory_mib() -> float:
    """Largest resident set of this process since it started or since :func:`reset_peak_memory`, in MiB."""
    high = _status_kib("VmHWM")
    if high is not None:
        return high / 1024
    # Beyond Linux. (On Linux this number starts with the size of the process that started this one.)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20


def memory_mib() -> float:
    """Resident set of this process now, in MiB; NaN where the system does not tell."""
    now = _status_kib("VmRSS")
    return float("nan") if now is None else now / 1024


def reset_peak_memory() -> bool:
    """Let :func:`peak_memory_mib` count from now on. False where the system cannot do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_kib(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)


def instructions() -> list[str]:
    """The processor's instruction sets that frameworks choose kernels by; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    held = next(
        (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), []
    )
    return [name for name in _INSTRUCTIONS if name in held]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _total_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0
