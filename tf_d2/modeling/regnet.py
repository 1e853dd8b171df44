"""RegNet backbones: convolutions without bias, each norm beside its convolution.

Source: detectron2/modeling/backbone/regnet.py.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_d2.config.parts.regnet import RegNetConfig, RegNetStage
from tf_d2.layers.base import Module, sequence
from tf_d2.layers.conv import Conv2d
from tf_d2.modeling.backbone import BottomUp
from tf_d2.ops.elementary import sigmoid


class SimpleStem(Module):
    """3x3 stride 2 convolution: ``[N, H, W, 3]`` -> ``[N, H/2, W/2, C]``."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__("stem")
        with self.scope():
            self.conv = Conv2d(
                in_channels,
                out_channels,
                3,
                "conv",
                stride=2,
                padding=1,
                bias=False,
                norm=norm,
                norm_beside="bn",
                relu=True,
            )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.conv(x)


class SqueezeExcitation(Module):
    """Each channel times a weight in (0, 1) computed from the means of all channels."""

    def __init__(self, channels: int, hidden: int, name: str) -> None:
        super().__init__(name)
        with self.scope():
            # Positions 1 and 3 of detectron2's sequence are the activations.
            self.f_ex = sequence(
                "f_ex",
                {
                    "0": lambda key: Conv2d(channels, hidden, 1, key, relu=True),
                    "2": lambda key: Conv2d(hidden, channels, 1, key),
                },
            )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        means = tf.reduce_mean(x, axis=[1, 2], keepdims=True)  # [N, 1, 1, C]
        return x * sigmoid(self.f_ex["2"](self.f_ex["0"](means)))


class BottleneckTransform(Module):
    """1x1, grouped 3x3, squeeze and excitation where the configuration has it, and 1x1 convolution."""

    def __init__(
        self, in_channels: int, stage: RegNetStage, name: str, *, stride: int, config: RegNetConfig
    ) -> None:
        super().__init__(name)
        width, norm = stage.width, config.norm
        # The hidden width follows the block's input, not its own channels.
        hidden = round(in_channels * config.se_ratio)
        with self.scope():
            self.a = Conv2d(in_channels, width, 1, "a", bias=False, norm=norm, norm_beside="a_bn", relu=True)
            self.b = Conv2d(
                width,
                width,
                3,
                "b",
                stride=stride,
                padding=1,
                groups=stage.groups,
                bias=False,
                norm=norm,
                norm_beside="b_bn",
                relu=True,
            )
            self.se = SqueezeExcitation(width, hidden, "se") if hidden else None
            self.c = Conv2d(width, width, 1, "c", bias=False, norm=norm, norm_beside="c_bn")

    def call(self, x: tf.Tensor, shortcut: tf.Tensor) -> tf.Tensor:
        """With the sum and the ReLU of the block around it, which are computed with the last convolution."""
        y = self.b(self.a(x))
        return self.c(y if self.se is None else self.se(y), add=shortcut, relu=True)


class ResBottleneckBlock(Module):
    """A bottleneck transform ``f`` and a shortcut, projected where channels or size change."""

    def __init__(
        self, in_channels: int, stage: RegNetStage, name: str, *, stride: int, config: RegNetConfig
    ) -> None:
        super().__init__(name)
        width, norm = stage.width, config.norm
        with self.scope():
            self.proj = None
            if in_channels != width or stride != 1:
                self.proj = Conv2d(
                    in_channels, width, 1, "proj", stride=stride, bias=False, norm=norm, norm_beside="bn"
                )
            self.f = BottleneckTransform(in_channels, stage, "f", stride=stride, config=config)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.f(x, x if self.proj is None else self.proj(x))


def _make_stage(config: RegNetConfig, stage: RegNetStage, in_channels: int) -> list[Module]:
    blocks: list[Module] = []
    with keras.name_scope(stage.name):
        for index in range(stage.blocks):
            name, stride = f"b{index + 1}", 1 if index else 2
            blocks.append(ResBottleneckBlock(in_channels, stage, name, stride=stride, config=config))
            in_channels = stage.width
    return blocks


class RegNet(BottomUp):
    """Stem and all stages: "stem" (stride 2), "s1" (4), "s2" (8), ...

    ``call`` maps ``[N, H, W, 3]`` to a dict of the features asked for. Stages after the last of them are there as in
    detectron2 (its ResNet leaves them out), since checkpoints hold them; a graph does not compute them.
    """

    def __init__(self, config: RegNetConfig, in_channels: int, name: str) -> None:
        stages = config.stages
        super().__init__(name, tuple(stage.name for stage in stages), config.out_features)
        channels = config.stem_width
        self.strides["stem"], self.channels["stem"] = 2, channels
        with self.scope():
            self.stem = SimpleStem(in_channels, channels, config.norm)
            for stage in stages:
                setattr(self, stage.name, _make_stage(config, stage, channels))
                self.strides[stage.name], self.channels[stage.name] = stage.stride, stage.width
                channels = stage.width
