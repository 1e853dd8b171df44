"""Bugs that ports of PointRend and DensePose have, planted one at a time: the recorded heads find each where it is.

For every bug the first recorded array that differs, in the order of computation, is the one the bug is in.
"""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_d2.config.parts.densepose import DensePoseHeadConfig, DensePosePredictorConfig
from tf_d2.config.parts.point_rend import PointHeadConfig, PointRendMaskHeadConfig, PointRendSemSegHeadConfig
from tf_d2.config.parts.poolers import PoolerConfig
from tf_d2.config.parts.sem_seg import SemSegHeadConfig
from tf_d2.modeling.batches import Detections
from tf_d2.modeling.densepose import head as dp_head
from tf_d2.modeling.densepose import predictor as dp_predictor
from tf_d2.modeling.mask_head import mask_inference
from tf_d2.modeling.point_rend import mask_head, point_head, semantic_seg
from tf_d2.ops import points

from .test_project_heads import BACKBONE, STRIDES, load, nchw, nhwc, recorded
from .test_project_heads import mask_head as make_head

EXACT = 1e-10
LEVELS, IMPLICIT = "instance_two_levels", "implicit"


@pytest.fixture(autouse=True)
def float64():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy(before)


def instance(name):
    """Arrays of a mask head in the order of computation."""
    _, state, inputs, _, layouts = recorded(name)
    head = make_head(name, state, "float64")
    features = {f: nhwc(inputs[f], "float64") for f in STRIDES}
    boxes, classes = tf.constant(inputs["boxes"]), tf.constant(inputs["classes"])
    counts = tf.constant([3, 2])
    found = Detections(boxes, tf.zeros(len(boxes)), classes, tf.constant(inputs["image_index"]), counts)
    stages = {}
    masks = mask_inference(head.masks(features, found, stages, "h")[..., None], classes)
    look = head.LOOK
    seen = stages[f"h.{look}"]
    yield look, nchw(seen) if len(seen.shape) == 4 else seen.numpy()
    yield "point_head#0", stages["h.point_head"].numpy()
    for k in range(9):
        if f"indices{k}" in layouts:
            yield f"indices{k}", stages[f"h.point_indices#{k}"].numpy()
            yield f"point_head#{k + 1}", stages[f"h.point_head#{k + 1}"].numpy()
    yield "pred_masks", masks[:, None].numpy()


def semantic(name):
    config, state, inputs, *_ = recorded(name)
    point = PointHeadConfig(**{**config["point_head"], "in_features": ("p2",)})
    with keras.name_scope("head"):
        head_config = PointRendSemSegHeadConfig(SemSegHeadConfig(**config["sem_seg"]), point)
        head = semantic_seg.PointRendSemSegHead(head_config, BACKBONE, "sem_seg_head")
    load([head], {f"sem_seg_head.{key}": value for key, value in state.items()}, "float64")
    stages = {}
    logits = head.forward({f: nhwc(inputs[f], "float64") for f in STRIDES}, stages, "h")
    yield "coarse", nchw(stages["h.coarse_sem_seg_head.predictor"])
    for k in (0, 1):
        yield f"indices{k}", stages[f"h.point_indices#{k}"].numpy()
        yield f"point_head#{k}", stages["h.point_head" + (f"#{k}" if k else "")].numpy()
    yield "logits", nchw(logits)


def densepose(name):
    config, state, inputs, *_ = recorded(name)
    predictor_config = DensePosePredictorConfig(**config["predictor"])
    plain = {k: v for k, v in config.items() if k not in ("predictor", "resolution")}
    pooler = PoolerConfig("ROIAlign", config["resolution"], 2)
    head_config = DensePoseHeadConfig(
        **plain, pooler=pooler, decoder=None, predictor=predictor_config, embedders=(), class_to_mesh=()
    )
    x = nhwc(inputs["x"], "float64")
    with keras.name_scope("head"):
        head = dp_head.DENSEPOSE_HEADS[head_config.name](head_config, x.shape[-1], "densepose_head")
        predictor = dp_predictor.DensePosePredictor(
            predictor_config, head.out_channels, "densepose_predictor"
        )
    load([head, predictor], state, "float64")
    features = head(x)
    yield "densepose_head", nchw(features)
    for field, value in predictor(features).items():
        yield field, nchw(value)


RUN = {LEVELS: instance, IMPLICIT: instance, "semantic": semantic}


