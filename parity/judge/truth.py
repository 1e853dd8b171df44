"""A float64 run of the reference beside a comparison: how far each side is from what exact arithmetic gives.

Two right implementations add up in other orders, on every processor in another one, and so differ by rounding. How
much rounding a model makes of a picture is not known beforehand, but it is measured: the reference's own distance
from a float64 run of itself, in the same metric. A candidate whose distance from that run is at most FACTOR times as
large (and what the dtype rounds once or twice) is as near the truth as the reference; one that is farther computes
something else, however small the number is. See `parity.core.profiles` for the factor and the floors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from parity.core.feed import Fed, Inputs
from parity.core.metrics import Metrics, measure
from parity.core.profiles import PEAK_FACTOR, TRUTH_FACTOR, Profile
from parity.core.results import Errors
from parity.core.units import forced_name
from parity.core.units.table import DENSE_HEAD, RPN_HEAD
from parity.judge import detections, provenance
from parity.judge.detections import Items, Noise
from parity.judge.pixels import sigmoid

Arrays = Mapping[str, np.ndarray]


@dataclass
class Truth:
    """The arrays of a float64 run on the same picture.

    ``own``: whether the reference itself ran, and not another implementation of the model. ``rows``: for each set of
    detections, the reference's row -> this run's row of the same item. ``noise``: for each set, how far the
    reference's corners (pixels) and scores are from this run's.
    """

    arrays: Arrays
    fed: Fed = field(default_factory=lambda: Fed(None))
    own: bool = True
    rows: dict[str, dict[int, int]] = field(default_factory=dict)
    noise: dict[str, Noise] = field(default_factory=dict)


@dataclass(frozen=True)
class Lined:
    """Two arrays put side by side row by row. ``rows``: which of the reference's rows these are, in the order of the
    set ``owner``; None where the arrays are whole."""

    reference: np.ndarray
    candidate: np.ndarray
    rows: np.ndarray | None = None
    owner: str = ""


def effective_rows(exact: np.ndarray, reference: np.ndarray) -> tuple[int, int]:
    """Of how many rows the reference's error is, and by how many its largest element is decided: their number where
    all err alike, 1 where one row's error is all there is of it (a box that its features hardly determine), as Kish
    counts samples of unequal weight. The weights are the rows' sums of squares; for the largest element, which a few
    rows decide that hardly count in the sum, the fourth powers of theirs."""
    errors = np.abs(reference.astype(np.float64) - exact).reshape(len(exact), -1)
    return _kish((errors**2).sum(axis=1)), _kish(errors.max(axis=1, initial=0.0) ** 4)


def fewest_rows(exact: np.ndarray, reference: np.ndarray, candidate: np.ndarray) -> tuple[int, int]:
    """:func:`effective_rows` of the side of which there are fewer. A row that its features hardly determine shows in
    the reference's errors only where the reference happened to err there."""
    sides = [effective_rows(exact, side) for side in (reference, candidate)]
    return min(s[0] for s in sides), min(s[1] for s in sides)


def _kish(weights: np.ndarray) -> int:
    largest = float(weights.max(initial=0.0))
    if largest == 0.0:
        return len(weights)
    shares = weights / largest
    return max(1, round(float(shares.sum() ** 2 / (shares**2).sum())))


# (reference, truth) -> the truth with those cells left out of which only one was chosen, or None: nothing is alike
_Agree = Callable[[np.ndarray, np.ndarray], np.ndarray | None]


def free_errors(
    truth: Truth | None, name: str, lined: Lined, profile: Profile, agree: _Agree | None = None
) -> Errors | None:
    """Both sides' distances from the truth, end to end; None where it does not hold the same array."""
    if truth is None or name not in truth.arrays:
        return None
    exact, reference, candidate = truth.arrays[name], lined.reference, lined.candidate
    if lined.owner:
        aligned = _same_rows(truth, exact, lined, profile, agree)
        if aligned is None:
            return None
        exact, reference, candidate = aligned
        errors = _errors(exact, reference, candidate)
        if errors is None:
            return None
        of_all, of_peak = fewest_rows(exact, reference, candidate)
        return replace(errors, rows=of_all, peak_rows=of_peak)
    elif exact.ndim and reference.ndim:
        exact = exact[: len(reference)]  # a recording may hold the first rows only
    return _errors(exact, reference, candidate, agree)


