"""The semantic segmentation head of Panoptic FPN. Source: detectron2/modeling/meta_arch/semantic_seg.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import tensorflow as tf

from tf_d2.config.parts.sem_seg import SemSegHeadConfig
from tf_d2.layers.base import Module, sequence
from tf_d2.layers.conv import Conv2d
from tf_d2.modeling.backbone import Backbone
from tf_d2.modeling.recording import Stages
from tf_d2.ops.interpolate import bilinear


class SemSegFPNHead(Module):
    """Brings every level to the common stride, sums, predicts.

    Level of stride s: ``max(1, log2(s / common_stride))`` times (3x3 convolution, norm, ReLU and, unless the level
    already has the common stride, bilinear doubling).
    """

    def __init__(self, config: SemSegHeadConfig, backbone: Backbone, name: str) -> None:
        super().__init__(name)
        strides, channels = backbone.strides, backbone.channels
        self.common_stride = config.common_stride
        self.feature_names = sorted(config.in_features, key=lambda f: strides[f])
        self.doubles = {f: strides[f] != config.common_stride for f in self.feature_names}
        self.heads: dict[str, dict[str, Module]] = {}
        with self.scope():
            for feature in self.feature_names:
                repeats = max(1, int(math.log2(strides[feature]) - math.log2(config.common_stride)))
                # The doubling takes a place of its own in torch's Sequential.
                step = 2 if self.doubles[feature] else 1
                makers = {
                    str(i * step): self._conv(config, channels[feature] if i == 0 else config.convs_dim)
                    for i in range(repeats)
                }
                self.heads[feature] = sequence(feature, makers)
            self.predictor = Conv2d(config.convs_dim, config.num_classes, 1, "predictor")

    @staticmethod
    def _conv(config: SemSegHeadConfig, in_channels: int) -> Callable[[str], Module]:
        bias = config.norm == ""

        def make(key: str) -> Module:
            return Conv2d(
                in_channels,
                config.convs_dim,
                3,
                key,
                padding=1,
                bias=bias,
                norm=config.norm,
                relu=True,
                large_maps=True,
            )

        return make

    def call(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Features by name -> logits ``[N, H, W, K]`` at the size of the padded network input."""
        return self.upsample(self.predict(features))

    def forward(self, features: Mapping[str, tf.Tensor], stages: Stages, prefix: str) -> tf.Tensor:
        """:meth:`call`; nothing on the way is recorded under ``prefix``."""
        del stages, prefix
        return self.call(features)

    def predict(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Logits at the common stride."""
        total: tf.Tensor | None = None
        for feature in self.feature_names:
            x = features[feature]
            for conv in self.heads[feature].values():
                x = conv(x)
                if self.doubles[feature]:
                    x = _scale(x, 2)
            total = x if total is None else total + x
        return self.predictor(total)

    def upsample(self, logits: tf.Tensor) -> tf.Tensor:
        # detectron2 interpolates in float32 whatever the dtype of the head (not in float64 models).
        accurate = logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)
        return _scale(accurate, self.common_stride)


def _scale(x: tf.Tensor, factor: int) -> tf.Tensor:
    size = tf.shape(x)[1:3] * factor
    return bilinear(x, size[0], size[1])
