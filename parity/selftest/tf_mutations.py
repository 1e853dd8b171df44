"""Plants the bugs of `parity.selftest.mutations` in a running TensorFlow model. Part of the TensorFlow worker.

Each function changes the model, or the modules of tf_d2, and undoes it afterwards. The model runs eagerly,
so a changed function takes effect at the next call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from parity.core import swap
from tf_d2.layers import conv as conv_layers
from tf_d2.layers import norm as norm_layers
from tf_d2.layers.base import walk
from tf_d2.modeling import box_head, fpn, model, poolers, postprocess, resnet, rpn, semantic_seg
from tf_d2.ops import anchors as anchor_ops
from tf_d2.ops import boxes as box_ops
from tf_d2.ops import interpolate, mask_paste

Planter = Callable[[Any], "contextlib.AbstractContextManager[None]"]
PLANTERS: dict[str, Planter] = {}


def planter(name: str) -> Callable[[Callable[..., Iterator[None]]], Callable[..., Any]]:
    """Register a generator function as the planter of the bug called ``name``."""

    def register(function: Callable[..., Iterator[None]]) -> Callable[..., Any]:
        PLANTERS[name] = contextlib.contextmanager(function)
        return PLANTERS[name]

    return register


def swapped(owner: Any, name: str, value: Any) -> contextlib.AbstractContextManager[None]:
    """``owner.name`` is ``value`` for a while."""
    return swap.swapped(owner, name, value, _set)


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, tf.Module) and not isinstance(value, tf.Module):
        object.__setattr__(owner, name, value)  # Keras would track or wrap it
    else:
        setattr(owner, name, value)


@contextlib.contextmanager
def assigned(predictor: Any, *changes: tuple[Any, Any]) -> Iterator[None]:
    """Variables hold other values for a while, and the folded weights follow."""
    old = [(v, v.numpy()) for v, _ in changes]
    for variable, value in changes:
        variable.assign(value)
    _refold(predictor)
    try:
        yield
    finally:
        for variable, value in old:
            variable.assign(value)
        _refold(predictor)


def _refold(predictor: Any) -> None:
    predictor.model.unfold_norms()
    if predictor.model.compute_dtype != "float64":
        predictor.model.fold_norms()


def _bottom_up(predictor: Any) -> Any:
    backbone = predictor.model.backbone
    return getattr(backbone, "bottom_up", backbone)


def _variable(predictor: Any, ending: str) -> Any:
    return next(v for v in predictor.model._all_variables() if v.path.endswith(ending))


@contextlib.contextmanager
def plant(name: str, predictor: Any = None) -> Iterator[None]:
    """Plant the bug called ``name`` for a while. KeyError lists the known ones."""
    from parity.selftest import (  # noqa: F401  (they add their planters to this file's)
        tf_older_mutations,
        tf_project_mutations,
        tf_transformer_mutations,
    )

    if name not in PLANTERS:
        raise KeyError(f"no planted bug is called {name!r}; known: {', '.join(PLANTERS)}")
    with PLANTERS[name](predictor):
        yield


# ---- picture ---------------------------------------------------------------------------------------------


def _resize_module() -> Any:
    from tf_d2.ops import resize

    return resize


@contextlib.contextmanager
def _resized(resize: Callable[..., Any]) -> Iterator[None]:
    """Another uint8 resize, in the model's own run and in the single computations."""
    from tf_d2 import stages

    with swapped(_resize_module(), "resize_uint8", resize), swapped(stages, "resize_uint8", resize):
        yield


@planter("rgb_for_bgr")
def _rgb(p: Any) -> Iterator[None]:
    old = _resize_module().resize_uint8
    with _resized(lambda x, h, w: old(x[:, :, ::-1], h, w)):
        yield


@planter("resize_not_antialiased")
def _not_antialiased(p: Any) -> Iterator[None]:
    def resize(x: Any, height: Any, width: Any) -> Any:
        return tf.cast(tf.round(tf.image.resize(x, [height, width])), tf.uint8)

    with _resized(resize):
        yield


