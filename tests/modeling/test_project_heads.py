"""PointRend's and DensePose's heads against the real ones, in float64 on made-up features.

tests/data/modeling/project_heads.h5 holds random heads (float16 weights and inputs, which both sides widen) and what
detectron2's modules computed in float64. Of larger arrays every n-th number was kept, n coprime to every axis. The
attribute ``noise`` is how far the real module in float32 is from itself in float64; four times that is allowed here.
"""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import weights
from tf_d2.config.parts.densepose import DensePoseHeadConfig, DensePosePredictorConfig
from tf_d2.config.parts.point_rend import (
    ImplicitPointHeadConfig,
    PointHeadConfig,
    PointRendMaskHeadConfig,
    PointRendSemSegHeadConfig,
)
from tf_d2.config.parts.poolers import PoolerConfig
from tf_d2.config.parts.sem_seg import SemSegHeadConfig
from tf_d2.modeling.batches import Detections
from tf_d2.modeling.densepose.head import DENSEPOSE_HEADS, AtrousConv2d
from tf_d2.modeling.densepose.predictor import DensePosePredictor
from tf_d2.modeling.mask_head import mask_inference
from tf_d2.modeling.point_rend.mask_head import make_mask_head
from tf_d2.modeling.point_rend.semantic_seg import PointRendSemSegHead
from tf_d2.ops.conv import conv2d

FILE = Path(__file__).parents[1] / "data" / "modeling" / "project_heads.h5"
STRIDES = {"p2": 4, "p3": 8}
BACKBONE = SimpleNamespace(strides=STRIDES, channels={"p2": 6, "p3": 6})
LIMIT = {"float32": 2e-6, "float64": 1e-12}
INSTANCE = ("instance_two_levels", "instance_agnostic", "implicit", "implicit_position_only")
DENSEPOSE = ("deeplab_wc2m", "deeplab_plain_wc1", "v1_cse_confidence")


@cache
def recorded(name):
    def arrays(group):
        found = {}
        group.visititems(lambda n, o: found.update({n: o[()]}) if isinstance(o, h5py.Dataset) else None)
        return found

    with h5py.File(FILE) as file:
        group = file[name]
        layouts = {
            k: (tuple(d.attrs["shape"]), int(d.attrs["step"]), float(d.attrs.get("noise", 0)))
            for k, d in group["outputs"].items()
        }
        return (
            json.loads(group.attrs["config"]),
            {k: v.astype(np.float64) for k, v in arrays(group["weights"]).items()},
            arrays(group["inputs"]),
            arrays(group["outputs"]),
            layouts,
        )


def check(name, field, got, dtype):
    *_, outputs, layouts = recorded(name)
    shape, step, noise = layouts[field]
    limit = max(LIMIT[dtype], 4 * noise if dtype == "float32" else 0)
    got = np.asarray(got)
    assert got.shape == shape, field
    got, expected = got.ravel()[::step], outputs[field]
    if expected.dtype.kind == "i":
        np.testing.assert_array_equal(got, expected, err_msg=field)
        return
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error < limit, f"{field}: {error:.1e}"


def load(layers, state, dtype):
    """Fill layers by the rule that names and shapes follow; nothing may be left on either side."""
    variables = {v.path.removeprefix("head/"): v for layer in layers for v in layer.variables}
    specs = {path: tuple(v.shape) for path, v in variables.items()}
    for path, array in weights.to_keras_arrays(state, specs, dtype=np.dtype(dtype)).items():
        variables[path].assign(array)


def nhwc(array, dtype):
    return tf.constant(np.moveaxis(array.astype(dtype), 1, -1))


def nchw(tensor):
    return np.moveaxis(tensor.numpy(), -1, 1)


def mask_head(name, state, dtype):
    config, *_ = recorded(name)
    point = {k: tuple(v) if isinstance(v, list) else v for k, v in config.pop("point_head").items()}
    implicit = "pos_enc_enabled" in point
    head_config = PointRendMaskHeadConfig(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()},
        point_head=(ImplicitPointHeadConfig if implicit else PointHeadConfig)(**point),
    )
    config["point_head"] = point
    with keras.name_scope("head"):
        head = make_mask_head(head_config, BACKBONE, "mask_head")
    load([head], {f"mask_head.{key}": value for key, value in state.items()}, dtype)
    return head


