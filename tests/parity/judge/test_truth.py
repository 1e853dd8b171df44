"""The reference's own distance from a float64 run: what it allows, what it does not, and how it is reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import parity
from parity.core.feed import Fed, Inputs, hashes
from parity.core.metrics import measure
from parity.core.profiles import EPSILON, LARGEST, NOISE_FACTOR, PRODUCTION, ROUNDINGS, STRICT, truth_limit
from parity.core.results import Comparison, Errors, from_json, headline, to_json
from parity.core.status import Status
from parity.judge.detections import Items, Noise
from parity.judge.sides import Side
from parity.judge.truth import Lined, Truth, forced_errors, free_errors, match_rows

P2 = "steps/backbone/p2"
SCORES, BOXES, CLASSES = (f"output/instances/{n}" for n in ("scores", "pred_boxes", "pred_classes"))
FLOOR = ROUNDINGS * EPSILON


def exact_map() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 16, 12, 16))


def off(by: float, seed: int, picked: tuple[int, ...] | None = None) -> np.ndarray:
    """The exact map with a relative error of ``by`` in every element, or only in one."""
    noise = np.random.default_rng(seed).normal(size=exact_map().shape)
    if picked is not None:
        noise = np.zeros_like(noise)
        noise[picked] = np.abs(exact_map()).max() / exact_map()[picked]
    return exact_map() * (1 + by * noise)


def judged(reference: np.ndarray, candidate: np.ndarray, **more: Any) -> Comparison:
    """One stage of two float32 runs beside the float64 one."""
    ref, cand = ({P2: a.astype(np.float32)} for a in (reference, candidate))
    sides = [Side("torch", [a], {"dtype": "float32", **more}) for a in (ref, cand)]
    exact = Side("torch", [{P2: exact_map()}], {"dtype": "float64", **more})
    (found,) = parity.compare(*sides, noise=[exact])
    return found


@pytest.mark.parametrize("size", [1e-6, 1e-5, 5e-5])
def test_a_candidate_as_near_the_truth_as_the_reference_is_the_same_whatever_the_size(size: float) -> None:
    found = judged(off(size, 1), off(size, 2))
    assert found.status is Status.PASS and not found.estimated
    errors = found.stages[-1].errors
    assert errors is not None and errors.candidate.rel_l2 == pytest.approx(size, rel=0.2)
    assert errors.reference.rel_l2 == pytest.approx(size, rel=0.2)


def test_a_level_of_few_cells_may_round_as_the_other_levels_of_its_head() -> None:
    """Few cells do not show how much the weights that all levels share round: the level's own luck is no limit."""
    fine, coarse = "steps/head/1/0", "steps/head/1/1"
    exact = {fine: exact_map(), coarse: exact_map()[..., :1, :1]}

    def errors(by: float, name: str = coarse) -> bool:
        sides = []
        for seed, level in ((1, 1e-8), (2, by)):
            small = exact[coarse] * (
                1 + level * np.random.default_rng(seed).choice([-1, 1], exact[coarse].shape)
            )
            sides.append(Side("torch", [{fine: off(1e-5, seed), name: small}], {"dtype": "float32"}))
        truth = Side("torch", [{fine: exact[fine], name: exact[coarse]}], {"dtype": "float64"})
        (found,) = parity.compare(*sides, noise=[truth])
        return found.status is Status.PASS

    assert errors(1e-5)
    assert not errors(4e-5)
    assert not errors(1e-5, "steps/head/2/1")  # other weights make these


@pytest.mark.parametrize("size", [1e-6, 1e-5])
def test_a_candidate_farther_from_the_truth_is_different_however_small_the_number(size: float) -> None:
    """2e-5 is within the highest ceiling, and yet several times what the reference's rounding is."""
    found = judged(off(size, 1), off((NOISE_FACTOR + 1) * size + 2 * FLOOR, 2))
    assert found.status is Status.FAIL
    assert "from float64" in found.stages[-1].message and "the reference's" in found.stages[-1].message


def test_the_candidates_own_error_counts_and_not_its_difference() -> None:
    """The reference may be the worse one: the candidate is nearer to the truth than the two are to each other."""
    assert judged(off(2e-5, 1), exact_map()).status is Status.PASS
    assert judged(exact_map(), off(2e-5, 1)).status is Status.FAIL


