"""Mask pasting against torch's grid_sample over the whole image, hand-counted cases, and NumPy against
TensorFlow."""

import ast
import inspect
import sys
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from support.torch_process import F

from parity.core import machine
from tf_d2.ops import mask_paste_numpy
from tf_d2.ops.mask_paste import paste_mask, paste_masks, paste_masks_at_once
from tf_d2.ops.mask_paste_numpy import copy_masks, paste_masks_numpy

_SIGNATURE = [
    tf.TensorSpec([None, None, None], tf.float32),
    tf.TensorSpec([None, 4], tf.float32),
    tf.TensorSpec([], tf.int32),
    tf.TensorSpec([], tf.int32),
]
_graph = tf.function(paste_masks, input_signature=_SIGNATURE)
_at_once = tf.function(paste_masks_at_once, input_signature=_SIGNATURE)


def probabilities(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """One mask sampled at every pixel of the image by torch, float32, detectron2's order of operations."""
    x1, y1, x2, y2 = box
    x = (np.arange(width, dtype=np.float32) + 0.5 - x1) / (x2 - x1) * 2 - 1
    y = (np.arange(height, dtype=np.float32) + 0.5 - y1) / (y2 - y1) * 2 - 1
    grid = np.stack(np.meshgrid(x, y), axis=2)
    return F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]


def window(box: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels that detectron2's CPU path evaluates."""
    y, x = np.mgrid[:height, :width]
    low, high = np.floor(box[:2]) - 1, np.ceil(box[2:]) + 1
    return (x >= low[0]) & (y >= low[1]) & (x < high[0]) & (y < high[1])


def random_masks(rng: np.random.Generator, count: int, size: int, height: int, width: int):
    masks = rng.random((count, size, size)).astype(np.float32)
    masks[::3] = masks[::3] > 0.5  # saturated masks: values of exactly 0.5 occur
    corners = rng.random((count, 4)) * [width, height, width, height]
    boxes = np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1
    )
    boxes[::2] = np.round(boxes[::2] * 2) / 2  # half-pixel boxes: ties on the border
    boxes[:, 2:] += 0.5
    return masks, boxes.astype(np.float32)


@pytest.mark.parametrize("size, height, width", [(28, 60, 75), (14, 131, 40), (7, 3, 200), (1, 20, 20)])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_equals_grid_sample_but_within_rounding_of_the_threshold(size, height, width, threshold):
    masks, boxes = random_masks(np.random.default_rng(0), 24, size, height, width)
    pasted = paste_masks_numpy(masks, boxes, height, width, threshold)
    value = np.stack([probabilities(m, b, height, width) for m, b in zip(masks, boxes, strict=True)])
    windows = np.stack([window(b, height, width) for b in boxes])  # coarse cells reach further at 0.3
    wrong = pasted != (windows & (value >= np.float32(threshold)))
    assert (np.abs(value[wrong] - threshold) < 1e-6).all()
    assert 0 < pasted.mean() < 1


@pytest.mark.parametrize("size, height, width", [(28, 60, 75), (14, 131, 40), (7, 3, 200), (1, 20, 20)])
def test_tensorflow_equals_numpy_bit_for_bit(size, height, width):
    masks, boxes = random_masks(np.random.default_rng(1), 24, size, height, width)
    expected = paste_masks_numpy(masks, boxes, height, width)
    np.testing.assert_array_equal(_graph(masks, boxes, height, width), expected)
    np.testing.assert_array_equal(_at_once(masks, boxes, height, width), expected)
    np.testing.assert_array_equal(copy_masks(expected, boxes), expected)
    np.testing.assert_array_equal(paste_masks(masks[:3], boxes[:3], height, width), expected[:3])
    np.testing.assert_array_equal(paste_mask(masks[3], boxes[3], height, width), expected[3])
    assert _graph.experimental_get_tracing_count() == 1


def test_several_pieces_of_rows_equal_one(monkeypatch):
    masks, boxes = random_masks(np.random.default_rng(2), 8, 28, 300, 200)
    whole = paste_masks_numpy(masks, boxes, 300, 200)
    np.testing.assert_array_equal(_graph(masks, boxes, 300, 200), whole)
    monkeypatch.setattr(mask_paste_numpy, "CHUNK_ELEMENTS", 1000)
    np.testing.assert_array_equal(paste_masks_numpy(masks, boxes, 300, 200), whole)
    monkeypatch.setattr("tf_d2.ops.mask_paste._CHUNK_ELEMENTS", 1000)
    np.testing.assert_array_equal(paste_masks(masks, boxes, 300, 200), whole)
    monkeypatch.setattr("tf_d2.ops.mask_paste._BLOCK_ELEMENTS", 3 * 300 * 200)
    np.testing.assert_array_equal(paste_masks_at_once(masks, boxes, 300, 200), whole)


