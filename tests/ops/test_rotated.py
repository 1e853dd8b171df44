"""Rotated boxes: hand cases recorded from detectron2, and slow independent oracles (clipping, greedy
loops)."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tf_d2.ops import rotated

FLOAT, INDEX = tf.float32, tf.int32


def random_boxes(rng: np.random.Generator, count: int, span: float = 60) -> np.ndarray:
    centre, size = rng.random((count, 2)) * span, np.exp(rng.uniform(0, np.log(60), (count, 2)))
    boxes = np.concatenate([centre, size, rng.uniform(-200, 400, (count, 1))], axis=1)
    boxes[::5, 4] = np.round(boxes[::5, 4] / 45) * 45  # parallel and perpendicular edges
    return boxes.astype(np.float32)


def corners(box: np.ndarray) -> np.ndarray:
    """[4,2] corners by the formula of the module's docstring, float64."""
    x, y, width, height, angle = box.astype(np.float64)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    local = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    moved = [(u * width / 2, v * height / 2) for u, v in local]
    return np.array([(x + u * cos + v * sin, y - u * sin + v * cos) for u, v in moved])


def area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def iou_by_clipping(box1: np.ndarray, box2: np.ndarray) -> float:
    """Sutherland-Hodgman: box1 cut by each edge line of box2."""
    polygon, clipper = list(corners(box1)), corners(box2)
    middle = clipper.mean(axis=0)
    for start, end in zip(clipper, np.roll(clipper, -1, axis=0), strict=True):
        normal = np.array([end[1] - start[1], start[0] - end[0]])
        normal *= np.sign(normal @ (middle - start)) or 1
        cut = []
        for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            side_p, side_q = normal @ (p - start), normal @ (q - start)
            if side_p >= 0:
                cut.append(p)
            if side_p * side_q < 0:
                cut.append(p + (q - p) * side_p / (side_p - side_q))
        polygon = cut
    inter = area(np.array(polygon)) if len(polygon) > 2 else 0.0
    return inter / (np.prod(box1[2:4], dtype=float) + np.prod(box2[2:4], dtype=float) - inter)


def test_iou_equals_polygon_clipping():
    rng = np.random.default_rng(0)
    boxes1, boxes2 = random_boxes(rng, 300, 25), random_boxes(rng, 300, 25)
    boxes2[:40], boxes2[40:60] = boxes1[:40], boxes1[40:60] + np.array([0, 0, 0, 0, 90], np.float32)
    boxes2[60:80] = boxes1[60:80] * np.array([1, 1, 0.5, 0.5, 1], np.float32)
    expected = np.array([iou_by_clipping(a, b) for a, b in zip(boxes1, boxes2, strict=True)])
    graph = tf.function(rotated.iou_rotated, input_signature=[tf.TensorSpec([None, 5], FLOAT)] * 2)
    for result in (graph(boxes1, boxes2), rotated.iou_rotated(boxes1, boxes2)):
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-5)
    assert (expected > 0.1).sum() > 60


@pytest.mark.parametrize(
    "box1, box2, expected",
    [
        ((5, 5, 4, 2, 0), (5, 5, 4, 2, 180), 1),
        ((5, 5, 4, 2, 0), (5, 5, 4, 2, 90), 4 / 12),
        ((0, 0, 10, 10, 0), (5, 0, 10, 10, 0), 1 / 3),
        ((0, 0, 10, 10, 0), (10, 0, 10, 10, 0), 0),
        ((0, 0, 2, 2, 0), (0, 0, 2, 2, 45), math.sqrt(2) / 2),
        ((0, 0, 10, 0, 0), (0, 0, 10, 0, 0), 0),
    ],
)
def test_iou_by_hand(box1, box2, expected):
    result = rotated.iou_rotated(np.array([box1], np.float32), np.array([box2], np.float32))
    assert float(result[0]) == pytest.approx(expected, abs=1e-5)