@pytest.mark.parametrize(("by", "status"), [(LARGEST * FLOOR * 0.8, Status.PASS), (4e-5, Status.FAIL)])
def test_a_single_element_is_judged_by_the_references_largest_error(by: float, status: Status) -> None:
    """A tenth of the former limit, which was ten times the one of the mean."""
    found = judged(off(1e-7, 1), off(by, 2, (0, 3, 4, 5)))
    assert found.status is status
    noisy = judged(off(4e-5, 1, (0, 1, 1, 1)), off(4e-5, 2, (0, 3, 4, 5)))
    assert noisy.status is Status.PASS, "the reference has such an element, too"


def test_where_the_reference_is_nothing_but_rounding_nothing_is_proved() -> None:
    assert judged(off(1e-2, 1), off(1e-2, 2)).status is Status.FAIL


def test_another_implementations_float64_run_raises_no_ceiling() -> None:
    error = measure(exact_map(), off(1e-4, 1))
    own, other = (truth_limit(STRICT, error, forced=False, own=own) for own in (True, False))
    assert own.ceiling > other.ceiling == STRICT.free_ceiling and own.value == other.value
    assert truth_limit(PRODUCTION, error, forced=False).floor == PRODUCTION.free_floor


def test_a_float64_run_of_another_model_is_not_used() -> None:
    sides = [
        Side("torch", [{P2: exact_map().astype(np.float32)}], {"dtype": "float32", "weights_sha256": "a"})
    ] * 2
    exact = Side("torch", [{P2: off(1e-3, 1)}], {"dtype": "float64", "weights_sha256": "b"})
    (found,) = parity.compare(*sides, noise=[exact])
    assert found.estimated and found.stages[-1].errors is None
    assert any("another model" in n and "weights_sha256" in n for n in found.notes)


def test_without_a_float64_run_the_verdict_says_that_its_limits_are_estimates() -> None:
    sides = [Side("torch", [{P2: exact_map().astype(np.float32)}], {"dtype": "float32"}) for _ in range(2)]
    (found,) = parity.compare(*sides)
    assert (
        found.exit_code == 0
        and "limits are estimates" in headline(found)
        and "estimates" in found.noise_source
    )
    assert "estimates" not in headline(judged(off(1e-6, 1), off(1e-6, 2)))


def test_both_errors_survive_json() -> None:
    found = judged(off(1e-6, 1), off(1e-6, 2))
    (again,) = from_json(to_json([found]))
    assert again.stages[-1].errors == found.stages[-1].errors and again.estimated == found.estimated
    assert again.stages[-1].limit == found.stages[-1].limit
    assert errors_of_rows() == errors_of_rows(again=True)


def errors_of_rows(again: bool = False) -> Errors | None:
    """Errors that count rows, before and after they were JSON."""
    found = judged(off(1e-6, 1), off(1e-6, 2))
    assert found.stages[-1].errors is not None
    found.stages[-1].errors = replace(found.stages[-1].errors, rows=7)
    return (from_json(to_json([found]))[0] if again else found).stages[-1].errors


# ---- detections ------------------------------------------------------------------------------------------


def detections(shift: float = 0.0, score: float = 0.0) -> dict[str, np.ndarray]:
    corners = np.array([[10, 10], [60, 10], [110, 10]], np.float32)
    return {
        BOXES: (np.concatenate([corners, corners + 30], axis=1) + shift).astype(np.float32),
        SCORES: (np.array([0.9, 0.8, 0.7]) + score).astype(np.float32),
        CLASSES: np.array([0, 1, 2]),
    }


def judged_set(
    reference: dict[str, np.ndarray],
    candidate: dict[str, np.ndarray],
    more: dict[str, np.ndarray] | None = None,
) -> Comparison:
    exact = {
        n: a.astype(np.float64) if a.dtype.kind == "f" else a
        for n, a in (detections() | (more or {})).items()
    }
    sides = [Side("torch", [a], {"dtype": "float32"}) for a in (reference, candidate)]
    (found,) = parity.compare(*sides, noise=[Side("torch", [exact], {"dtype": "float64"})])
    return found


