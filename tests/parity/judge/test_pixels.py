"""Masks, keypoints, semantic and panoptic maps, each with an explained and an unexplained difference."""

import numpy as np
import pytest

from parity.judge.pixels import (
    HeatMaps,
    Paste,
    Segmented,
    Sources,
    compare_argmax,
    compare_keypoints,
    compare_masks,
    compare_panoptic,
    heatmap_value,
    padded_probability,
    paste_probability,
    sigmoid,
)
from tf_d2.ops.mask_paste_padded_numpy import paste_padded_masks_numpy


def pasted(mask, box, shape):
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    return paste_probability(mask, box, xs.ravel(), ys.ravel()).reshape(shape)


def test_paste_of_a_full_mask_counts_by_hand():
    """The semantics sheet's cases: a box of 3 x 3 pixels covers 9, half a pixel off it covers 12 by ties."""
    full = np.ones((28, 28))
    for box, count in (((2, 2, 5, 5), 9), ((2.5, 2.5, 5.5, 5.5), 12)):
        probability = pasted(full, np.array(box, float), (8, 8))
        assert (probability >= 0.5 - 1e-12).sum() == count


def test_paste_is_zero_outside_the_box():
    probability = pasted(np.ones((28, 28)), np.array([10, 10, 20, 20.0]), (40, 40))
    assert probability[5, 5] == 0 and probability[30, 15] == 0 and probability[15, 15] == 1


def masks_with_flip(level):
    """A mask whose centre column lies at ``level``, and a copy with one of its pixels flipped."""
    mask = np.zeros((28, 28))
    mask[:, :14], mask[:, 14:] = 0.9, level
    box = np.array([0.0, 0, 28, 28])
    binary = pasted(mask, box, (28, 28)) >= 0.5
    other = binary.copy()
    other[10, 20] ^= True
    return mask, box, binary, other


@pytest.mark.parametrize(("level", "unexplained"), [(0.500004, 0), (0.51, 1)])
def test_flipped_pixels_need_a_probability_at_the_threshold(level, unexplained):
    mask, box, binary, other = masks_with_flip(level)
    report = compare_masks(binary[None], other[None], Sources(box[None], np.zeros(1), [mask]), 1e-5)
    assert (report.flipped, report.unexplained) == (1, unexplained)
    assert report.worst_iou < 1


def test_flipped_pixels_without_recorded_probability_are_unexplained():
    _, box, binary, other = masks_with_flip(0.500004)
    report = compare_masks(binary[None], other[None], Sources(box[None], np.zeros(1), [None]), 1e-5)
    assert report.unexplained == 1 and report.worst_margin == np.inf


def test_heatmap_value_equals_bicubic_impulse():
    """An impulse at cell 2 of 5, resized to 10 columns: the semantics sheet's values."""
    heat = np.zeros((5, 5))
    heat[:, 2] = 1
    got = [heatmap_value(heat, 5, 10, 2, ix) for ix in range(10)]
    np.testing.assert_allclose(
        got, [0, -0.0352, -0.1055, 0.2617, 0.8789, 0.8789, 0.2617, -0.1055, -0.0352, 0], atol=1e-4
    )


def keypoint_case(second_peak):
    """One box of 56 x 56 pixels, so cells are pixels; peaks at (10, 10) and (40, 20)."""
    heat = np.zeros((1, 1, 56, 56))
    heat[0, 0, 10, 10], heat[0, 0, 20, 40] = 5.0, second_peak
    box = np.array([[0.0, 0, 56, 56]])
    first, second = np.array([[[10.5, 10.5, 0.3]]]), np.array([[[40.5, 20.5, 0.3]]])
    return heat, box, first, second


@pytest.mark.parametrize(("peak", "unexplained"), [(5.0, 0), (4.0, 1)])
def test_keypoint_may_jump_only_between_equal_peaks(peak, unexplained):
    heat, box, first, second = keypoint_case(peak)
    report = compare_keypoints(first, second, HeatMaps(box, heat), 1e-2, 1e-6)
    assert (report.flipped, report.unexplained) == (1, unexplained)


