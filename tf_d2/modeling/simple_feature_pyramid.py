"""A pyramid from the single map of a plain transformer. Source: detectron2/modeling/backbone/vit.py."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_d2.config.parts.vit import SimpleFeaturePyramidConfig
from tf_d2.layers.base import Module, sequence
from tf_d2.layers.conv import Conv2d, ConvTranspose2d
from tf_d2.layers.norm import get_norm
from tf_d2.modeling.backbone import Backbone, Features
from tf_d2.modeling.fpn import make_top_block
from tf_d2.modeling.model import make_layer
from tf_d2.modeling.recording import Stages
from tf_d2.ops.activation import gelu
from tf_d2.ops.conv import join_tiles, max_pool2d

# Positions in torch's Sequential of each branch: 2x2 transposed convolutions, their norms, what comes after.
_UPSAMPLING = {4.0: (("0", "1"), ("3", None)), 2.0: (("0", None),), 1.0: (), 0.5: ()}
_FIRST_CONV = {4.0: 4, 2.0: 1, 1.0: 0, 0.5: 1}


class SimpleFeaturePyramid(Backbone):
    """Levels "p2" to "p5" (strides of the net's map divided by each scale), and those of the top block.

    ``call``: ``[N, H, W, 3]`` -> dict, finest first. Nothing but ``square_pad`` pads its input.
    """

    def __init__(self, config: SimpleFeaturePyramidConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        self.config, self.levels, self.square_pad = config, config.levels, config.square_pad
        with self.scope():
            self.net: Backbone = make_layer("backbone", config.net, in_channels, "net")
            dim = self.net.channels[config.in_feature]
            for level, scale in zip(self.levels, config.scale_factors, strict=True):
                branch = f"simfp_{level}"
                setattr(self, branch, sequence(branch, _branch(config, dim, scale)))
            self.top_block = None
            if config.top_block is not None:
                channels = self.net.channels.get(config.top_block.in_feature, config.out_channels)
                self.top_block = make_top_block(config.top_block, channels, config.out_channels)
        self.strides = config.strides
        self.channels = {feature: config.out_channels for feature in self.strides}
        self.out_features = tuple(self.strides)

    def pyramid(self, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Every level by name from the net's features."""
        x = features[self.config.in_feature]
        results = {f"p{level}": self.level(i, x) for i, level in enumerate(self.levels)}
        if self.top_block is not None and self.config.top_block is not None:
            source = {**results, **features}  # a name of the net wins over one of the pyramid
            for i, feature in enumerate(self.top_block(source[self.config.top_block.in_feature])):
                results[f"p{self.levels[-1] + i + 1}"] = feature
        return results

    def level(self, index: int, x: tf.Tensor) -> tf.Tensor:
        """One of the levels made directly of the net's map, by its place in the configuration."""
        branch, scale = getattr(self, f"simfp_{self.levels[index]}"), self.config.scale_factors[index]
        for up, norm in _UPSAMPLING[scale]:
            x = join_tiles(branch[up].tiles(x), 2)
            if norm is not None:
                x = gelu(branch[norm](x))
        if scale == 0.5:
            x = max_pool2d(x, 2, 2, 0)
        first = _FIRST_CONV[scale]
        return branch[str(first + 1)](branch[str(first)](x))

    def forward(self, x: tf.Tensor, stages: Stages, path: str) -> Features:
        results = self.pyramid(self.net.forward(x, stages, f"{path}.net"))
        stages.update({f"{path}/{name}": feature for name, feature in results.items()})
        return results


def _branch(config: SimpleFeaturePyramidConfig, dim: int, scale: float) -> dict[str, Callable[[str], Module]]:
    """The layers of one level by their position in torch's Sequential (activation and pooling have none here)."""
    makers: dict[str, Callable[[str], Module]] = {}
    for up, norm in _UPSAMPLING[scale]:
        makers[up] = lambda key, width=dim: ConvTranspose2d(width, width // 2, 2, key)
        dim //= 2
        if norm is not None:
            makers[norm] = lambda key, width=dim: _norm(config.norm, width, key)
    out, first, bias = config.out_channels, _FIRST_CONV[scale], config.norm == ""
    makers[str(first)] = lambda key, width=dim: Conv2d(width, out, 1, key, bias=bias, norm=config.norm)
    makers[str(first + 1)] = lambda key: Conv2d(
        out, out, 3, key, padding=1, bias=bias, norm=config.norm, large_maps=True
    )
    return makers


def _norm(norm: str, channels: int, key: str) -> Module:
    layer = get_norm(norm, channels, key)
    assert layer is not None  # the configuration is refused without one
    return layer
