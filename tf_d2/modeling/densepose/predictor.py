"""The last layers of DensePose: charts (which part, where on it) or embeddings, and how sure they are.

Source: projects/DensePose/densepose/modeling/predictors/.
"""

from __future__ import annotations

import tensorflow as tf

from tf_d2.config.parts.densepose import DensePosePredictorConfig
from tf_d2.layers.base import Module
from tf_d2.layers.conv import ConvTranspose2d
from tf_d2.ops.conv import conv_transpose2d
from tf_d2.ops.interpolate import bilinear

_SOFTPLUS_LINEAR = 20.0  # torch's softplus is the identity beyond


class DensePosePredictor(Module):
    """One transposed convolution per field: ``[N, P, P, D]`` -> fields ``[N, S, S, C]`` by detectron2's names.

    What is called a confidence of U and V is the network's own output: softplus and bound belong to the loss. The
    confidence of a segmentation is positive, and the segmentation is multiplied by it.
    """

    def __init__(self, config: DensePosePredictorConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        self.config = config
        kernel = config.deconv_kernel
        self.layers_of: dict[str, ConvTranspose2d] = {}
        with self.scope():
            for field, (layer, channels) in config.fields.items():
                self.layers_of[field] = ConvTranspose2d(in_channels, channels, kernel, layer)

    def lowres(self, x: tf.Tensor) -> list[tf.Tensor]:
        """What each layer returns, ``[N, 2P, 2P, C]``, in the order of the fields; computed as one layer."""
        layers = list(self.layers_of.values())
        kernel = tf.concat([self.value(layer.kernel) for layer in layers], axis=2)
        bias = tf.concat([self.value(layer.bias) for layer in layers], axis=0)
        y = conv_transpose2d(x, kernel, bias, stride=2, padding=layers[0].padding)
        return tf.split(y, [channels for _, channels in self.config.fields.values()], axis=-1)

    def fields(self, lowres: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        """The answer, at UP_SCALE times the resolution."""
        found = {name: self._upscale(x) for name, x in zip(self.layers_of, lowres, strict=True)}
        epsilon = self.config.segm_confidence_epsilon
        if epsilon is not None:
            for field in [name for name in found if f"{name}_confidence" in found]:
                raw = found[f"{field}_confidence"]
                confidence = tf.where(raw > _SOFTPLUS_LINEAR, raw, tf.nn.softplus(raw))
                found[f"{field}_confidence"] = confidence = confidence + tf.constant(epsilon, raw.dtype)
                found[field] *= confidence
        return found

    def call(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return self.fields(self.lowres(x))

    def _upscale(self, x: tf.Tensor) -> tf.Tensor:
        size = tf.shape(x)[1:3] * self.config.up_scale
        return bilinear(x, size[0], size[1])
