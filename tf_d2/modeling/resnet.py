"""ResNet and ResNeXt backbones. Source: detectron2/modeling/backbone/resnet.py."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from tf_d2.config.parts.deeplab import DeepLabResNetConfig
from tf_d2.config.parts.resnet import ResNetConfig
from tf_d2.config.parts.trident import TridentResNetConfig
from tf_d2.layers.base import Module
from tf_d2.layers.conv import Conv2d, DeformConv2d
from tf_d2.modeling.backbone import BottomUp, stages_up_to
from tf_d2.modeling.deeplab import DeepLabStem
from tf_d2.ops.conv import max_pool2d
from tf_d2.ops.elementary import sigmoid

_BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STAGES = ("res2", "res3", "res4", "res5")


class BasicStem(Module):
    """7x7 stride 2 convolution and 3x3 stride 2 max pooling: ``[N, H, W, 3]`` -> ``[N, H/4, W/4, C]``."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__("stem")
        with self.scope():
            self.conv1 = Conv2d(
                in_channels, out_channels, 7, "conv1", stride=2, padding=3, bias=False, norm=norm, relu=True
            )

    def call(self, x: tf.Tensor) -> tf.Tensor:
        # After a ReLU padding with zeros equals padding with -infinity, but nothing relies on that.
        return max_pool2d(self.conv1(x), 3, 2, 1)


