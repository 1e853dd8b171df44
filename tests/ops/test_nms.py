"""NMS against a transcript of torchvision's CPU kernel (float32 IoU, threshold in double)."""

import numpy as np
import pytest
import tensorflow as tf

from tf_d2.ops import nms as ops


def f32(*rows):
    return np.array(rows, np.float32)


def nms_oracle(boxes, scores, threshold):
    """Greedy; float32 arithmetic in the kernel's order; the comparison in double precision."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    zero = np.float32(0)
    dropped = np.zeros(len(boxes), bool)
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if dropped[i]:
            continue
        kept.append(int(i))
        w = np.maximum(zero, np.minimum(x2[i], x2) - np.maximum(x1[i], x1))
        h = np.maximum(zero, np.minimum(y2[i], y2) - np.maximum(y1[i], y1))
        inter = w * h
        with np.errstate(invalid="ignore"):
            iou = inter / (areas[i] + areas - inter)
        assert iou.dtype == np.float32
        dropped |= iou.astype(np.float64) > threshold
    return kept


def batched_oracle(boxes, scores, groups, threshold):
    """torchvision's rule on a CPU: loop over groups above 4000 coordinates, else move groups apart."""
    if boxes.size > 4000:
        kept = []
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            kept += members[nms_oracle(boxes[members], scores[members], threshold)].tolist()
        kept = np.sort(kept)
        return kept[np.argsort(-scores[kept], kind="stable")].tolist()
    offsets = groups.astype(np.float32) * (boxes.max() + np.float32(1))
    return nms_oracle(boxes + offsets[:, None], scores, threshold)


def random_boxes(rng, n, size=1000.0):
    centre, extent = rng.uniform(0, size, (n, 2)), np.exp(rng.uniform(np.log(4), np.log(size / 3), (n, 2)))
    boxes = np.clip(np.concatenate([centre - extent / 2, centre + extent / 2], axis=1), 0, size)
    return boxes.astype(np.float32)


@pytest.mark.parametrize("count", [40, 1200])  # boxes moved apart, and one NMS per group
def test_above_one_nothing_is_suppressed(run, count):
    rng = np.random.default_rng(count)
    boxes, scores = random_boxes(rng, count, 60.0), rng.random(count, np.float32)
    groups = rng.integers(0, 3, count)
    expected = batched_oracle(boxes, scores, groups, 1.5)
    assert len(expected) == count
    np.testing.assert_array_equal(
        run(lambda b, s, g: ops.batched_nms(b, s, g, 1.5), boxes, scores, groups), expected
    )
    best = run(lambda b, s, g: ops.batched_nms(b, s, g, 1.5, 7), boxes, scores, groups)
    np.testing.assert_array_equal(best, expected[:7])


# Two boxes with one corner at the origin: the IoU is exactly the ratio of their heights.
@pytest.mark.parametrize(
    "tenths, kept",
    [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 1), (7, 2), (8, 1), (9, 2)],
)
def test_threshold_is_compared_in_double_precision(run, tenths, kept):
    """float32(0.3) > 0.3, so an IoU of exactly 0.3 is suppressed; float32(0.7) < 0.7, so 0.7 is not."""
    boxes, scores = f32((0, 0, 10, 10), (0, 0, 10, tenths)), f32(0.9, 0.8)
    threshold = tenths / 10
    assert nms_oracle(boxes, scores, threshold) == list(range(kept))
    assert run(lambda b, s: ops.nms(b, s, threshold), boxes, scores).tolist() == list(range(kept))


def test_threshold_rounds_down():
    for value in np.linspace(0, 1, 1001):
        below = ops.float32_threshold(value)
        assert below <= value < np.nextafter(np.float32(below), np.float32(2))


def test_ties_keep_the_first(run):
    boxes, scores = np.tile(f32((0, 0, 5, 5)), (3, 1)), f32(0.5, 0.9, 0.9)
    assert run(lambda b, s: ops.nms(b, s, 0.5), boxes, scores).tolist() == [1]


def test_many_ties_come_out_in_order(run):
    boxes = random_boxes(np.random.default_rng(0), 60)
    scores = np.full(60, 0.25, np.float32)
    assert run(lambda b, s: ops.nms(b, s, 1.0), boxes, scores).tolist() == list(range(60))


