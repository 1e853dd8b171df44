"""Plants the bugs of `parity.selftest.mutations` in models of Detectron's conventions: each difference from detectron2
left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import tensorflow as tf

from parity.selftest.tf_planters.base import PLANTERS, planter, refold, swapped
from tf_d2.layers.base import walk
from tf_d2.layers.norm import BATCH_NORM_EPS, BatchNorm
from tf_d2.modeling import keypoint_head
from tf_d2.modeling.network_input import network_size
from tf_d2.modeling.rpn import level_cell_anchors
from tf_d2.ops import resize

# Bugs that are one convention left out: its name, and the value that detectron2 would have.
_LEFT_OUT: dict[str, tuple[str, Any]] = {
    "older_resize_as_detectron2": ("resize", "pillow"),
    "older_decode_without_one": ("decode_plus_one", False),
    "older_clip_to_sides": ("clip_last_pixel", False),
    "older_clip_to_unpadded": ("clip_to_padded", False),
    "older_nms_as_detectron2": ("inclusive_nms", False),
    "older_levels_without_one": ("level_plus_one", False),
    "older_boxes_rescaled": ("keep_all", False),
    "older_masks_sampled": ("padded_mask_paste", False),
    "older_coarsest_threshold": ("coarsest_without_threshold", False),
    "older_clip_after_nms": ("clip_before_nms", False),
}


@contextlib.contextmanager
def _left_out(predictor: Any, name: str, value: Any = False) -> Iterator[None]:
    """One of the model's conventions has another value for a while. Every part holds the same object."""
    conventions = predictor.config.conventions
    old = getattr(conventions, name)
    object.__setattr__(conventions, name, value)
    try:
        yield
    finally:
        object.__setattr__(conventions, name, old)


for _bug, (_name, _value) in _LEFT_OUT.items():
    PLANTERS[_bug] = partial(_left_out, name=_name, value=_value)


# ---- picture and network ---------------------------------------------------------------------------------


@planter("older_resize_by_sides")
def _resize_sides(p: Any) -> Iterator[None]:
    def by_sides(image: Any, factor: Any) -> Any:
        size = resize.factor_size(tf.shape(image)[0], tf.shape(image)[1], factor)
        return tf.image.resize(tf.cast(image, tf.float32), size)

    with swapped(resize, "resize_by_factor", by_sides):
        yield


@planter("older_norm_epsilon")
def _epsilon(p: Any) -> Iterator[None]:
    norms = [layer for layer in walk(p.model) if isinstance(layer, BatchNorm) and layer.frozen]
    with contextlib.ExitStack() as stack:
        stack.callback(refold, p)
        for norm in norms:
            stack.enter_context(swapped(norm, "eps", BATCH_NORM_EPS))
        refold(p)
        yield


# ---- proposals -------------------------------------------------------------------------------------------


@planter("older_anchors_not_rounded")
def _anchors(p: Any) -> Iterator[None]:
    generator = p.model.proposal_generator
    with _left_out(p, "window_anchors"):
        cells = level_cell_anchors(generator.rpn.anchors, generator.strides)
    with swapped(generator, "cells", cells):
        yield


# ---- regions ---------------------------------------------------------------------------------------------


@planter("older_half_pixel")
def _half_pixel(p: Any) -> Iterator[None]:
    pooler = p.model.roi_heads.box_pooler
    old = pooler.config
    object.__setattr__(pooler, "config", replace(old, type="ROIAlignV2"))
    try:
        yield
    finally:
        object.__setattr__(pooler, "config", old)


@planter("older_boxes_decoded_in_network")
def _in_network(p: Any) -> Iterator[None]:
    heads, config = p.model.roi_heads, p.config.input
    old = heads.select

    def select(scores: Any, deltas: Any, regions: Any, sizes: Any, batch_size: Any) -> Any:
        factor = p.model.factors(sizes)
        height, width = (int(side) for side in sizes[0])
        network = tf.constant([network_size(height, width, config)])
        found = old(scores, deltas, regions._replace(boxes=regions.boxes * factor), network, batch_size)
        return found._replace(boxes=found.boxes / factor)

    with swapped(heads, "select", select):
        yield


@planter("older_heat_maps_with_edges")
def _edges(p: Any) -> Iterator[None]:
    with swapped(p.model.roi_heads.keypoint_head, "double_unclamped", False):
        yield


@planter("older_keypoint_score_of_low_map")
def _low_map(p: Any) -> Iterator[None]:
    old = keypoint_head.decode_keypoints_with_logits

    def decode(maps: Any, boxes: Any, least: int = 0) -> Any:
        low = keypoint_head.decode_keypoints(maps, boxes)
        return tf.concat([old(maps, boxes, least)[:, :, :3], low[:, :, 2:]], axis=2)

    with swapped(keypoint_head, "decode_keypoints_with_logits", decode):
        yield


# ---- RetinaNet -------------------------------------------------------------------------------------------


@planter("older_octaves_inside")
def _octaves(p: Any) -> Iterator[None]:
    decoder = p.model.decoder
    with swapped(decoder, "cells", level_cell_anchors(decoder.config.anchors, decoder.strides)):
        yield
