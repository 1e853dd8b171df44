"""The box head and what it makes detections of, against plain loops."""

import numpy as np
import pytest
import tensorflow as tf
from support import loops

from tf_d2.config.parts.box_head import FastRCNNConvFCHeadConfig
from tf_d2.config.parts.roi_heads import BoxPredictorConfig
from tf_d2.modeling.batches import Proposals
from tf_d2.modeling.box_head import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    average_probs,
    fast_rcnn_inference,
    predict_boxes,
    predict_probs,
)


def array(variable):
    return np.asarray(variable.value, np.float64)


def test_convolutions_then_linear_layers(dtype):
    rng = np.random.default_rng(0)
    head = FastRCNNConvFCHead(FastRCNNConvFCHeadConfig((5, 4), (7, 6), ""), 3, 4, "box_head")
    loops.fill(head, rng)
    x = rng.normal(size=(2, 4, 4, 3)).astype(dtype)
    expected = x
    for layer in head.blocks[:2]:
        expected = loops.relu(loops.conv(expected, array(layer.kernel), array(layer.bias), padding=1))
    expected = expected.transpose(0, 3, 1, 2).reshape(2, -1)  # as detectron2 flattens: channels first
    for k, layer in enumerate(head.blocks[2:]):
        kernel = array(layer.kernel)
        matrix = kernel.transpose(2, 0, 1, 3).reshape(-1, 7) if k == 0 else kernel
        expected = loops.relu(expected @ matrix + array(layer.bias))
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(head(tf.constant(x)), expected, rtol=tolerance, atol=tolerance)
    assert head.out_features == 6 and head.out_spatial == 0
    assert [v.path for v in head.variables][:2] == ["box_head/conv1/kernel", "box_head/conv1/bias"]
    assert {v.path.split("/")[1] for v in head.variables} == {"conv1", "conv2", "fc1", "fc2"}


def test_without_linear_layers_the_map_stays():
    head = FastRCNNConvFCHead(FastRCNNConvFCHeadConfig((6,), (), ""), 3, 4, "box_head")
    assert head(tf.zeros([2, 4, 4, 3])).shape == (2, 4, 4, 6)
    assert head.out_features == 6 * 4 * 4 and head.out_spatial == 4


@pytest.mark.parametrize("agnostic, columns", [(False, 12), (True, 4)])
def test_the_predictor_has_background_last_and_boxes_per_class(agnostic, columns):
    layers = FastRCNNOutputLayers(6, 3, agnostic, "box_predictor")
    loops.fill(layers, np.random.default_rng(1))
    x = np.random.default_rng(2).normal(size=(5, 6)).astype(np.float32)
    scores, deltas = layers(tf.constant(x))
    assert scores.shape == (5, 4) and deltas.shape == (5, columns)
    expected = x @ array(layers.bbox_pred.kernel) + array(layers.bbox_pred.bias)
    np.testing.assert_allclose(deltas, expected, rtol=1e-5, atol=1e-6)


def test_probabilities():
    logits = np.random.default_rng(3).normal(0, 4, (6, 5))
    exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predict_probs(tf.constant(logits), False), exact, rtol=1e-6)
    np.testing.assert_allclose(predict_probs(tf.constant(logits), True), 1 / (1 + np.exp(-logits)), rtol=1e-6)
    assert predict_probs(tf.constant(logits), False).dtype == tf.float32


