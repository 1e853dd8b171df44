"""The keypoint head. Source: detectron2/modeling/roi_heads/keypoint_head.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.config.parts.keypoint_head import KeypointHeadConfig
from tf_d2.layers.base import Module
from tf_d2.layers.conv import Conv2d, ConvTranspose2d
from tf_d2.ops.interpolate import bilinear


class KRCNNConvDeconvUpsampleHead(Module):
    """Convolutions and two 2x upsamplings: ``[N, P, P, C]`` -> heat map logits ``[N, 4P, 4P, keypoints]``."""

    def __init__(self, config: KeypointHeadConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        channels = in_channels
        self.convs: list[Conv2d] = []
        with self.scope():
            for k, dim in enumerate(config.conv_dims):
                self.convs.append(Conv2d(channels, dim, 3, f"conv_fcn{k + 1}", padding=1, relu=True))
                channels = dim
            self.score_lowres = ConvTranspose2d(
                channels, config.num_keypoints, 4, "score_lowres", stride=2, padding=1
            )

    def lowres(self, x: tf.Tensor) -> tf.Tensor:
        """``[N, P, P, C]`` -> ``[N, 2P, 2P, keypoints]``: everything with weights."""
        for conv in self.convs:
            x = conv(x)
        return self.score_lowres(x)

    @staticmethod
    def upsample(lowres: tf.Tensor) -> tf.Tensor:
        """The final bilinear doubling."""
        size = tf.shape(lowres)[1:3] * 2
        return bilinear(lowres, size[0], size[1])

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.upsample(self.lowres(x))