@planter("resize_float")
def _resize_float(p: Any) -> Iterator[None]:
    def resize(x: Any, height: Any, width: Any) -> Any:
        y = tf.image.resize(tf.cast(x, tf.float32), [height, width], antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(y), 0, 255), tf.uint8)

    with _resized(resize):
        yield


@planter("resize_floor")
def _resize_floor(p: Any) -> Iterator[None]:
    def size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
        scale = min(short / min(height, width), longest / max(height, width))
        return int(height * scale - 1e-9), int(width * scale - 1e-9)

    with swapped(_resize_module(), "shortest_edge_size", size):
        yield


@contextlib.contextmanager
def _normalize(change: Callable[..., Any]) -> Iterator[None]:
    old = model.normalize
    with swapped(model, "normalize", lambda x, mean, std, *rest: change(old, x, mean, std)):
        yield


@planter("mean_reversed")
def _mean_reversed(p: Any) -> Iterator[None]:
    with _normalize(lambda old, x, mean, std: old(x, mean[::-1], std)):
        yield


@planter("scaled_to_one")
def _scaled(p: Any) -> Iterator[None]:
    with _normalize(lambda old, x, mean, std: old(x, mean, std) / 255):
        yield


@planter("pad_before_mean")
def _pad_before(p: Any) -> Iterator[None]:
    old, mean = p.model.prepare, p.config.input.pixel_mean

    def prepare(images: Any, sizes: Any = None) -> Any:
        x = old(images, None)
        height, width = images.shape[1], images.shape[2]
        inside = (np.arange(x.shape[1]) < height)[:, None] & (np.arange(x.shape[2]) < width)
        return tf.where(inside[None, :, :, None], x, -tf.constant(mean, x.dtype))

    with swapped(p.model, "prepare", prepare):
        yield


