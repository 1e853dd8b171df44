"""Bugs in ROI pooling, the box head and its decisions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import tensorflow as tf

from parity.selftest.tf_planters.base import across_groups, planter, swapped
from tf_d2.modeling import box_head, poolers


@contextlib.contextmanager
def _sampled(**changes: Any) -> Iterator[None]:
    old = poolers.Sampling
    with swapped(poolers, "Sampling", lambda *a, **k: old(*a, **k)._replace(**changes)):
        yield


@planter("roi_align_unaligned")
def _unaligned(p: Any) -> Iterator[None]:
    with _sampled(aligned=False):
        yield


@planter("roi_align_2x2")
def _two_samples(p: Any) -> Iterator[None]:
    with _sampled(ratio=2):
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
    with across_groups(box_head):
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
