"""Drawn pictures: what is painted where."""

import numpy as np
import pytest

from tf_d2.instances import Instances
from tf_d2.visualize import MASK_OPACITY, color_of, draw_instances, draw_segments

GREY = np.full((60, 80, 3), 100, np.uint8)


def one(**fields):
    base = {
        "pred_boxes": np.array([(20, 20, 60, 50)], np.float32),
        "scores": np.array([0.876], np.float32),
        "pred_classes": np.array([1]),
    }
    return Instances((60, 80), **{**base, **fields})


def test_colours_are_bright_and_differ():
    colors = np.array([color_of(i) for i in range(20)])
    assert colors.max(axis=1).min() > 200
    neighbours = np.abs(np.diff(colors, axis=0)).sum(axis=1)
    assert neighbours.min() > 100


def test_the_box_outline_has_the_class_colour():
    picture = np.asarray(draw_instances(GREY, one(), text=False))
    assert picture.shape == (60, 80, 3)
    assert tuple(picture[20, 40]) == tuple(picture[35, 20]) == color_of(1)
    assert tuple(picture[35, 40]) == (100, 100, 100) and tuple(picture[5, 5]) == (100, 100, 100)


def test_the_input_is_bgr_and_stays_as_it_was():
    blue = np.zeros((60, 80, 3), np.uint8)
    blue[..., 0] = 255
    before = blue.copy()
    picture = np.asarray(draw_instances(blue, one(pred_masks=np.ones((1, 60, 80), bool)), text=False))
    np.testing.assert_array_equal(blue, before)
    outside = np.asarray(draw_instances(blue, one()[:0]))
    assert tuple(outside[0, 0]) == (0, 0, 255)
    mixed = np.round(np.array([0, 0, 255]) * (1 - MASK_OPACITY) + np.array(color_of(1)) * MASK_OPACITY)
    assert tuple(picture[5, 5]) == tuple(mixed.astype(int))


def test_labels_name_the_class_or_its_number():
    plain, named = draw_instances(GREY, one()), draw_instances(GREY, one(), ["a", "square"])
    assert not np.array_equal(np.asarray(plain), np.asarray(named))
    assert not np.array_equal(np.asarray(draw_instances(GREY, one(), text=False)), np.asarray(plain))


def test_weak_keypoints_are_hidden():
    points = np.array([[(30, 30, 0.9), (50, 40, 0.01)]], np.float32)
    picture = np.asarray(draw_instances(GREY, one(pred_keypoints=points), text=False))
    assert tuple(picture[30, 30]) == color_of(1) and tuple(picture[40, 50]) == (100, 100, 100)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_tiny_pictures(size):
    height, width = size
    instances = Instances(
        size,
        pred_boxes=np.array([(0, 0, width, height)], np.float32),
        scores=np.ones(1, np.float32),
        pred_classes=np.zeros(1, np.int64),
        pred_masks=np.ones((1, *size), bool),
    )
    assert draw_instances(np.zeros((*size, 3), np.uint8), instances).size == (width, height)


def test_proposals_have_no_classes():
    proposals = Instances((60, 80), proposal_boxes=np.array([(20, 20, 60, 50)], np.float32))
    assert tuple(np.asarray(draw_instances(GREY, proposals))[20, 40]) == color_of(0)


def test_rotated_boxes_and_empty_boxes_do_not_fail():
    for boxes in (np.array([(40, 30, 20, 10, 30)], np.float32), np.array([(30, 30, 20, 20)], np.float32)):
        draw_instances(GREY, one(pred_boxes=boxes))


def test_segments():
    segments = np.zeros((60, 80), np.int32)
    segments[:30] = 7
    picture = np.asarray(draw_segments(GREY, segments))
    assert tuple(picture[40, 40]) == (100, 100, 100)
    assert tuple(picture[10, 10]) == tuple(np.round(40 + 0.6 * np.array(color_of(7))).astype(int))