def first_bad(name):
    """The first array that is not the recorded one; "" if all are."""
    *_, outputs, layouts = recorded(name)
    for field, got in RUN.get(name, densepose)(name):
        shape, step, _ = layouts[field]
        if got.shape != shape:
            return field
        got, expected = got.ravel()[::step], outputs[field]
        if expected.dtype.kind == "i":
            if set(got.tolist()) != set(expected.tolist()):
                return field
        elif np.linalg.norm(got - expected) > EXACT * np.linalg.norm(expected):
            return field
    return ""


# === PointRend ===

sample_points, regular_grid, uncertain = points.sample_points, points.regular_grid, points.uncertain_points


def corners(side, dtype=tf.float32):
    line = np.linspace(0, 1, side)
    x, y = np.meshgrid(line, line)
    return tf.constant(np.stack([x.ravel(), y.ravel()], axis=1), dtype)


def clamped(maps, at, index):
    size = tf.cast(tf.shape(maps)[2:0:-1], at.dtype)
    return sample_points(maps, tf.clip_by_value(at, 0.5 / size, 1 - 0.5 / size), index)


def aligned_corners(x, height, width):
    rows, columns = (
        np.linspace(0, n - 1, int(m)) for n, m in zip(x.shape[1:3], (height, width), strict=True)
    )
    low = [np.minimum(line.astype(int), n - 2) for line, n in zip((rows, columns), x.shape[1:3], strict=True)]
    down, right = (rows - low[0])[None, :, None, None], (columns - low[1])[None, None, :, None]
    wide = tf.gather(x, low[1], axis=2) * (1 - right) + tf.gather(x, low[1] + 1, axis=2) * right
    return tf.gather(wide, low[0], axis=1) * (1 - down) + tf.gather(wide, low[0] + 1, axis=1) * down


def swapped(at):
    return at[..., ::-1]


def plant_grid(m):
    m.setattr(mask_head, "regular_grid", corners)


def plant_half_pixel(m):
    def shifted(maps, at, index):
        return sample_points(maps, at + 0.5 / tf.cast(tf.shape(maps)[2:0:-1], at.dtype), index)

    m.setattr(points, "sample_points", shifted)


def plant_clamp(m):
    m.setattr(points, "sample_points", clamped)


def plant_unscaled_boxes(m):
    m.setattr(points, "points_in_image", lambda at, boxes: at * tf.cast(boxes[:, None, 2:], at.dtype))


def plant_xy_of_grid(m):
    m.setattr(mask_head, "regular_grid", lambda side, dtype: swapped(regular_grid(side, dtype)))


def plant_levels_in_order(m):
    old = mask_head.PointRendMaskHead.sample_fine

    def other(self, *arguments):
        sampled = old(self, *arguments)
        return tf.concat([sampled[..., 6:], sampled[..., :6]], axis=-1)

    m.setattr(mask_head.PointRendMaskHead, "sample_fine", other)


def plant_coarse_of_next_box(m):
    m.setattr(mask_head, "sample_points", lambda maps, at, index: sample_points(maps, at, index[::-1]))


def plant_coarse_transposed(m):
    old = mask_head.PointRendMaskHead.look
    m.setattr(mask_head.PointRendMaskHead, "look", lambda *a: tf.transpose(old(*a), [0, 2, 1, 3]))


def plant_class_zero(m):
    m.setattr(mask_head, "_of_class", lambda logits, classes: logits[:, :, :1])


def plant_aligned_corners(m):
    m.setattr(mask_head, "bilinear", aligned_corners)


def plant_most_certain(m):
    m.setattr(mask_head, "uncertain_points", lambda u, n: uncertain(-u, n))


def plant_one_point_less(m):
    m.setattr(mask_head, "uncertain_points", lambda u, n: uncertain(u, n - 1))


def plant_xy_of_points(m):
    def other(u, n):
        index, at = uncertain(u, n)
        return index, swapped(at)

    m.setattr(mask_head, "uncertain_points", other)


def plant_points_at_corners(m):
    def other(u, n):
        index, at = uncertain(u, n)
        return index, at - 0.5 / u.shape[1]

    m.setattr(mask_head, "uncertain_points", other)


def plant_not_replaced(m):
    m.setattr(mask_head, "replace_at", lambda maps, index, values: maps)


def plant_no_early_doubling(m):
    def other(self):
        return self.output_side_resolution, self.point_head.subdivision_steps

    m.setattr(PointRendMaskHeadConfig, "start_and_steps", property(other))


def plant_cosines_first(m):
    old = point_head.ImplicitPointHead.encode

    def other(self, at, dtype):
        encoded = old(self, at, dtype)
        return tf.concat([encoded[..., 128:], encoded[..., :128]], axis=-1)

    m.setattr(point_head.ImplicitPointHead, "encode", other)


