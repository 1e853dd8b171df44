"""FCOS's head and decoding. Source: detectron2/modeling/meta_arch/fcos.py."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_d2.config.parts.fcos import FCOSConfig
from tf_d2.layers.conv import Conv2d
from tf_d2.modeling.batches import Detections
from tf_d2.modeling.retinanet import RetinaNetDecoder, RetinaNetHead, on_every_level, run_tower
from tf_d2.ops import boxes as box_ops
from tf_d2.ops.elementary import above, sigmoid


class FCOSHead(RetinaNetHead):
    """RetinaNet's towers with one anchor per cell, and a centerness from the tower of the boxes.

    ``call``: list of ``[N, H, W, C]`` -> logits ``[N, H, W, K]``, deltas ``[N, H, W, 4]``, centerness
    ``[N, H, W, 1]`` per level.
    """

    def __init__(self, config: FCOSConfig, in_channels: int, name: str) -> None:
        super().__init__(config, in_channels, 1, name)
        with self.scope():
            self.ctrness = Conv2d(self.tower_width, 1, 3, "ctrness", padding=1)

    def call(self, features: list[tf.Tensor]) -> tuple[list[tf.Tensor], ...]:
        outputs = on_every_level(self._level_outputs, features, self.norm_name)
        return tuple(list(levels) for levels in zip(*outputs, strict=True))

    def towers(self, features: list[tf.Tensor]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """What the towers of classes and of boxes make of every level, for those who look inside."""
        levels = list(enumerate(features))
        subnets = (self.cls_subnet, self.bbox_subnet)
        classes, boxes = ([run_tower(tower, x, level) for level, x in levels] for tower in subnets)
        return classes, boxes

    def _level_outputs(self, x: tf.Tensor, level: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        logits = self.cls_score(run_tower(self.cls_subnet, x, level))
        boxes = run_tower(self.bbox_subnet, x, level)
        return logits, self.bbox_pred(boxes), self.ctrness(boxes)


class FCOSDecoder(RetinaNetDecoder):
    """The same selection and NMS, of scores ``sqrt(class * centerness)`` and distances to the four edges."""

    def detect(
        self, logits: Sequence[tf.Tensor], deltas: Sequence[tf.Tensor], centerness: Sequence[tf.Tensor]
    ) -> Detections:
        """Detections from the three outputs of the head on every level."""
        scores = [
            tf.sqrt(sigmoid(tf.cast(x, tf.float32)) * sigmoid(tf.cast(c, tf.float32)))
            for x, c in zip(logits, centerness, strict=True)
        ]
        return self(scores, deltas)

    def candidates(self, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The same of what are scores already."""
        passed = tf.where(above(logits, self.config.score_thresh_test))[:, 0]
        return passed, tf.gather(logits, passed)

    def boxes(self, deltas: tf.Tensor, anchors: tf.Tensor) -> tf.Tensor:
        return box_ops.apply_linear_deltas(deltas, anchors)
