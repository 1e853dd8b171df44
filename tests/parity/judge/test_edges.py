"""Boxes on an edge of ROI pooling: what rounding explains, and what it does not."""

from __future__ import annotations

import numpy as np
import pytest

from parity.core.profiles import SEMANTIC, STRICT, Profile
from parity.core.results import StageResult
from parity.core.status import Status
from parity.core.units import Stage
from parity.core.units.table import DETECTIONS, PROPOSALS
from parity.judge.comparator import compare_image
from parity.judge.context import Context
from parity.judge.edges import _edges

ONE = 448.0  # pixels: 4 bins of 7 at stride 16


def edge(one: list[float], other: list[float], levels: list[int], ratio: int = 0) -> bool:
    (found,) = _edges([np.array([one]), np.array([other])], levels, 7, ratio)
    return bool(found)


@pytest.mark.parametrize(
    ("height", "other", "ratio", "expected"),
    [
        (ONE + 1e-2, ONE - 1e-2, 0, True),
        (ONE + 3e-2, ONE + 1e-2, 0, False),
        (ONE - 3e-2, ONE - 1e-2, 0, False),
        (ONE + 1e-2, ONE - 1e-2, 2, False),  # always two samples
    ],
)
def test_samples_of_a_bin(height: float, other: float, ratio: int, expected: bool) -> None:
    one, two = [10.0, 20.0, 90.0, 20.0 + height], [10.0, 20.0, 90.0, 20.0 + other]
    assert edge(one, two, [4], ratio) == expected


def test_a_rounding_beside_the_edge_counts() -> None:
    """The size in cells is made of float32 coordinates: which side of the edge it is on, a rounding decides."""
    assert edge([0.0, 0.0, 90.0, ONE], [0.0, 0.0, 90.0, ONE], [4])
    assert not edge([0.0, 0.0, 90.0, ONE + 1], [0.0, 0.0, 90.0, ONE + 1], [4])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [(224 - 1e-3, 224 + 1e-3, True), (225, 225.001, False), (1000, 1000.001, False), (10, 10.001, False)],
)
def test_levels(one: float, other: float, expected: bool) -> None:
    """From 224 pixels on it is level 4, from 448 on 5; with a sampling ratio the level alone counts."""
    assert edge([0, 0, one, one], [0, 0, other, other], [2, 3, 4, 5], ratio=2) == expected
    assert not edge([0, 0, one, one], [0, 0, other, other], [4], ratio=2)


BOXES, LOGITS = PROPOSALS.boxes, PROPOSALS.scores
POOLED, PROBABILITIES, DELTAS = (
    f"steps/roi_heads.{n}" for n in ("box_pooler", "box_predictor/0", "box_predictor/1")
)
RESIZED, P4 = "input/resized", "steps/backbone/res4"
CONFIG = {"MODEL": {"ROI_BOX_HEAD": {"POOLER_RESOLUTION": 7, "POOLER_SAMPLING_RATIO": 0}}}
PRODUCED = {
    BOXES: Stage(BOXES, (P4,), "discrete", "rpn_proposals", False, False, "proposals"),
    LOGITS: Stage(LOGITS, (P4,), "discrete", "rpn_proposals", False, False, "proposals"),
    POOLED: Stage(POOLED, (P4, BOXES), "continuous", "box_pooler", False, True, "proposals"),
    PROBABILITIES: Stage(PROBABILITIES, (POOLED,), "continuous", "box_predictor", False, False, "proposals"),
    DELTAS: Stage(DELTAS, (POOLED,), "continuous", "box_predictor", False, False, "proposals"),
}


def arrays() -> dict[str, np.ndarray]:
    """Forty proposals, the fourth of which is 448 pixels high; two became detections."""
    rng = np.random.default_rng(0)
    corners = np.stack([np.arange(40) * 23.0, np.zeros(40)], axis=1)
    heights = rng.uniform(50, 60, 40)
    heights[3] = ONE
    boxes = np.concatenate([corners, corners + np.stack([np.full(40, 21.3), heights], axis=1)], axis=1)
    logits = rng.normal(size=(40, 3))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (odds / odds.sum(axis=1, keepdims=True))[[3, 8], 0]
    return {
        RESIZED: np.zeros((640, 960, 3), np.uint8),
        P4: rng.normal(size=(1, 8, 40, 60)).astype(np.float32),
        BOXES: boxes.astype(np.float32),
        LOGITS: np.sort(rng.normal(size=40))[::-1].astype(np.float32),
        POOLED: rng.normal(size=(40, 8, 7, 7)).astype(np.float32),
        PROBABILITIES: logits.astype(np.float32),
        DELTAS: rng.normal(size=(40, 8)).astype(np.float32),
        DETECTIONS.boxes: boxes[[3, 8]].astype(np.float32),
        DETECTIONS.scores: scores.astype(np.float32),
        str(DETECTIONS.classes): np.zeros(2, np.int64),
    }


def judged(row: int, profile: Profile = STRICT, by: float = 3e-2, rows: int = 1) -> dict[str, StageResult]:
    """A candidate whose box of one row (or some) is a rounding larger, and all that follows from it another."""
    reference = arrays()
    candidate = {n: a.copy() for n, a in reference.items()}
    changed = slice(row, row + rows)
    candidate[BOXES][changed, 3] += 1e-4
    for name in (POOLED, PROBABILITIES, DELTAS):
        candidate[name][changed] *= 1 + by
    if row == 3:
        candidate[DETECTIONS.scores][0] += 3e-3
    context = Context(reference, candidate, profile, CONFIG, table=PRODUCED)
    return {s.name: s for s in compare_image(context)}


def test_a_row_that_rounding_pools_otherwise_is_explained() -> None:
    found = judged(3)
    for name in (POOLED, PROBABILITIES, DELTAS):
        assert found[name].status is Status.BORDERLINE, name
        assert "without 1 of 40 rows" in found[name].message
    assert found[DETECTIONS.name].status is Status.BORDERLINE
    assert "1 pairs left out" in found[DETECTIONS.name].message


def test_another_row_is_not() -> None:
    found = judged(8)
    for name in (POOLED, PROBABILITIES, DELTAS):
        assert found[name].status is Status.FAIL, name


def test_a_row_beside_it_is_not() -> None:
    assert judged(3, rows=2)[POOLED].status is Status.FAIL
    assert judged(2, rows=2)[POOLED].status is Status.FAIL


def test_a_difference_that_is_none_needs_no_explanation() -> None:
    assert judged(3, by=0.0)[POOLED].status is Status.PASS


def test_nothing_is_explained_where_no_margins_count() -> None:
    assert judged(3, SEMANTIC)[POOLED].status is not Status.BORDERLINE
