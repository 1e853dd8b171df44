"""DeepLab's stem and semantic heads. Source: projects/DeepLab/deeplab/, detectron2/layers/aspp.py, blocks.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tf_d2.config.parts.deeplab import DeepLabDecoderConfig, DeepLabHeadConfig
from tf_d2.layers.base import Module, sequence
from tf_d2.layers.conv import Conv2d
from tf_d2.modeling.backbone import Backbone
from tf_d2.modeling.recording import Stages, Unrecorded
from tf_d2.ops.conv import max_pool2d
from tf_d2.ops.interpolate import bilinear


class DeepLabStem(Module):
    """Three 3x3 convolutions, the first of stride 2, and max pooling: ``[N, H, W, 3]`` -> ``[N, H/4, W/4, C]``."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__("stem")
        half = out_channels // 2
        with self.scope():
            self.conv1 = Conv2d(
                in_channels, half, 3, "conv1", stride=2, padding=1, bias=False, norm=norm, relu=True
            )
            self.conv2 = Conv2d(half, half, 3, "conv2", padding=1, bias=False, norm=norm, relu=True)
            self.conv3 = Conv2d(half, out_channels, 3, "conv3", padding=1, bias=False, norm=norm, relu=True)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return max_pool2d(self.conv3(self.conv2(self.conv1(x))), 3, 2, 1)


