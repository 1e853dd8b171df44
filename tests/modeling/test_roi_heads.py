"""ROI heads on nothing: in a graph, TensorFlow's fused convolutions get empty batches wrong by themselves."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf

from tf_d2.config import load_config_text
from tf_d2.modeling import build_model, poolers
from tf_d2.modeling.batches import Detections, Proposals

DATA = Path(__file__).parents[1] / "data" / "modeling"


@pytest.fixture(scope="module", params=["mask_fpn", "mask_c4", "cascade_keypoint"])
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


@pytest.fixture(params=["together", "in blocks"])
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