@pytest.mark.parametrize(
    ("own", "other", "status"),
    [((2e-4, 0), (-3e-4, 0), "PASS"), ((0, 0), (9e-4, 0), "FAIL"), ((0, 5e-6), (0, -5e-6), "PASS")],
)
def test_boxes_and_scores_are_judged_by_the_references_distance(
    own: tuple[float, float], other: tuple[float, float], status: str
) -> None:
    """9e-4 pixels was within the profile's static 1e-3; the reference is exact."""
    found = judged_set(detections(*own), detections(*other))
    result = next(s for s in found.stages if s.name == "output/instances")
    assert result.status is Status[status]
    assert "from float64" in result.message and "box_error" in result.details


@pytest.mark.parametrize(("error", "status"), [(0.0, "FAIL"), (3e-5, "PASS")])
def test_scores_of_few_detections_may_err_as_the_probabilities_of_all_proposals(
    error: float, status: str
) -> None:
    """The reference's three scores are right by chance, its probabilities are off elsewhere."""
    logits = np.random.default_rng(1).normal(size=(50, 4))
    name = "steps/roi_heads.box_predictor/0"
    noisy = {name: (logits * (1 + error)).astype(np.float32)}
    found = judged_set(detections() | noisy, detections(score=8e-6) | noisy, {name: logits})
    assert next(s for s in found.stages if s.name == "output/instances").status is Status[status]


@pytest.mark.parametrize(("error", "status"), [(1e-5, "FAIL"), (3e-4, "PASS")])
def test_scores_of_few_detections_may_err_as_the_logits_of_all_anchors_would_make_them(
    error: float, status: str
) -> None:
    """Seen in a RetinaNet with one detection, whose logit happened to be right to a twentieth of the largest error:
    every other probability was so near 0 that its logit's error did not show."""
    name = "steps/head/0/0"
    logits = np.random.default_rng(1).normal(-20, 3, size=(1, 4, 30, 30))
    noisy = {
        name: (logits + error * np.random.default_rng(2).choice([-1, 1], logits.shape)).astype(np.float32)
    }
    found = judged_set(detections() | noisy, detections(score=8e-6) | noisy, {name: logits})
    assert next(s for s in found.stages if s.name == "output/instances").status is Status[status]


