"""ROI pooling over one or several feature maps. Source: detectron2/modeling/poolers.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from tf_d2.config.schema import PoolerConfig
from tf_d2.ops import rotated
from tf_d2.ops.boxes import assign_levels
from tf_d2.ops.roi_align import Pooled, pool_regions
from tf_d2.ops.roi_pool import roi_pool


@dataclass(frozen=True)
class ROIPooler:
    """Pools boxes from the level that fits their size. ``strides``: pixels per cell, finest level first."""

    config: PoolerConfig
    strides: tuple[int, ...]

    def __call__(self, features: Sequence[tf.Tensor], boxes: tf.Tensor, image_index: tf.Tensor) -> tf.Tensor:
        """Boxes ``[R, 4]`` (rotated: ``[R, 5]``) -> ``[R, P, P, C]``; ``features`` NHWC, one per stride."""
        return self.pool(features, boxes, image_index).in_order()

    def pool(self, features: Sequence[tf.Tensor], boxes: tf.Tensor, image_index: tf.Tensor) -> Pooled:
        """The pooled regions level by level, and where each box's is."""
        scales = [1.0 / stride for stride in self.strides]
        size, ratio = self.config.resolution, self.config.sampling_ratio
        levels = self._levels(boxes) if len(scales) > 1 else tf.zeros(tf.shape(boxes)[:1], tf.int32)
        if self.config.type in ("ROIAlign", "ROIAlignV2"):
            aligned = self.config.type == "ROIAlignV2"
            return pool_regions(features, boxes, image_index, levels, size, scales, ratio, aligned)
        pooled, members = [tf.zeros([1, size, size, features[0].shape[-1]], features[0].dtype)], []
        for i, (feature, scale) in enumerate(zip(features, scales, strict=True)):
            chosen = tf.where(levels == i)[:, 0]
            members.append(tf.cast(chosen, tf.int32))
            arguments = (feature, tf.gather(boxes, chosen), tf.gather(image_index, chosen), size, scale)
            if self.config.type == "ROIPool":
                pooled.append(roi_pool(*arguments))
            else:
                pooled.append(rotated.roi_align_rotated(*arguments, ratio))
        return Pooled.join(tf.concat(pooled, 0), tf.concat(members, 0), tf.shape(boxes)[0])

    def _levels(self, boxes: tf.Tensor) -> tf.Tensor:
        lowest, highest = (int(math.log2(self.strides[i])) for i in (0, -1))
        if self.config.type == "ROIAlignRotated":
            # The area of a rotated box is w * h, whatever its angle.
            zero = tf.zeros_like(boxes[:, :2])
            boxes = tf.concat([zero, boxes[:, 2:4]], axis=1)
        return assign_levels(boxes, lowest, highest)
