"""Keypoint decoding against a loop over boxes with torch's bicubic interpolation, and hand cases."""

import numpy as np
import pytest
import tensorflow as tf
from support.torch_process import F

from tf_d2.ops.keypoints import decode_keypoints

_graph = tf.function(
    decode_keypoints,
    input_signature=[
        tf.TensorSpec([None, None, None, None], tf.float32),
        tf.TensorSpec([None, 4], tf.float32),
    ],
)


def decode_by_loop(heatmaps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """One box and one keypoint at a time, on the whole stretched map."""
    keypoints = np.zeros((*heatmaps.shape[:2], 3), np.float32)
    for n, (x1, y1, x2, y2) in enumerate(boxes):
        width, height = max(x2 - x1, np.float32(1)), max(y2 - y1, np.float32(1))
        size = int(np.ceil(height)), int(np.ceil(width))
        stretched = F.interpolate(heatmaps[n : n + 1], size=size, mode="bicubic")[0]
        for k, cells in enumerate(stretched):
            iy, ix = np.unravel_index(cells.argmax(), cells.shape)
            score = 1 / np.exp(heatmaps[n, k].astype(np.float64) - cells.max()).sum()
            keypoints[n, k] = (ix + 0.5) * width / size[1] + x1, (iy + 0.5) * height / size[0] + y1, score
    return keypoints


def test_equals_the_loop_for_growing_and_shrinking_maps():
    rng = np.random.default_rng(0)
    heatmaps = F.interpolate(rng.standard_normal((40, 5, 9, 9)).astype(np.float32) * 5, size=(56, 56))
    heatmaps = np.ascontiguousarray(heatmaps + rng.standard_normal((40, 5, 56, 56)).astype(np.float32) / 2)
    sides = np.exp(rng.uniform(np.log(0.5), np.log(300), (40, 2)))
    corner = rng.random((40, 2)) * 400
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    expected = decode_by_loop(heatmaps, boxes)
    for result in (_graph(heatmaps, boxes), decode_keypoints(heatmaps, boxes)):
        np.testing.assert_allclose(result[..., :2], expected[..., :2], rtol=0, atol=1e-4)  # float32 at 700 px
        np.testing.assert_allclose(result[..., 2], expected[..., 2], rtol=2e-5)
    assert np.ptp(expected[..., 2]) > 0


def test_several_pieces_of_rows_equal_one(monkeypatch):
    rng = np.random.default_rng(1)
    heatmaps = rng.standard_normal((3, 4, 14, 14)).astype(np.float32)
    boxes = np.array([[0, 0, 90, 120], [5, 5, 35, 70], [1, 2, 3, 4]], np.float32)
    whole = decode_keypoints(heatmaps, boxes)
    monkeypatch.setattr("tf_d2.ops.keypoints._CHUNK_ELEMENTS", 700)
    np.testing.assert_array_equal(decode_keypoints(heatmaps, boxes), whole)


@pytest.mark.parametrize("box, position", [((0, 0, 20, 20), (0.5, 0.5)), ((5, 5, 5, 5), (5.5, 5.5))])
def test_flat_map_takes_the_first_cell(box, position):
    result = np.ravel(_graph(np.zeros((1, 1, 56, 56), np.float32), np.array([box], np.float32)))
    np.testing.assert_allclose(result, [*position, 1 / 3136], rtol=1e-6)


def test_first_of_equal_peaks_in_row_order():
    heatmap = np.zeros((1, 1, 4, 4), np.float32)
    heatmap[0, 0, 1, 2] = heatmap[0, 0, 2, 0] = 3.0
    result = np.ravel(_graph(heatmap, np.array([[10, 20, 14, 24]], np.float32)))
    np.testing.assert_allclose(result[:2], [12.5, 21.5])
    assert result[2] == pytest.approx(1 / (2 + 14 * np.exp(-3)), rel=1e-6)


def test_no_boxes():
    for decode in (_graph, decode_keypoints):
        assert decode(np.zeros((0, 17, 56, 56), np.float32), np.zeros((0, 4), np.float32)).shape == (0, 17, 3)