@pytest.mark.parametrize("name", INSTANCE)
def test_instance_head(name, dtype):
    _, state, inputs, _, layouts = recorded(name)
    head = mask_head(name, state, dtype)
    features = {f: nhwc(inputs[f], dtype) for f in STRIDES}
    boxes, index = tf.constant(inputs["boxes"]), tf.constant(inputs["image_index"])
    counts = tf.constant(np.bincount(inputs["image_index"]).astype(np.int32))
    detections = Detections(boxes, tf.zeros(len(boxes)), tf.constant(inputs["classes"]), index, counts)
    stages = {}
    masks = mask_inference(head.masks(features, detections, stages, "h")[..., None], detections.classes)
    for field in layouts:
        if field == "pred_masks":
            check(name, field, masks[:, None], dtype)
        elif field.startswith("indices"):
            chosen = stages[f"h.point_indices#{field[-1]}"]
            shape, step, _ = layouts[field]
            assert step == 1
            expected = recorded(name)[3][field].reshape(shape)
            # torch does not sort equals, and float32 may swap what is nearly equal: the set is what counts
            np.testing.assert_array_equal(np.sort(chosen, axis=1), np.sort(expected, axis=1))
        elif field.endswith("_head"):
            value = stages[f"h.{field}"]
            check(name, field, value if len(value.shape) == 2 else nchw(value), dtype)
        elif field == "point_head#0":  # the points of the others may come in another order
            check(name, field, stages["h.point_head"], dtype)


@pytest.mark.parametrize("name", ["instance_two_levels", "implicit"])
def test_instance_head_without_boxes_and_in_a_graph(name):
    _, state, inputs, *_ = recorded(name)
    head = mask_head(name, state, "float32")
    features = {f: nhwc(inputs[f], "float32") for f in STRIDES}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 4]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None], tf.int64),
        ],
        autograph=False,
    )
    def masks(boxes, index, classes):
        found = Detections(boxes, tf.zeros(tf.shape(boxes)[:1]), classes, index, tf.zeros([2], tf.int32))
        return mask_inference(head.masks(features, found, {}, "h")[..., None], classes)

    side = head.config.mask_side()
    assert masks(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, np.int64)).shape == (
        0,
        side,
        side,
    )
    got = masks(inputs["boxes"], inputs["image_index"], inputs["classes"])
    check(name, "pred_masks", got[:, None], "float32")


def test_semantic_head(dtype):
    config, state, inputs, _, layouts = recorded("semantic")
    point = PointHeadConfig(**{**config["point_head"], "in_features": ("p2",)})
    with keras.name_scope("head"):
        head_config = PointRendSemSegHeadConfig(SemSegHeadConfig(**config["sem_seg"]), point)
        head = PointRendSemSegHead(head_config, BACKBONE, "sem_seg_head")
    load([head], {f"sem_seg_head.{key}": value for key, value in state.items()}, dtype)
    stages = {}
    logits = head.forward({f: nhwc(inputs[f], dtype) for f in STRIDES}, stages, "h")
    check("semantic", "coarse", nchw(stages["h.coarse_sem_seg_head.predictor"]), dtype)
    for k in (0, 1):
        shape, *_ = layouts[f"indices{k}"]
        expected = recorded("semantic")[3][f"indices{k}"].reshape(shape)
        np.testing.assert_array_equal(
            np.sort(stages[f"h.point_indices#{k}"], axis=1), np.sort(expected, axis=1)
        )
    check("semantic", "logits", nchw(logits), dtype)


@pytest.mark.parametrize("name", DENSEPOSE)
def test_densepose_head_and_predictor(name, dtype):
    config, state, inputs, _, layouts = recorded(name)
    predictor_config = DensePosePredictorConfig(**config["predictor"])
    plain = {k: v for k, v in config.items() if k not in ("predictor", "resolution")}
    pooler = PoolerConfig("ROIAlign", config["resolution"], 2)
    head_config = DensePoseHeadConfig(
        **plain, pooler=pooler, decoder=None, predictor=predictor_config, embedders=(), class_to_mesh=()
    )
    x = nhwc(inputs["x"], dtype)
    with keras.name_scope("head"):
        head = DENSEPOSE_HEADS[head_config.name](head_config, x.shape[-1], "densepose_head")
        predictor = DensePosePredictor(predictor_config, head.out_channels, "densepose_predictor")
    load([head, predictor], state, dtype)
    features = head(x)
    check(name, "densepose_head", nchw(features), dtype)
    fields = predictor(features)
    assert sorted(fields) == sorted(set(layouts) - {"densepose_head"})
    for field, value in fields.items():
        assert value.shape[1] == head_config.output_side
        check(name, field, nchw(value), dtype)


def test_a_dilation_beyond_the_map_needs_the_centre_tap_only():
    """The short cut of small maps is the convolution itself."""
    conv = AtrousConv2d(3, 4, 3, "conv", padding=7, dilation=7, bias=False)
    conv.kernel.assign(np.random.default_rng(0).normal(size=(3, 3, 3, 4)))
    x = tf.constant(np.random.default_rng(1).normal(size=(2, 7, 6, 3)).astype(np.float32))
    whole = conv2d(x, conv.value(conv.kernel), padding=7, dilation=7)
    np.testing.assert_allclose(conv(x), whole, rtol=1e-5, atol=1e-6)
    larger = tf.pad(x, [[0, 0], [0, 1], [0, 0], [0, 0]], constant_values=1.0)
    assert np.abs(conv(larger)[:, :7] - whole).max() > 0.1  # one row more, and another tap sees it
