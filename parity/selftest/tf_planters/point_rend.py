"""Bugs in PointRend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from parity.selftest.tf_planters.base import nearest, planter, swapped
from tf_d2.modeling.point_rend import mask_head, point_head
from tf_d2.modeling.point_rend import semantic_seg as point_semantic
from tf_d2.ops import points


@planter("point_grid_at_corners")
def _grid_at_corners(p: Any) -> Iterator[None]:
    old = mask_head.regular_grid
    with swapped(mask_head, "regular_grid", lambda side, dtype: old(side, dtype) - 0.5 / side):
        yield


@planter("points_align_corners")
def _points_align_corners(p: Any) -> Iterator[None]:
    def positions(at: Any, size: Any) -> Any:
        return at * (tf.cast(size, at.dtype) - 1)

    with swapped(points, "_positions", positions):
        yield


@planter("points_beside_the_box")
def _points_beside(p: Any) -> Iterator[None]:
    def in_image(at: Any, boxes: Any) -> Any:
        extent = tf.cast(boxes[:, None, 2:] - boxes[:, None, :2] + 1, at.dtype)
        return at * extent + tf.cast(boxes[:, None, :2], at.dtype)

    with swapped(points, "points_in_image", in_image):
        yield


@planter("coarse_before_fine")
def _coarse_first(p: Any) -> Iterator[None]:
    def call(self: Any, features: Any, coarse: Any) -> Any:
        x = tf.concat([coarse, features], axis=-1)
        for fc in self.fcs:
            x = tf.nn.relu(fc(x))
            x = tf.concat([x, coarse], axis=-1) if self.coarse_each_layer else x
        return self.predictor(x)

    with swapped(point_head.StandardPointHead, "call", call):
        yield


@planter("point_relu_missing")
def _point_relu(p: Any) -> Iterator[None]:
    def call(self: Any, features: Any, coarse: Any) -> Any:
        x = tf.concat([features, coarse], axis=-1)
        for k, fc in enumerate(self.fcs):
            x = fc(x) if k == 0 else tf.nn.relu(fc(x))
            x = tf.concat([x, coarse], axis=-1) if self.coarse_each_layer else x
        return self.predictor(x)

    with swapped(point_head.StandardPointHead, "call", call):
        yield


def _refined_at(change: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
    """Other points are refined, or others are put in their place, from the second step on."""
    old = mask_head.uncertain_points
    return swapped(mask_head, "uncertain_points", lambda mask, count: change(*old(mask, count)))


@planter("surest_points_refined")
def _surest(p: Any) -> Iterator[None]:
    old = mask_head.uncertain_points
    with swapped(mask_head, "uncertain_points", lambda mask, count: old(-mask, count)):
        yield


@planter("refined_points_yx")
def _refined_yx(p: Any) -> Iterator[None]:
    with _refined_at(lambda index, at: (index, at[:, :, ::-1])):
        yield


@planter("refined_points_put_back_by_columns")
def _put_by_columns(p: Any) -> Iterator[None]:
    def transposed(maps: Any, index: Any, values: Any) -> Any:
        side = maps.shape[1]
        return old(maps, index % side * side + index // side, values)

    old = mask_head.replace_at
    with swapped(mask_head, "replace_at", transposed):
        yield


@planter("mask_enlarged_by_nearest")
def _mask_nearest(p: Any) -> Iterator[None]:
    with swapped(mask_head, "bilinear", nearest):
        yield


@planter("refined_mask_of_next_class")
def _refined_class(p: Any) -> Iterator[None]:
    old = mask_head._of_class

    def of_class(logits: Any, classes: Any) -> Any:
        return old(logits, (classes + 1) % logits.shape[-1])

    with swapped(mask_head, "_of_class", of_class):
        yield


@planter("semantic_points_by_best")
def _by_best(p: Any) -> Iterator[None]:
    with swapped(point_semantic, "closeness", lambda logits: -tf.reduce_max(logits, axis=-1)):
        yield


@planter("semantic_points_without_fine")
def _without_fine(p: Any) -> Iterator[None]:
    old = point_semantic.PointRendSemSegHead.classify

    def classify(self: Any, fine: Any, coarse: Any, at: Any) -> Any:
        return old(self, tf.zeros_like(fine), coarse, at)

    with swapped(point_semantic.PointRendSemSegHead, "classify", classify):
        yield
