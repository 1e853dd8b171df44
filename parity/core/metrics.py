"""Numbers that describe how two arrays differ.

All of them are computed in float64. Cosine and PSNR are deliberately absent: they stay above every customary
threshold with one channel in 256 dead or a wrong epsilon, so they would only suggest agreement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_CHANNEL_FLOOR = 0.1  # a channel weaker than a tenth of the typical one is judged against that tenth


@dataclass(frozen=True)
class Metrics:
    """Differences candidate minus reference. Relative numbers have no unit; 0 is equality.

    ``rel_l2`` is |c-r|/|r|; ``max_rel`` and ``p999_rel`` are the largest and the 99.9th percentile of |c-r|
    over max|r|; ``bias`` is the signed mean difference over the RMS of r; ``channel_rel_l2`` is the worst
    channel's (index ``worst_channel``); ``ring_rel_l2`` is that of the outermost ring of pixels,
    ``inner_rel_l2`` that of the rest (NaN where the array is no feature map). ``worst_index`` is the place
    of the largest difference.
    """

    count: int
    rel_l2: float
    max_abs: float
    max_rel: float
    p999_rel: float
    bias: float
    channel_rel_l2: float
    worst_channel: int
    ring_rel_l2: float
    inner_rel_l2: float
    worst_index: tuple[int, ...]
    worst_reference: float
    worst_candidate: float
    # Numbers other than 0 in the worst channel of the reference: what ReLU cuts off is right on every side. 0 where
    # nobody counted (results of older versions).
    channel_cells: int = 0


def relative_l2(difference: np.ndarray, reference: np.ndarray) -> float:
    """|difference| / |reference|; inf where only the reference is zero, 0 where both are."""
    size = float(np.linalg.norm(difference.ravel()))
    scale = float(np.linalg.norm(reference.ravel()))
    if size == 0.0:
        return 0.0
    return size / scale if scale > 0.0 else float("inf")


def measure(reference: np.ndarray, candidate: np.ndarray) -> Metrics:
    """Every metric of two finite arrays of equal shape with at least one element.

    Raises ValueError for what has no meaningful number (shapes differ, empty, NaN or infinity): the caller
    reports these as their own failures.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"shapes differ: {reference.shape} and {candidate.shape}")
    if reference.size == 0:
        raise ValueError("both arrays are empty")
    ref = reference.astype(np.float64)
    cand = candidate.astype(np.float64)
    if not (np.isfinite(ref).all() and np.isfinite(cand).all()):
        raise ValueError("NaN or infinity present")
    diff = cand - ref
    absolute = np.abs(diff)
    worst = np.unravel_index(int(absolute.argmax()), ref.shape)
    peak = float(np.abs(ref).max())
    rms = float(np.sqrt(np.mean(ref * ref)))
    channel, channel_error = _worst_channel(diff, ref)
    ring, inner = _ring(diff, ref)
    return Metrics(
        count=int(ref.size),
        rel_l2=relative_l2(diff, ref),
        max_abs=float(absolute[worst]),
        max_rel=_over(float(absolute[worst]), peak),
        p999_rel=_over(float(np.quantile(absolute, 0.999)), peak),
        bias=_over(float(diff.mean()), rms),
        channel_rel_l2=channel_error,
        worst_channel=channel,
        ring_rel_l2=ring,
        inner_rel_l2=inner,
        worst_index=tuple(int(i) for i in worst),
        worst_reference=float(ref[worst]),
        worst_candidate=float(cand[worst]),
        channel_cells=int(np.count_nonzero(ref if channel < 0 else ref[:, channel])),
    )


def _over(value: float, scale: float) -> float:
    if value == 0.0:
        return 0.0
    return value / scale if scale > 0.0 else float(np.copysign(np.inf, value))


def _worst_channel(diff: np.ndarray, ref: np.ndarray) -> tuple[int, float]:
    """Index and relative L2 of the worst channel (axis 1 of NCHW and row arrays; -1 without such an axis)."""
    if ref.ndim < 2:
        return -1, relative_l2(diff, ref)
    axes = tuple(a for a in range(ref.ndim) if a != 1)
    errors = np.sqrt((diff * diff).sum(axis=axes))
    norms = np.sqrt((ref * ref).sum(axis=axes))
    floor = _CHANNEL_FLOOR * float(np.sqrt(np.mean(norms * norms)))
    scales = np.maximum(norms, floor)
    relative = np.divide(errors, scales, out=np.where(errors > 0, np.inf, 0.0), where=scales > 0)
    return int(relative.argmax()), float(relative.max())


def _ring(diff: np.ndarray, ref: np.ndarray) -> tuple[float, float]:
    """Relative L2 of the one-pixel border ring and of the interior of an NCHW map, both over the map's
    RMS."""
    if ref.ndim != 4 or min(ref.shape[2:]) < 3:
        return float("nan"), float("nan")
    inside = np.zeros(ref.shape[2:], bool)
    inside[1:-1, 1:-1] = True
    rms = float(np.sqrt(np.mean(ref * ref)))
    ring = float(np.sqrt(np.mean(diff[:, :, ~inside] ** 2)))
    inner = float(np.sqrt(np.mean(diff[:, :, inside] ** 2)))
    return _over(ring, rms), _over(inner, rms)
