"""The heads between pooled features and predictor.

Source: projects/DensePose/densepose/modeling/roi_heads/v1convx.py, deeplab.py.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_d2.config.parts.densepose import DensePoseHeadConfig
from tf_d2.layers.base import Module
from tf_d2.layers.conv import Conv2d
from tf_d2.ops.conv import conv2d, max_pool2d

ASPP_DILATIONS = (6, 12, 56)


class DensePoseV1ConvXHead(Module):
    """Convolutions with ReLU: ``[N, P, P, C]`` -> ``[N, P, P, conv_head_dim]``."""

    def __init__(self, config: DensePoseHeadConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        with self.scope():
            self.convs = _body_convs(config, in_channels, norm="")
        self.out_channels = self.convs[-1].out_channels if self.convs else in_channels

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for conv in self.convs:
            x = conv(x)
        return x


class DensePoseDeepLabHead(Module):
    """Atrous pyramid, non-local block if asked for, convolutions: ``[N, P, P, C]`` -> ``[N, P, P, conv_head_dim]``."""

    def __init__(self, config: DensePoseHeadConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        with self.scope():
            self.ASPP = ASPP(in_channels, "ASPP")
            self.NLBlock = _NonLocalBlock(in_channels, "NLBlock") if config.nonlocal_on else None
            self.convs = _body_convs(config, in_channels, norm=config.deeplab_norm)
        self.out_channels = config.conv_head_dim

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = self.ASPP(x)
        if self.NLBlock is not None:
            x = self.NLBlock(x)
        for conv in self.convs:
            x = conv(x)
        return x


def _body_convs(config: DensePoseHeadConfig, channels: int, norm: str) -> list[Conv2d]:
    """``body_conv_fcn1`` and so on. Any norm but GN means neither norm nor bias, as in detectron2."""
    convs = []
    dim, kernel = config.conv_head_dim, config.conv_head_kernel
    for k in range(config.num_stacked_convs):
        name = f"body_conv_fcn{k + 1}"
        used = norm if norm == "GN" else ""
        padding = kernel // 2
        convs.append(
            Conv2d(channels, dim, kernel, name, padding=padding, bias=not norm, norm=used, relu=True)
        )
        channels = dim
    return convs


class AtrousConv2d(Conv2d):
    """A dilated 3x3 convolution; on maps no larger than its dilation only the centre tap sees anything but zeros."""

    def convolve(
        self,
        x: tf.Tensor,
        kernel: tf.Tensor,
        bias: tf.Tensor | None,
        add: tf.Tensor | None = None,
        relu: bool = False,
    ) -> tf.Tensor:
        height, width = x.shape[1:3]
        if height is not None and width is not None and max(height, width) <= self.dilation:
            return conv2d(x, kernel[1:2, 1:2], bias, add=add, relu=relu)
        return super().convolve(x, kernel, bias, add, relu)


class ASPP(Module):
    """1x1, three dilated 3x3 and the mean of the region, side by side, projected: ``[N, H, W, C]`` -> the same shape.

    Every branch has GroupNorm and ReLU; the projection has ReLU only.
    """

    def __init__(self, channels: int, name: str) -> None:
        super().__init__(name)
        self.branches: list[Conv2d] = []
        with self.scope():
            for k, dilation in enumerate((1, *ASPP_DILATIONS)):
                with keras.name_scope("convs"), keras.name_scope(str(k)):
                    self.branches.append(_branch(channels, dilation, "0"))
            with keras.name_scope("convs"), keras.name_scope(str(len(self.branches))):
                self.pooled = _branch(channels, 1, "1")
            with keras.name_scope("project"):
                self.project = Conv2d(5 * channels, channels, 1, "0", bias=False, relu=True)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        mean = self.pooled(tf.reduce_mean(tf.reduce_mean(x, axis=2, keepdims=True), axis=1, keepdims=True))
        parts = [branch(x) for branch in self.branches]
        return self.project(tf.concat([*parts, tf.broadcast_to(mean, tf.shape(parts[0]))], axis=-1))


def _branch(channels: int, dilation: int, name: str) -> Conv2d:
    """A convolution without bias, GroupNorm (in the next place of torch's Sequential), ReLU."""
    kind, size, padding = (Conv2d, 1, 0) if dilation == 1 else (AtrousConv2d, 3, dilation)
    return kind(
        channels,
        channels,
        size,
        name,
        padding=padding,
        dilation=dilation,
        bias=False,
        norm="GN",
        norm_beside=str(int(name) + 1),
        relu=True,
    )


class _NonLocalBlock(Module):
    """Every cell of ``[N, H, W, C]`` plus what it finds alike in the region, at half the resolution.

    ``x + GN(W softmax(theta phi^T) g)``, without a scale in the softmax; phi and g are max-pooled 2x2.
    """

    def __init__(self, channels: int, name: str) -> None:
        super().__init__(name)
        self.inner = max(channels // 2, 1)
        with self.scope():
            self.theta = Conv2d(channels, self.inner, 1, "theta")
            with keras.name_scope("g"):
                self.g = Conv2d(channels, self.inner, 1, "0")
            with keras.name_scope("phi"):
                self.phi = Conv2d(channels, self.inner, 1, "0")
            with keras.name_scope("W"):
                self.W = Conv2d(self.inner, channels, 1, "0", norm="GN", norm_beside="1")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        n = tf.shape(x)[0]
        theta, phi, g = (
            tf.reshape(y, [n, -1, self.inner])
            for y in (self.theta(x), max_pool2d(self.phi(x), 2, 2, 0), max_pool2d(self.g(x), 2, 2, 0))
        )
        alike = tf.nn.softmax(tf.matmul(theta, phi, transpose_b=True), axis=-1)
        found = tf.reshape(tf.matmul(alike, g), [n, *tf.unstack(tf.shape(x)[1:3]), self.inner])
        return x + self.W(found)


DENSEPOSE_HEADS = {
    "DensePoseV1ConvXHead": DensePoseV1ConvXHead,
    "DensePoseDeepLabHead": DensePoseDeepLabHead,
}