@pytest.mark.parametrize(
    ("own", "other", "status"),
    [
        ([4e-4], [20e-4], "PASS"),  # a single box may be right by chance
        ([4e-4], [28e-4], "FAIL"),
        ([4e-4] * 6, [20e-4] * 6, "FAIL"),  # six are not
        (
            [4e-4] * 30,
            [20e-4] + [4e-4] * 29,
            "PASS",
        ),  # one that its features hardly determine, right in the reference
        ([4e-4] * 30, [28e-4] + [4e-4] * 29, "FAIL"),
    ],
)
def test_the_farthest_box_is_decided_by_few(own: list[float], other: list[float], status: str) -> None:
    corners = np.array([[5 + 40 * (k % 6), 5 + 40 * (k // 6)] for k in range(len(own))], np.float64)
    boxes = np.concatenate([corners, corners + 30], axis=1)
    scores, classes = np.linspace(0.9, 0.5, len(own)), np.zeros(len(own), np.int64)
    reference, candidate = (
        {
            BOXES: (boxes + np.array(e)[:, None]).astype(np.float32),
            SCORES: scores.astype(np.float32),
            CLASSES: classes,
        }
        for e in (own, other)
    )
    found = judged_set(reference, candidate, {BOXES: boxes, SCORES: scores, CLASSES: classes})
    assert next(s for s in found.stages if s.name == "output/instances").status is Status[status]


def test_a_row_in_which_the_reference_is_right_by_chance_is_one_number() -> None:
    """Seen in Mask R-CNN's pooled regions: one proposal of a thousand, 0.99 of what was allowed."""
    rng = np.random.default_rng(3)
    exact, noise, other = (rng.normal(size=(100, 12)) for _ in range(3))
    other[7] *= 8
    reference, candidate = exact + 3e-5 * noise, exact + 3e-5 * other
    truth = Truth({"steps/x": exact}, rows={"set": {k: k for k in range(100)}})
    errors = free_errors(truth, "steps/x", Lined(reference, candidate, np.arange(100), "set"), STRICT)
    assert errors is not None and errors.peak_rows == 1
    bound = truth_limit(STRICT, errors.reference, False, numbers=errors.numbers)
    alone = truth_limit(STRICT, errors.reference, False, numbers=(100, 100, 100))
    assert alone.peak is not None and bound.peak is not None
    assert alone.peak < errors.candidate.max_rel < bound.peak


# ---- what is put side by side ----------------------------------------------------------------------------


def test_rows_follow_the_match_and_a_row_pooled_from_another_level_says_nothing() -> None:
    rows = np.random.default_rng(2).normal(size=(4, 8))
    reference = rows.copy()
    reference[2] *= -1
    truth = Truth({"steps/x": rows[[3, 2, 1, 0]]}, rows={"set": {0: 3, 1: 2, 2: 1, 3: 0}})
    lined = Lined(reference[[0, 2, 3]], reference[[0, 2, 3]] * 1.001, np.array([0, 2, 3]), "set")
    errors = free_errors(truth, "steps/x", lined, STRICT)
    assert errors is not None and errors.reference.rel_l2 == 0 and errors.reference.count == 16
    assert errors.candidate.rel_l2 == pytest.approx(1e-3)
    assert free_errors(truth, "steps/x", Lined(reference, reference, np.arange(4), "unknown"), STRICT) is None
    assert free_errors(truth, "steps/y", lined, STRICT) is None


@pytest.mark.parametrize(
    ("ill", "factor", "same"), [(40.0, 5.0, True), (40.0, 8.0, False), (1.0, 5.0, False)]
)
def test_an_error_that_is_one_rows_counts_as_one_number(ill: float, factor: float, same: bool) -> None:
    """Of a hundred rows one is ``ill`` times as wrong as the others, on both sides: ``factor`` times as wrong in the
    candidate may be chance, where all rows err alike it cannot be."""
    rng = np.random.default_rng(3)
    exact, noise, other = (rng.normal(size=(100, 12)) for _ in range(3))
    noise[7] *= ill
    other[7] *= ill
    reference, candidate = exact + 3e-6 * noise, exact + factor * 3e-6 * other
    truth = Truth({"steps/x": exact}, rows={"set": {k: k for k in range(100)}})
    errors = free_errors(truth, "steps/x", Lined(reference, candidate, np.arange(100), "set"), STRICT)
    assert errors is not None and errors.rows is not None
    assert errors.rows <= 2 if ill > 1 else errors.rows > 50
    bound = truth_limit(STRICT, errors.reference, False, numbers=errors.numbers)
    assert (errors.candidate.rel_l2 <= bound.value) == same


def test_the_largest_element_of_rows_is_decided_by_few_of_them() -> None:
    """A hundred boxes that their features determine more or less well, two sides that round alike: seen in a RegNet,
    whose worst of 100 pooled proposals was 3.15 times as far as the reference's worst. Never more than twice
    NOISE_FACTOR is allowed for it."""
    rng, called = np.random.default_rng(5), {"few": 0, "all": 0}
    rows = np.arange(100)
    for _ in range(400):
        exact = rng.normal(size=(100, 12))
        truth = Truth({"steps/x": exact}, rows={"set": {k: k for k in range(100)}})
        slope = np.exp(rng.normal(size=(100, 1))) * rng.normal(size=exact.shape)
        reference, candidate = (exact + 1e-5 * rng.normal(size=(100, 1)) * slope for _ in range(2))
        errors = free_errors(truth, "steps/x", Lined(reference, candidate, rows, "set"), STRICT)
        assert errors is not None and errors.rows is not None and errors.peak_rows is not None
        assert errors.peak_rows <= errors.rows
        peaks = {
            kind: truth_limit(STRICT, errors.reference, False, numbers=numbers).peak or 0.0
            for kind, numbers in (("few", errors.numbers), ("all", (100, errors.numbers[1], 0)))
        }
        floor = LARGEST * ROUNDINGS * EPSILON
        assert peaks["few"] <= max(peaks["all"], 2 * NOISE_FACTOR * errors.reference.max_rel + floor)
        for kind, peak in peaks.items():
            called[kind] += errors.candidate.max_rel > peak
    assert 3 * called["few"] < called["all"] and called["few"] <= 4, called


def test_errors_on_the_same_input_need_a_float64_run_of_this_very_input() -> None:
    arrays = {P2: exact_map().astype(np.float32)}
    inputs = Inputs(arrays, {})
    for fed, known in ((hashes(arrays), True), ({P2: "another"}, False), (None, False)):
        truth = Truth({"forced/backbone/p2": exact_map()}, Fed(fed))
        assert (forced_errors(truth, inputs, P2, Lined(arrays[P2], arrays[P2])) is not None) == known


def test_another_box_of_a_near_tie_is_no_rounding() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 0, 40, 10]], np.float32)
    moved = boxes + np.array([[1e-4], [1.0]], np.float32)
    rows, noise = match_rows(
        Items(boxes, np.array([0.9, 0.8])), Items(moved, np.array([0.9, 0.8])), Noise(1e-3, 1e-5)
    )
    assert rows == {0: 0} and noise.box_px == pytest.approx(1e-4, rel=0.1) and noise.score == 0


REFINED = "steps/sem_seg_head/0"
POINT_REND = {
    "MODEL": {
        "META_ARCHITECTURE": "SemanticSegmentor",
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
        "RESNETS": {"OUT_FEATURES": ["res2", "res3"]},
        "FPN": {"IN_FEATURES": ["res2", "res3"]},
        "SEM_SEG_HEAD": {"NAME": "PointRendSemSegHead", "IN_FEATURES": ["p2", "p3"]},
        "POINT_HEAD": {"IN_FEATURES": ["p2"]},
    }
}


def refined(size: float, seed: int, other: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """Logits with rounding errors, of which one cell's was not refined."""
    logits = off(size, seed)
    logits[other] += 0.5 if other else 0.0
    return {REFINED: logits.astype(np.float32)}


@pytest.mark.parametrize("other", [(), (0, 3, 4, 5)])
def test_refined_logits_are_judged_by_float64_where_the_same_cells_were_refined(
    other: tuple[int, ...],
) -> None:
    exact = off(0, 0)
    exact[0, 7, 1, 1] += 0.5  # a cell that the float64 run refined and both float32 runs did not
    truth = Side("torch", [{REFINED: exact}], {"dtype": "float64"})

    def compared(size: float) -> Comparison:
        sides = [
            Side("torch", [a], {"dtype": "float32"}) for a in (refined(5e-6, 1), refined(size, 2, other))
        ]
        (found,) = parity.compare(*sides, noise=[truth], config=POINT_REND)
        return found

    fine = compared(5e-6).stages[-1]
    assert fine.status is Status.PASS and fine.errors is not None
    assert fine.errors.reference.rel_l2 == pytest.approx(5e-6, rel=0.2)
    assert ("refined on one side" in fine.message) == bool(other)
    assert compared(5e-5).stages[-1].status is Status.FAIL


@pytest.mark.parametrize(
    ("far", "by", "near", "status"),
    [
        (1, 0.1, 5, Status.PASS),
        (1, 0.1, 6, Status.FAIL),
        (0, 0.1, 5, Status.FAIL),
        (1, 2.9e-4, 5, Status.PASS),  # seen: what refining made of a cell was no more
    ],
)
def test_what_later_steps_make_of_a_cell_refined_on_one_side(
    far: int, by: float, near: int, status: Status
) -> None:
    """One cell of 500, and only beside a cell that was evidently refined on one side."""
    largest = np.abs(exact_map()).max()
    moved = off(5e-7, 2)
    moved[0, 1, 2, :far] += by * largest
    moved[0, 3, 4, :near] += np.geomspace(3e-5, 9e-5, near) * largest
    truth = Side("torch", [{REFINED: exact_map()}], {"dtype": "float64"})
    sides = [
        Side("torch", [a], {"dtype": "float32"})
        for a in (refined(5e-7, 1), {REFINED: moved.astype(np.float32)})
    ]
    (found,) = parity.compare(*sides, noise=[truth], config=POINT_REND)
    assert found.stages[-1].status is status


def test_another_array_altogether_is_no_truth_of_refined_logits() -> None:
    truth = Side("torch", [{REFINED: exact_map() + 1}], {"dtype": "float64"})
    sides = [Side("torch", [refined(1e-7, k)], {"dtype": "float32"}) for k in (1, 2)]
    (found,) = parity.compare(*sides, noise=[truth], config=POINT_REND)
    assert found.stages[-1].errors is None and found.stages[-1].status is Status.PASS
