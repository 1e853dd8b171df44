"""The heads of Panoptic-DeepLab. Source: projects/Panoptic-DeepLab/panoptic_deeplab/panoptic_seg.py."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tf_d2.config.parts.panoptic_deeplab import (
    PanopticDeepLabInsEmbedHeadConfig,
    PanopticDeepLabSemSegHeadConfig,
)
from tf_d2.layers.conv import Conv2d
from tf_d2.modeling.deeplab import DeepLabV3PlusHead, in_turn, two_convs
from tf_d2.modeling.recording import Stages, Unrecorded
from tf_d2.ops.interpolate import bilinear


class PanopticDeepLabSemSegHead(DeepLabV3PlusHead):
    """The decoder of DeepLab v3+, two convolutions, predictor."""

    def build_predictor(self) -> None:
        config = self.config
        assert isinstance(config, PanopticDeepLabSemSegHeadConfig)
        dims = (config.convs_dim, config.convs_dim, config.head_channels)
        self.head = two_convs("head", dims, config.norm, separable=config.use_depthwise_separable_conv)
        self.predictor = Conv2d(config.head_channels, config.num_classes, 1, "predictor")

    def decode(self, features: Mapping[str, tf.Tensor], stages: Stages, prefix: str) -> tf.Tensor:
        stages[f"{prefix}.head"] = y = in_turn(self.head, super().decode(features, stages, prefix))
        return y

    def enlarge(self, x: tf.Tensor) -> tf.Tensor:
        """Logits ``[N, H, W, K]`` of the network input, float32 (float64 in a float64 model)."""
        return enlarged(x, self.common_stride)


class PanopticDeepLabInsEmbedHead(DeepLabV3PlusHead):
    """Heat of centres and offsets to them, by a decoder of their own."""

    def build_predictor(self) -> None:
        config = self.config
        assert isinstance(config, PanopticDeepLabInsEmbedHeadConfig)
        dims = (config.convs_dim, config.convs_dim, config.head_channels)
        separable = config.use_depthwise_separable_conv
        self.center_head = two_convs("center_head", dims, config.norm)
        self.center_predictor = Conv2d(config.head_channels, 1, 1, "center_predictor")
        self.offset_head = two_convs("offset_head", dims, config.norm, separable=separable)
        self.offset_predictor = Conv2d(config.head_channels, 2, 1, "offset_predictor")

    def call(self, features: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        return list(self.maps(features, Unrecorded(), ""))

    def maps(
        self, features: Mapping[str, tf.Tensor], stages: Stages, prefix: str
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Heat ``[N, H, W, 1]`` (no sigmoid) and offsets ``[N, H, W, 2]`` (y, x) in pixels of the network input."""
        y = self.decode(features, stages, prefix)
        stages[f"{prefix}.center_head"] = near = in_turn(self.center_head, y)
        stages[f"{prefix}.center_predictor"] = heat = self.center_predictor(near)
        stages[f"{prefix}.offset_head"] = way = in_turn(self.offset_head, y)
        stages[f"{prefix}.offset_predictor"] = offset = self.offset_predictor(way)
        return self.enlarge(heat), self.enlarge_lengths(offset)

    def enlarge(self, x: tf.Tensor) -> tf.Tensor:
        return enlarged(x, self.common_stride)

    def enlarge_lengths(self, x: tf.Tensor) -> tf.Tensor:
        """A map whose values are pixels of itself -> of the network input, in pixels of that."""
        large = self.enlarge(x)
        return large * tf.constant(self.common_stride, large.dtype)


def enlarged(x: tf.Tensor, factor: int) -> tf.Tensor:
    """Bilinear, in float32 at least: offsets of hundreds of pixels would lose whole ones in 16 bits."""
    accurate = x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
    size = tf.shape(x)[1:3] * factor
    return bilinear(accurate, size[0], size[1])