def test_empty_boxes_do_not_suppress_one_another(run):
    boxes, scores = f32((5, 5, 5, 5), (5, 5, 5, 5), (0, 0, 9, 9), (1, 1, 1, 8)), f32(0.9, 0.8, 0.7, 0.6)
    assert run(lambda b, s: ops.nms(b, s, 0.0), boxes, scores).tolist() == [0, 1, 2, 3]


def test_touching_boxes_do_not_overlap(run):
    boxes, scores = f32((0, 0, 5, 5), (5, 0, 10, 5), (0, 5, 5, 10)), f32(0.9, 0.8, 0.7)
    assert run(lambda b, s: ops.nms(b, s, 0.0), boxes, scores).tolist() == [0, 1, 2]


def test_limit(run):
    boxes, scores = random_boxes(np.random.default_rng(3), 50), np.linspace(1, 0, 50, dtype=np.float32)
    everything = nms_oracle(boxes, scores, 0.5)
    assert run(lambda b, s: ops.nms(b, s, 0.5, 5), boxes, scores).tolist() == everything[:5]
    assert run(lambda b, s: ops.nms(b, s, 0.5, 0), boxes, scores).tolist() == []


def test_nothing_in_nothing_out(run):
    boxes, scores, groups = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    assert run(lambda b, s: ops.nms(b, s, 0.5), boxes, scores).shape == (0,)
    assert run(lambda b, s, g: ops.batched_nms(b, s, g, 0.5, 10), boxes, scores, groups).shape == (0,)


@pytest.mark.parametrize("grid", [None, 10.0])
def test_random_boxes(run, grid):
    """On a coarse grid many IoUs are round numbers, on or next to the threshold."""
    rng = np.random.default_rng(5)
    for threshold in (0.3, 0.5, 0.7):
        boxes = np.repeat(random_boxes(rng, 20, 400.0), 20, axis=0)  # twenty objects, each found often
        boxes += rng.normal(0, 5, boxes.shape).astype(np.float32)
        boxes = np.round(boxes / grid) * np.float32(grid) if grid else boxes
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        scores = rng.uniform(size=400).astype(np.float32).round(2)  # with ties
        expected = nms_oracle(boxes, scores, threshold)
        assert 20 < len(expected) < 380
        assert run(lambda b, s, t=threshold: ops.nms(b, s, t), boxes, scores).tolist() == expected


@pytest.mark.parametrize("count", [3, 1000, 1001, 1500])
def test_groups_on_both_sides_of_the_switch(run, count):
    """1000 boxes take the coordinate trick, 1001 the loop over groups."""
    rng = np.random.default_rng(count)
    boxes, groups = random_boxes(rng, count, 300.0), rng.integers(0, 8, count)
    scores = rng.uniform(size=count).astype(np.float32)
    expected = batched_oracle(boxes, scores, groups, 0.5)
    got = run(lambda b, s, g: ops.batched_nms(b, s, g, 0.5), boxes, scores, groups)
    assert got.tolist() == expected
    limited = run(lambda b, s, g: ops.batched_nms(b, s, g, 0.5, 7), boxes, scores, groups)
    assert limited.tolist() == expected[:7]
    assert got.dtype == np.int32


def trap(count):
    """Boxes of two classes that only the coordinate trick lets meet, and loners."""
    boxes = f32((-200, -200, 5, 5), (-206, -206, -1, -1), (0, 0, 6, 6))
    classes, scores = np.array([0, 1, 0]), f32(0.9, 0.8, 0.1)
    extra = count - 3
    corner = np.zeros((extra, 1), np.float32)
    loners = np.concatenate([corner, corner, corner, corner], axis=1)  # no extent: suppress nothing
    boxes = np.concatenate([boxes, loners])
    return (
        boxes,
        np.concatenate([scores, np.zeros(extra, np.float32)]),
        np.concatenate([classes, np.full(extra, 0)]),
    )


@pytest.mark.parametrize("count, expected", [(3, [0, 2]), (1000, [0, 2]), (1001, [0, 1, 2])])
def test_negative_coordinates_meet_other_classes_only_in_the_trick(run, count, expected):
    boxes, scores, classes = trap(count)
    got = run(lambda b, s, c: ops.batched_nms(b, s, c, 0.5), boxes, scores, classes)
    assert [i for i in got.tolist() if i < 3] == expected
    assert len(got) == count - 3 + len(expected)
    assert batched_oracle(boxes, scores, classes, 0.5) == got.tolist()


