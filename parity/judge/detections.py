"""Matching two sets of detections and explaining every difference by a margin certificate.

Detections are the end of a chain of discontinuities (top-k, NMS, thresholds), so two correct implementations
may legitimately keep different sets, but only where a decision value lay within the numeric noise of its
threshold. Here the sets are matched one to one per class (Hungarian, on IoU, score and distance), and each
item that stays alone or changes its rank must show such a value. Boxes are (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np

_MATCH_IOU = 0.5  # below this overlap and farther than MATCH_PX two boxes are different objects
_MATCH_PX = 1.0
_MOST_EXPLAINED = 64  # more items alone than this are no matter of noise; no reasons are looked for


@dataclass(frozen=True)
class Items:
    """One side's boxes (N, 4), scores (N,) in decreasing order, and classes (N,) or None (proposals)."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Rules:
    """The decisions that made the set; None where the model has no such decision or it is not known."""

    score_threshold: float | None = None
    nms_threshold: float | None = None
    max_items: int | None = None
    last_pixel: float = 0.0  # 1 where x2 and y2 name the last pixel, so that sides have + 1 (Detectron)


@dataclass(frozen=True)
class Noise:
    """How far the decision values may move: pixels for corners, score units for scores."""

    box_px: float
    score: float


@dataclass(frozen=True)
class Certificate:
    """Why an item is alone or in another place: ``margin`` = |value - threshold| against ``allowed``."""

    side: str  # "reference" or "candidate": where the item is
    index: int
    reason: (
        str  # score-threshold, nms-overlap, nms-order, rank-cut, displaced, pre-nms-cut, source, order, none
    )
    value: float
    threshold: float
    margin: float
    allowed: float
    text: str

    @property
    def certified(self) -> bool:
        """Whether the margin lies within the noise."""
        return self.reason != "none" and self.margin <= self.allowed


@dataclass
class MatchReport:
    """Pairs (reference index, candidate index) with differences, and a certificate for everything else."""

    reference_count: int
    candidate_count: int
    pairs: list[tuple[int, int]]
    box_px: np.ndarray  # (P,) largest corner difference of each pair
    score_difference: np.ndarray  # (P,) candidate minus reference
    iou: np.ndarray  # (P,)
    certificates: list[Certificate] = field(default_factory=list)  # unmatched, then reordered
    tied_swaps: int = 0  # rank changes between exactly equal reference scores

    @property
    def uncertified(self) -> list[Certificate]:
        """Differences that nothing explains."""
        return [c for c in self.certificates if not c.certified]


# A further explanation for an unmatched item of one side, tried after the built-in ones.
Explain = Callable[[str, int], Certificate | None]
# What an item was computed from (in the reference's numbering), if the other side computed the same candidate
# there before it decided; None if it did not, or if that is not known.
Origin = Callable[[str, int], Hashable | None]


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes (N, 4) and (M, 4) in float64; 0 where both are empty."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.prod(np.clip(high - low, 0.0, None), axis=2)
    area_a = np.prod(np.clip(a[:, 2:] - a[:, :2], 0.0, None), axis=1)
    area_b = np.prod(np.clip(b[:, 2:] - b[:, :2], 0.0, None), axis=1)
    union = area_a[:, None] + area_b[None] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def match(reference: Items, candidate: Items) -> list[tuple[int, int]]:
    """One-to-one pairs in reference order. Pairs of other classes, or of boxes that are neither overlapping
    by MATCH_IOU nor within MATCH_PX pixels, are never formed; among the possible ones the total cost is
    least."""
    pairs: list[tuple[int, int]] = []
    for rows, cols in _class_groups(reference, candidate):
        pairs += _match_group(reference, candidate, rows, cols)
    return sorted(pairs)


def _class_groups(reference: Items, candidate: Items) -> list[tuple[np.ndarray, np.ndarray]]:
    if reference.classes is None or candidate.classes is None:
        return [(np.arange(len(reference)), np.arange(len(candidate)))]
    shared = np.intersect1d(reference.classes, candidate.classes)
    return [(np.flatnonzero(reference.classes == c), np.flatnonzero(candidate.classes == c)) for c in shared]