def nms_by_loop(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if all(iou_by_clipping(boxes[j], boxes[i]) < threshold for j in kept):
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_nms_equals_the_greedy_loop(threshold):
    rng = np.random.default_rng(1)
    boxes, scores = random_boxes(rng, 90, 8), rng.random(90).astype(np.float32)
    scores[10:20] = 0.5
    expected = nms_by_loop(boxes, scores, threshold)
    spec = [tf.TensorSpec([None, 5], FLOAT), tf.TensorSpec([None], FLOAT), tf.TensorSpec([], INDEX)]
    graph = tf.function(lambda b, s, n: rotated.nms_rotated(b, s, threshold, n), input_signature=spec)
    assert graph(boxes, scores, 90).numpy().tolist() == expected
    assert graph(boxes, scores, 7).numpy().tolist() == expected[:7]
    assert rotated.nms_rotated(boxes, scores, threshold).numpy().tolist() == expected
    assert 7 < len(expected) < 85


def test_nms_suppresses_at_the_threshold_itself():
    """Overlap 5/10 exactly: detectron2's CPU kernel uses >=."""
    boxes = np.array([[5, 5, 10, 10, 0], [5, 2.5, 10, 5, 0]], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert rotated.nms_rotated(boxes, scores, 0.5).numpy().tolist() == [0]
    assert rotated.nms_rotated(boxes, scores, 0.5001).numpy().tolist() == [0, 1]


def test_batched_nms_keeps_groups_apart():
    rng = np.random.default_rng(2)
    boxes, scores = random_boxes(rng, 60, 20), rng.random(60).astype(np.float32)
    groups = rng.integers(0, 3, 60)
    expected = []
    for group in range(3):
        members = np.where(groups == group)[0]
        expected += members[nms_by_loop(boxes[members], scores[members], 0.3)].tolist()
    expected.sort(key=lambda i: -scores[i])
    assert rotated.batched_nms_rotated(boxes, scores, groups, 0.3).numpy().tolist() == expected
    assert rotated.batched_nms_rotated(boxes, scores, groups, 0.3, 5).numpy().tolist() == expected[:5]


def test_nms_of_nothing():
    spec = [tf.TensorSpec([None, 5], FLOAT), tf.TensorSpec([None], FLOAT), tf.TensorSpec([None], INDEX)]
    graph = tf.function(lambda b, s, g: rotated.batched_nms_rotated(b, s, g, 0.5, 10), input_signature=spec)
    nothing = np.zeros((0, 5), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    assert graph(*nothing).shape == (0,) and rotated.batched_nms_rotated(*nothing, 0.5).shape == (0,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_apply_deltas(dtype):
    """Angles recorded from detectron2: da = pi on 30 degrees gives -150, da = 150 degrees gives -180."""
    box = np.array([[5, 5, 10, 20, 30]], dtype)
    deltas = np.array([[0.1, 0.2, 0, 9, math.pi, 0, 0, math.log(2), 0, math.radians(150)]], dtype)
    decoded = rotated.apply_deltas(tf.constant(deltas), box, (1, 1, 1, 1, 1)).numpy()
    assert decoded.dtype == dtype
    np.testing.assert_allclose(decoded[0, :5], [6, 9, 10, 1250, -150], rtol=1e-6)
    np.testing.assert_allclose(decoded[0, 5:9], [5, 5, 20, 20], rtol=1e-6)
    assert abs(abs(decoded[0, 9]) - 180) < 1e-4
    weighted = rotated.apply_deltas(tf.constant(deltas), box, (10, 10, 5, 5, 1)).numpy()
    np.testing.assert_allclose(weighted[0, :4], [5.1, 5.4, 10, 20 * math.exp(9 / 5)], rtol=1e-6)


@pytest.mark.parametrize(
    "angle, expected",
    [(0.5, (20, 0.5)), (1.0, (20, 1)), (359.5, (20, -0.5)), (2, (30, 2)), (180, (30, -180)), (-1, (20, -1))],
)
def test_clip_recorded(angle, expected):
    result = rotated.clip(tf.constant([[10.0, 10, 30, 30, angle]]), 20, 20)
    np.testing.assert_array_equal(result, [[10, 10, expected[0], expected[0], expected[1]]])


def test_clip_per_box_limits_and_empty():
    boxes = tf.constant([[0.0, 5, 10, 4, 0], [50, 5, 4, 4, 0]])
    clipped = rotated.clip(boxes, tf.constant([6, 100]), tf.constant([3, 10]))
    np.testing.assert_array_equal(clipped, [[1.5, 4.5, 3, 3, 0], [10, 5, 0, 4, 0]])
    assert rotated.nonempty(clipped).numpy().tolist() == [True, False]
    assert rotated.nonempty(clipped, 3.0).numpy().tolist() == [False, False]


def test_scale_recorded():
    result = rotated.scale(tf.constant([[10.0, 10, 30, 20, 30]]), 2.0, 1.0)
    np.testing.assert_allclose(result, [[20, 10, 54.0833, 26.4575, 49.1066]], rtol=2e-6)


def roi_align_by_loop(features, boxes, image_index, bins, scale, ratio):
    _, height, width, channels = features.shape
    pooled = np.zeros((len(boxes), bins, bins, channels))
    for n, (cx, cy, w, h, angle) in enumerate(boxes.astype(np.float64)):
        w, h, cos, sin = w * scale, h * scale, math.cos(math.radians(angle)), math.sin(math.radians(angle))
        gh, gw = (ratio, ratio) if ratio else (math.ceil(h / bins), math.ceil(w / bins))
        for py, px, iy, ix in np.ndindex(bins, bins, gh, gw):
            v = (py + (iy + 0.5) / gh) * h / bins - h / 2
            u = (px + (ix + 0.5) / gw) * w / bins - w / 2
            y, x = v * cos - u * sin + cy * scale - 0.5, v * sin + u * cos + cx * scale - 0.5
            if not (-1 <= y <= height and -1 <= x <= width):
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            for row in {int(y), min(int(y) + 1, height - 1)}:
                for column in {int(x), min(int(x) + 1, width - 1)}:
                    weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
                    pooled[n, py, px] += weight * features[image_index[n], row, column] / (gh * gw)
    return pooled


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 5e-5), (np.float64, 1e-11)])
def test_roi_align_rotated_equals_the_loop(ratio, dtype, tolerance):
    rng = np.random.default_rng(3)
    features = rng.standard_normal((2, 9, 11, 3)).astype(dtype)
    boxes, index = random_boxes(rng, 12, 50).astype(dtype), rng.integers(0, 2, 12).astype(np.int32)
    boxes[:, 4] += 0.123  # away from samples exactly on the border
    expected = roi_align_by_loop(features, boxes, index, 4, 0.25, ratio)
    spec = [tf.TensorSpec([None] * 4, dtype), tf.TensorSpec([None, 5], dtype), tf.TensorSpec([None], INDEX)]
    graph = tf.function(
        lambda f, b, i: rotated.roi_align_rotated(f, b, i, 4, 0.25, ratio), input_signature=spec
    )
    for result in (
        graph(features, boxes, index),
        rotated.roi_align_rotated(features, boxes, index, 4, 0.25, ratio),
    ):
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


def test_roi_align_rotated_of_no_size_is_zero_and_no_boxes():
    features = np.ones((1, 5, 5, 2), np.float32)
    empty = rotated.roi_align_rotated(
        features, np.array([[8.0, 8, 0, 4, 30]], np.float32), np.zeros(1, int), 2, 0.25
    )
    np.testing.assert_array_equal(empty, np.zeros((1, 2, 2, 2)))
    none = rotated.roi_align_rotated(features, np.zeros((0, 5), np.float32), np.zeros(0, int), 7, 0.25)
    assert none.shape == (0, 7, 7, 2)
