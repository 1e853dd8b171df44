"""ROI pooling over one or several feature maps. Source: detectron2/modeling/poolers.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

from tf_d2.config.parts.poolers import PoolerConfig
from tf_d2.ops import rotated
from tf_d2.ops.boxes import assign_levels
from tf_d2.ops.roi_align import Pooled, Pyramid, Regions, Sampling
from tf_d2.ops.roi_pool import roi_pool

# A thousand regions of the heads without a pyramid (C4: 0.8 MB each, DC5: 0.4 MB) take more memory than all else.
LARGE_REGION = 1 << 18  # bytes
BLOCK_BYTES = 1 << 27  # of regions in memory at once; smaller blocks make linear layers slower


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
        levels = self._levels(boxes)
        if self._is_roi_align:
            return self._regions(features, boxes, image_index, levels).pool()
        size, ratio = self.config.resolution, self.config.sampling_ratio
        pooled, members = [tf.zeros([1, size, size, features[0].shape[-1]], features[0].dtype)], []
        for i, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            chosen = tf.where(levels == i)[:, 0]
            members.append(tf.cast(chosen, tf.int32))
            arguments = (
                feature,
                tf.gather(boxes, chosen),
                tf.gather(image_index, chosen),
                size,
                1.0 / stride,
            )
            if self.config.type == "ROIPool":
                pooled.append(roi_pool(*arguments))
            else:
                pooled.append(rotated.roi_align_rotated(*arguments, ratio))
        return Pooled.join(tf.concat(pooled, 0), tf.concat(members, 0), tf.shape(boxes)[0])

    def compute(
        self,
        features: Sequence[tf.Tensor],
        boxes: tf.Tensor,
        image_index: tf.Tensor,
        function: Callable[[tf.Tensor], Sequence[tf.Tensor]],
        outputs: int,
    ) -> list[tf.Tensor]:
        """What ``function`` makes of the pooled regions: ``outputs`` tensors, in the order of the boxes.

        It sees one more region, of zeros: without regions, TensorFlow's fused CPU convolution would give the result of
        an empty batch the shape of its input. Large regions come in blocks.
        """
        if self._is_roi_align:
            regions = self._regions(features, boxes, image_index, self._levels(boxes))
            if regions.region_bytes >= LARGE_REGION:
                return regions.compute(function, outputs, BLOCK_BYTES)
            pooled = regions.pool()
        else:
            pooled = self.pool(features, boxes, image_index)
        return [pooled.in_order(x) for x in function(pooled.values)]

    @property
    def _is_roi_align(self) -> bool:
        return self.config.type in ("ROIAlign", "ROIAlignV2")

    def _regions(
        self, features: Sequence[tf.Tensor], boxes: tf.Tensor, image_index: tf.Tensor, levels: tf.Tensor
    ) -> Regions:
        pyramid = Pyramid(features, [1.0 / stride for stride in self.strides])
        config = self.config
        sampling = Sampling(config.resolution, config.sampling_ratio, aligned=config.type == "ROIAlignV2")
        return Regions(pyramid, boxes, image_index, levels, sampling)

    def _levels(self, boxes: tf.Tensor) -> tf.Tensor:
        if len(self.strides) == 1:
            return tf.zeros(tf.shape(boxes)[:1], tf.int32)
        lowest, highest = (int(math.log2(self.strides[i])) for i in (0, -1))
        if self.config.type == "ROIAlignRotated":
            # The area of a rotated box is w * h, whatever its angle.
            zero = tf.zeros_like(boxes[:, :2])
            boxes = tf.concat([zero, boxes[:, 2:4]], axis=1)
        size, level = float(self.config.canonical_box_size), self.config.canonical_level
        conventions = self.config.conventions
        plus_one, epsilon = conventions.level_plus_one, conventions.level_epsilon
        return assign_levels(boxes, lowest, highest, size, level, plus_one=plus_one, epsilon=epsilon)