def test_boxes_of_every_class(run):
    rng = np.random.default_rng(4)
    corners = rng.uniform(0, 60, (7, 2))
    proposals = np.concatenate([corners, corners + rng.uniform(5, 40, (7, 2))], axis=1).astype(np.float32)
    deltas = rng.normal(0, 1.5, (7, 12)).astype(np.float32)
    deltas[0, 2] = 40.0  # growth is limited
    weights = (10.0, 10.0, 5.0, 5.0)
    got = run(lambda d, b: predict_boxes(d, b, weights), deltas, proposals)
    expected = [
        [loops.decode(deltas[r, 4 * k : 4 * k + 4], proposals[r], weights) for k in range(3)]
        for r in range(7)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def detections(boxes, probs, size, threshold, nms, topk):
    """Of one image: (boxes, scores, classes)."""
    found = []
    for r in range(len(boxes)):
        if np.isfinite(boxes[r]).all() and np.isfinite(probs[r]).all():
            for k in range(probs.shape[1] - 1):
                if probs[r, k] > np.float32(threshold):
                    found.append((loops.clip(boxes[r, k % boxes.shape[1]], size), probs[r, k], k))
    kept = loops.suppressed([f[0] for f in found], [f[1] for f in found], [f[2] for f in found], nms)
    return [found[i] for i in (kept if topk < 0 else kept[:topk])]


@pytest.fixture
def regions():
    """Two images of 20 and 25 regions, three classes; one box and one probability are no numbers."""
    rng = np.random.default_rng(5)
    corners = rng.uniform(-10, 60, (45, 3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 50, (45, 3, 2))], axis=2).astype(np.float32)
    logits = rng.normal(0, 2, (45, 4))
    probs = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    boxes[3, 1, 2], probs[30, 0] = np.nan, np.inf
    return boxes, probs, np.array([20, 25], np.int32), np.array([[80, 100], [64, 90]], np.int32)


def limits(score, nms, topk):
    return BoxPredictorConfig((), False, False, score, nms, topk)


@pytest.mark.parametrize("topk", [5, 100, -1])
def test_detections(run, regions, topk):
    boxes, probs, counts, sizes = regions
    index = np.repeat(np.arange(2, dtype=np.int32), counts)

    def infer(boxes, probs, counts, sizes):
        proposals = Proposals(tf.zeros([45, 4]), tf.zeros([45]), tf.constant(index), counts)
        return fast_rcnn_inference(boxes, probs, proposals, sizes, 2, limits(0.1, 0.4, topk))

    got = run(infer, boxes, probs, counts, sizes)
    expected = [
        detections(boxes[rows], probs[rows], sizes[i], 0.1, 0.4, topk)
        for i, rows in enumerate((slice(0, 20), slice(20, 45)))
    ]
    assert got.counts.tolist() == [len(e) for e in expected] and min(got.counts) > 3
    both = [row for e in expected for row in e]
    np.testing.assert_allclose(got.boxes, [row[0] for row in both], rtol=1e-6)
    np.testing.assert_array_equal(got.scores, [row[1] for row in both])
    assert got.classes.tolist() == [row[2] for row in both]
    assert got.image_index.tolist() == [i for i, e in enumerate(expected) for _ in e]


def test_one_box_for_all_classes(regions):
    boxes, probs, counts, sizes = regions
    proposals = Proposals(
        tf.zeros([20, 4]), tf.zeros([20]), tf.zeros([20], tf.int32), tf.constant(counts[:1])
    )
    boxes, probs = boxes[:20, :1], probs[:20]
    got = fast_rcnn_inference(
        tf.constant(boxes), tf.constant(probs), proposals, tf.constant(sizes[:1]), 1, limits(0.1, 0.4, 30)
    )
    expected = detections(boxes, probs, sizes[0], 0.1, 0.4, 30)
    np.testing.assert_allclose(got.boxes, [row[0] for row in expected], rtol=1e-6)
    assert got.classes.numpy().tolist() == [row[2] for row in expected] and len(expected) > 10


def test_a_score_at_the_threshold_is_no_detection():
    """Strictly above, as detectron2 compares: float32 scores with the threshold rounded to float32."""
    probs = np.array([[0.1, 0.9], [np.nextafter(np.float32(0.1), np.float32(1)), 0.9]], np.float32)
    boxes = np.array([[[0, 0, 9, 9]], [[20, 20, 29, 29]]], np.float32)
    proposals = Proposals(tf.zeros([2, 4]), tf.zeros([2]), tf.zeros([2], tf.int32), tf.constant([2]))
    got = fast_rcnn_inference(
        tf.constant(boxes), tf.constant(probs), proposals, tf.constant([[40, 40]]), 1, limits(0.1, 0.5, 9)
    )
    assert got.boxes.numpy().tolist() == [[20, 20, 29, 29]]


def test_the_cascade_averages_its_stages():
    stages = [np.random.default_rng(k).random((4, 3), np.float32) for k in range(3)]
    exact = sum(s.astype(np.float64) for s in stages) / 3
    np.testing.assert_allclose(average_probs([tf.constant(s) for s in stages]), exact, rtol=3e-7)