def forced_errors(
    truth: Truth | None,
    inputs: Inputs,
    name: str,
    lined: Lined,
    agree: _Agree | None = None,
) -> Errors | None:
    """The same for a stage on the reference's own input, which must be what the truth was fed with."""
    forced = forced_name(name)
    if truth is None or forced not in truth.arrays or inputs.problem(truth.fed, name):
        return None
    exact = truth.arrays[forced]
    if lined.rows is not None:
        if lined.rows.max(initial=-1) >= len(exact):
            return None
        exact = exact[lined.rows]
    elif exact.ndim and lined.reference.ndim:
        exact = exact[: len(lined.reference)]
    return _errors(exact, lined.reference, lined.candidate, agree)


def over_levels(truth: Truth, reference: Arrays, name: str, error: Metrics) -> Metrics:
    """The reference's error in one level of a head that runs on every level of a pyramid: the largest of all levels.

    The same weights make them all, and a coarse level has too few cells to show how much they round. ``error``: of
    the array ``name`` alone, and the result for every other array.
    """
    found = [error]
    for other in _same_head(truth.arrays, name):
        exact = truth.arrays[other]
        if other in reference and reference[other].shape == exact.shape and np.isfinite(exact).all():
            found.append(measure(exact, reference[other]))
    if len(found) == 1:
        return error
    measures = ("rel_l2", "max_rel", "channel_rel_l2", "count")
    return replace(error, **{m: max(getattr(e, m) for e in found) for m in measures})


def _same_head(arrays: Arrays, name: str) -> list[str]:
    """The other levels' arrays: `steps/head/1/0`, `steps/head/1/1`, ...; `steps/head.cls_subnet`, `...#1`, ..."""
    if name.startswith((f"{DENSE_HEAD}/", f"{RPN_HEAD}/")):
        kind = name.rpartition("/")[0]
        return [n for n in arrays if n != name and n.rpartition("/")[0] == kind]
    if name.startswith(f"{DENSE_HEAD}."):
        return [n for n in arrays if n != name and n.partition("#")[0] == name.partition("#")[0]]
    return []


def _errors(
    exact: np.ndarray, reference: np.ndarray, candidate: np.ndarray, agree: _Agree | None = None
) -> Errors | None:
    usable = exact.shape == reference.shape and exact.size > 0 and exact.dtype.kind == "f"
    if not usable or not np.isfinite(exact).all():
        return None
    settled = exact if agree is None else agree(reference, exact)
    if settled is None:
        return None
    exact = settled
    return Errors(measure(exact, reference), measure(exact, candidate))


