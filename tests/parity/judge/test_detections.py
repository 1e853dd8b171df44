"""Matching of detection sets and margin certificates, on sets small enough to check by hand."""

import numpy as np
import pytest

from parity.judge.detections import (
    Items,
    Noise,
    Rules,
    box_iou,
    compare_sets,
    corner_distance,
    iou_noise,
    limit_budget,
    match,
)

RULES = Rules(score_threshold=0.05, nms_threshold=0.5, max_items=None)
NOISE = Noise(box_px=1e-3, score=1e-5)


def items(rows, classes=None):
    """Items from rows of (score, x1, y1, x2, y2), sorted by score."""
    table = np.array(rows, np.float64).reshape(-1, 5)
    order = np.argsort(-table[:, 0], kind="stable")
    labels = np.zeros(len(table), int) if classes is None else np.asarray(classes)
    return Items(table[order, 1:], table[order, 0], labels[order])


THREE = [(0.9, 0, 0, 10, 10), (0.8, 20, 0, 30, 10), (0.7, 40, 0, 50, 10)]


def test_iou_by_hand():
    a = np.array([[0, 0, 10, 10.0]])
    b = np.array([[0, 0, 10, 10.0], [5, 0, 15, 10], [10, 0, 20, 10], [0, 0, 0, 0]])
    np.testing.assert_allclose(box_iou(a, b), [[1, 50 / 150, 0, 0]])
    np.testing.assert_allclose(corner_distance(a, b), [[0, 5, 10, 10]])


def test_empty_boxes_give_iou_zero_not_nan():
    empty = np.zeros((1, 4))
    assert box_iou(empty, empty)[0, 0] == 0.0


def test_matching_ignores_order_and_respects_classes():
    a = items(THREE, [0, 1, 0])
    b = Items(a.boxes[::-1], a.scores[::-1], a.classes[::-1])
    assert match(a, b) == [(0, 2), (1, 1), (2, 0)]
    other = Items(a.boxes, a.scores, np.array([1, 1, 0]))
    assert match(a, other) == [(1, 1), (2, 2)]


def test_matching_is_one_to_one_where_boxes_nearly_coincide():
    a = items([(0.9, 0, 0, 10, 10), (0.8, 0.2, 0, 10.2, 10)])
    b = items([(0.8, 0, 0, 10, 10), (0.9, 0.2, 0, 10.2, 10)])
    assert sorted(j for _, j in match(a, b)) == [0, 1]


def test_tiny_boxes_match_by_distance():
    a, b = items([(0.9, 0, 0, 0.1, 0.1)]), items([(0.9, 0.2, 0, 0.3, 0.1)])
    assert box_iou(a.boxes, b.boxes)[0, 0] == 0 and match(a, b) == [(0, 0)]


def test_far_boxes_never_match():
    a, b = items([(0.9, 0, 0, 10, 10)]), items([(0.9, 20, 0, 30, 10)])
    report = compare_sets(a, b, RULES, NOISE)
    assert report.pairs == [] and len(report.uncertified) == 2


def test_reports_pixel_and_score_differences():
    a, b = items(THREE), items(THREE)
    b.boxes[1, 2] += 0.25
    b.scores[2] -= 0.01
    report = compare_sets(a, b, RULES, NOISE)
    np.testing.assert_allclose(report.box_px, [0, 0.25, 0])
    np.testing.assert_allclose(report.score_difference, [0, 0, -0.01])
    assert report.certificates == []


@pytest.mark.parametrize(("score", "certified"), [(0.050004, True), (0.0502, False)])
def test_score_threshold_certificate(score, certified):
    a, b = items([*THREE, (score, 60, 0, 70, 10)]), items(THREE)
    (proof,) = compare_sets(a, b, RULES, NOISE).certificates
    assert proof.certified is certified
    assert proof.reason == ("score-threshold" if certified else "none")


@pytest.mark.parametrize(("right", "certified"), [(13.3333, True), (13.2, False)])
def test_nms_overlap_certificate(right, certified):
    """Two boxes of 10 by 10 shifted by s overlap with IoU (10-s)/(10+s): exactly 0.5 at s = 10/3."""
    a = items([*THREE, (0.6, right - 10, 0, right, 10)])
    (proof,) = compare_sets(a, items(THREE), RULES, NOISE).certificates
    assert proof.certified is certified
    assert not certified or proof.reason == "nms-overlap"


def test_nms_order_certificate_for_a_near_tie():
    """Two overlapping boxes with nearly equal scores: each side kept the other one."""
    a = items([(0.900000, 0, 0, 10, 10), *THREE[1:]])
    b = items([(0.900004, 0, 4.5, 10, 14.5), *THREE[1:]])
    rules = Rules(0.05, 0.3, None)
    report = compare_sets(a, b, rules, NOISE, origin=lambda side, index: (side, index))
    assert [c.reason for c in report.certificates] == ["nms-order", "nms-order"] and not report.uncertified
    assert len(compare_sets(a, b, rules, NOISE).uncertified) == 2, "no evidence that both sides had both"
    misplaced = compare_sets(a, b, rules, NOISE, origin=lambda side, index: index)
    assert len(misplaced.uncertified) == 2, "the same candidate in another place is no near tie"
    far = items([(0.91, 0, 4.5, 10, 14.5), *THREE[1:]])
    assert len(compare_sets(a, far, rules, NOISE, origin=lambda side, index: (side, index)).uncertified) == 2


