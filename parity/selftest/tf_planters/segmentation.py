"""Bugs in semantic and panoptic segmentation and in RetinaNet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from parity.selftest.tf_planters.base import aligned_corners, planter, swapped
from tf_d2.layers import norm as norm_layers
from tf_d2.modeling import semantic_seg


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
