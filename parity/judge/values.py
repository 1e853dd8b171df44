"""Arrays that are judged value by value: floating point within a limit, everything else exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parity.core.metrics import Metrics, measure
from parity.core.profiles import PEAK_FACTOR, Limit, limit, truth_limit
from parity.core.results import StageResult
from parity.core.status import Status
from parity.judge.context import Context
from parity.judge.limits import free_profile
from parity.judge.truth import Lined, free_errors, over_levels

# Of a refined array this part of the cells may differ, because one side refined them and the other did not. Every
# step ends between two cells of nearly equal uncertainty, which rounding orders; a step refines hundreds of cells.
_REFINED_SHARE = 1 / 500
_REFINED_STEP = 1e-4  # of the largest value: rounding makes no such difference, another choice does
_STEPS = 10.0 ** np.arange(-15, -3)


def settled(reference: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, str]:
    """The candidate with the reference's value in the few cells that were refined on one side only.

    Later steps mix such a cell into others, to smaller and smaller parts. So where there is one, those that stand out
    by least are taken to be of its kind, too, as long as all of them are few.
    """
    apart, largest = np.abs(candidate - reference), np.abs(reference).max(initial=1e-30)
    far = apart > _REFINED_STEP * largest
    if not far.any() or far.mean() > _REFINED_SHARE:
        return candidate, ""
    step = next((s for s in _STEPS if (apart > s * largest).mean() <= _REFINED_SHARE), _REFINED_STEP)
    far = apart > step * largest
    note = f"{int(far.sum())} of {far.size} cells were refined on one side only"
    return np.where(far, reference, candidate), note


def judge_refined(context: Context, result: StageResult, lined: Lined) -> None:
    candidate, note = settled(lined.reference, lined.candidate)
    lined, profile = replace(lined, candidate=candidate), free_profile(context, result.name)
    result.errors = free_errors(context.truth, result.name, lined, context.profile, agreed)
    if result.errors is not None and context.truth is not None:
        error, few = result.errors.reference, result.errors.numbers
        result.limit = truth_limit(profile, error, False, context.truth.own, few)
    else:
        result.limit = limit(profile, context.noise.get(result.name), forced=False)
    result.metrics = measure(lined.reference, candidate)
    result.status, message = verdict_of(result, result.limit)
    result.message = "; ".join(text for text in (message, note) if text)


def agreed(reference: np.ndarray, exact: np.ndarray) -> np.ndarray | None:
    """A float64 run's array as the reference refined it; None where that is another array altogether."""
    alike, note = settled(reference, exact)
    return alike if note or not np.any(_far(reference, exact)) else None


def _far(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    return np.abs(candidate - reference) > _REFINED_STEP * np.abs(reference).max(initial=1e-30)


def unlike(reference: np.ndarray, candidate: np.ndarray) -> tuple[Status, str] | None:
    """Why two arrays have no meaningful difference, or None."""
    if reference.dtype != candidate.dtype:
        return Status.FAIL, f"dtype {reference.dtype} against {candidate.dtype}"
    if reference.shape != candidate.shape:
        return Status.FAIL, f"shape {reference.shape} against {candidate.shape}"
    if reference.size == 0:
        return Status.NOT_COMPARED, "empty on both sides: nothing was compared"
    if reference.dtype.kind == "f":
        bad = [int((~np.isfinite(a)).sum()) for a in (reference, candidate)]
        if any(bad):
            return Status.FAIL, f"NaN or infinity: {bad[0]} in the reference, {bad[1]} in the candidate"
    return None


def judge_values(context: Context, result: StageResult, name: str, lined: Lined) -> None:
    reference, candidate = lined.reference, lined.candidate
    if reference.dtype.kind != "f":
        judge_exact(result, reference, candidate)
        return
    result.errors = free_errors(context.truth, name, lined, context.profile)
    if result.errors is not None and context.truth is not None:
        error = over_levels(context.truth, context.reference, name, result.errors.reference)
        # All levels of a head together are not few.
        few = result.errors.numbers if error is result.errors.reference else (error.count, 0, 0)
        bound = truth_limit(context.profile, error, False, context.truth.own, few)
    else:
        bound = limit(free_profile(context, name), context.noise.get(name), forced=False)
    result.limit = bound
    result.metrics = measure(reference, candidate)
    result.status, result.message = verdict_of(result, bound)


def judge_exact(result: StageResult, reference: np.ndarray, candidate: np.ndarray) -> None:
    unequal = reference != candidate
    if unequal.any():
        at = tuple(int(i) for i in np.argwhere(unequal)[0])
        result.status = Status.FAIL
        result.message = (
            f"{int(unequal.sum())} of {reference.size} values differ, first at {at}: "
            f"{reference[at]} against {candidate[at]}"
        )
        result.metrics = measure(reference, candidate)
    else:
        result.message = "equal"


def verdict_of(result: StageResult, bound: Limit, forced: bool = False) -> tuple[Status, str]:
    """PASS or FAIL of a continuous stage, and the metric that decided."""
    metrics, errors = result.metrics, result.errors
    if forced:
        metrics, errors = result.forced_metrics, result.forced_errors
    assert metrics is not None
    checks: list[tuple[str, float, float, str]] = []
    own, most = (0.0, 0.0, 0.0), (bound.value, PEAK_FACTOR * bound.value, PEAK_FACTOR * bound.value)
    if errors is not None and bound.peak is not None and bound.channel is not None:
        own, most = _three(errors.reference), (bound.value, bound.peak, bound.channel)
        far = zip(_names(errors.candidate.worst_channel), _three(errors.candidate), most, own, strict=True)
        checks = [(f"{what} from float64", v, top, f" (the reference's: {r:.2e})") for what, v, top, r in far]
    highest = (bound.ceiling, PEAK_FACTOR * bound.ceiling, PEAK_FACTOR * bound.ceiling)
    # Two sides that are both near the truth are not farther apart than their distances from it together.
    apart = [min(high, top + r) for high, top, r in zip(highest, most, own, strict=True)]
    named = zip(_names(metrics.worst_channel), _three(metrics), apart, strict=True)
    checks += [(what, value, top, "") for what, value, top in named]
    broken = [
        f"{what} {value:.2e} > {top:.2e}{more}" for what, value, top, more in checks if not value <= top
    ]
    return (Status.FAIL, "; ".join(broken)) if broken else (Status.PASS, "")


def _three(metrics: Metrics) -> tuple[float, float, float]:
    return metrics.rel_l2, metrics.max_rel, metrics.channel_rel_l2


def _names(channel: int) -> tuple[str, str, str]:
    return "relative L2", "largest difference over largest value", f"channel {channel} relative L2"
