"""PointRend's mask heads. Source: projects/PointRend/point_rend/mask_head.py."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tf_d2.config.parts.point_rend import ImplicitPointHeadConfig, PointRendMaskHeadConfig
from tf_d2.layers.base import Module
from tf_d2.modeling.backbone import Backbone
from tf_d2.modeling.batches import Detections
from tf_d2.modeling.point_rend.coarse_head import ConvFCHead
from tf_d2.modeling.point_rend.point_head import ImplicitPointHead, StandardPointHead
from tf_d2.modeling.recording import Stages, Unrecorded
from tf_d2.ops.interpolate import bilinear
from tf_d2.ops.points import regular_grid, replace_at, sample_in_boxes, sample_points, uncertain_points

Features = Mapping[str, tf.Tensor]


class PointRendMaskHead(Module):
    """Masks of boxes: a coarse look at each box, then points where the mask is least sure, finer every time.

    ``[R, S, S]`` logits of the class of each box, relative to the box. Of the other classes only what the point
    head says at a point is computed: they never meet the chosen one.
    """

    LOOK = "coarse_head"

    def __init__(self, config: PointRendMaskHeadConfig, backbone: Backbone, name: str) -> None:
        super().__init__(name)
        channels = backbone.channels
        self.config, self.strides = config, backbone.strides
        self.num_classes = config.point_head.num_classes
        point_channels = sum(channels[f] for f in config.point_head.in_features)
        coarse_channels = sum(channels[f] for f in config.in_features)
        with self.scope():
            self._make_heads(point_channels, coarse_channels)

    def _make_heads(self, point_channels: int, coarse_channels: int) -> None:
        self.point_head = StandardPointHead(self.config.point_head, point_channels, "point_head")
        outputs = self.num_classes * self.config.output_side_resolution**2
        self.coarse_head = ConvFCHead(self.config, coarse_channels, outputs, "coarse_head")

    def masks(self, features: Features, detections: Detections, stages: Stages, prefix: str) -> tf.Tensor:
        """Logits of the masks of detections; what is computed goes to ``stages`` under ``prefix``."""
        # One box more, of zeros: TensorFlow's fused convolution gives the result of no box the wrong shape.
        boxes = tf.pad(detections.boxes, [[0, 1], [0, 0]])
        index, classes = (tf.pad(t, [[0, 1]]) for t in (detections.image_index, detections.classes))
        more = detections._replace(boxes=boxes, image_index=index, classes=classes)
        seen = self.look(features, boxes, index)
        stages[f"{prefix}.{self.LOOK}"] = seen[:-1]
        return self.refine(features, more, seen, stages, prefix)[:-1]

    def refine(
        self,
        features: Features,
        detections: Detections,
        seen: tf.Tensor,
        stages: Stages | None = None,
        prefix: str = "",
    ) -> tf.Tensor:
        """Logits of the masks from what :meth:`look` saw; of the last box nothing is recorded."""
        stages = Unrecorded() if stages is None else stages
        boxes, index, classes = detections.boxes, detections.image_index, detections.classes
        side, steps = self.config.start_and_steps
        count = self.config.point_head.subdivision_num_points
        logits = self.first_points(features, boxes, index, seen)
        stages[f"{prefix}.point_head"] = _recorded(logits)
        mask = tf.reshape(_of_class(logits, classes), [-1, side, side, 1])
        for step in range(steps):
            side *= 2
            mask = bilinear(mask, side, side)
            chosen, points = uncertain_points(-tf.abs(mask[:, :, :, 0]), count)
            points = tf.cast(points, _accurate(seen))
            logits = self.classify(features, boxes, index, points, seen)
            stages[f"{prefix}.point_indices#{step}"] = chosen[:-1]
            stages[f"{prefix}.point_head#{step + 1}"] = _recorded(logits)
            mask = replace_at(mask, chosen, _of_class(logits, classes))
        return mask[:, :, :, 0]

    def first_points(
        self, features: Features, boxes: tf.Tensor, index: tf.Tensor, seen: tf.Tensor
    ) -> tf.Tensor:
        """Logits of the first, regular grid: ``[R, P, K or 1]``."""
        side, _ = self.config.start_and_steps
        return self.classify(features, boxes, index, _grids(side, boxes, _accurate(seen)), seen)

    def look(self, features: Features, boxes: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """The coarse masks ``[R, S, S, K]``."""
        side = self.config.output_side_resolution
        flat = self.coarse_head(self.sample_coarse(features, boxes, index))
        return tf.transpose(tf.reshape(flat, [-1, self.num_classes, side, side]), [0, 2, 3, 1])

    def sample_coarse(self, features: Features, boxes: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """What the coarse head sees: features on a regular grid of each box, ``[R, P, P, C]``."""
        side, names = self.config.pooler_resolution, self.config.in_features
        maps = [features[f] for f in names]
        points = _grids(side, boxes, _accurate(maps[0]))
        sampled = sample_in_boxes(maps, [self.strides[f] for f in names], boxes, index, points)
        return tf.reshape(sampled, [-1, side, side, sampled.shape[-1]])

    def classify(
        self, features: Features, boxes: tf.Tensor, index: tf.Tensor, points: tf.Tensor, seen: tf.Tensor
    ) -> tf.Tensor:
        """Logits of points ``[R, P, 2]`` of boxes: ``[R, P, K or 1]``."""
        return self.point_logits(self.sample_fine(features, boxes, index, points), points, seen)

    def sample_fine(
        self, features: Features, boxes: tf.Tensor, index: tf.Tensor, points: tf.Tensor
    ) -> tf.Tensor:
        """The features a point head sees: ``[R, P, C]``."""
        names = self.config.point_head.in_features
        maps, strides = [features[f] for f in names], [self.strides[f] for f in names]
        return sample_in_boxes(maps, strides, boxes, index, points)

    def point_logits(self, fine: tf.Tensor, points: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
        """The point head on features ``[R, P, C]`` and what :meth:`look` saw."""
        coarse = sample_points(seen, points, tf.range(tf.shape(seen)[0]))
        return self.point_head(fine, coarse)


class ImplicitPointRendMaskHead(PointRendMaskHead):
    """The look at a box gives the weights of a network that classifies its points."""

    LOOK = "parameter_head"

    def _make_heads(self, point_channels: int, coarse_channels: int) -> None:
        config = self.config.point_head
        assert isinstance(config, ImplicitPointHeadConfig)
        self.point_head = ImplicitPointHead(config, point_channels, "point_head")
        outputs = self.point_head.num_params
        self.parameter_head = ConvFCHead(self.config, coarse_channels, outputs, "parameter_head")

    def look(self, features: Features, boxes: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """The weights ``[R, num_params]``."""
        return self.parameter_head(self.sample_coarse(features, boxes, index))

    def point_logits(self, fine: tf.Tensor, points: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
        return self.point_head(fine, points, seen)


def make_mask_head(config: PointRendMaskHeadConfig, backbone: Backbone, name: str) -> PointRendMaskHead:
    """The head that a configuration asks for."""
    return (ImplicitPointRendMaskHead if config.implicit else PointRendMaskHead)(config, backbone, name)


def _accurate(x: tf.Tensor) -> tf.DType:
    """The dtype of coordinates beside features."""
    return tf.float64 if x.dtype == tf.float64 else tf.float32


def _grids(side: int, boxes: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """A regular grid for each box: ``[R, side * side, 2]``."""
    return tf.tile(regular_grid(side, dtype)[None], tf.stack([tf.shape(boxes)[0], 1, 1]))


def _recorded(logits: tf.Tensor) -> tf.Tensor:
    """Logits of points ``[R + 1, P, K]`` as detectron2 has them, ``[R, K, P]``."""
    return tf.transpose(logits[:-1], [0, 2, 1])


def _of_class(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """The logits ``[R, P, K or 1]`` of each row's class: ``[R, P, 1]``."""
    if logits.shape[-1] == 1:
        return logits
    return tf.gather(logits, classes[:, None], axis=2, batch_dims=1)
