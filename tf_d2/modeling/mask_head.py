"""The mask head. Source: detectron2/modeling/roi_heads/mask_head.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.config.parts.mask_head import MaskHeadConfig
from tf_d2.layers.base import Module
from tf_d2.layers.conv import Conv2d, ConvTranspose2d
from tf_d2.ops.conv import join_tiles
from tf_d2.ops.elementary import sigmoid


class MaskRCNNConvUpsampleHead(Module):
    """Convolutions, a 2x upsampling and a 1x1 predictor: ``[N, P, P, C]`` -> logits ``[N, 2P, 2P, K or 1]``."""

    def __init__(self, config: MaskHeadConfig, in_channels: int, num_classes: int, name: str) -> None:
        super().__init__(name)
        bias = config.norm == ""
        channels = in_channels
        self.convs: list[Conv2d] = []
        with self.scope():
            *dims, last = config.conv_dims
            for k, dim in enumerate(dims):
                conv = Conv2d(
                    channels,
                    dim,
                    3,
                    f"mask_fcn{k + 1}",
                    padding=config.dilation,
                    dilation=config.dilation,
                    bias=bias,
                    norm=config.norm,
                    relu=True,
                )
                self.convs.append(conv)
                channels = dim
            self.deconv = ConvTranspose2d(channels, last, 2, "deconv", relu=True)
            self.predictor = Conv2d(last, 1 if config.cls_agnostic_mask else num_classes, 1, "predictor")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for conv in self.convs:
            x = conv(x)
        # The predictor looks at each pixel alone, so the tiles of the upsampling are joined after it.
        tiles, size = self.deconv.tiles(x), self.deconv.stride
        n, h, w = tf.unstack(tf.shape(tiles)[:3])
        logits = self.predictor(tf.reshape(tiles, [n, h, w * size**2, self.predictor.in_channels]))
        return join_tiles(tf.reshape(logits, [n, h, w, size**2 * self.predictor.out_channels]), size)


def mask_inference(logits: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Probability of the predicted class: ``[N, M, M, K or 1]``, ``[N]`` -> ``[N, M, M]``, float32 or float64.

    Classes must be below K.

    Source: ``mask_rcnn_inference``.
    """
    if logits.shape[-1] == 1:
        chosen = tf.squeeze(logits, -1)
    else:
        # Picked one by one: a gather along the last axis would transpose all logits first.
        shape = tf.shape(logits, tf.int64)
        pixels = tf.range(tf.reduce_prod(shape[:3])) * shape[3]
        index = tf.reshape(pixels, shape[:3]) + tf.cast(classes, tf.int64)[:, None, None]
        chosen = tf.gather(tf.reshape(logits, [-1]), index)
    return sigmoid(chosen if chosen.dtype == tf.float64 else tf.cast(chosen, tf.float32))