def plant_points_from_zero(m):
    old = point_head.ImplicitPointHead.encode
    m.setattr(point_head.ImplicitPointHead, "encode", lambda self, at, dtype: old(self, (at + 1) / 2, dtype))


def plant_best_only(m):
    m.setattr(semantic_seg, "closeness", lambda logits: -tf.reduce_max(logits, axis=-1))


def plant_refined_coarse(m):
    old = semantic_seg.PointRendSemSegHead.classify
    m.setattr(
        semantic_seg.PointRendSemSegHead,
        "classify",
        lambda self, fine, coarse, at: old(self, fine, aligned_corners(coarse, 20, 28), at),
    )


# === DensePose ===


def plant_dilations(m):
    m.setattr(dp_head, "ASPP_DILATIONS", (6, 11, 56))


def plant_first_dilation(m):
    m.setattr(dp_head, "ASPP_DILATIONS", (5, 12, 56))


def plant_scaled_attention(m):
    softmax = tf.nn.softmax
    m.setattr(dp_head.tf.nn, "softmax", lambda x, axis: softmax(x / 4, axis=axis))


def plant_no_epsilon(m):
    old = dp_predictor.DensePosePredictor.fields

    def other(self, lowres):
        self.config = replace(self.config, segm_confidence_epsilon=0.0)
        return old(self, lowres)

    m.setattr(dp_predictor.DensePosePredictor, "fields", other)


def plant_no_softplus(m):
    m.setattr(dp_predictor.tf.nn, "softplus", lambda x: x)


def plant_upscale_aligned(m):
    m.setattr(dp_predictor, "bilinear", aligned_corners)


def plant_flipped_deconv(m):
    old = dp_predictor.conv_transpose2d

    def other(x, kernel, bias, **options):
        return old(x, kernel[::-1, ::-1], bias, **options)

    m.setattr(dp_predictor, "conv_transpose2d", other)


def plant_u_and_v(m):
    old = dp_predictor.DensePosePredictor.fields

    def other(self, lowres):
        found = old(self, lowres)
        return {**found, "u": found["v"], "v": found["u"]}

    m.setattr(dp_predictor.DensePosePredictor, "fields", other)


DL, PLAIN, CSE = "deeplab_wc2m", "deeplab_plain_wc1", "v1_cse_confidence"
BUGS = [
    (plant_grid, LEVELS, "coarse_head"),
    (plant_half_pixel, LEVELS, "coarse_head"),
    (plant_clamp, LEVELS, "coarse_head"),
    (plant_unscaled_boxes, LEVELS, "coarse_head"),
    (plant_xy_of_grid, LEVELS, "coarse_head"),
    (plant_coarse_transposed, LEVELS, "coarse_head"),
    (plant_levels_in_order, LEVELS, "point_head#0"),
    (plant_coarse_of_next_box, LEVELS, "point_head#0"),
    (plant_no_early_doubling, LEVELS, "point_head#0"),
    (plant_class_zero, LEVELS, "indices0"),
    (plant_aligned_corners, LEVELS, "indices0"),
    (plant_most_certain, LEVELS, "indices0"),
    (plant_one_point_less, LEVELS, "indices0"),
    (plant_xy_of_points, LEVELS, "point_head#1"),
    (plant_points_at_corners, LEVELS, "point_head#1"),
    (plant_not_replaced, LEVELS, "indices1"),
    (plant_cosines_first, IMPLICIT, "point_head#0"),
    (plant_points_from_zero, IMPLICIT, "point_head#0"),
    (plant_best_only, "semantic", "indices0"),
    (plant_refined_coarse, "semantic", "point_head#0"),
    (plant_first_dilation, DL, "densepose_head"),
    (plant_dilations, PLAIN, "densepose_head"),
    (plant_scaled_attention, DL, "densepose_head"),
    (plant_no_epsilon, CSE, "coarse_segm"),
    (plant_no_softplus, CSE, "coarse_segm"),
    (plant_upscale_aligned, PLAIN, "coarse_segm"),
    (plant_flipped_deconv, CSE, "embedding"),
    (plant_u_and_v, PLAIN, "u"),
]


@pytest.mark.parametrize("name", [LEVELS, IMPLICIT, "semantic", DL, PLAIN, CSE])
def test_without_a_bug_nothing_differs(name):
    assert first_bad(name) == ""


@pytest.mark.parametrize(("plant", "name", "where"), BUGS, ids=[plant.__name__ for plant, *_ in BUGS])
def test_every_bug_is_found_where_it_is(plant, name, where, monkeypatch):
    plant(monkeypatch)
    assert first_bad(name) == where