def _match_group(
    reference: Items, candidate: Items, rows: np.ndarray, cols: np.ndarray
) -> list[tuple[int, int]]:
    if rows.size == 0 or cols.size == 0:
        return []
    from scipy.optimize import linear_sum_assignment  # slow to import, and needed only here

    overlap = box_iou(reference.boxes[rows], candidate.boxes[cols])
    far = corner_distance(reference.boxes[rows], candidate.boxes[cols])
    apart = np.abs(reference.scores[rows, None].astype(np.float64) - candidate.scores[None, cols])
    cost = (1.0 - overlap) + np.minimum(apart, 1.0) + 1e-3 * np.minimum(far, 1e3)
    possible = (overlap >= _MATCH_IOU) | (far <= _MATCH_PX)
    picked = linear_sum_assignment(np.where(possible, cost, 1e6))
    return [(int(rows[i]), int(cols[j])) for i, j in zip(*picked, strict=True) if possible[i, j]]


def corner_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Largest coordinate difference (N, M), pixels, of boxes (N, 4) and (M, 4)."""
    out = np.zeros((len(a), len(b)))
    for k in range(a.shape[1]):
        gap = np.abs(a[:, k, None].astype(np.float64) - b[None, :, k].astype(np.float64))
        np.maximum(out, gap, out=out)
    return out


def iou_noise(box_a: np.ndarray, box_b: np.ndarray, px: float) -> float:
    """How far the IoU of two boxes can move when every corner moves by at most ``px`` pixels (first
    order)."""
    sides = np.concatenate([box_a[2:] - box_a[:2], box_b[2:] - box_b[:2]]).astype(np.float64)
    return float(min(1.0, 2.0 * px * np.sum(1.0 / np.maximum(sides, px))) + 1e-7)


def compare_sets(
    reference: Items,
    candidate: Items,
    rules: Rules,
    noise: Noise,
    explain: Explain | None = None,
    origin: Origin | None = None,
) -> MatchReport:
    """Match two sets and certify what is unmatched or reordered.

    ``explain(side, index)`` may add reasons that need more than the two sets, such as the pre-NMS top-k.
    ``origin(side, index)`` names what an item was computed from; without it no two overlapping boxes are ever
    excused as near ties, since one of them may simply be the other one misplaced.
    """
    nothing = (lambda side, index: None, lambda side, index: None)
    sets = _Sets(reference, candidate, rules, noise, explain or nothing[0], origin or nothing[1])
    pairs, certificates = _settle(sets)
    rows = np.array([p[0] for p in pairs], int)
    cols = np.array([p[1] for p in pairs], int)
    gaps = np.abs(reference.boxes[rows].astype(np.float64) - candidate.boxes[cols])
    ious = [box_iou(reference.boxes[i : i + 1], candidate.boxes[j : j + 1])[0, 0] for i, j in pairs]
    report = MatchReport(
        len(reference),
        len(candidate),
        pairs,
        gaps.max(axis=1) if len(pairs) else np.zeros(0),
        candidate.scores[cols].astype(np.float64) - reference.scores[rows].astype(np.float64),
        np.array(ious, np.float64),
    )
    report.certificates = certificates
    swaps, report.tied_swaps = _certify_order(reference, candidate, pairs, noise)
    report.certificates += swaps
    return report


@dataclass(frozen=True)
class _Sets:
    """What ``compare_sets`` was asked."""

    reference: Items
    candidate: Items
    rules: Rules
    noise: Noise
    explain: Explain
    origin: Origin

    def side(self, name: str) -> Items:
        return self.reference if name == "reference" else self.candidate


def _settle(sets: _Sets) -> tuple[list[tuple[int, int]], list[Certificate]]:
    """Pairs, and certificates of the items alone. A pair whose boxes differ by more than the noise is two
    different items when both sides computed both of them and both have a certificate (NMS kept the other of
    a near tie)."""
    reference, candidate = sets.reference, sets.candidate
    pairs = match(reference, candidate)
    gaps = [np.abs(reference.boxes[i] - candidate.boxes[j]).max() for i, j in pairs]
    apart = [p for p, gap in zip(pairs, gaps, strict=True) if gap > sets.noise.box_px]
    apart = [p for p in apart if len(apart) <= _MOST_EXPLAINED and _distinct(sets.origin, p)]
    close = [p for p in pairs if p not in set(apart)]
    proofs = _certify_unmatched(sets, close)
    proved = {(c.side, c.index) for c in proofs if c.certified}
    back = [p for p in apart if not {("reference", p[0]), ("candidate", p[1])} <= proved]
    if back:
        close = sorted(close + back)
        proofs = _certify_unmatched(sets, close)
    return close, proofs


def _distinct(origin: Origin, pair: tuple[int, int]) -> bool:
    """Whether a reference and a candidate item are two candidates that both sides computed, and not one that
    one side misplaced."""
    first, second = origin("reference", pair[0]), origin("candidate", pair[1])
    return first is not None and second is not None and first != second


@dataclass(frozen=True)
class _Alone:
    """An item without a partner. ``strangers``: the other side's items without one; ``known``: those of them that have
    a certificate."""

    side: str
    index: int
    own: Items
    other: Items
    strangers: set[int]
    known: set[int]

    @property
    def score(self) -> float:
        return float(self.own.scores[self.index])


def _certify_unmatched(sets: _Sets, pairs: list[tuple[int, int]]) -> list[Certificate]:
    """Certificates of the items alone. Repeats until stable, as one certified item may explain the next."""
    alone = {
        "reference": sorted(set(range(len(sets.reference))) - {p[0] for p in pairs}),
        "candidate": sorted(set(range(len(sets.candidate))) - {p[1] for p in pairs}),
    }
    if sum(map(len, alone.values())) > _MOST_EXPLAINED:
        return [_no_reason(side, i, sets.side(side)) for side, rest in alone.items() for i in rest]
    found: dict[tuple[str, int], Certificate] = {}
    while True:
        before = len(found)
        for side, indices in alone.items():
            other = _opposite(side)
            known = {i for s, i in found if s == other}
            for index in (i for i in indices if (side, i) not in found):
                item = _Alone(side, index, sets.side(side), sets.side(other), set(alone[other]), known)
                proof = _explain_one(sets, item) or sets.explain(side, index)
                if proof is not None and proof.certified:
                    found[(side, index)] = proof
        if len(found) == before:
            break
    return [
        found.get((side, i)) or _no_reason(side, i, sets.side(side))
        for side, rest in alone.items()
        for i in rest
    ]


def _opposite(side: str) -> str:
    return "candidate" if side == "reference" else "reference"


def _no_reason(side: str, index: int, items: Items) -> Certificate:
    text = f"{_name(items, index)} is only in the {side}, and no decision value near a threshold explains it"
    return Certificate(side, index, "none", float(items.scores[index]), np.nan, np.inf, 0.0, text)


def _name(items: Items, index: int) -> str:
    label = "" if items.classes is None else f" class {int(items.classes[index])}"
    box = ", ".join(f"{v:.1f}" for v in items.boxes[index])
    return f"item {index}{label} score {items.scores[index]:.6f} box ({box})"


def _explain_one(sets: _Sets, item: _Alone) -> Certificate | None:
    """The first built-in reason whose margin is within the noise, else None."""
    reasons = (_by_threshold(sets, item), _by_rank(sets, item), _by_suppression(sets, item))
    return next((c for c in reasons if c is not None and c.certified), None)


def _by_threshold(sets: _Sets, item: _Alone) -> Certificate | None:
    threshold, score = sets.rules.score_threshold, item.score
    if threshold is None:
        return None
    margin = abs(score - threshold)
    text = f"score {score:.8f} is {margin:.1e} from the threshold {threshold}"
    values = score, threshold, margin, sets.noise.score
    return Certificate(item.side, item.index, "score-threshold", *values, text)


def _by_rank(sets: _Sets, item: _Alone) -> Certificate | None:
    """The other side was full: cut off next to its last score, or pushed out by certified newcomers."""
    most, other, score = sets.rules.max_items, item.other, item.score
    if most is None or len(other) < most or len(other) == 0:
        return None
    last = float(other.scores[-1])
    margin = abs(score - last)
    if margin <= sets.noise.score:
        text = f"score {score:.8f} is {margin:.1e} from the last kept score {last:.8f} at rank {most}"
        return Certificate(item.side, item.index, "rank-cut", score, last, margin, sets.noise.score, text)
    pushed = float(len(item.own) - item.index)  # places from the end
    ahead = float(sum(1 for i in item.known if float(other.scores[i]) >= score))
    text = f"pushed past rank {most} by {ahead:.0f} certified newcomers"
    return Certificate(item.side, item.index, "displaced", pushed, ahead, pushed, ahead, text)


def _by_suppression(sets: _Sets, item: _Alone) -> Certificate | None:
    """A kept box of the other side overlapped it: by an IoU next to the threshold, a near tie, or a
    newcomer."""
    side, index, own, other = item.side, item.index, item.own, item.other
    threshold, noise, score = sets.rules.nms_threshold, sets.noise, item.score
    if threshold is None or len(other) == 0:
        return None
    same = np.ones(len(other), bool)
    if own.classes is not None and other.classes is not None:
        same = other.classes == own.classes[index]
    grown = np.array([0.0, 0.0, sets.rules.last_pixel, sets.rules.last_pixel])
    overlaps = box_iou(own.boxes[index : index + 1] + grown, other.boxes + grown)[0]
    for j in np.flatnonzero(same & (other.scores >= score - noise.score)):
        value, allowed = float(overlaps[j]), iou_noise(own.boxes[index], other.boxes[j], noise.box_px)
        margin = abs(value - threshold)
        if margin <= allowed:
            text = f"IoU {value:.7f} with item {j} is {margin:.1e} from the NMS threshold {threshold}"
            return Certificate(side, index, "nms-overlap", value, threshold, margin, allowed, text)
        gap = abs(float(other.scores[j]) - score)
        mine, yours = (index, int(j)) if side == "reference" else (int(j), index)
        tie = gap <= noise.score and _distinct(sets.origin, (mine, yours))
        if value > threshold and j in item.strangers and (tie or j in item.known):
            text = f"item {j} took its place in NMS (IoU {value:.3f}, scores {gap:.1e} apart)"
            allowed = noise.score if tie else gap
            return Certificate(side, index, "nms-order", score, float(other.scores[j]), gap, allowed, text)
    return None


def _certify_order(
    reference: Items, candidate: Items, pairs: list[tuple[int, int]], noise: Noise
) -> tuple[list[Certificate], int]:
    """Certificates for pairs whose rank changed (each against the largest score it jumped over), and the
    number of those that jumped only over exactly equal scores."""
    by_candidate = sorted(pairs, key=lambda p: p[1])
    order = np.array([p[0] for p in by_candidate], int)
    scores = reference.scores[order].astype(np.float64)
    out, ties = [], 0
    for place in range(len(order)):
        jumped = order[:place] > order[place]
        if not jumped.any():
            continue
        gap = float((scores[place] - scores[:place][jumped]).max())
        if gap <= 0.0:
            ties += 1
            continue
        index = int(order[place])
        text = f"{_name(reference, index)} comes later in the candidate; reference scores {gap:.1e} apart"
        out.append(
            Certificate("reference", index, "order", float(scores[place]), 0.0, gap, noise.score, text)
        )
    return out, ties


def limit_budget(report: MatchReport, share: float) -> int:
    """How many items certificates may explain in a set of this size: ``share`` of it, at least 2 if any."""
    if share <= 0.0:
        return 0
    return max(2, int(np.ceil(share * max(report.reference_count, report.candidate_count))))
