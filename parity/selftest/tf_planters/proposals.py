"""Bugs in the region proposal network: anchors, deltas, selection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from parity.selftest.tf_planters.base import across_groups, planter, swapped
from tf_d2.modeling import rpn
from tf_d2.ops import anchors as anchor_ops
from tf_d2.ops import boxes as box_ops


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
    with across_groups(rpn):
        yield


@planter("rpn_sigmoid")
def _rpn_sigmoid(p: Any) -> Iterator[None]:
    generator = p.model.proposal_generator
    old = generator.predict_proposals

    def predict(logits: Any, deltas: Any, sizes: Any) -> Any:
        return old([tf.sigmoid(x) for x in logits], deltas, sizes)

    with swapped(generator, "predict_proposals", predict):
        yield