def test_keypoint_shifted_by_one_cell_is_not_explained_by_its_score():
    heat, box, first, _ = keypoint_case(0.0)
    report = compare_keypoints(first, first + np.array([1.0, 0, 0]), HeatMaps(box, heat), 1e-2, 1e-6)
    assert report.unexplained == 1


def test_argmax_flip_needs_a_tie():
    logits = np.zeros((2, 3, 3))
    logits[0], logits[1] = 1.0, 0.5
    logits[1, 1, 1] = 1.0 - 1e-7
    other = logits.copy()
    other[1, 1, 1] = 1.0 + 1e-7
    assert compare_argmax(logits, other, 1e-6).unexplained == 0
    other[1, 0, 0] = 2.0
    report = compare_argmax(logits, other, 1e-6)
    assert (report.flipped, report.unexplained) == (2, 1)


def panoptic_case():
    seg = np.zeros((6, 6), np.int32)
    seg[:3], seg[3:, :3] = 1, 2
    info = [
        {"id": 1, "isthing": True, "score": 0.9, "category_id": 3, "instance_id": 0},
        {"id": 2, "isthing": False, "category_id": 5, "area": 9},
    ]
    return seg, info


def test_panoptic_identity_and_renumbered_ids_agree():
    seg, info = panoptic_case()
    swapped = np.select([seg == 1, seg == 2], [2, 1], 0)
    renumbered = [{**info[0], "id": 2}, {**info[1], "id": 1}]
    none = np.zeros(seg.shape, bool)
    for other, segments in ((seg, info), (swapped, renumbered)):
        report = compare_panoptic(Segmented(seg, info), Segmented(other, segments), none, 1e-5)
        assert (report.flipped, report.unexplained) == (0, 0)


def test_panoptic_pixel_flip_is_explained_only_where_marked():
    seg, info = panoptic_case()
    other = seg.copy()
    other[0, 0] = 0
    marked = np.zeros(seg.shape, bool)
    assert compare_panoptic(Segmented(seg, info), Segmented(other, info), marked, 1e-5).unexplained == 1
    marked[0, 0] = True
    assert compare_panoptic(Segmented(seg, info), Segmented(other, info), marked, 1e-5).unexplained == 0


@pytest.mark.parametrize("change", [{"category_id": 4}, {"score": 0.8}, {"isthing": False}])
def test_panoptic_segment_facts_are_compared(change):
    seg, info = panoptic_case()
    wrong = [{**info[0], **change}, info[1]]
    sides = Segmented(seg, info), Segmented(seg, wrong)
    assert compare_panoptic(*sides, np.zeros(seg.shape, bool), 1e-5).unexplained > 0


def test_sigmoid_does_not_overflow():
    np.testing.assert_allclose(sigmoid(np.array([-1000.0, 0, 1000])), [0, 0.5, 1])


def test_masks_pasted_into_whole_pixels():
    """As Detectron pastes them, and what a corner that crosses a whole pixel excuses."""
    rng = np.random.default_rng(4)
    mask = rng.uniform(size=(14, 14)).astype(np.float32)
    box = np.array([3.2, 5.0, 40.7, 33.9], np.float32)
    ys, xs = np.mgrid[:48, :60]
    probability = padded_probability(mask, box, xs.ravel(), ys.ravel()).reshape(48, 60)
    drawn = paste_padded_masks_numpy(mask[None], box[None], 48, 60)[0]
    sure = np.abs(probability - 0.5) > 1e-6
    np.testing.assert_array_equal((probability > 0.5)[sure], drawn[sure])

    half, centre = (box[2:] - box[:2]) / 2 * np.float32(16 / 14), (box[2:] + box[:2]) / 2
    edge = (
        box - (centre + half - np.ceil(centre + half))[[0, 1, 0, 1]] - np.float32(1e-4)
    )  # just below a whole pixel
    other = edge + np.float32(2e-4)
    first, second = (paste_padded_masks_numpy(mask[None], b[None], 48, 60) for b in (edge, other))
    assert (first != second).any()
    given = Sources(edge[None], np.array([2.5e-4]), [mask], Paste(True))
    assert compare_masks(first, second, given, 1e-6).unexplained == 0
    assert compare_masks(first, second, given._replace(box_px=np.zeros(1)), 1e-6).unexplained > 0