@pytest.mark.parametrize(
    "box, pixels",
    [
        ((2, 2, 5, 5), 9),
        (
            (2.5, 2.5, 5.5, 5.5),
            12,
        ),  # border pixels have value 0.5 exactly, the corner ones 0.25: >= keeps some
        ((2, 2, 2, 5), 0),
        ((5, 5, 2, 2), 0),
        ((np.nan, 2, 5, 5), 0),
        ((2, 2, np.inf, 5), 0),
        ((50, 50, 60, 60), 0),
        ((-30, -30, -20, -20), 0),
    ],
)
def test_full_mask_counts_by_hand(box, pixels):
    mask, box = np.ones((1, 28, 28), np.float32), np.array([box], np.float32)
    assert paste_masks_numpy(mask, box, 20, 20).sum() == pixels
    assert np.sum(_graph(mask, box, 20, 20)) == pixels
    assert np.sum(_at_once(mask, box, 20, 20)) == pixels
    assert copy_masks(np.ones((1, 20, 20), bool), box).sum() >= pixels


def test_threshold_is_inclusive_and_zero_stays_in_the_window():
    mask, box = np.full((1, 4, 4), 0.5, np.float32), np.array([[4, 4, 8, 8]], np.float32)
    for paste in (paste_masks_numpy, paste_masks, paste_masks_at_once):
        assert np.sum(paste(mask, box, 12, 12)) == 16
        assert np.sum(paste(mask, box, 12, 12, 0.5000001)) == 0
        assert np.sum(paste(mask, box, 12, 12, 0.0)) == 36  # one pixel more on every side


def test_a_mask_ends_one_pixel_outside_its_box():
    """Half a cell of this mask is 12 pixels, six of which would reach a threshold of 0.25."""
    mask, box = np.ones((1, 4, 4), np.float32), np.array([[20, 20, 120, 120]], np.float32)
    for paste in (paste_masks_numpy, paste_masks, paste_masks_at_once):
        pasted = np.asarray(paste(mask, box, 140, 140, 0.25))[0]
        for line in (pasted[70], pasted[:, 70], pasted.any(axis=0), pasted.any(axis=1)):
            assert list(np.flatnonzero(line)) == list(range(19, 121))


def test_no_masks():
    for paste in (paste_masks_numpy, paste_masks, _graph, _at_once):
        pasted = paste(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), 5, 6)
        assert np.asarray(pasted).shape == (0, 5, 6) and np.asarray(pasted).dtype == bool


def test_bad_arguments_are_refused():
    mask, box = np.ones((2, 4, 4), np.float32), np.zeros((2, 4), np.float32)
    for paste in (paste_masks_numpy, paste_masks, paste_masks_at_once):
        with pytest.raises(ValueError, match="square"):
            paste(mask[:, :3], box, 5, 5)
        with pytest.raises(ValueError, match="threshold"):
            paste(mask, box, 5, 5, -1.0)
    with pytest.raises(ValueError, match=r"\[2,4\]"):
        paste_masks_numpy(mask, box[:1], 5, 5)


def test_memory_beyond_the_result_is_little():
    masks = np.ones((6, 28, 28), np.float32)
    boxes = np.tile(np.array([[0, 0, 2000, 1500]], np.float32), (6, 1))
    tracemalloc.start()
    pasted = paste_masks_numpy(masks, boxes, 1500, 2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pasted.mean() > 0.99
    traced = pasted.nbytes if pasted.flags.owndata else 0  # what mmap gave is not traced
    assert peak < traced + 3e6


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")
def test_empty_parts_of_masks_take_no_memory():
    masks = np.ones((60, 28, 28), np.float32)
    boxes = np.tile(np.array([[900, 700, 1000, 800]], np.float32), (60, 1))
    before = machine.memory_mib()
    pasted = paste_masks_numpy(masks, boxes, 1500, 2000)
    grown = machine.memory_mib() - before
    assert pasted.nbytes == 180_000_000 and pasted[:, 710:790, 910:990].all() and pasted.flags.writeable
    # About 100 rows of 2000 bytes each: 50 pages of 4 kB per mask. In huge pages it would be over 120 MiB.
    assert grown < 40


def test_numpy_form_imports_nothing_but_numpy():
    tree = ast.parse(inspect.getsource(mask_paste_numpy))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    others = [name for name in imported if name not in sys.stdlib_module_names]
    assert others == ["numpy"] and not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))
