"""Bugs in masks, keypoints and what brings results into the picture."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from parity.selftest.tf_planters.base import aligned_corners, planter, swapped
from tf_d2.layers import conv as conv_layers
from tf_d2.modeling import postprocess
from tf_d2.ops import interpolate, mask_paste


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
