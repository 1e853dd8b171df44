"""PointRend for semantic segmentation. Source: projects/PointRend/point_rend/semantic_seg.py."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tf_d2.config.parts.point_rend import PointRendSemSegHeadConfig
from tf_d2.layers.base import Module
from tf_d2.modeling.backbone import Backbone
from tf_d2.modeling.point_rend.point_head import StandardPointHead
from tf_d2.modeling.recording import Stages, Unrecorded
from tf_d2.modeling.semantic_seg import SemSegFPNHead
from tf_d2.ops.interpolate import bilinear
from tf_d2.ops.points import replace_at, sample_points, uncertain_points


class PointRendSemSegHead(Module):
    """Logits of a coarse head, doubled and classified anew where the two best classes are closest.

    ``[B, H, W, K]`` at the stride of the coarse head divided by ``2**steps``.
    """

    def __init__(self, config: PointRendSemSegHeadConfig, backbone: Backbone, name: str) -> None:
        super().__init__(name)
        self.config = config.point_head
        (self.feature,) = self.config.in_features  # detectron2's own inference takes one
        with self.scope():
            self.coarse_sem_seg_head = SemSegFPNHead(
                config.coarse_sem_seg_head, backbone, "coarse_sem_seg_head"
            )
            self.point_head = StandardPointHead(self.config, backbone.channels[self.feature], "point_head")

    def call(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return self.forward(features, Unrecorded(), "")

    def forward(self, features: Mapping[str, tf.Tensor], stages: Stages, prefix: str) -> tf.Tensor:
        """Logits of images from their features by name; what is computed goes to ``stages`` under ``prefix``."""
        coarse = self.coarse_sem_seg_head.predict(features)
        stages[f"{prefix}.coarse_sem_seg_head.predictor"] = coarse
        return self.refine(features[self.feature], coarse, stages, prefix)

    def refine(
        self, fine: tf.Tensor, coarse: tf.Tensor, stages: Stages | None = None, prefix: str = ""
    ) -> tf.Tensor:
        """Refined logits from the map that the point head samples and the coarse logits."""
        stages = Unrecorded() if stages is None else stages
        logits = coarse
        for step in range(self.config.subdivision_steps):
            height, width = tf.unstack(tf.shape(logits)[1:3] * 2)
            logits = bilinear(logits, height, width)
            chosen, points = uncertain_points(closeness(logits), self.config.subdivision_num_points)
            values = self.classify(fine, coarse, points)
            stages[f"{prefix}.point_indices#{step}"] = chosen
            stages[f"{prefix}.point_head" + (f"#{step}" if step else "")] = tf.transpose(values, [0, 2, 1])
            logits = replace_at(logits, chosen, values)
        return logits

    def classify(self, fine: tf.Tensor, coarse: tf.Tensor, points: tf.Tensor) -> tf.Tensor:
        """Logits of points ``[B, P, 2]`` in [0, 1] of the maps: ``[B, P, K]``."""
        images = tf.range(tf.shape(coarse)[0])
        return self.point_head(sample_points(fine, points, images), sample_points(coarse, points, images))


def closeness(logits: tf.Tensor) -> tf.Tensor:
    """Second best minus best logit of ``[B, H, W, K]``: ``[B, H, W]``, at most zero."""
    best = tf.reduce_max(logits, axis=-1)
    here = tf.one_hot(tf.argmax(logits, axis=-1), logits.shape[-1], True, False)
    lowest = tf.constant(logits.dtype.min, logits.dtype)
    return tf.reduce_max(tf.where(here, lowest, logits), axis=-1) - best
