"""RetinaNet's head and decoding. Source: detectron2/modeling/meta_arch/retinanet.py, dense_detector.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import tensorflow as tf

from tf_d2.config.parts.conventions import DETECTRON2
from tf_d2.config.parts.fcos import FCOSConfig
from tf_d2.config.parts.retinanet import RetinaNetConfig
from tf_d2.layers.base import Module, on_levels, sequence
from tf_d2.layers.conv import Conv2d
from tf_d2.layers.norm import CycleBatchNorm, get_norm
from tf_d2.modeling.batches import Detections, for_each_image, static_batch
from tf_d2.modeling.rpn import level_cell_anchors
from tf_d2.ops import anchors as anchor_ops
from tf_d2.ops import boxes as box_ops
from tf_d2.ops.elementary import above, rank_key, sigmoid
from tf_d2.ops.nms import batched_nms, batched_nms_inclusive, best_with_ties


class RetinaNetHead(Module):
    """Two towers of 3x3 convolutions, shared over the pyramid levels.

    ``call``: list of ``[N, H, W, C]`` -> (logits per level ``[N, H, W, A * K]``, deltas ``[N, H, W, A * 4]``).
    """

    def __init__(
        self, config: RetinaNetConfig | FCOSConfig, in_channels: int, anchors: int, name: str
    ) -> None:
        super().__init__(name)
        self.norm_name = config.norm
        with self.scope():
            self.cls_subnet = self._tower(config, in_channels, "cls_subnet")
            self.bbox_subnet = self._tower(config, in_channels, "bbox_subnet")
            width = self.tower_width = _widths(config, in_channels)[-1]
            self.cls_score = Conv2d(
                width, anchors * config.num_classes, 3, "cls_score", padding=1, large_maps=True
            )
            self.bbox_pred = Conv2d(width, anchors * 4, 3, "bbox_pred", padding=1)

    @staticmethod
    def _tower(config: RetinaNetConfig | FCOSConfig, in_channels: int, name: str) -> dict[str, Module]:
        """Children numbered as in torch's Sequential: convolution, norm if any, ReLU (which has no entry here)."""
        makers: dict[str, Callable[[str], Module]] = {}
        step = 3 if config.norm else 2
        widths, levels = _widths(config, in_channels), len(config.in_features)
        for i, (before, after) in enumerate(pairwise((in_channels, *widths))):
            makers[str(i * step)] = lambda key, before=before, after=after: Conv2d(
                before, after, 3, key, padding=1, relu=not config.norm, large_maps=True
            )
            if config.norm in ("BN", "SyncBN"):
                makers[str(i * step + 1)] = lambda key, after=after: CycleBatchNorm(levels, after, key)
            elif config.norm:
                makers[str(i * step + 1)] = lambda key, after=after: _norm(config.norm, after, key)
        return sequence(name, makers)

    def call(self, features: list[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        outputs = on_every_level(self._on_level, features, self.norm_name)
        return [logits for logits, _ in outputs], [deltas for _, deltas in outputs]

    def _on_level(self, x: tf.Tensor, level: int) -> tuple[tf.Tensor, tf.Tensor]:
        logits = self.cls_score(run_tower(self.cls_subnet, x, level))
        return logits, self.bbox_pred(run_tower(self.bbox_subnet, x, level))


def _widths(config: RetinaNetConfig | FCOSConfig, in_channels: int) -> tuple[int, ...]:
    return config.conv_dims or (in_channels,) * config.num_convs


def on_every_level(
    function: Callable[[tf.Tensor, int], Any], features: list[tf.Tensor], norm: str
) -> list[Any]:
    """``function`` of every map and its level; with a BN every level has statistics of its own."""
    if norm in ("BN", "SyncBN"):
        return [function(x, level) for level, x in enumerate(features)]
    return on_levels(lambda x: function(x, 0), features)


def _norm(name: str, channels: int, key: str) -> Module:
    norm = get_norm(name, channels, key)
    assert norm is not None
    return norm


def run_tower(tower: dict[str, Module], x: tf.Tensor, level: int) -> tf.Tensor:
    for layer in tower.values():
        if isinstance(layer, Conv2d):
            x = layer(x)
        else:
            x = tf.nn.relu(layer(x, level=level) if isinstance(layer, CycleBatchNorm) else layer(x))
    return x


class RetinaNetDecoder:
    """Turns head outputs into detections. Holds the anchors; has no variables.

    A dense detector of another kind replaces :meth:`candidates` and :meth:`boxes`.
    """

    def __init__(self, config: RetinaNetConfig | FCOSConfig, strides: Sequence[int]) -> None:
        self.config, self.strides, self.offset = config, list(strides), config.anchors.offset
        self.conventions = getattr(config, "conventions", DETECTRON2)
        self.cells = level_cell_anchors(config.anchors, self.strides, self.conventions.octaves_first)

    def __call__(
        self,
        logits: Sequence[tf.Tensor],
        deltas: Sequence[tf.Tensor],
        image_sizes: tf.Tensor | None = None,
        factors: tf.Tensor | None = None,
    ) -> Detections:
        """Score threshold and top k per level, decoding, per-class NMS over all levels, best of the image.

        Boxes are neither clipped nor filtered here; that happens when they are scaled to the original image.
        With the conventions of Detectron or maskrcnn-benchmark they are clipped before the NMS, to ``image_sizes``
        int32
        ``[B, 2]``: the original image's, in whose pixels they are after a division by ``factors`` float32 ``[B]``
        (Detectron), or the network input's.

        Source: detectron/core/test_retinanet.py, maskrcnn_benchmark/modeling/rpn/retinanet/inference.py.
        """
        conventions = self.conventions

        def one_image(i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            levels = [
                self._level(n, level_logits[i], level_deltas[i])
                for n, (level_logits, level_deltas) in enumerate(zip(logits, deltas, strict=True))
            ]
            boxes, scores, classes = (tf.concat(parts, axis=0) for parts in zip(*levels, strict=True))
            # A negative limit slices from the end, as in detectron2's `keep[:n]`.
            limit = self.config.detections_per_image
            if factors is not None:
                boxes = boxes / factors[i]
            if conventions.clip_before_nms and image_sizes is not None:
                height, width = image_sizes[i, 0], image_sizes[i, 1]
                boxes = box_ops.clip(boxes, height, width, last_pixel=conventions.clip_last_pixel)
            if conventions.inclusive_nms:
                kept = batched_nms_inclusive(boxes, scores, classes, self.config.nms_thresh_test)
                if conventions.ties_at_limit and not conventions.boxes_in_picture:
                    kept = tf.gather(kept, best_with_ties(tf.gather(scores, kept), limit))
                elif limit > 0:  # Detectron's RetinaNet keeps no ties
                    kept = kept[:limit]
            else:
                kept = batched_nms(
                    boxes, scores, classes, self.config.nms_thresh_test, limit if limit >= 0 else None
                )
                kept = kept[:limit]
            return tf.gather(boxes, kept), tf.gather(scores, kept), tf.gather(classes, kept)

        specs = [
            tf.TensorSpec([None, 4], tf.float32),
            tf.TensorSpec([None], tf.float32),
            tf.TensorSpec([None], tf.int64),
        ]
        rows, image_index, counts = for_each_image(static_batch(logits[0]), one_image, specs)
        return Detections(rows[0], rows[1], rows[2], image_index, counts)

    def _level(
        self, level: int, logits: tf.Tensor, deltas: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Candidates of one level of one image: logits ``[H, W, A * K]``, deltas ``[H, W, A * 4]``."""
        shape = tf.shape(logits)
        num_classes = self.config.num_classes
        if self.conventions.coarsest_without_threshold and level == len(self.strides) - 1:
            candidates, scores = self.candidates(tf.reshape(logits, [-1]), 0.0)
        else:
            candidates, scores = self.candidates(tf.reshape(logits, [-1]))
        k = tf.minimum(self.config.topk_candidates_test, tf.shape(candidates)[0])
        _, order = tf.math.top_k(rank_key(scores), k)
        chosen, best = tf.gather(candidates, order), tf.gather(scores, order)  # int64 and float32 [k]
        anchor_index, classes = chosen // num_classes, chosen % num_classes
        anchors = anchor_ops.grid_anchors(
            self.cells[level], shape[0], shape[1], self.strides[level], self.offset
        )
        flat = tf.reshape(deltas, [-1, 4])
        boxes = self.boxes(tf.gather(flat, anchor_index), tf.gather(anchors, anchor_index))
        return boxes, best, classes

    def candidates(self, logits: tf.Tensor, threshold: float | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Which of the logits ``[H * W * A * K]`` pass the threshold (int64 ``[n]``), and their scores."""
        if threshold is None:
            threshold = self.config.score_thresh_test
        likely = tf.where(logits >= surely_below(threshold))[:, 0]
        likely_scores = sigmoid(tf.cast(tf.gather(logits, likely), tf.float32))
        passed = tf.where(above(likely_scores, threshold))[:, 0]
        return tf.gather(likely, passed), tf.gather(likely_scores, passed)

    def boxes(self, deltas: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        """Decoded boxes ``[k, 4]``."""
        assert isinstance(self.config, RetinaNetConfig)
        weights, plus_one = self.config.bbox_reg_weights, self.conventions.decode_plus_one
        return box_ops.apply_deltas(deltas, anchors, weights, plus_one=plus_one)


def surely_below(threshold: float) -> float:
    """A logit below which no score is above ``threshold``: most of the millions need no sigmoid."""
    if threshold <= 0:
        return -math.inf  # NaN is below that, too
    # Scores within a few units in the last place of the threshold are a hundredth of a logit around it at most.
    threshold = min(threshold, 1 - 1e-4)
    return math.log(threshold / (1 - threshold)) - 0.05