def _same_rows(
    truth: Truth, exact: np.ndarray, lined: Lined, profile: Profile, agree: _Agree | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(exact, reference, candidate) of the items that the truth holds, too."""
    mapping, rows = truth.rows.get(lined.owner), lined.rows
    if mapping is None or rows is None:
        return None
    kept = [k for k, row in enumerate(rows) if mapping.get(int(row), len(exact)) < len(exact)]
    if not kept:
        return None
    exact = exact[[mapping[int(rows[k])] for k in kept]]
    reference, candidate = lined.reference[kept], lined.candidate[kept]
    if exact.shape != reference.shape:
        return None
    settled = exact if agree is None else agree(reference, exact)
    if settled is None:
        return None
    exact = settled
    near = _rounding_only(exact, reference, profile)
    return (exact[near], reference[near], candidate[near]) if near.any() else None


def _rounding_only(exact: np.ndarray, reference: np.ndarray, profile: Profile) -> np.ndarray:
    """Rows in which the reference is off by no more than rounding. In the others a discrete choice came out
    otherwise (the level a box is pooled from), which says nothing about rounding."""
    axes = tuple(range(1, exact.ndim))
    gap = np.sqrt(((reference.astype(np.float64) - exact) ** 2).sum(axis=axes))
    size = np.sqrt((exact.astype(np.float64) ** 2).sum(axis=axes))
    typical = float(np.sqrt((size**2).mean())) if len(size) else 0.0
    return gap <= PEAK_FACTOR * TRUTH_FACTOR * profile.free_ceiling * np.maximum(size, typical)


def match_rows(reference: Items, exact: Items, static: Noise) -> tuple[dict[int, int], Noise]:
    """The truth's row of each of the reference's items, and how far these are apart. Pairs farther apart than
    rounding makes (another box of a near tie was kept) are left out."""
    pairs = np.array(detections.match(reference, exact), int).reshape(-1, 2)
    own, other = pairs[:, 0], pairs[:, 1]
    px = np.abs(reference.boxes[own].astype(np.float64) - exact.boxes[other]).max(axis=1, initial=0.0)
    score = np.abs(reference.scores[own].astype(np.float64) - exact.scores[other])
    near = (px <= TRUTH_FACTOR * static.box_px) & (score <= TRUTH_FACTOR * static.score)
    rows = {int(i): int(j) for i, j in pairs[near]}
    return rows, Noise(float(px[near].max(initial=0.0)), float(score[near].max(initial=0.0)))


def probability_noise(
    truth: Truth, reference: Arrays, scores: np.ndarray, proposals: str, most: float
) -> float:
    """The reference's largest error in any class probability, of every proposal or anchor and not only of the few
    that became detections, whose ``scores`` are given. Errors beyond ``most`` are left out (another level was pooled).

    Nearly all of a dense head's probabilities are next to 0 and do not move with their logits: so what an error of any
    logit makes of a detection's score counts, too.
    """
    if f"{DENSE_HEAD}/0/0" in truth.arrays:
        steepest = float((scores * (1.0 - scores)).max(initial=0.0))
        return max(
            (_dense_noise(truth, reference, n, steepest, most) for n in _levels(truth.arrays)), default=0.0
        )
    own, exact = (provenance.box_head_probabilities(a) for a in (reference, truth.arrays))
    if own is None or exact is None:
        return 0.0
    mapping = truth.rows.get(proposals)
    if mapping is None:
        mapping = {k: k for k in range(len(own))} if len(own) == len(exact) else {}
    kept = [(i, j) for i, j in mapping.items() if i < len(own) and j < len(exact)]
    if not kept:
        return 0.0
    gap = np.abs(own[[i for i, _ in kept]] - exact[[j for _, j in kept]])
    return float(gap[gap <= most].max(initial=0.0))


def _levels(arrays: Arrays) -> list[str]:
    return [n for n in arrays if n.startswith(f"{DENSE_HEAD}/0/")]


def _dense_noise(truth: Truth, reference: Arrays, name: str, steepest: float, most: float) -> float:
    if name not in reference or reference[name].shape != truth.arrays[name].shape:
        return 0.0
    logits, exact = reference[name].astype(np.float64), truth.arrays[name]
    gaps = np.maximum(np.abs(sigmoid(logits) - sigmoid(exact)), steepest * np.abs(logits - exact))
    return float(gaps[gaps <= most].max(initial=0.0))


def mask_noise(truth: Truth, name: str, lined: Callable[[], Lined | None], profile: Profile) -> float | None:
    """The reference's largest error in a mask's probability: of every class and cell of the logits ``name``; None
    where the truth does not hold them."""
    sides = lined() if name in truth.arrays else None
    if sides is None:
        return None
    aligned = _same_rows(truth, truth.arrays[name], sides, profile)
    return (
        None if aligned is None else float(np.abs(sigmoid(aligned[0]) - sigmoid(aligned[1])).max(initial=0.0))
    )