class BasicBlock(Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    def __init__(self, in_channels: int, out_channels: int, name: str, *, stride: int, norm: str) -> None:
        super().__init__(name)
        with self.scope():
            self.shortcut = _shortcut(in_channels, out_channels, stride, norm)
            self.conv1 = Conv2d(
                in_channels,
                out_channels,
                3,
                "conv1",
                stride=stride,
                padding=1,
                bias=False,
                norm=norm,
                relu=True,
            )
            self.conv2 = Conv2d(out_channels, out_channels, 3, "conv2", padding=1, bias=False, norm=norm)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.conv2(self.conv1(x), add=x if self.shortcut is None else self.shortcut(x), relu=True)


class BottleneckBlock(Module):
    """1x1, 3x3 (grouped, dilated or deformable) and 1x1 convolution with a shortcut.

    ``stride_in_1x1`` puts the stride on the first convolution (the original MSRA models), otherwise on the second.
    """

    def __init__(
        self, config: ResNetConfig, channels: tuple[int, int, int], name: str, *, stride: int, dilation: int
    ) -> None:
        """``channels``: of the input, between the convolutions, of the output."""
        super().__init__(name)
        inputs, between, outputs = channels
        norm = config.norm
        stride_1x1, stride_3x3 = (stride, 1) if config.stride_in_1x1 else (1, stride)
        with self.scope():
            self.shortcut = _shortcut(inputs, outputs, stride, norm)
            self.conv1 = Conv2d(
                inputs, between, 1, "conv1", stride=stride_1x1, bias=False, norm=norm, relu=True
            )
            self.conv2 = self.make_conv2(config, between, stride_3x3, dilation)
            self.conv3 = Conv2d(between, outputs, 1, "conv3", bias=False, norm=norm)

    def make_conv2(self, config: ResNetConfig, channels: int, stride: int, dilation: int) -> Conv2d:
        return Conv2d(
            channels,
            channels,
            3,
            "conv2",
            stride=stride,
            padding=dilation,
            dilation=dilation,
            groups=config.num_groups,
            bias=False,
            norm=config.norm,
            relu=True,
        )

    def middle(self, x: tf.Tensor) -> tf.Tensor:
        return self.conv2(x)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self._added(x, self.middle(self.conv1(x)))

    def dilated(self, x: tf.Tensor, dilation: int) -> tf.Tensor:
        """The same weights with another dilation of the 3x3 convolution: a branch of TridentNet."""
        return self._added(x, self.conv2.dilated(self.conv1(x), dilation))

    def _added(self, x: tf.Tensor, middle: tf.Tensor) -> tf.Tensor:
        return self.conv3(middle, add=x if self.shortcut is None else self.shortcut(x), relu=True)


class DeformBottleneckBlock(BottleneckBlock):
    """A bottleneck whose 3x3 convolution samples at predicted offsets (v2: with predicted weights, too).

    ``conv2_offset`` gives 2 channels (dy, dx) per tap and deformable group, and for v2 one more third of channels:
    the logits of the tap weights.
    """

    def make_conv2(self, config: ResNetConfig, channels: int, stride: int, dilation: int) -> Conv2d:
        self.modulated, self.deform_groups = config.deform_modulated, config.deform_num_groups
        offset_channels = (27 if self.modulated else 18) * self.deform_groups
        self.conv2_offset = Conv2d(
            channels, offset_channels, 3, "conv2_offset", stride=stride, padding=dilation, dilation=dilation
        )
        return DeformConv2d(
            channels,
            channels,
            3,
            name="conv2",
            stride=stride,
            padding=dilation,
            dilation=dilation,
            groups=config.num_groups,
            norm=config.norm,
            relu=True,
            deformable_groups=self.deform_groups,
        )

    def middle(self, x: tf.Tensor) -> tf.Tensor:
        offset = self.conv2_offset(x)
        if not self.modulated:
            return self.conv2(x, offset)
        taps = 18 * self.deform_groups
        return self.conv2(x, offset[..., :taps], sigmoid(offset[..., taps:]))


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> Conv2d | None:
    """The projection exists where the channel count changes, whatever the stride."""
    if in_channels == out_channels:
        return None
    return Conv2d(in_channels, out_channels, 1, "shortcut", stride=stride, bias=False, norm=norm)


def make_stage(config: ResNetConfig, index: int, name: str) -> list[Module]:
    """The blocks of stage ``index`` (0 = res2 .. 3 = res5), constructed under ``name``."""
    out_channels = config.res2_out_channels * 2**index
    in_channels = config.stem_out_channels if index == 0 else out_channels // 2
    count = _BLOCKS_PER_STAGE[config.depth][index]
    blocks: list[Module] = []
    with keras.name_scope(name):
        for i, dilation in enumerate(config.dilations(index, count)):
            blocks.append(_make_block(config, index, i, in_channels, dilation))
            in_channels = out_channels
    return blocks


def _make_block(config: ResNetConfig, index: int, number: int, in_channels: int, dilation: int) -> Module:
    """Block ``number`` of stage ``index``; only a stage's first block has a stride."""
    out_channels, name = config.res2_out_channels * 2**index, str(number)
    stride = config.first_stride(index) if number == 0 else 1
    if config.depth < 50:
        return BasicBlock(in_channels, out_channels, name, stride=stride, norm=config.norm)
    kind = DeformBottleneckBlock if config.deform_on_per_stage[index] else BottleneckBlock
    channels = in_channels, config.num_groups * config.width_per_group * 2**index, out_channels
    return kind(config, channels, name, stride=stride, dilation=dilation)


def _stem(config: ResNetConfig) -> Callable[[int, int, str], Module]:
    if isinstance(config, DeepLabResNetConfig) and config.stem_type == "deeplab":
        return DeepLabStem
    return BasicStem


class ResNet(BottomUp):
    """Stem and stages up to the last one in ``config.out_features``."""

    def __init__(self, config: ResNetConfig, in_channels: int, name: str) -> None:
        super().__init__(name, stages_up_to(STAGES, config.out_features), config.out_features)
        self.strides["stem"], self.channels["stem"] = 4, config.stem_out_channels
        with self.scope():
            self.stem = _stem(config)(in_channels, config.stem_out_channels, config.stem_norm)
            for i, stage in enumerate(self.stage_names):
                setattr(self, stage, make_stage(config, i, stage))
                previous = self.strides[STAGES[i - 1]] if i else 4
                self.strides[stage] = previous * config.first_stride(i)
                self.channels[stage] = config.res2_out_channels * 2**i
        self.branches = config.merged_dilations if isinstance(config, TridentResNetConfig) else ()
        self.branch_stage = config.trident_stage if isinstance(config, TridentResNetConfig) else ""

    def run_stage(self, stage: str, x: tf.Tensor) -> tf.Tensor:
        """One stage; of TridentNet with all branches, these in a row along the batch, each with all images."""
        if not self.branches or stage != self.branch_stage:
            return super().run_stage(stage, x)
        outputs = []
        for dilation in self.branches:
            y = x
            for block in getattr(self, stage):
                y = block.dilated(y, dilation)
            outputs.append(y)
        return tf.concat(outputs, axis=0)