def test_identical_boxes_of_different_groups_survive(run):
    boxes, scores = np.tile(f32((0, 0, 50, 50)), (3, 1)), f32(5.0, 4.0, 1.0)
    got = run(lambda b, s, g: ops.batched_nms(b, s, g, 0.7), boxes, scores, np.array([0, 0, 1]))
    assert got.tolist() == [0, 2]


def test_ties_between_groups_keep_the_order_of_the_input(run):
    rng = np.random.default_rng(9)
    count = 1200
    boxes, groups = random_boxes(rng, count, 4000.0), rng.integers(0, 5, count)
    scores = rng.choice(f32(0.1, 0.2, 0.3), count)
    got = run(lambda b, s, g: ops.batched_nms(b, s, g, 0.5), boxes, scores, groups)
    assert got.tolist() == batched_oracle(boxes, scores, groups, 0.5)


def test_the_trick_rounds_like_float32(run):
    """At class 80 coordinates are some 1e5 and lose bits: an IoU just above the threshold falls to it."""
    rng = np.random.default_rng(11)
    boxes = np.tile(f32((0, 0, 1333, 100)), (1000, 1))
    # Pairs, each far from the others in no way but by class: IoU = 0.5 + tiny, tiny at random.
    x = rng.uniform(0, 1200, 500).astype(np.float32)
    boxes[0::2] = np.stack([x, 0 * x, x + 100, 0 * x + 100], axis=1)
    boxes[1::2] = np.stack(
        [x, 0 * x, x + 100, (50 + rng.uniform(-2e-3, 2e-3, 500)).astype(np.float32)], axis=1
    )
    groups = np.repeat(np.arange(500) + 70, 2)
    scores = np.linspace(1, 0.1, 1000, dtype=np.float32)
    expected = batched_oracle(boxes, scores, groups, 0.5)
    got = run(lambda b, s, g: ops.batched_nms(b, s, g, 0.5), boxes, scores, groups)
    assert got.tolist() == expected
    pairs = [nms_oracle(boxes[i : i + 2], scores[i : i + 2], 0.5) for i in range(0, 1000, 2)]
    exact = sum(len(kept) for kept in pairs)
    assert exact != len(expected)  # otherwise this test shows nothing


def test_nothing_that_a_gpu_computes_without_determinism() -> None:
    """TensorFlow has no deterministic GPU kernel for Bincount and refuses to run it where determinism is on, as the
    strict profile of parity has it (seen on an H100)."""
    specs = [tf.TensorSpec([None, 4]), tf.TensorSpec([None]), tf.TensorSpec([None], tf.int64)]
    traced = tf.function(lambda b, s, g: ops.batched_nms(b, s, g, 0.5, 100)).get_concrete_function(*specs)
    graph = traced.graph.as_graph_def()
    kinds = {n.op for n in graph.node} | {n.op for f in graph.library.function for n in f.node_def}
    assert "NonMaxSuppressionV3" in kinds or any("NonMaxSuppression" in k for k in kinds)
    assert not [k for k in kinds if "Bincount" in k]


def test_inverted_boxes_and_odd_numbers_overlap_with_nothing() -> None:
    """torchvision gives them an IoU of 0 or NaN; TensorFlow's own suppression turns the first kind around."""
    inverted = np.array([[10, 10, 50, 50], [50, 50, 10, 10], [10, 50, 50, 10]], np.float32)
    assert ops.nms(inverted, np.array([0.9, 0.8, 0.7], np.float32), 0.5).numpy().tolist() == [0, 1, 2]
    for odd in (np.nan, np.inf, -np.inf, 3e38):
        boxes = np.array(
            [[0, 0, 10, 10], [100, 0, 110, 10], [200, 0, 210, 10], [300, 0, 310, odd]], np.float32
        )
        scores = np.array([0.5, 0.9, 0.7, 0.8], np.float32)
        groups = np.zeros(4, np.int32)
        assert ops.nms(boxes, scores, 0.5).numpy().tolist() == [1, 3, 2, 0]
        assert ops.batched_nms(boxes, scores, groups, 0.5).numpy().tolist() == [1, 3, 2, 0]
