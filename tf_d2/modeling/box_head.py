"""The box head, its predictor, and what turns predictions into detections.

Source: detectron2/modeling/roi_heads/box_head.py, fast_rcnn.py, rotated_fast_rcnn.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import tensorflow as tf

from tf_d2.config.parts.box_head import FastRCNNConvFCHeadConfig
from tf_d2.config.parts.roi_heads import BoxPredictorConfig
from tf_d2.config.reading import Floats
from tf_d2.layers.base import Module
from tf_d2.layers.conv import Conv2d, Linear
from tf_d2.modeling.batches import Detections, Proposals, for_each_image, rows_of
from tf_d2.ops import boxes as box_ops
from tf_d2.ops import elementary, rotated
from tf_d2.ops.nms import batched_nms, batched_nms_inclusive, best_with_ties


class FastRCNNConvFCHead(Module):
    """3x3 convolutions, then linear layers, ReLU after each: ``[R, P, P, C]`` -> ``[R, last of fc_dims]``.

    Without linear layers the result stays ``[R, P, P, last of conv_dims]``; ``size`` is P.
    """

    def __init__(self, config: FastRCNNConvFCHeadConfig, in_channels: int, size: int, name: str) -> None:
        super().__init__(name)
        bias = config.norm == ""
        channels = in_channels
        self.blocks: list[Module] = []
        with self.scope():
            for k, dim in enumerate(config.conv_dims):
                conv = Conv2d(
                    channels,
                    dim,
                    3,
                    f"conv{k + 1}",
                    padding=1,
                    bias=bias,
                    norm=config.norm,
                    relu=True,
                )
                self.blocks.append(conv)
                channels = dim
            features, spatial = channels * size * size, size
            for k, dim in enumerate(config.fc_dims):
                layer = Linear(features, dim, f"fc{k + 1}", spatial=spatial or None, relu=True)
                self.blocks.append(layer)
                features, spatial = dim, 0
        self.out_features = features
        self.out_spatial = spatial

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for layer in self.blocks:
            x = layer(x)
        return x


class FastRCNNOutputLayers(Module):
    """Class scores ``[R, K + 1]`` (background last) and box deltas ``[R, 4 K]`` or ``[R, 4]``."""

    box_dim: ClassVar[int] = 4

    def __init__(
        self, in_features: int, num_classes: int, agnostic: bool, name: str, *, spatial: int = 0
    ) -> None:
        super().__init__(name)
        boxes = 1 if agnostic else num_classes
        with self.scope():
            self.cls_score = Linear(in_features, num_classes + 1, "cls_score", spatial=spatial or None)
            self.bbox_pred = Linear(in_features, boxes * self.box_dim, "bbox_pred", spatial=spatial or None)

    def call(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


class RotatedFastRCNNOutputLayers(FastRCNNOutputLayers):
    """The same for rotated boxes, which have an angle besides."""

    box_dim: ClassVar[int] = 5


def predict_probs(scores: tf.Tensor, sigmoid: bool) -> tf.Tensor:
    """Class logits ``[R, K + 1]`` -> float32 probabilities."""
    scores = tf.cast(scores, tf.float32)
    return elementary.sigmoid(scores) if sigmoid else elementary.softmax(scores)


def predict_boxes(
    deltas: tf.Tensor, boxes: tf.Tensor, weights: Floats, is_rotated: bool = False, plus_one: bool = False
) -> tf.Tensor:
    """Decode all classes: ``[R, 4 k]`` deltas -> ``[R, k, 4]`` float32 boxes (rotated: 5)."""
    dim = 5 if is_rotated else 4
    if is_rotated:
        decoded = rotated.apply_deltas(deltas, boxes, weights)
    else:
        decoded = box_ops.apply_deltas(deltas, boxes, weights, plus_one=plus_one)
    columns: int = deltas.shape[-1]  # pyright: ignore[reportAssignmentType]
    return tf.reshape(decoded, [-1, columns // dim, dim])


def fast_rcnn_inference(
    boxes: tf.Tensor,
    probs: tf.Tensor,
    proposals: Proposals,
    image_sizes: tf.Tensor,
    batch_size: int | tf.Tensor,
    limits: BoxPredictorConfig,
) -> Detections:
    """Threshold, per-class NMS and top k of each image.

    A region with a non-finite box (of any class) or probability is dropped whole; boxes are clipped; a (region, class)
    pair with probability strictly above ``limits.score_thresh_test`` is a candidate.

    Args:
        boxes: ``[R, K, 4]`` or ``[R, 1, 4]`` (class agnostic), pixels of the network input (rotated: 5).
        probs: ``[R, K + 1]``, background last.
        image_sizes: int32 ``[B, 2]`` (height, width).
        limits: thresholds, detections per image (negative = all) and conventions (with ``inclusive_nms`` those of
            Detectron and maskrcnn-benchmark).

    Source: detectron2/modeling/roi_heads/fast_rcnn.py ``fast_rcnn_inference_single_image``; detectron/core/test.py
    ``box_results_with_nms_and_limit``; maskrcnn_benchmark/modeling/roi_heads/box_head/inference.py.
    """
    box_dim = boxes.shape[-1]

    def one_image(i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        rows = rows_of(proposals.counts, i)
        return _detect(boxes[rows], probs[rows], image_sizes[i], limits)

    specs = [
        tf.TensorSpec([None, box_dim], tf.float32),
        tf.TensorSpec([None], tf.float32),
        tf.TensorSpec([None], tf.int64),
    ]
    (kept, scores, classes), image_index, counts = for_each_image(batch_size, one_image, specs)
    return Detections(kept, scores, classes, image_index, counts)


def _detect(
    boxes: tf.Tensor, probs: tf.Tensor, image_size: tf.Tensor, limits: BoxPredictorConfig
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    conventions, topk = limits.conventions, limits.detections_per_image
    is_rotated = boxes.shape[-1] == 5
    finite = tf.reduce_all(tf.math.is_finite(boxes), [1, 2]) & tf.reduce_all(tf.math.is_finite(probs), 1)
    # A Python threshold meets float32 scores as a float32, in torch as here.
    candidate = elementary.above(probs[:, :-1], limits.score_thresh_test) & finite[:, None]
    index = tf.where(candidate)  # [n, 2] (region, class), region-major
    region, classes = index[:, 0], index[:, 1]
    box_class = tf.zeros_like(classes) if boxes.shape[1] == 1 else classes
    chosen = tf.gather_nd(boxes, tf.stack([region, box_class], axis=1))  # [n, 4]
    if is_rotated:
        chosen = rotated.clip(chosen, image_size[0], image_size[1])
    else:
        last_pixel = conventions.clip_last_pixel
        chosen = box_ops.clip(chosen, image_size[0], image_size[1], last_pixel=last_pixel)
    scores = tf.gather_nd(probs, index)
    limit = None if topk < 0 else topk
    if is_rotated:
        kept = rotated.batched_nms_rotated(chosen, scores, classes, limits.nms_thresh_test, limit)
    elif conventions.inclusive_nms:
        kept = batched_nms_inclusive(chosen, scores, classes, limits.nms_thresh_test)
        if conventions.ties_at_limit:
            kept = tf.gather(kept, best_with_ties(tf.gather(scores, kept), topk))
        elif topk > 0:
            kept = kept[:topk]
    else:
        kept = batched_nms(chosen, scores, classes, limits.nms_thresh_test, limit)
    return tf.gather(chosen, kept), tf.gather(scores, kept), tf.gather(classes, kept)


def average_probs(stage_probs: Sequence[tf.Tensor]) -> tf.Tensor:
    """The cascade's probabilities: the sum over stages times 1 / stages (a product, as detectron2 computes it)."""
    total = elementary.widen(stage_probs[0])
    for probs in stage_probs[1:]:
        total = elementary.widen(elementary.narrow(total + elementary.widen(probs)))
    return elementary.narrow(total * float(np.float32(1.0 / len(stage_probs))))
