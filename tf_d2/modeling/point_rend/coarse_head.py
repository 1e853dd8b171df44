"""The head that looks at a whole box. Source: ``ConvFCHead`` of projects/PointRend/point_rend/mask_head.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.config.parts.point_rend import PointRendMaskHeadConfig
from tf_d2.layers.base import Module
from tf_d2.layers.conv import Conv2d, Linear


class ConvFCHead(Module):
    """Sampled features ``[R, P, P, C]`` -> ``[R, outputs]``: a convolution that halves the side, linear layers."""

    def __init__(self, config: PointRendMaskHeadConfig, in_channels: int, outputs: int, name: str) -> None:
        super().__init__(name)
        dim, side = config.conv_dim, config.pooler_resolution // 2
        self.convs: list[Conv2d] = []
        with self.scope():
            if in_channels > dim:
                self.convs.append(Conv2d(in_channels, dim, 1, "reduce_channel_dim_conv", relu=True))
            # A map that has fewer channels than the layer expects is an error in detectron2, too.
            self.convs.append(Conv2d(dim, dim, 2, "reduce_spatial_dim_conv", stride=2, relu=True))
            features, spatial = dim * side**2, side
            self.fcs: list[Linear] = []
            for k in range(config.num_fc):
                fc = Linear(
                    features, config.fc_dim, f"fc{k + 1}", spatial=spatial if k == 0 else None, relu=True
                )
                self.fcs.append(fc)
                features = config.fc_dim
            self.prediction = Linear(features, outputs, "prediction")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for layer in (*self.convs, *self.fcs, self.prediction):
            x = layer(x)
        return x