def _conv(channels: tuple[int, int], size: int, name: str, norm: str, dilation: int = 1) -> Conv2d:
    """A convolution that keeps the size, norm and ReLU; the bias goes where there is no norm.

    ``channels``: of the input and of the output, here and below.
    """
    padding, bias = dilation * (size // 2), norm == ""
    return Conv2d(
        *channels,
        size,
        name,
        padding=padding,
        dilation=dilation,
        bias=bias,
        norm=norm,
        relu=True,
        large_maps=True,
    )


class DepthwiseSeparableConv2d(Module):
    """A convolution of each channel on its own, then one of size 1; norm and ReLU after both."""

    def __init__(self, channels: tuple[int, int], size: int, name: str, norm: str, dilation: int = 1) -> None:
        super().__init__(name)
        inputs, _ = channels
        with self.scope():
            self.depthwise = Conv2d(
                inputs,
                inputs,
                size,
                "depthwise",
                padding=dilation * (size // 2),
                dilation=dilation,
                groups=inputs,
                bias=norm == "",
                norm=norm,
                relu=True,
            )
            self.pointwise = _conv(channels, 1, "pointwise", norm)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.pointwise(self.depthwise(x))


class ASPP(Module):
    """Convolutions of several dilations and the average of the surroundings, side by side: ``[N, H, W, C]``.

    ``H`` and ``W`` must be multiples of ``pool_kernel`` (cells; None averages over the whole map).
    """

    def __init__(self, config: DeepLabDecoderConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        self.pool_kernel = config.pool_kernel
        dim, norm = config.aspp_channels, config.norm
        channels = in_channels, dim
        separable = config.use_depthwise_separable_conv
        atrous = DepthwiseSeparableConv2d if separable else _conv
        with self.scope():
            with keras.name_scope("convs"):
                self.convs: list[Module] = [_conv(channels, 1, "0", norm)]
                for k, dilation in enumerate(config.aspp_dilations, 1):
                    self.convs.append(atrous(channels, 3, str(k), norm, dilation))
                # Position 0 of the pair is the pooling.
                pooled = sequence("4", {"1": lambda key: Conv2d(in_channels, dim, 1, key, relu=True)})
            self.pooled_conv = pooled["1"]
            self.project = _conv((5 * dim, dim), 1, "project", norm)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        height, width = tf.unstack(tf.shape(x)[1:3])
        around = bilinear(self.pooled_conv(self.pool(x)), height, width)
        return self.project(tf.concat([*(conv(x) for conv in self.convs), around], axis=-1))

    def pool(self, x: tf.Tensor) -> tf.Tensor:
        """The average of every window of ``pool_kernel``, or of the map."""
        if self.pool_kernel is None:
            return tf.reduce_mean(x, axis=[1, 2], keepdims=True)
        height, width = self.pool_kernel
        size = tf.shape(x)[1:3]
        message = (
            f"the map that ASPP gets must be a multiple of {height} x {width} cells (INPUT.CROP.SIZE divided by its "
            "stride): resize the picture accordingly, or set INPUT.CROP.ENABLED False to average over all of it"
        )
        rest = tf.math.floormod(size, tf.constant([height, width]))
        fits = tf.debugging.assert_equal(rest, 0, message)
        with tf.control_dependencies([] if fits is None else [fits]):
            return tf.nn.avg_pool2d(x, [height, width], 1, "VALID")


def two_convs(
    name: str, channels: tuple[int, int, int], norm: str, *, separable: bool = False
) -> dict[str, Module] | Module:
    """Two 3x3 convolutions (channels: of the input, between them, of the output), or one separable 5x5 for both."""
    first, between, last = channels
    if separable:
        return DepthwiseSeparableConv2d((first, last), 5, name, norm)
    makers = {
        "0": lambda key: _conv((first, between), 3, key, norm),
        "1": lambda key: _conv((between, last), 3, key, norm),
    }
    return sequence(name, makers)


def in_turn(layers: dict[str, Module] | Module, x: Any) -> Any:
    """One layer, or layers one after the other (as :func:`two_convs` makes them), on a map."""
    for layer in layers.values() if isinstance(layers, dict) else (layers,):
        x = layer(x)
    return x


class DeepLabHead(Module):
    """What both heads share: logits of features by name, brought to the size of the network input."""

    def __init__(self, config: DeepLabDecoderConfig, backbone: Backbone, name: str) -> None:
        super().__init__(name)
        self.config, self.common_stride = config, config.common_stride
        with self.scope():
            self.build_layers(backbone.channels)
            self.build_predictor()

    def build_predictor(self) -> None:
        config = self.config
        assert isinstance(config, DeepLabHeadConfig)
        self.predictor = Conv2d(config.convs_dim, config.num_classes, 1, "predictor")

    def build_layers(self, channels: Mapping[str, int]) -> None:
        raise NotImplementedError

    def decode(self, features: Mapping[str, tf.Tensor], stages: Stages, prefix: str) -> tf.Tensor:
        """What the predictor gets, at the common stride."""
        raise NotImplementedError

    def call(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return self.forward(features, Unrecorded(), "")

    def forward(self, features: Mapping[str, tf.Tensor], stages: Stages, prefix: str) -> tf.Tensor:
        """Logits ``[N, H, W, K]``; what is computed on the way goes to ``stages`` under ``prefix``."""
        logits = self.predictor(self.decode(features, stages, prefix))
        stages[f"{prefix}.predictor"] = logits
        return self.enlarge(logits)

    def enlarge(self, x: tf.Tensor) -> tf.Tensor:
        """A map at the common stride -> at the size of the network input."""
        size = tf.shape(x)[1:3] * self.common_stride
        return bilinear(x, size[0], size[1])


class DeepLabV3Head(DeepLabHead):
    """ASPP and predictor on one feature."""

    def build_layers(self, channels: Mapping[str, int]) -> None:
        (self.feature,) = self.config.in_features
        self.aspp = ASPP(self.config, channels[self.feature], "aspp")

    def decode(self, features: Mapping[str, tf.Tensor], stages: Stages, prefix: str) -> tf.Tensor:
        stages[f"{prefix}.aspp"] = y = self.aspp(features[self.feature])
        return y


class DeepLabV3PlusHead(DeepLabHead):
    """ASPP on the coarsest feature; every finer one is projected, put beside it and both are fused."""

    def build_layers(self, channels: Mapping[str, int]) -> None:
        config = self.config
        *fine, coarse = config.in_features
        self.projects: dict[str, Module] = {}
        self.fuses: dict[str, dict[str, Module] | Module] = {}
        above = config.aspp_channels
        with keras.name_scope("decoder"):
            with keras.name_scope(coarse):
                self.aspp = ASPP(config, channels[coarse], "project_conv")
            for feature, projected in reversed(list(zip(fine, config.project_channels, strict=True))):
                with keras.name_scope(feature):
                    self.projects[feature] = _conv(
                        (channels[feature], projected), 1, "project_conv", config.norm
                    )
                    dims = (projected + above, config.convs_dim, config.convs_dim)
                    separable = config.use_depthwise_separable_conv
                    self.fuses[feature] = two_convs("fuse_conv", dims, config.norm, separable=separable)
                above = config.convs_dim

    def decode(self, features: Mapping[str, tf.Tensor], stages: Stages, prefix: str) -> tf.Tensor:
        *fine, coarse = self.config.in_features
        stages[f"{prefix}.decoder.{coarse}.project_conv"] = y = self.aspp(features[coarse])
        for feature in reversed(fine):
            low = self.projects[feature](features[feature])
            stages[f"{prefix}.decoder.{feature}.project_conv"] = low
            stages[f"{prefix}.decoder.{feature}.fuse_conv"] = y = self.fuse(feature, low, y)
        return y

    def fuse(self, feature: str, low: tf.Tensor, above: tf.Tensor) -> tf.Tensor:
        """A projected feature and what comes from above, brought to its size, convolved together."""
        height, width = tf.unstack(tf.shape(low)[1:3])
        return in_turn(self.fuses[feature], tf.concat([low, bilinear(above, height, width)], axis=-1))

    @property
    def decoder(self) -> dict[str, dict[str, Any]]:
        """The layers of every feature by detectron2's names."""
        fine = {f: {"project_conv": self.projects[f], "fuse_conv": self.fuses[f]} for f in self.projects}
        return {**fine, self.config.in_features[-1]: {"project_conv": self.aspp}}


def make_head(config: DeepLabHeadConfig, backbone: Backbone, name: str) -> DeepLabHead:
    """The head that a configuration names."""
    return (DeepLabV3PlusHead if config.plus else DeepLabV3Head)(config, backbone, name)
