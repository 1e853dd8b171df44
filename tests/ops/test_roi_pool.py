"""ROIPool against a loop over bins, and torchvision's recorded hand cases."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tf_d2.ops.roi_pool import roi_pool


def pool_by_loop(features: np.ndarray, boxes: np.ndarray, image_index, size: int, scale: float) -> np.ndarray:
    def rounded(x: np.floating) -> int:  # half away from zero
        return int(math.copysign(math.floor(abs(x) + 0.5), x))

    height, width = features.shape[1:3]
    pooled = np.zeros((len(boxes), size, size, features.shape[3]), features.dtype)
    for n, box in enumerate(boxes.astype(features.dtype) * features.dtype.type(scale)):
        x1, y1, x2, y2 = (rounded(v) for v in box)
        bin_h = features.dtype.type(max(y2 - y1 + 1, 1)) / features.dtype.type(size)
        bin_w = features.dtype.type(max(x2 - x1 + 1, 1)) / features.dtype.type(size)
        for py in range(size):
            for px in range(size):
                rows = range(math.floor(py * bin_h) + y1, math.ceil((py + 1) * bin_h) + y1)
                columns = range(math.floor(px * bin_w) + x1, math.ceil((px + 1) * bin_w) + x1)
                rows = [y for y in rows if 0 <= y < height]
                columns = [x for x in columns if 0 <= x < width]
                if rows and columns:
                    pooled[n, py, px] = features[image_index[n]][np.ix_(rows, columns)].max(axis=(0, 1))
    return pooled


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_loop(dtype):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 13, 17, 3)).astype(dtype)
    corners = rng.uniform(-20, 90, (60, 4))
    corners[::2, 2:] = corners[::2, :2] + rng.uniform(0, 60, (30, 2))
    boxes = (np.round(corners[:, :] * 4) / 4).astype(np.float32)  # quarters: cells of exactly one half occur
    index = rng.integers(0, 2, 60).astype(np.int32)
    expected = pool_by_loop(features, boxes, index, 7, 0.25)
    graph = tf.function(roi_pool)
    for result in (
        roi_pool(features, boxes, index, 7, 0.25),
        graph(tf.constant(features), boxes, index, 7, 0.25),
    ):
        np.testing.assert_array_equal(result, expected)
    assert (expected == 0).any() and (expected < 0).any()


@pytest.mark.parametrize(
    "box, expected",
    [
        ((0, 0, 3, 3), [5, 7, 13, 15]),
        ((0.5, 0.5, 2.5, 2.5), [10, 11, 14, 15]),
        ((3, 3, 1, 1), [15] * 4),
        ((10, 10, 12, 12), [0] * 4),
    ],
)
def test_recorded_cases(box, expected):
    features = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    result = roi_pool(features, np.array([box], np.float32), np.zeros(1, np.int32), 2, 1.0)
    assert np.ravel(result).tolist() == expected


def test_no_boxes():
    spec = [tf.TensorSpec([None] * 4), tf.TensorSpec([None, 4]), tf.TensorSpec([None], tf.int32)]
    graph = tf.function(lambda f, b, i: roi_pool(f, b, i, 7, 0.25), input_signature=spec)
    features = np.zeros((1, 4, 5, 6), np.float32)
    assert graph(features, np.zeros((0, 4), np.float32), np.zeros(0, np.int32)).shape == (0, 7, 7, 6)
