"""What the bench workers of both frameworks share: pictures, results on disk, and the masks to paste."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity.core import job as jobs
from parity.core import machine


def read_state(job: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state dict of a job: the plain one where the parent wrote it, else that of the checkpoint."""
    if job.get("state"):
        return jobs.read_state(job["state"])
    from weights import read_checkpoint

    return dict(read_checkpoint(job["weights"]).state)


def write_found(path: str, boxes: Any, scores: Any, classes: Any) -> dict[str, Any]:
    """Write what a side detected, in pixels of the picture, for the parent to compare."""
    with open(path, "wb") as file:
        np.savez(file, boxes=np.asarray(boxes), scores=np.asarray(scores), classes=np.asarray(classes))
    return {}


def masks_to_paste(count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` mask probabilities (N, 28, 28) and boxes (N, 4) whose sides spread evenly in the logarithm
    from 1/50 to 1/2 of the picture's shorter side."""
    rng = np.random.default_rng(5)
    yy, xx = (np.mgrid[:28, :28] - 13.5) / 14
    reach = rng.uniform(0.6, 1.0, (count, 1, 1))
    masks = 1 / (1 + np.exp((yy**2 + xx**2 - reach**2) * 8))
    sides = np.exp(rng.uniform(np.log(0.02), np.log(0.5), (count, 2))) * min(height, width)
    low = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return masks.astype(np.float32), np.concatenate([low, low + sides], axis=1).astype(np.float32)


def extra_memory(act: Callable[[], Any]) -> dict[str, Any]:
    """Run ``act`` and tell how much the resident set grew at most, in MiB (None where that is unknown)."""
    known = machine.reset_peak_memory()
    before = machine.memory_mib()
    result = act()
    grown = machine.peak_memory_mib() - before
    del result
    return {"extra_mib": grown if known else None}


def read_job(path: str) -> dict[str, Any]:
    """The job file; its thread count also goes to the libraries that read it from the environment."""
    job = json.loads(Path(path).read_text())
    if job.get("threads"):
        os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    return job


def pictures(job: Mapping[str, Any]) -> list[np.ndarray]:
    """The job's pictures, BGR uint8 (H, W, 3)."""
    return [jobs.read_image(path) for path in job["images"]]


def count_found(result: Mapping[str, Any]) -> int:
    """Detections (or proposals) in what a predictor returned."""
    return next((len(result[k]) for k in ("instances", "proposals") if k in result), 0)