@planter("pad_centred")
def _pad_centred(p: Any) -> Iterator[None]:
    old = p.model.prepare

    def prepare(images: Any, sizes: Any = None) -> Any:
        x = old(images, None)
        shift = [(x.shape[k] - images.shape[k]) // 2 for k in (1, 2)]
        return tf.roll(x, shift, [1, 2])

    with swapped(p.model, "prepare", prepare):
        yield


@planter("pad_to_64")
def _pad_64(p: Any) -> Iterator[None]:
    old = model.padded_size
    with swapped(model, "padded_size", lambda h, w, divisibility, square=0: old(h, w, 64, square)):
        yield


# ---- backbone --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _batch_norm_eps(p: Any, eps: float) -> Iterator[None]:
    norms = [layer for layer in walk(p.model) if isinstance(layer, norm_layers.BatchNorm)]
    with contextlib.ExitStack() as stack:
        for norm in norms:
            stack.enter_context(swapped(norm, "eps", eps))
        _refold(p)
        yield
    _refold(p)


@planter("bn_eps_1e-3")
def _bn_eps(p: Any) -> Iterator[None]:
    with _batch_norm_eps(p, 1e-3):
        yield


@planter("norm_eps_1.001e-5")
def _bn_eps_by_rounding(p: Any) -> Iterator[None]:
    with _batch_norm_eps(p, 1.001e-5):
        yield


@planter("bias_off_1e-6")
def _bias_off(p: Any) -> Iterator[None]:
    """In what is computed, not in the weights, whose hashes would show it."""
    bias = _variable(p, "fpn_lateral4/bias").numpy()
    with _layer_output(p.model.backbone.fpn_lateral4, lambda y: y + tf.cast(1e-6 * bias, y.dtype)):
        yield


@planter("gamma_beta_swapped")
def _gamma_beta(p: Any) -> Iterator[None]:
    gamma, beta = (_variable(p, f"res3/0/conv2/norm/{n}") for n in ("gamma", "beta"))
    with assigned(p, (gamma, beta.numpy()), (beta, gamma.numpy())):
        yield


@planter("mean_variance_swapped")
def _mean_variance(p: Any) -> Iterator[None]:
    mean, variance = (_variable(p, f"res3/0/conv2/norm/{n}") for n in ("moving_mean", "moving_variance"))
    with assigned(p, (mean, variance.numpy()), (variance, np.abs(mean.numpy()))):
        yield


@planter("kernel_rows_columns_swapped")
def _kernel_swapped(p: Any) -> Iterator[None]:
    kernel = _variable(p, "res4/1/conv2/kernel")
    with assigned(p, (kernel, kernel.numpy().transpose(1, 0, 2, 3))):
        yield


@planter("fc_height_width_swapped")
def _fc_swapped(p: Any) -> Iterator[None]:
    kernel = _variable(p, "box_head/fc1/kernel")
    with assigned(p, (kernel, kernel.numpy().transpose(1, 0, 2, 3))):
        yield


@planter("bias_dropped")
def _bias_dropped(p: Any) -> Iterator[None]:
    bias = _variable(p, "fpn_lateral4/bias")
    with assigned(p, (bias, np.zeros_like(bias.numpy()))):
        yield


@planter("class_rows_rolled")
def _class_rolled(p: Any) -> Iterator[None]:
    kernel, bias = (_variable(p, f"box_predictor/cls_score/{n}") for n in ("kernel", "bias"))
    with assigned(p, (kernel, np.roll(kernel.numpy(), 1, -1)), (bias, np.roll(bias.numpy(), 1, -1))):
        yield


@planter("same_padding")
def _same_padding(p: Any) -> Iterator[None]:
    old = conv_layers.conv2d

    def conv2d(x: Any, kernel: Any, bias: Any = None, **geometry: Any) -> Any:
        if geometry.get("stride", 1) == 1 or kernel.shape[0] == 1:
            return old(x, kernel, bias, **geometry)
        y = tf.nn.conv2d(x, kernel, geometry["stride"], "SAME")
        y = y if bias is None else tf.nn.bias_add(y, bias)
        y = y if geometry.get("add") is None else y + geometry["add"]
        return tf.nn.relu(y) if geometry.get("relu") else y

    with swapped(conv_layers, "conv2d", conv2d):
        yield


@planter("max_pool_valid")
def _max_pool_valid(p: Any) -> Iterator[None]:
    with swapped(resnet, "max_pool2d", lambda x, k, stride, pad: tf.nn.max_pool2d(x, k, stride, "SAME")):
        yield


@planter("stride_in_3x3")
def _stride(p: Any) -> Iterator[None]:
    block = _bottom_up(p).res3[0]
    with swapped(block.conv1, "stride", 1), swapped(block.conv2, "stride", 2):
        yield


@contextlib.contextmanager
def _layer_output(layer: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    old = layer.call
    with swapped(layer, "call", lambda *a, **k: change(old(*a, **k))):
        yield


@planter("no_relu_after_sum")
def _no_relu(p: Any) -> Iterator[None]:
    block = _bottom_up(p).res2[1]

    def call(x: Any) -> Any:
        return block.conv3(block.middle(block.conv1(x))) + x

    with swapped(block, "call", call):
        yield


@planter("dead_channel")
def _dead_channel(p: Any) -> Iterator[None]:
    def kill(y: Any) -> Any:
        alive = np.ones(y.shape[-1], np.float32)
        alive[7] = 0
        return y * tf.cast(alive, y.dtype)

    with _layer_output(_bottom_up(p).res4[-1], kill):
        yield


@planter("nan_in_res5")
def _nan(p: Any) -> Iterator[None]:
    def spoil(y: Any) -> Any:
        mask = np.zeros([1, *y.shape[1:]], bool)
        mask[0, 0, 0, 0] = True
        return tf.where(mask, tf.constant(np.nan, y.dtype), y)

    with _layer_output(_bottom_up(p).res5[-1], spoil):
        yield


@planter("bilinear_top_down")
def _bilinear_top_down(p: Any) -> Iterator[None]:
    def add(fine: Any, coarse: Any) -> Any:
        return fine + interpolate.bilinear(coarse, tf.shape(fine)[1], tf.shape(fine)[2])

    with swapped(fpn, "add_nearest2x", add):
        yield


@planter("average_fusion")
def _average(p: Any) -> Iterator[None]:
    with swapped(p.model.backbone, "average", True):
        yield


@planter("p6_by_average")
def _p6(p: Any) -> Iterator[None]:
    def pool(x: Any) -> list[Any]:
        return [tf.nn.avg_pool2d(x, 2, 2, "SAME")]

    with swapped(p.model.backbone.top_block, "call", pool):
        yield


@planter("p7_without_relu")
def _p7(p: Any) -> Iterator[None]:
    block = p.model.backbone.top_block

    def call(x: Any) -> list[Any]:
        p6 = block.p6(x)
        return [p6, block.p7(p6)]

    with swapped(block, "call", call):
        yield


# ---- proposals -------------------------------------------------------------------------------------------


@planter("rpn_relu_missing")
def _rpn_relu(p: Any) -> Iterator[None]:
    with swapped(p.model.proposal_generator.rpn_head.conv, "relu", False):
        yield


@planter("anchor_half_offset")
def _half_offset(p: Any) -> Iterator[None]:
    with swapped(p.model.proposal_generator, "offset", 0.5):
        yield


@planter("anchor_ratio_inverted")
def _ratio(p: Any) -> Iterator[None]:
    generator = p.model.proposal_generator
    turned = [c[:, [1, 0, 3, 2]] for c in generator.cells]
    with swapped(generator, "cells", turned):
        yield


@planter("anchor_xy_swapped")
def _anchor_xy(p: Any) -> Iterator[None]:
    old = anchor_ops.grid_anchors

    def grid(cells: Any, height: Any, width: Any, stride: int, offset: float) -> Any:
        rows = tf.reshape(old(cells, width, height, stride, offset), [width, height, len(cells), 4])
        return tf.reshape(tf.transpose(rows, [1, 0, 2, 3]), [-1, 4])

    with swapped(anchor_ops, "grid_anchors", grid):
        yield


@contextlib.contextmanager
def _decoded(change: Callable[..., Any]) -> Iterator[None]:
    old = box_ops.apply_deltas

    def decode(deltas: Any, boxes: Any, weights: Any, **conventions: Any) -> Any:
        return change(partial(old, **conventions), deltas, boxes, weights)

    with swapped(box_ops, "apply_deltas", decode):
        yield


@planter("width_plus_one")
def _plus_one(p: Any) -> Iterator[None]:
    def change(old: Any, deltas: Any, boxes: Any, weights: Any) -> Any:
        boxes = tf.cast(boxes, tf.float32)
        return old(deltas, boxes + tf.constant([0.0, 0, 1, 1]), weights)

    with _decoded(change):
        yield


@planter("deltas_yx")
def _deltas_yx(p: Any) -> Iterator[None]:
    def change(old: Any, deltas: Any, boxes: Any, weights: Any) -> Any:
        order = np.arange(deltas.shape[-1]).reshape(-1, 4)[:, [1, 0, 3, 2]].ravel()
        return old(tf.gather(deltas, order, axis=-1), boxes, weights)

    with _decoded(change):
        yield


@planter("clamp_missing")
def _clamp_missing(p: Any) -> Iterator[None]:
    with swapped(box_ops, "DEFAULT_SCALE_CLAMP", 1e9):
        yield


@planter("proposals_not_clipped")
def _not_clipped(p: Any) -> Iterator[None]:
    with swapped(box_ops, "clip", lambda boxes, height, width, **conventions: boxes):
        yield


def _rpn_setting(p: Any, **values: Any) -> Any:
    generator = p.model.proposal_generator
    return swapped(generator, "rpn", replace(generator.rpn, **values))


@planter("post_nms_topk_999")
def _topk(p: Any) -> Iterator[None]:
    with _rpn_setting(p, post_nms_topk=p.model.proposal_generator.rpn.post_nms_topk - 1):
        yield


@planter("rpn_nms_0.65")
def _rpn_nms(p: Any) -> Iterator[None]:
    with _rpn_setting(p, nms_thresh=0.65):
        yield


@planter("rpn_nms_across_levels")
def _across_levels(p: Any) -> Iterator[None]:
    old = rpn.batched_nms

    def together(boxes: Any, scores: Any, groups: Any, *rest: Any) -> Any:
        return old(boxes, scores, tf.zeros_like(groups), *rest)

    with swapped(rpn, "batched_nms", together):
        yield


@planter("rpn_sigmoid")
def _rpn_sigmoid(p: Any) -> Iterator[None]:
    generator = p.model.proposal_generator
    old = generator.predict_proposals

    def predict(logits: Any, deltas: Any, sizes: Any) -> Any:
        return old([tf.sigmoid(x) for x in logits], deltas, sizes)

    with swapped(generator, "predict_proposals", predict):
        yield


# ---- regions ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _pooled(change: Callable[..., Any]) -> Iterator[None]:
    old = poolers.Regions
    with swapped(poolers, "Regions", lambda *a: change(old, list(a))):
        yield


@planter("roi_align_unaligned")
def _unaligned(p: Any) -> Iterator[None]:
    with _pooled(lambda old, a: old(*a[:7], False)):
        yield


@planter("roi_align_2x2")
def _two_samples(p: Any) -> Iterator[None]:
    with _pooled(lambda old, a: old(*a[:6], 2, a[7])):
        yield


@planter("roi_transposed")
def _transposed(p: Any) -> Iterator[None]:
    old = poolers.Regions._pool_chunks

    def transposed(regions: Any, *chunks: Any) -> Any:
        return tf.transpose(old(regions, *chunks), [0, 2, 1, 3])

    with swapped(poolers.Regions, "_pool_chunks", transposed):
        yield


@planter("roi_level_shifted")
def _level_shifted(p: Any) -> Iterator[None]:
    old = poolers.assign_levels

    def shifted(boxes: tf.Tensor, low: int, high: int, *more: Any, **conventions: Any) -> tf.Tensor:
        return tf.minimum(old(boxes, low, high, *more, **conventions) + 1, high - low)

    with swapped(poolers, "assign_levels", shifted):
        yield


@planter("fc_relu_missing")
def _fc_relu(p: Any) -> Iterator[None]:
    with swapped(p.model.roi_heads.box_head.blocks[-1], "relu", False):
        yield


@planter("softmax_twice")
def _softmax_twice(p: Any) -> Iterator[None]:
    from tf_d2.modeling import roi_heads

    old = roi_heads.predict_probs
    with swapped(roi_heads, "predict_probs", lambda scores, sigmoid: tf.nn.softmax(old(scores, sigmoid))):
        yield


def _heads_setting(p: Any, **values: Any) -> Any:
    heads = p.model.roi_heads
    changed = replace(heads.heads.box_predictor, **values)
    return swapped(heads, "heads", replace(heads.heads, box_predictor=changed))


@planter("box_weights_of_rpn")
def _box_weights(p: Any) -> Iterator[None]:
    with _heads_setting(p, bbox_reg_weights=((1.0, 1.0, 1.0, 1.0),)):
        yield


@planter("stale_score_threshold")
def _stale(p: Any) -> Iterator[None]:
    with _heads_setting(p, score_thresh_test=0.5):
        yield


@planter("one_detection_less")
def _one_less(p: Any) -> Iterator[None]:
    with _heads_setting(p, detections_per_image=p.model.roi_heads.heads.detections_per_image - 1):
        yield


@planter("class_agnostic_nms")
def _agnostic(p: Any) -> Iterator[None]:
    old = box_head.batched_nms

    def together(boxes: Any, scores: Any, groups: Any, *rest: Any) -> Any:
        return old(boxes, scores, tf.zeros_like(groups), *rest)

    with swapped(box_head, "batched_nms", together):
        yield


@planter("class_off_by_one")
def _class_one(p: Any) -> Iterator[None]:
    old = box_head._detect

    def detect(*arguments: Any) -> Any:
        boxes, scores, classes = old(*arguments)
        count = tf.shape(arguments[1], tf.int64)[-1] - 1  # the last column of the scores is the background
        return boxes, scores, tf.math.floormod(classes + 1, count)

    with swapped(box_head, "_detect", detect):
        yield


# ---- results ---------------------------------------------------------------------------------------------


@planter("scale_xy_swapped")
def _scale_swapped(p: Any) -> Iterator[None]:
    old = postprocess.scales
    with swapped(postprocess, "scales", lambda a, b: old(a, b)[:, ::-1]):
        yield


@planter("mask_of_next_class")
def _next_class(p: Any) -> Iterator[None]:
    import tf_d2.stages as stages
    from tf_d2.modeling import roi_heads

    old = roi_heads.mask_inference

    def inference(logits: Any, classes: Any) -> Any:
        return old(logits, (classes + 1) % logits.shape[-1])

    with swapped(roi_heads, "mask_inference", inference), swapped(stages, "mask_inference", inference):
        yield


@planter("mask_deconv_flipped")
def _deconv_flipped(p: Any) -> Iterator[None]:
    old = conv_layers.conv_transpose_tiles
    with swapped(conv_layers, "conv_transpose_tiles", lambda x, k, bias: old(x, k[::-1, ::-1], bias)):
        yield


@planter("mask_threshold_0.6")
def _mask_threshold(p: Any) -> Iterator[None]:
    old = postprocess.paste_masks
    with swapped(postprocess, "paste_masks", lambda m, b, h, w: old(m, b, h, w, 0.6)):
        yield


@planter("mask_paste_shifted")
def _paste_shifted(p: Any) -> Iterator[None]:
    old = postprocess.paste_masks

    def paste(masks: Any, boxes: Any, height: Any, width: Any) -> Any:
        half = 0.5 * (boxes[:, 2:] - boxes[:, :2]) / masks.shape[1]
        return old(masks, boxes + np.tile(half, (1, 2)), height, width)

    with swapped(postprocess, "paste_masks", paste):
        yield


@planter("paste_strict_threshold")
def _strict_threshold(p: Any) -> Iterator[None]:
    old = mask_paste.paste_masks

    def paste(masks: Any, boxes: Any, height: Any, width: Any, threshold: float = 0.5) -> Any:
        return old(masks, boxes, height, width, float(np.nextafter(np.float32(threshold), np.float32(1))))

    with swapped(mask_paste, "paste_masks", paste):
        yield


def aligned_corners(x: Any, height: Any, width: Any) -> Any:
    """Bilinear interpolation that maps corner cells onto corner cells."""

    def axis(count: int, size: int) -> tuple[Any, Any, Any]:
        at = np.linspace(0, count - 1, size) if size > 1 else np.zeros(1)
        low = np.minimum(np.floor(at).astype(int), max(count - 2, 0))
        return low, np.minimum(low + 1, count - 1), at - low

    (y0, y1, fy), (x0, x1, fx) = axis(x.shape[1], int(height)), axis(x.shape[2], int(width))
    fy, fx = tf.cast(fy[:, None, None], x.dtype), tf.cast(fx[:, None], x.dtype)
    rows = tf.gather(x, y0, axis=1) * (1 - fy) + tf.gather(x, y1, axis=1) * fy
    return tf.gather(rows, x0, axis=2) * (1 - fx) + tf.gather(rows, x1, axis=2) * fx


@planter("heatmap_align_corners")
def _heatmap_corners(p: Any) -> Iterator[None]:
    from tf_d2.modeling import keypoint_head

    with swapped(keypoint_head, "bilinear", aligned_corners):
        yield


def _decode_keypoints(change: Callable[[Any, Any, Any], Any]) -> Any:
    import tf_d2.stages as stages
    from tf_d2.modeling import keypoint_head

    old = keypoint_head.decode_keypoints
    stack = contextlib.ExitStack()
    for module in (keypoint_head, stages):
        stack.enter_context(swapped(module, "decode_keypoints", lambda h, b: change(old, h, b)))
    return stack


@planter("keypoint_no_half")
def _keypoint_half(p: Any) -> Iterator[None]:
    def change(old: Any, heatmaps: Any, boxes: Any) -> Any:
        points = old(heatmaps, boxes)
        size = tf.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
        half = 0.5 * size / tf.math.ceil(size)
        return points - tf.concat([half, tf.zeros_like(half[:, :1])], 1)[:, None]

    with _decode_keypoints(change):
        yield


@planter("keypoint_bicubic_half")
def _bicubic_half(p: Any) -> Iterator[None]:
    old_outer = interpolate._cubic_outer

    def outer(d: Any) -> Any:
        return old_outer(d) * (0.5 / 0.75)

    def inner(d: Any) -> Any:
        return (1.5 * d - 2.5) * d * d + 1

    with swapped(interpolate, "_cubic_outer", outer), swapped(interpolate, "_cubic_inner", inner):
        yield


# ---- other heads -----------------------------------------------------------------------------------------


@planter("sem_seg_align_corners")
def _sem_seg_corners(p: Any) -> Iterator[None]:
    with swapped(semantic_seg, "bilinear", aligned_corners):
        yield


@planter("group_norm_16")
def _group_norm(p: Any) -> Iterator[None]:
    with swapped(norm_layers, "GROUP_NORM_GROUPS", 16):
        yield


@planter("group_norm_eps")
def _group_norm_eps(p: Any) -> Iterator[None]:
    with swapped(norm_layers, "BATCH_NORM_EPS", 1e-3):  # frozen norms are folded already
        yield


def _panoptic_setting(p: Any, **values: Any) -> Any:
    combine = replace(p.config.panoptic, **values)
    changed = replace(p.config, model=replace(p.config.model, combine=combine))
    stack = contextlib.ExitStack()
    stack.enter_context(swapped(p, "config", changed))
    stack.enter_context(swapped(p.model, "config", changed))
    return stack


@planter("panoptic_overlap")
def _overlap(p: Any) -> Iterator[None]:
    with _panoptic_setting(p, overlap_thresh=0.0):
        yield


@planter("stuff_limit")
def _stuff_limit(p: Any) -> Iterator[None]:
    with _panoptic_setting(p, stuff_area_limit=0.0):
        yield


@planter("retina_octaves")
def _octaves(p: Any) -> Iterator[None]:
    decoder = p.model.decoder
    equal = [np.tile(c[:3], (len(c) // 3, 1)) for c in decoder.cells]
    with swapped(decoder, "cells", equal):
        yield


@planter("retina_softmax")
def _retina_softmax(p: Any) -> Iterator[None]:
    decoder, old = p.model.decoder, p.model.decoder._level
    classes = decoder.config.num_classes

    def level(index: int, logits: Any, deltas: Any) -> Any:
        rows = tf.nn.softmax(tf.reshape(logits, [-1, classes]))
        return old(index, tf.reshape(tf.math.log(rows / (1 - rows)), tf.shape(logits)), deltas)

    with swapped(decoder, "_level", level):
        yield


# ---- operations ------------------------------------------------------------------------------------------


@planter("nms_at_threshold")
def _nms_at(p: Any) -> Iterator[None]:
    from tf_d2.ops import nms

    def below(threshold: float) -> float:
        return float(np.nextafter(np.float32(threshold), np.float32(0)))

    with swapped(nms, "float32_threshold", below):
        yield


@planter("level_epsilon")
def _level_epsilon(p: Any) -> Iterator[None]:
    with swapped(box_ops, "log2", lambda x: tf.math.log(x + 1e-5) / tf.math.log(tf.constant(2.0, x.dtype))):
        yield


@planter("max_pool_zero_padding")
def _max_pool_zero(p: Any) -> Iterator[None]:
    from tf_d2.ops import conv

    def pool(x: Any, kernel: int, stride: int, padding: int) -> Any:
        edge = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        return tf.nn.max_pool2d(tf.pad(x, edge), kernel, stride, "VALID")

    with swapped(conv, "max_pool2d", pool):
        yield


__all__ = ["PLANTERS", "plant"]