@pytest.mark.parametrize("shift", [0.25, 1.0, 3.0])
def test_misplaced_boxes_are_not_excused_as_near_ties(shift):
    a = items(THREE)
    b = Items(a.boxes + shift, a.scores, a.classes)
    report = compare_sets(a, b, RULES, NOISE)
    assert report.box_px.max(initial=0) > NOISE.box_px or report.uncertified


def test_rank_cut_certificate():
    rows = [*THREE, (0.600000, 60, 0, 70, 10)]
    swapped = [*THREE, (0.600004, 80, 0, 90, 10)]
    rules = Rules(0.05, 0.5, 4)
    report = compare_sets(items(rows), items(swapped), rules, NOISE)
    assert {c.reason for c in report.certificates} == {"rank-cut"} and not report.uncertified
    wrong = [*THREE, (0.65, 80, 0, 90, 10)]
    assert compare_sets(items(rows), items(wrong), rules, NOISE).uncertified


def test_displaced_by_a_certified_newcomer():
    """The candidate keeps one more box at its NMS threshold, which pushes the last one past the cut."""
    shift = 10 / 3
    a = items([*THREE, (0.5, 60, 0, 70, 10)])
    b = items([*THREE, (0.6, shift, 0, shift + 10, 10)])
    report = compare_sets(a, b, Rules(0.05, 0.5, 4), NOISE)
    assert {c.reason for c in report.certificates} == {"nms-overlap", "displaced"}
    assert not report.uncertified


def test_cascade_of_suppression():
    """b (certified newcomer at the NMS threshold) suppresses c, which only the reference keeps."""
    shift = 10 / 3
    a = items([(0.9, 0, 0, 10, 10), (0.5, shift + 1, 0, shift + 11, 10)])
    b = items([(0.9, 0, 0, 10, 10), (0.6, shift, 0, shift + 10, 10)])
    report = compare_sets(a, b, RULES, NOISE, origin=lambda side, index: (side, index))
    assert not report.uncertified and {c.reason for c in report.certificates} == {"nms-overlap", "nms-order"}


def test_a_newcomer_without_certificate_explains_nothing():
    a = items([(0.9, 0, 0, 10, 10), (0.5, 4, 0, 14, 10)])
    b = items([(0.9, 0, 0, 10, 10), (0.6, 2, 0, 12, 10)])
    report = compare_sets(a, b, RULES, NOISE)
    assert report.certificates == [] and report.box_px.max() == 2


@pytest.mark.parametrize(("gap", "ties", "certified"), [(0.0, 1, None), (5e-6, 0, True), (1e-3, 0, False)])
def test_reordering(gap, ties, certified):
    a = items([(0.9, 0, 0, 10, 10), (0.9 - gap, 20, 0, 30, 10)])
    b = Items(a.boxes[::-1], a.scores.copy(), a.classes[::-1])
    report = compare_sets(a, b, RULES, NOISE)
    assert report.tied_swaps == ties
    orders = [c for c in report.certificates if c.reason == "order"]
    assert [c.certified for c in orders] == ([] if certified is None else [certified])


def test_iou_noise_bounds_what_corner_noise_can_do():
    rng = np.random.default_rng(0)
    box = np.array([[10.0, 10, 40, 60]])
    other = np.array([[15.0, 12, 45, 66]])
    exact, bound = box_iou(box, other)[0, 0], iou_noise(box[0], other[0], 1e-3)
    for _ in range(300):
        moved = [b + rng.choice([-1e-3, 1e-3], 4) for b in (box, other)]
        assert abs(box_iou(*moved)[0, 0] - exact) <= bound
    assert bound < 1e-3


def test_budget_is_zero_in_a_profile_without_borderline():
    report = compare_sets(items(THREE), items(THREE), RULES, NOISE)
    assert limit_budget(report, 0.0) == 0 and limit_budget(report, 0.05) == 2


def test_too_many_differences_are_not_explained_one_by_one():
    """A thousand near ties would be a thousand coincidences; it also has to end soon."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1000, (400, 2))
    a = Items(np.concatenate([corners, corners + 30], 1), np.full(400, 0.9), np.zeros(400, int))
    b = Items(a.boxes + 200.0, a.scores, a.classes)
    calls = []
    report = compare_sets(a, b, RULES, NOISE, origin=lambda side, i: calls.append(i) or (side, i))
    assert not any(c.certified for c in report.certificates) and len(calls) <= 2 * 64
