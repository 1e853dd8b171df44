"""Feature pyramid network. Source: detectron2/modeling/backbone/fpn.py."""

from __future__ import annotations

import math

import tensorflow as tf

from tf_d2.config.parts.fpn import FPNConfig, TopBlockConfig
from tf_d2.layers.base import Module
from tf_d2.layers.conv import Conv2d
from tf_d2.modeling.backbone import Backbone
from tf_d2.modeling.model import make_layer
from tf_d2.modeling.recording import Stages
from tf_d2.ops.interpolate import add_nearest2x


class LastLevelMaxPool(Module):
    """p6 is every second cell of the last pyramid output (a 1x1 max pool of stride 2)."""

    num_levels = 1

    def call(self, x: tf.Tensor) -> list[tf.Tensor]:
        return [x[:, ::2, ::2]]


class LastLevelP6P7(Module):
    """p6 is a stride 2 convolution of its input, p7 one of relu(p6); p6 itself is returned without ReLU."""

    num_levels = 2

    def __init__(self, in_channels: int, out_channels: int, name: str) -> None:
        super().__init__(name)
        with self.scope():
            self.p6 = Conv2d(in_channels, out_channels, 3, "p6", stride=2, padding=1)
            self.p7 = Conv2d(out_channels, out_channels, 3, "p7", stride=2, padding=1)

    def call(self, x: tf.Tensor) -> list[tf.Tensor]:
        p6 = self.p6(x)
        return [p6, self.p7(tf.nn.relu(p6))]


def make_top_block(
    config: TopBlockConfig, in_channels: int, out_channels: int
) -> LastLevelMaxPool | LastLevelP6P7:
    """The levels on top, under the name ``top_block``; only P6P7 has variables."""
    if config.name == "LastLevelMaxPool":
        return LastLevelMaxPool("top_block")
    return LastLevelP6P7(in_channels, out_channels, "top_block")


class FPN(Backbone):
    """Pyramid over a bottom-up network; features are named "p" + log2(stride)."""

    def __init__(self, config: FPNConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        with self.scope():
            bottom_up: Backbone = make_layer("backbone", config.bottom_up, in_channels, "bottom_up")
        self.bottom_up = bottom_up
        self.in_features = config.in_features
        self.average = config.fuse_type == "avg"
        self.square_pad = config.square_pad
        strides = [bottom_up.strides[f] for f in config.in_features]
        self.size_divisibility = strides[-1]
        self.levels = [int(math.log2(s)) for s in strides]
        bias, norm = config.norm == "", config.norm or ""  # with None there is neither, as in detectron2
        with self.scope():
            for level, feature in zip(self.levels, config.in_features, strict=True):
                lateral = f"fpn_lateral{level}"
                output = f"fpn_output{level}"
                channels = bottom_up.channels[feature]
                setattr(
                    self,
                    lateral,
                    Conv2d(channels, config.out_channels, 1, lateral, bias=bias, norm=norm),
                )
                setattr(
                    self,
                    output,
                    Conv2d(
                        config.out_channels,
                        config.out_channels,
                        3,
                        output,
                        padding=1,
                        bias=bias,
                        norm=norm,
                        large_maps=level <= 4,
                    ),
                )
            self.top_block = None
            if config.top_block is not None:
                self.top_feature = config.top_block.in_feature
                channels = bottom_up.channels.get(self.top_feature, config.out_channels)
                self.top_block = make_top_block(config.top_block, channels, config.out_channels)
        extra = self.top_block.num_levels if self.top_block is not None else 0
        names = self.levels + [self.levels[-1] + i + 1 for i in range(extra)]
        self.strides = {f"p{level}": 2**level for level in names}
        self.channels = {name: config.out_channels for name in self.strides}
        self.out_features = tuple(self.strides)

    def top_down(self, bottom_up: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Pyramid features, finest first, from the bottom-up features by name."""
        results: dict[str, tf.Tensor] = {}
        previous: tf.Tensor | None = None
        for level, feature in zip(reversed(self.levels), reversed(self.in_features), strict=True):
            lateral = getattr(self, f"fpn_lateral{level}")(bottom_up[feature])
            if previous is not None:
                lateral = add_nearest2x(lateral, previous)
                if self.average:
                    lateral = lateral / 2
            previous = lateral
            results[f"p{level}"] = getattr(self, f"fpn_output{level}")(previous)
        results = {f"p{level}": results[f"p{level}"] for level in self.levels}
        if self.top_block is not None:
            # A name of the bottom-up network wins over one of the pyramid.
            source = bottom_up if self.top_feature in bottom_up else results
            for i, feature in enumerate(self.top_block(source[self.top_feature])):
                results[f"p{self.levels[-1] + i + 1}"] = feature
        return results

    def forward(self, x: tf.Tensor, stages: Stages, path: str) -> dict[str, tf.Tensor]:
        features = self.top_down(self.bottom_up.forward(x, stages, f"{path}.bottom_up"))
        stages.update({f"{path}/{name}": feature for name, feature in features.items()})
        return features
