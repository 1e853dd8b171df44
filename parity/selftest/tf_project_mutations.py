"""Plants the bugs of `parity.selftest.mutations` in the models of detectron2's projects. See
`parity.selftest.tf_mutations`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from parity.selftest.tf_mutations import aligned_corners, planter, swapped
from tf_d2.layers.base import walk
from tf_d2.layers.conv import Conv2d
from tf_d2.modeling import deeplab, panoptic_deeplab, postprocess, tensor_mask
from tf_d2.modeling.densepose import predictor as densepose_predictor
from tf_d2.modeling.meta_arch import panoptic_deeplab as panoptic_model
from tf_d2.modeling.meta_arch import tensor_mask as tensor_mask_model
from tf_d2.modeling.point_rend import mask_head, point_head
from tf_d2.modeling.point_rend import semantic_seg as point_semantic
from tf_d2.ops import align2nat, points
from tf_d2.ops import panoptic_deeplab as segment_ops


@contextlib.contextmanager
def _together(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for owner, name, value in changes:
            stack.enter_context(swapped(owner, name, value))
        yield


def _nearest(x: Any, height: Any, width: Any) -> Any:
    rows = np.arange(int(height)) * x.shape[1] // int(height)
    columns = np.arange(int(width)) * x.shape[2] // int(width)
    return tf.gather(tf.gather(x, rows, axis=1), columns, axis=2)


# ---- PointRend -------------------------------------------------------------------------------------------


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
    with swapped(mask_head, "bilinear", _nearest):
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


# ---- DensePose -------------------------------------------------------------------------------------------


@planter("densepose_decoder_average")
def _decoder_average(p: Any) -> Iterator[None]:
    decoder = p.model.roi_heads.decoder
    old, count = decoder.predictor, len(decoder.feature_names)
    with swapped(decoder, "predictor", lambda total: old(total / count)):
        yield


@planter("densepose_pooler_aligned")
def _pooler_aligned(p: Any) -> Iterator[None]:
    heads = p.model.roi_heads
    pooler = heads.densepose_pooler
    aligned = replace(pooler, config=replace(pooler.config, type="ROIAlignV2"))
    with swapped(heads, "densepose_pooler", aligned):
        yield


@planter("densepose_aspp_relu_missing")
def _aspp_relu(p: Any) -> Iterator[None]:
    with swapped(p.model.roi_heads.densepose_head.ASPP.project, "relu", False):
        yield


@planter("densepose_align_corners")
def _densepose_corners(p: Any) -> Iterator[None]:
    with swapped(densepose_predictor, "bilinear", aligned_corners):
        yield


@planter("confidence_without_epsilon")
def _without_epsilon(p: Any) -> Iterator[None]:
    predictor = p.model.roi_heads.densepose_predictor
    with swapped(predictor, "config", replace(predictor.config, segm_confidence_epsilon=0.0)):
        yield


@planter("segmentation_without_confidence")
def _without_confidence(p: Any) -> Iterator[None]:
    old = densepose_predictor.DensePosePredictor.fields

    def fields(self: Any, lowres: Any) -> Any:
        found, raw = old(self, lowres), dict(zip(self.layers_of, lowres, strict=True))
        weighted = [name for name in found if f"{name}_confidence" in found]
        return {**found, **{name: self._upscale(raw[name]) for name in weighted}}

    with swapped(densepose_predictor.DensePosePredictor, "fields", fields):
        yield


@planter("embedding_normalised")
def _normalised(p: Any) -> Iterator[None]:
    old = densepose_predictor.DensePosePredictor.fields

    def fields(self: Any, lowres: Any) -> Any:
        found = old(self, lowres)
        return {**found, "embedding": tf.math.l2_normalize(found["embedding"], axis=-1)}

    with swapped(densepose_predictor.DensePosePredictor, "fields", fields):
        yield


# ---- DeepLab ---------------------------------------------------------------------------------------------


@planter("multi_grid_missing")
def _multi_grid(p: Any) -> Iterator[None]:
    blocks = p.model.backbone.res5
    first = blocks[0].conv2
    changes = [(b.conv2, name, getattr(first, name)) for b in blocks[1:] for name in ("dilation", "padding")]
    with _together(*changes):
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
        return _nearest(x, x.shape[1] * self.common_stride, x.shape[2] * self.common_stride)

    with swapped(deeplab.DeepLabHead, "enlarge", enlarge):
        yield


# ---- Panoptic-DeepLab ------------------------------------------------------------------------------------


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


# ---- TridentNet ------------------------------------------------------------------------------------------


@planter("first_branch")
def _first_branch(p: Any) -> Iterator[None]:
    found = [x for x in walk(p.model.backbone) if isinstance(x, Conv2d) and x.dilation > 1]
    with _together(*((conv, name, 1) for conv in found for name in ("dilation", "padding"))):
        yield


# ---- TensorMask ------------------------------------------------------------------------------------------


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
