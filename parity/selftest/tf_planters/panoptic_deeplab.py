"""Bugs in Panoptic-DeepLab."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import tensorflow as tf

from parity.selftest.tf_planters.base import planter, swapped
from tf_d2.modeling import panoptic_deeplab
from tf_d2.modeling.meta_arch import panoptic_deeplab as panoptic_model
from tf_d2.ops import panoptic_deeplab as segment_ops


@planter("offsets_of_the_small_map")
def _small_offsets(p: Any) -> Iterator[None]:
    head = panoptic_deeplab.PanopticDeepLabInsEmbedHead
    with swapped(head, "enlarge_lengths", head.enlarge):
        yield


@planter("offsets_xy")
def _offsets_xy(p: Any) -> Iterator[None]:
    old = segment_ops.nearest_center
    with swapped(segment_ops, "nearest_center", lambda offset, *rest: old(offset[:, ::-1], *rest)):
        yield


def _setting(p: Any, **changes: Any) -> Any:
    """The model with other settings of its post-processing."""
    config = p.model.config
    changed = replace(config, model=replace(config.model, **changes))
    return swapped(p.model, "config", changed)


@planter("center_nms_missing")
def _center_nms(p: Any) -> Iterator[None]:
    with _setting(p, nms_kernel=1):
        yield


@planter("small_stuff_kept")
def _small_stuff(p: Any) -> Iterator[None]:
    with _setting(p, stuff_area=0):
        yield


@planter("instances_from_zero")
def _from_zero(p: Any) -> Iterator[None]:
    old = segment_ops._thing_numbers

    def numbers(*arguments: Any) -> Any:
        found = old(*arguments)
        return tf.where(found > segment_ops._VOID, found - 1, found)

    with swapped(segment_ops, "_thing_numbers", numbers):
        yield


@planter("score_without_center")
def _score_without_center(p: Any) -> Iterator[None]:
    old = panoptic_model.segment_instances

    def instances(divisor: Any, segments: Any, ids: Any, logits: Any, heat: Any) -> Any:
        return old(divisor, segments, ids, logits, tf.ones_like(heat))

    with swapped(panoptic_model, "segment_instances", instances):
        yield
