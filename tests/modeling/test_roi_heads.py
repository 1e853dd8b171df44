"""ROI heads on nothing: in a graph, TensorFlow's fused convolutions get empty batches wrong by themselves."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf

from tf_d2.config import load_config_text
from tf_d2.config.parts.roi_heads import BoxPredictorConfig
from tf_d2.modeling import build_model, poolers
from tf_d2.modeling.batches import Detections, Proposals
from tf_d2.modeling.box_head import fast_rcnn_inference, predict_probs

DATA = Path(__file__).parents[1] / "data" / "modeling"


@pytest.fixture(
    scope="module", params=["mask_fpn", "mask_c4", pytest.param("cascade_keypoint", marks=pytest.mark.wide)]
)
def heads_and_features(request):
    with h5py.File(DATA / f"{request.param}.h5") as file:
        model = build_model(load_config_text(str(file.attrs["config"])))
    model.fold_norms()  # a convolution with bias and ReLU is what gets fused
    heads = model.roi_heads
    features = {
        name: tf.ones([1, 128 // heads.strides[i], 160 // heads.strides[i], model.backbone.channels[name]])
        for i, name in enumerate(heads.feature_names)
    }
    return heads, features


@pytest.fixture(params=["together", pytest.param("in blocks", marks=pytest.mark.wide)])
def pooling(request, monkeypatch):
    """Regions of these small models are small; those of C4 and DC5 models are pooled in blocks."""
    if request.param == "in blocks":
        monkeypatch.setattr(poolers, "LARGE_REGION", 0)
        monkeypatch.setattr(poolers, "BLOCK_BYTES", 1)


def test_no_proposals(heads_and_features, pooling):
    heads, features = heads_and_features

    def detect(boxes):
        count = tf.shape(boxes)[0]
        given = Proposals(boxes, tf.zeros([count]), tf.zeros([count], tf.int32), count[None])
        return heads.detect(features, given, tf.constant([[128, 160]]), 1, {})

    graph = tf.function(detect, input_signature=[tf.TensorSpec([None, 4])], autograph=False)
    found = graph(np.zeros((0, 4), np.float32))
    assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.counts.numpy().tolist() == [0]


def test_no_detections(heads_and_features, pooling):
    heads, features = heads_and_features
    stages: dict[str, tf.Tensor] = {}

    def per_instance(boxes):
        count = tf.shape(boxes)[0]
        rows = tf.zeros([count]), tf.zeros([count], tf.int64), tf.zeros([count], tf.int32)
        stages.clear()
        outputs = heads.per_instance(features, Detections(boxes, *rows, count[None]), stages)
        return outputs, dict(stages)

    graph = tf.function(per_instance, input_signature=[tf.TensorSpec([None, 4])], autograph=False)
    nothing, nothing_on_the_way = graph(np.zeros((0, 4), np.float32))
    something, something_on_the_way = graph(np.array([(8, 8, 90, 90)] * 3, np.float32))
    assert nothing.keys() == something.keys() and len(nothing) > 0
    pairs = [(nothing[k], something[k]) for k in nothing]
    pairs += [(nothing_on_the_way[k], something_on_the_way[k]) for k in nothing_on_the_way]
    for empty, full in pairs:
        assert full.shape[0] == 3 and empty.shape == (0, *full.shape[1:])


def detections_of(logits, boxes, score_thresh):
    """Scores, classes and boxes of a box head that predicted these logits and (per class) boxes."""
    graph = tf.function(
        lambda logits, boxes: fast_rcnn_inference(
            boxes,
            predict_probs(logits, False),
            Proposals(boxes[:, 0], logits[:, 0], tf.zeros_like(logits[:, 0], tf.int32), tf.shape(boxes)[:1]),
            tf.constant([[300, 300]]),
            1,
            BoxPredictorConfig((), False, False, score_thresh, 0.5, 100),
        ),
        autograph=False,
    )
    found = graph(tf.constant(logits, tf.float32), tf.constant(boxes, tf.float32))
    return found.scores.numpy(), found.classes.numpy(), found.boxes.numpy()


@pytest.mark.parametrize("rows", [10, 16, 999])
def test_two_saturated_boxes(rows):
    """Both have probability 1, in any row: the first is kept, as torch does."""
    logits, boxes = np.tile([0.0, 0, 20], (rows, 1)), np.zeros((rows, 1, 4))
    logits[[0, -1]] = 25, 0, 0
    boxes[:, 0] = 10, 10, 50, 50
    boxes[-1, 0] = 12, 11, 52, 50
    scores, classes, kept = detections_of(logits, boxes, 0.05)
    assert scores.tolist() == [1] and classes.tolist() == [0]
    np.testing.assert_array_equal(kept, [[10, 10, 50, 50]])


def test_scores_below_the_smallest_normal_number():
    """With a threshold of 0 they are detections, in their order: detectron2's numbers."""
    logits = [[0.0, -90, -95, 5], [0, -100, -104, 0]]
    boxes = np.array([[[0.0, 0, 10, 10]] * 3, [[20, 20, 30, 30]] * 3])
    scores, classes, _ = detections_of(logits, boxes, 0.0)
    right = [0.5, 0.006692850962281227, 5.484682189367334e-42, 3.783505853677006e-44, 1.961817850054744e-44]
    np.testing.assert_allclose(scores.astype(np.float64), right, rtol=1e-6)
    assert classes.tolist() == [0, 0, 1, 2, 1]
