"""Region proposal network. Source: detectron2/modeling/proposal_generator/."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_d2.config.parts.anchors import ROTATED, AnchorConfig
from tf_d2.config.parts.rpn import RPNConfig
from tf_d2.layers.base import Module, on_levels, sequence
from tf_d2.layers.conv import Conv2d
from tf_d2.modeling.batches import Proposals, for_each_image, static_batch
from tf_d2.ops import anchors as anchor_ops
from tf_d2.ops import boxes as box_ops
from tf_d2.ops import rotated
from tf_d2.ops.elementary import sigmoid
from tf_d2.ops.nms import batched_nms, batched_nms_inclusive, within_each


def level_cell_anchors(
    config: AnchorConfig, strides: Sequence[int], octaves_first: bool = False
) -> list[np.ndarray]:
    """The anchors of one cell for each feature level; a single list of sizes or ratios serves all levels.

    ``octaves_first``: with Detectron's conventions, sizes are the outer loop (its RetinaNet).
    """
    per_level = []
    for i, stride in enumerate(strides):
        sizes, ratios = _of_level(config.sizes, i), _of_level(config.aspect_ratios, i)
        if config.name == ROTATED:
            angles = _of_level(config.angles, i)
            per_level.append(anchor_ops.rotated_cell_anchors(sizes, ratios, angles))
        elif config.conventions.window_anchors:
            per_level.append(anchor_ops.window_anchors(stride, sizes, ratios, ratios_first=not octaves_first))
        else:
            per_level.append(anchor_ops.cell_anchors(sizes, ratios))
    return per_level


def _of_level(values: Sequence[Sequence[float]], level: int) -> Sequence[float]:
    return values[0] if len(values) == 1 else values[level]


class StandardRPNHead(Module):
    """Shared convolutions, then objectness (A channels) and box deltas (4 A, or 5 A if rotated) per level.

    ``call``: list of ``[N, H, W, C]`` -> (logits per level ``[N, H, W, A]``, deltas per level).
    """

    def __init__(
        self, in_channels: int, anchors: int, box_dim: int, conv_dims: Sequence[int], name: str
    ) -> None:
        super().__init__(name)
        widths = [in_channels]  # before each convolution, and after the last
        for dim in conv_dims:
            widths.append(widths[-1] if dim == -1 else dim)
        with self.scope():
            if len(conv_dims) == 1:
                self.conv: Conv2d | dict[str, Module] = self._conv(in_channels, widths[1], "conv")
            else:
                makers = {
                    f"conv{i}": (lambda key, i=i: self._conv(widths[i], widths[i + 1], key))
                    for i in range(len(conv_dims))
                }
                self.conv = sequence("conv", makers)
            self.objectness_logits = Conv2d(widths[-1], anchors, 1, "objectness_logits")
            self.anchor_deltas = Conv2d(widths[-1], anchors * box_dim, 1, "anchor_deltas")

    @staticmethod
    def _conv(in_channels: int, out_channels: int, name: str) -> Conv2d:
        return Conv2d(in_channels, out_channels, 3, name, padding=1, relu=True, large_maps=True)

    def call(self, features: list[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        outputs = on_levels(self._on_level, features)
        return [logits for logits, _ in outputs], [deltas for _, deltas in outputs]

    def _on_level(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        for conv in self.conv.values() if isinstance(self.conv, dict) else (self.conv,):
            x = conv(x)
        return self.objectness_logits(x), self.anchor_deltas(x)


class RPN(Module):
    """Head, anchors and the selection of proposals; ``RRPN`` when the anchors are rotated."""

    def __init__(self, config: RPNConfig, channels: int, strides: Sequence[int], name: str) -> None:
        super().__init__(name)
        self.rpn = config
        self.strides, self.offset = list(strides), config.anchors.offset
        self.rotated = config.rotated
        self.cells = level_cell_anchors(config.anchors, self.strides)
        with self.scope():
            self.rpn_head = StandardRPNHead(
                channels, len(self.cells[0]), 5 if self.rotated else 4, config.conv_dims, "rpn_head"
            )

    def call(self, features: list[tf.Tensor], image_sizes: tf.Tensor) -> Proposals:
        logits, deltas = self.rpn_head(features)
        return self.predict_proposals(logits, deltas, image_sizes)

    def predict_proposals(
        self,
        logits: Sequence[tf.Tensor],
        deltas: Sequence[tf.Tensor],
        image_sizes: tf.Tensor,
        factors: tf.Tensor | None = None,
    ) -> Proposals:
        """Decode, take the best of each level, clip, drop the small ones, suppress, take the best of all levels.

        Args:
            logits: per level ``[B, H, W, A]``.
            deltas: per level ``[B, H, W, A * 4]`` (``A * 5`` if rotated).
            image_sizes: int32 ``[B, 2]``, unpadded (height, width) in pixels of the network input; with Detectron's
                conventions padded.
            factors: float32 ``[B]``, pixels of the network input per pixel of the picture, where the least size
                counts in the picture (Detectron).

        Source: ``rpn.py`` ``predict_proposals``, ``proposal_utils.py`` ``find_top_rpn_proposals``.
        """
        best = [
            self._best_of_level(i, level_logits, level_deltas)
            for i, (level_logits, level_deltas) in enumerate(zip(logits, deltas, strict=True))
        ]
        boxes = tf.concat([b for b, _ in best], axis=1)  # [B, n, 4]
        scores = tf.concat([s for _, s in best], axis=1)  # [B, n]
        levels = tf.concat([tf.fill(tf.shape(s)[1:], i) for i, (_, s) in enumerate(best)], axis=0)  # [n]

        def one_image(i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            factor = None if factors is None else factors[i]
            if self.rpn.conventions.inclusive_nms:
                return self._select_inclusive(boxes[i], scores[i], levels, image_sizes[i], factor)
            return self._select(boxes[i], scores[i], levels, image_sizes[i])

        box_spec = tf.TensorSpec([None, 5 if self.rotated else 4], tf.float32)
        (boxes_out, logits_out), image_index, counts = for_each_image(
            static_batch(boxes), one_image, [box_spec, tf.TensorSpec([None], tf.float32)]
        )
        return Proposals(boxes_out, logits_out, image_index, counts)

    def _best_of_level(self, level: int, logits: tf.Tensor, deltas: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Boxes ``[B, k, 4]`` and logits ``[B, k]`` of the k highest logits of one level.

        detectron2 decodes every anchor first; decoding works on each box alone, so only the chosen are decoded.
        """
        shape = tf.shape(logits)
        box_dim = 5 if self.rotated else 4
        scores = tf.cast(tf.reshape(logits, [shape[0], -1]), tf.float32)  # [B, H * W * A]
        k = tf.minimum(self.rpn.pre_nms_topk, tf.shape(scores)[1])
        # torch ranks NaN highest; such rows take a place among the best and are dropped afterwards.
        ranked = sigmoid(scores) if self.rpn.conventions.rank_by_probability else scores
        ranked = tf.where(tf.math.is_nan(scores), np.float32(np.inf), ranked)
        _, chosen = tf.math.top_k(ranked, k)  # [B, k]
        anchors = anchor_ops.grid_anchors(
            self.cells[level], shape[1], shape[2], self.strides[level], self.offset
        )
        flat_deltas = tf.reshape(deltas, [shape[0], -1, box_dim])
        picked = tf.gather(flat_deltas, chosen, batch_dims=1)  # [B, k, 4]
        references = tf.gather(anchors, chosen)
        arguments = (
            tf.reshape(picked, [-1, box_dim]),
            tf.reshape(references, [-1, box_dim]),
            self.rpn.bbox_reg_weights,
        )
        if self.rotated:
            boxes = rotated.apply_deltas(*arguments)
        else:
            boxes = box_ops.apply_deltas(*arguments, plus_one=self.rpn.conventions.decode_plus_one)
        return tf.reshape(boxes, [shape[0], k, box_dim]), tf.gather(scores, chosen, batch_dims=1)

    def _select(
        self, boxes: tf.Tensor, scores: tf.Tensor, levels: tf.Tensor, image_size: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        finite = tf.reduce_all(tf.math.is_finite(boxes), axis=1) & tf.math.is_finite(scores)
        clip = rotated.clip if self.rotated else box_ops.clip
        nonempty = rotated.nonempty if self.rotated else box_ops.nonempty
        boxes = tf.where(finite[:, None], boxes, 0.0)
        boxes = clip(boxes, image_size[0], image_size[1])
        valid = tf.where(finite & nonempty(boxes, self.rpn.min_size))[:, 0]
        boxes, scores, levels = (tf.gather(t, valid) for t in (boxes, scores, levels))
        suppress = rotated.batched_nms_rotated if self.rotated else batched_nms
        kept = suppress(boxes, scores, levels, self.rpn.nms_thresh, self.rpn.post_nms_topk)
        return tf.gather(boxes, kept), tf.gather(scores, kept)

    def _select_inclusive(
        self,
        boxes: tf.Tensor,
        scores: tf.Tensor,
        levels: tf.Tensor,
        image_size: tf.Tensor,
        factor: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The same for Detectron and maskrcnn-benchmark: clip, filter, NMS and best of each level, best of all.

        Source: detectron/ops/generate_proposals.py, collect_and_distribute_fpn_rpn_proposals.py;
        maskrcnn_benchmark/modeling/rpn/inference.py.
        """
        conventions = self.rpn.conventions
        finite = tf.reduce_all(tf.math.is_finite(boxes), axis=1) & tf.math.is_finite(scores)
        boxes = tf.where(finite[:, None], boxes, 0.0)
        boxes = box_ops.clip(boxes, image_size[0], image_size[1], last_pixel=conventions.clip_last_pixel)
        if conventions.inclusive_min_size:
            large = box_ops.at_least(boxes, self.rpn.min_size, factor)
        else:
            large = box_ops.nonempty(boxes, self.rpn.min_size)
        valid = tf.where(finite & large)[:, 0]
        boxes, scores, levels = (tf.gather(t, valid) for t in (boxes, scores, levels))
        ranked = sigmoid(scores) if conventions.rank_by_probability else scores
        kept = batched_nms_inclusive(boxes, ranked, levels, self.rpn.nms_thresh)
        if self.rpn.post_nms_topk_per_level:
            first = within_each(tf.gather(levels, kept), self.rpn.post_nms_topk_per_level, len(self.strides))
            kept = tf.gather(kept, first)
        kept = kept[: self.rpn.post_nms_topk]
        return tf.gather(boxes, kept), tf.gather(scores, kept)
