"""Bugs in TensorMask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from parity.selftest.tf_planters.base import planter, swapped
from tf_d2.modeling import postprocess, tensor_mask
from tf_d2.modeling.meta_arch import tensor_mask as tensor_mask_model
from tf_d2.ops import align2nat


@planter("pyramid_summed")
def _pyramid_summed(p: Any) -> Iterator[None]:
    with swapped(p.model.backbone, "average", False):
        yield


@planter("finest_not_doubled")
def _not_doubled(p: Any) -> Iterator[None]:
    old = tensor_mask.TensorMaskHead.fuse

    def fuse(self: Any, level: int, x: Any, finest: Any) -> Any:
        return old(self, level, x, tf.zeros_like(finest) if level == 0 else finest)

    with swapped(tensor_mask.TensorMaskHead, "fuse", fuse):
        yield


@planter("windows_beyond_the_map_zero")
def _outside_zero(p: Any) -> Iterator[None]:
    with swapped(align2nat, "_OUTSIDE", 0.0):
        yield


@planter("windows_half_a_cell_off")
def _half_cell(p: Any) -> Iterator[None]:
    old = align2nat._sub_windows

    def sub_windows(unit: int, side: int, dtype: Any) -> Any:
        position = np.arange(unit * side) / unit
        low = np.floor(position).astype(np.int32)
        part = tf.constant(position - low, dtype)
        both = tf.constant(low), tf.constant(low + 1)
        return (
            align2nat._corners(both, (1 - part, part), tf.constant(side))
            if unit > 1
            else old(unit, side, dtype)
        )

    with swapped(align2nat, "_sub_windows", sub_windows):
        yield


@planter("tensor_mask_anchors_offset")
def _anchors_offset(p: Any) -> Iterator[None]:
    old = tensor_mask.anchor_ops.grid_anchors

    def grid(cells: Any, height: Any, width: Any, stride: Any, offset: float) -> Any:
        return old(cells, height, width, stride, 0.5)

    with swapped(tensor_mask.anchor_ops, "grid_anchors", grid):
        yield


@planter("masks_over_boxes")
def _masks_over_boxes(p: Any) -> Iterator[None]:
    old = postprocess._paste_windows

    def paste(fields: Any, size: Any) -> Any:
        return old({**fields, "mask_boxes": fields["pred_boxes"]}, size)

    with swapped(postprocess, "_paste_windows", paste):
        yield


@planter("anchors_clipped")
def _anchors_clipped(p: Any) -> Iterator[None]:
    old = tensor_mask_model.stretched

    def clipped(boxes: Any, network_size: Any, size: Any) -> Any:
        found = old(boxes, network_size, size)
        limit = tf.cast(tf.stack([size[1], size[0], size[1], size[0]]), found.dtype)
        return tf.clip_by_value(found, 0.0, limit)

    with swapped(tensor_mask_model, "stretched", clipped):
        yield
