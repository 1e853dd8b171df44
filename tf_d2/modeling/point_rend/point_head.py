"""Heads that classify single points. Source: projects/PointRend/point_rend/point_head.py."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_d2.config.parts.point_rend import ImplicitPointHeadConfig, PointHeadConfig
from tf_d2.layers.base import Module

_POSITION_FREQUENCIES = 128


class _PointLinear(Module):
    """A linear layer that torch writes as Conv1d of size 1: ``[R, P, C]`` -> ``[R, P, out]``."""

    def __init__(self, in_channels: int, out_channels: int, name: str) -> None:
        super().__init__(name)
        self.kernel = self.parameter("kernel", (1, in_channels, out_channels))
        self.bias = self.parameter("bias", (out_channels,))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        _, channels, out = self.kernel.shape
        shape = tf.shape(x)
        y = tf.matmul(tf.reshape(x, [-1, channels]), self.value(self.kernel)[0])
        y = tf.nn.bias_add(y, self.value(self.bias))
        return tf.ensure_shape(tf.reshape(y, [shape[0], shape[1], out]), [None, None, out])


class StandardPointHead(Module):
    """Logits of points from their features and the coarse logits there.

    Features ``[R, P, C]`` and coarse logits ``[R, P, K]`` -> ``[R, P, K or 1]``.
    """

    def __init__(self, config: PointHeadConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        self.coarse_each_layer = config.coarse_pred_each_layer
        channels = in_channels + config.num_classes
        self.fcs: list[_PointLinear] = []
        with self.scope():
            for k in range(config.num_fc):
                self.fcs.append(_PointLinear(channels, config.fc_dim, f"fc{k + 1}"))
                channels = config.fc_dim + (config.num_classes if self.coarse_each_layer else 0)
            self.predictor = _PointLinear(channels, config.out_channels, "predictor")

    def call(self, features: tf.Tensor, coarse: tf.Tensor) -> tf.Tensor:
        x = tf.concat([features, coarse], axis=-1)
        for fc in self.fcs:
            x = tf.nn.relu(fc(x))
            if self.coarse_each_layer:
                x = tf.concat([x, coarse], axis=-1)
        return self.predictor(x)


class ImplicitPointHead(Module):
    """A small network with weights of its own for each object, predicted from its features.

    Its variable is the matrix ``positional_encoding_gaussian_matrix`` ``[2, 128]``, random and never trained.
    """

    def __init__(self, config: ImplicitPointHeadConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        self.with_features, self.with_position = config.image_feature_enabled, config.pos_enc_enabled
        channels = in_channels if self.with_features else 0
        if self.with_position:
            channels += 2 * _POSITION_FREQUENCIES
            self.positional_encoding_gaussian_matrix = self.parameter(
                "positional_encoding_gaussian_matrix", (2, _POSITION_FREQUENCIES), trainable=False
            )
        hidden = [config.fc_dim] * config.num_fc
        self.sizes = list(zip([channels, *hidden], [*hidden, config.out_channels], strict=True))
        # All weights of an object, then all biases.
        self.splits = [a * b for a, b in self.sizes] + [b for _, b in self.sizes]
        self.num_params = sum(self.splits)

    def call(self, features: tf.Tensor, points: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
        """Features ``[R, P, C]`` at points ``[R, P, 2]`` of boxes, ``[R, num_params]`` -> logits ``[R, P, K or 1]``."""
        parts = [self.encode(points, features.dtype)] if self.with_position else []
        x = tf.concat([*parts, features] if self.with_features else parts, axis=-1)
        *values, last = tf.split(parameters, self.splits, axis=1)
        values.append(last)
        weights, biases = values[: len(self.sizes)], values[len(self.sizes) :]
        for k, ((inputs, outputs), weight, bias) in enumerate(zip(self.sizes, weights, biases, strict=True)):
            matrix = tf.reshape(weight, [-1, outputs, inputs])
            x = tf.matmul(x, matrix, transpose_b=True) + bias[:, None]
            if k < len(self.sizes) - 1:
                x = tf.nn.relu(x)
        return x

    def encode(self, points: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        """Sines and cosines of where a point is in its box: ``[R, P, 2]`` -> ``[R, P, 256]``."""
        accurate = tf.float64 if dtype == tf.float64 else tf.float32
        matrix = tf.cast(self.value(self.positional_encoding_gaussian_matrix), accurate)
        place = 2 * tf.cast(points, accurate) - 1
        angle = place[:, :, :1] * matrix[0] + place[:, :, 1:] * matrix[1]
        angle *= tf.constant(2 * math.pi, accurate)
        return tf.cast(tf.concat([tf.sin(angle), tf.cos(angle)], axis=-1), dtype)
