"""Bugs in DeepLab."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from parity.selftest.tf_planters.base import aligned_corners, nearest, planter, swapped, together
from tf_d2.modeling import deeplab


@planter("multi_grid_missing")
def _multi_grid(p: Any) -> Iterator[None]:
    blocks = p.model.backbone.res5
    first = blocks[0].conv2
    changes = [(b.conv2, name, getattr(first, name)) for b in blocks[1:] for name in ("dilation", "padding")]
    with together(*changes):
        yield


@planter("aspp_pools_the_largest")
def _pools_largest(p: Any) -> Iterator[None]:
    def pool(self: Any, x: Any) -> Any:
        return tf.nn.max_pool2d(x, self.pool_kernel, 1, "VALID")

    with swapped(deeplab.ASPP, "pool", pool):
        yield


@planter("aspp_branches_reversed")
def _branches_reversed(p: Any) -> Iterator[None]:
    aspp = p.model.sem_seg_head.aspp
    first, *atrous = aspp.convs
    with swapped(aspp, "convs", [first, *reversed(atrous)]):
        yield


@planter("decoder_joined_in_reverse")
def _joined_reverse(p: Any) -> Iterator[None]:
    def fuse(self: Any, feature: str, low: Any, above: Any) -> Any:
        large = deeplab.bilinear(above, low.shape[1], low.shape[2])
        return deeplab.in_turn(self.fuses[feature], tf.concat([large, low], axis=-1))

    with swapped(deeplab.DeepLabV3PlusHead, "fuse", fuse):
        yield


@planter("decoder_align_corners")
def _decoder_corners(p: Any) -> Iterator[None]:
    def fuse(self: Any, feature: str, low: Any, above: Any) -> Any:
        large = aligned_corners(above, low.shape[1], low.shape[2])
        return deeplab.in_turn(self.fuses[feature], tf.concat([low, large], axis=-1))

    with swapped(deeplab.DeepLabV3PlusHead, "fuse", fuse):
        yield


@planter("deeplab_logits_nearest")
def _logits_nearest(p: Any) -> Iterator[None]:
    def enlarge(self: Any, x: Any) -> Any:
        return nearest(x, x.shape[1] * self.common_stride, x.shape[2] * self.common_stride)

    with swapped(deeplab.DeepLabHead, "enlarge", enlarge):
        yield
