"""Panoptic merging: the rule pixel by pixel, and the cases that decide ties."""

import numpy as np
import pytest

from tf_d2.ops.panoptic import Things, combine_semantic_and_instance_outputs

LIMITS = {"overlap_threshold": 0.5, "stuff_area_thresh": 4, "instances_score_thresh": 0.5}


def combine_by_pixels(scores, classes, masks, sem_seg, overlap, stuff_area, score_thresh):
    """Python sets of pixels instead of arrays."""
    owner: dict[tuple[int, int], int] = {}
    segments = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if scores[i] < score_thresh:
            break
        pixels = set(zip(*(axis.tolist() for axis in np.nonzero(masks[i])), strict=True))
        taken = pixels & owner.keys()
        if not pixels or len(taken) / len(pixels) > overlap:
            continue
        segments.append(
            {"isthing": True, "score": float(scores[i]), "category_id": int(classes[i]), "instance_id": i}
        )
        owner |= dict.fromkeys(pixels - taken, len(segments))
    for label in sorted(set(sem_seg.ravel().tolist()) - {0}):
        pixels = (
            set(zip(*(axis.tolist() for axis in np.nonzero(sem_seg == label)), strict=True)) - owner.keys()
        )
        if len(pixels) >= stuff_area:
            segments.append({"isthing": False, "category_id": label, "area": len(pixels)})
            owner |= dict.fromkeys(pixels, len(segments))
    image = np.zeros(sem_seg.shape, np.int32)
    for pixel, number in owner.items():
        image[pixel] = number
    return image, [{"id": k + 1} | segment for k, segment in enumerate(segments)]


@pytest.mark.parametrize("stuff_area", [0, 3, 40])
def test_equals_the_rule_pixel_by_pixel(stuff_area):
    rng = np.random.default_rng(stuff_area)
    for _ in range(30):
        height, width, count = rng.integers(1, 14, 3)
        masks = np.zeros((count, height, width), bool)
        for mask in masks:
            y, x = rng.integers(0, height), rng.integers(0, width)
            mask[y : y + rng.integers(0, 7), x : x + rng.integers(0, 7)] = True
        scores, classes = rng.random(count).astype(np.float32), rng.integers(0, 80, count)
        sem_seg = rng.integers(0, 4, (height, width))
        expected = combine_by_pixels(scores, classes, masks, sem_seg, 0.5, stuff_area, 0.2)
        image, segments = combine_semantic_and_instance_outputs(
            Things(scores, classes, masks),
            sem_seg,
            overlap_threshold=0.5,
            stuff_area_thresh=stuff_area,
            instances_score_thresh=0.2,
        )
        np.testing.assert_array_equal(image, expected[0])
        assert segments == expected[1] and image.dtype == np.int32


def test_half_covered_instance_is_kept_on_its_free_pixels():
    masks = np.zeros((3, 2, 8), bool)
    masks[0, :, :4] = masks[1, :, 2:6] = masks[2, 0, 3:6] = True  # half of 1 is taken; two thirds of 2
    scores, classes = np.array([0.9, 0.8, 0.7], np.float32), np.array([3, 4, 5])
    image, segments = combine_semantic_and_instance_outputs(
        Things(scores, classes, masks), np.zeros((2, 8), int), **LIMITS
    )
    np.testing.assert_array_equal(image, [[1, 1, 1, 1, 2, 2, 0, 0]] * 2)
    assert segments == [
        {"id": 1, "isthing": True, "score": float(np.float32(0.9)), "category_id": 3, "instance_id": 0},
        {"id": 2, "isthing": True, "score": float(np.float32(0.8)), "category_id": 4, "instance_id": 1},
    ]


def test_stuff_area_counts_free_pixels_and_label_zero_is_skipped():
    sem_seg = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 3, 3, 3, 3]])
    masks = np.zeros((1, 2, 8), bool)
    masks[0, :, :2] = True
    image, segments = combine_semantic_and_instance_outputs(
        Things(np.array([0.5]), np.array([7]), masks), sem_seg, **LIMITS
    )
    np.testing.assert_array_equal(image, [[1, 1, 2, 2, 0, 0, 0, 0], [1, 1, 2, 2, 3, 3, 3, 3]])
    assert segments[1:] == [
        {"id": 2, "isthing": False, "category_id": 1, "area": 4},
        {"id": 3, "isthing": False, "category_id": 3, "area": 4},
    ]


def test_score_below_the_threshold_ends_the_instances_and_none_is_fine():
    masks, sem_seg = np.ones((1, 2, 2), bool), np.ones((2, 2), int)
    image, segments = combine_semantic_and_instance_outputs(
        Things(np.array([0.49]), np.array([0]), masks), sem_seg, **LIMITS
    )
    assert image.tolist() == [[1, 1], [1, 1]] and [s["isthing"] for s in segments] == [False]
    image, segments = combine_semantic_and_instance_outputs(
        Things(np.zeros(0), np.zeros(0), np.zeros((0, 2, 2), bool)), sem_seg * 0, **LIMITS
    )
    assert not image.any() and segments == []


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 2\] semantic map"):
        combine_semantic_and_instance_outputs(
            Things(np.ones(1), np.ones(1), np.ones((1, 3, 2), bool)), np.ones((2, 2), int), **LIMITS
        )
