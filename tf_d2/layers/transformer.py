"""What the transformer backbones share: patches, the two-layer perceptron, depthwise pooling, residual convolutions."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.layers.base import Module
from tf_d2.layers.conv import Conv2d, Linear
from tf_d2.layers.norm import LayerNorm
from tf_d2.ops.activation import gelu
from tf_d2.ops.conv import depthwise_conv2d


class PatchEmbed(Module):
    """Strided convolution: ``[N, H, W, 3]`` -> ``[N, H', W', C]``. What is left of the last patch is dropped.

    Source: detectron2/modeling/backbone/utils.py ``PatchEmbed``.
    """

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int, padding: int = 0) -> None:
        super().__init__("patch_embed")
        with self.scope():
            self.proj = Conv2d(in_channels, dim, kernel, "proj", stride=stride, padding=padding)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.proj(x)


class Mlp(Module):
    """Linear, GELU, linear, on every token. Source: timm's ``Mlp``, which detectron2 uses."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__("mlp")
        hidden = int(dim * ratio)
        with self.scope():
            self.fc1 = Linear(dim, hidden, "fc1")
            self.fc2 = Linear(hidden, dim, "fc2")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.fc2(gelu(self.fc1(x)))


class DepthwiseConv2d(Module):
    """A filter of its own for each channel, odd and padded by half, no bias. Variable ``kernel [k, k, 1, C]``."""

    def __init__(self, channels: int, kernel: int, name: str, *, stride: int) -> None:
        super().__init__(name)
        self.stride, self.padding = stride, kernel // 2
        self.kernel = self.parameter("kernel", (kernel, kernel, 1, channels))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        kernel = tf.transpose(self.value(self.kernel), [0, 1, 3, 2])
        return depthwise_conv2d(x, kernel, stride=self.stride, padding=self.padding)


class ResBottleneckBlock(Module):
    """1x1, 3x3 and 1x1 convolution, each with a LayerNorm, GELU after the first two, added to the input.

    Source: detectron2/modeling/backbone/vit.py ``ResBottleneckBlock``.
    """

    def __init__(self, channels: int, bottleneck: int, name: str) -> None:
        super().__init__(name)
        with self.scope():
            self.conv1 = Conv2d(channels, bottleneck, 1, "conv1", bias=False)
            self.norm1 = LayerNorm(bottleneck, "norm1")
            self.conv2 = Conv2d(bottleneck, bottleneck, 3, "conv2", padding=1, bias=False)
            self.norm2 = LayerNorm(bottleneck, "norm2")
            self.conv3 = Conv2d(bottleneck, channels, 1, "conv3", bias=False)
            self.norm3 = LayerNorm(channels, "norm3")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        y = gelu(self.norm1(self.conv1(x)))
        y = gelu(self.norm2(self.conv2(y)))
        return x + self.norm3(self.conv3(y))
