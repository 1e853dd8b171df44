"""Where in the network's dense outputs a detection came from, and whether the other side computed it too.

A detection that only one side keeps is explained by a decision near its threshold only if the other side
had the same candidate before that decision. These functions find an item's place (level and anchor, or
proposal row) by its score and look at the other side's score and deltas there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from parity.judge.detections import Items, MatchReport
from parity.judge.pixels import sigmoid

Arrays = Mapping[str, np.ndarray]
_BOX_PREDICTOR = "steps/roi_heads.box_predictor"
_SAME_SCORE = 2e-6  # how exactly a score recomputed here in float64 meets the recorded float32 one


@dataclass(frozen=True)
class Place:
    """Where a candidate was computed: array names of score and deltas, the score's index and the anchor."""

    scores: str
    deltas: str
    score_at: tuple[int, ...]
    anchor: int


def dense_place(trace: Arrays, head: str, score: float, label: int, logistic: bool) -> Place | None:
    """Place of a dense head's candidate (RPN, RetinaNet) whose recorded score is ``score``: in the first level that
    has one, the nearest."""
    levels = _miss_of_levels(trace, head, score, label, logistic)
    for level, (classes, miss) in enumerate(levels):
        best = np.unravel_index(int(miss.argmin()), miss.shape)
        if miss[best] <= (_SAME_SCORE if logistic else 0.0):
            return _place(head, level, classes, label if logistic else 0, best)
    return None


def dense_places(trace: Arrays, head: str, score: float, label: int) -> Iterator[Place]:
    """All places of candidates of a class whose probability is ``score``: saturated ones are many."""
    for level, (classes, miss) in enumerate(_miss_of_levels(trace, head, score, label, logistic=True)):
        for at in np.argwhere(miss <= _SAME_SCORE):
            yield _place(head, level, classes, label, at)


def _place(head: str, level: int, classes: int, label: int, at: Sequence[Any] | np.ndarray) -> Place:
    anchor, y, x = (int(i) for i in at)
    return Place(f"{head}/0/{level}", f"{head}/1/{level}", (0, anchor * classes + label, y, x), anchor)


def _miss_of_levels(
    trace: Arrays, head: str, score: float, label: int, logistic: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Of every level the number of classes and how far each anchor's score (A, H, W) is from ``score``.

    Score maps are (1, A*K, H, W) and delta maps (1, A*4, H, W); K = 1 for the RPN, whose scores are logits.
    """
    level = 0
    while (name := f"{head}/0/{level}") in trace and (deltas := f"{head}/1/{level}") in trace:
        logits = trace[name]
        classes = logits.shape[1] * 4 // trace[deltas].shape[1]
        channels = logits[0, label if logistic else 0 :: classes]  # (A, H, W)
        values = sigmoid(channels) if logistic else channels.astype(np.float64)
        yield classes, np.abs(values - score)
        level += 1


def box_head_probabilities(trace: Arrays) -> np.ndarray | None:
    """Class probabilities (R, K+1) of the box head: softmax, averaged over a cascade's stages."""
    names = [f"{_BOX_PREDICTOR}/0"] if f"{_BOX_PREDICTOR}/0" in trace else []
    while f"{_BOX_PREDICTOR}.{len(names)}/0" in trace and f"{_BOX_PREDICTOR}/0" not in trace:
        names.append(f"{_BOX_PREDICTOR}.{len(names)}/0")
    if not names:
        return None
    total = 0.0
    for name in names:
        logits = trace[name].astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        total = total + odds / odds.sum(axis=1, keepdims=True)
    return np.asarray(total) / len(names)


def source_row(trace: Arrays, items: Items, index: int) -> int | None:
    """Row of the proposal that item ``index`` was computed from, found by its score; None if not found."""
    probabilities = box_head_probabilities(trace)
    if probabilities is None or items.classes is None:
        return None
    miss = np.abs(probabilities[:, int(items.classes[index])] - float(items.scores[index]))
    row = int(miss.argmin())
    return row if miss[row] <= _SAME_SCORE else None


def _box_deltas(trace: Arrays, row: int, label: int) -> np.ndarray | None:
    """The box deltas (4,) that gave the boxes of one proposal row and class."""
    names = [n for n in trace if n.startswith(_BOX_PREDICTOR) and n.endswith("/1")]
    if not names:
        return None
    deltas = trace[max(names)][row]
    return deltas if deltas.size == 4 else deltas[4 * label : 4 * label + 4]


class Within(NamedTuple):
    """What counts as the same on both sides: scores this far apart, deltas this far times the largest."""

    score: float
    delta: float


def dense_origin(
    own: Arrays, other: Arrays, head: str, item: tuple[Items, int], within: Within
) -> Place | None:
    """Place of an item of a dense head, if the other side computed the same score and deltas there; else None.
    ``item``: the items of ``own``, and which of them."""
    items, index = item
    label = 0 if items.classes is None else int(items.classes[index])
    logistic = items.classes is not None
    place = dense_place(own, head, float(items.scores[index]), label, logistic)
    if place is None or place.scores not in other or place.deltas not in other:
        return None
    there = float(other[place.scores][place.score_at])
    value = float(sigmoid(np.array(there))) if logistic else there
    at = (0, slice(4 * place.anchor, 4 * place.anchor + 4), *place.score_at[2:])
    same = abs(value - float(items.scores[index])) <= within.score
    return place if same and _near(own[place.deltas][at], other[place.deltas][at], within.delta) else None


def roi_origin(
    own: Arrays, other: Arrays, item: tuple[Items, int], rows: Mapping[int, int], within: Within
) -> tuple[int, int, int] | None:
    """The same for a box head: (own row, the other side's row, class). ``rows`` maps this side's proposal
    rows to the other side's."""
    items, index = item
    row = source_row(own, items, index)
    probabilities = box_head_probabilities(other)
    if row is None or row not in rows or probabilities is None or items.classes is None:
        return None
    label = int(items.classes[index])
    mine, yours = _box_deltas(own, row, label), _box_deltas(other, rows[row], label)
    if mine is None or yours is None or not _near(mine, yours, within.delta):
        return None
    same = abs(float(probabilities[rows[row], label]) - float(items.scores[index])) <= within.score
    return (row, rows[row], label) if same else None


def _near(mine: np.ndarray, yours: np.ndarray, relative: float) -> bool:
    scale = max(float(np.abs(mine).max()), 1.0)
    return bool(np.abs(mine.astype(np.float64) - yours).max() <= relative * scale)


def row_map(report: MatchReport | None, side: str) -> dict[int, int]:
    """This side's proposal rows -> the other side's, from the match of the proposals."""
    if report is None:
        return {}
    return dict(report.pairs) if side == "reference" else {j: i for i, j in report.pairs}
