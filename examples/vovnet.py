"""VoVNet-19 and -39 with effective squeeze and excitation, as CenterMask2 uses them: an example of a part of your own.

Written from the structure that https://arxiv.org/abs/1911.06667 publishes, under the module names and configuration
keys of https://github.com/youngwanLEE/vovnet-detectron2. docs/extend.md explains it line by line. To use it::

    TF_D2_EXTEND=examples/vovnet.py tf-d2 predict --config-file mask_rcnn_V_39_FPN_3x.yaml ...

or ``import vovnet`` before `tf_d2.Predictor` is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import keras
import tensorflow as tf

import tf_d2
from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.parts.fpn import FPNConfig, TopBlockConfig
from tf_d2.layers.base import Module
from tf_d2.layers.conv import Conv2d
from tf_d2.modeling.backbone import BottomUp

# === What a configuration says ===

STAGES = ("stage2", "stage3", "stage4", "stage5")
STEM = (64, 64, 128)
INNER, OUTER = (128, 160, 192, 224), (256, 512, 768, 1024)  # channels inside and at the end of each stage
BODIES = {
    "V-19-eSE": (3, (1, 1, 1, 1)),
    "V-39-eSE": (5, (1, 1, 2, 2)),
}  # convolutions per block, blocks per stage


@dataclass(frozen=True)
class VoVNetConfig:
    """``MODEL.VOVNET.*``."""

    body: str
    out_features: tuple[str, ...]
    norm: str

    KEYS: ClassVar[dict[str, str]] = {
        "body": "MODEL.VOVNET.CONV_BODY",
        "out_features": "MODEL.VOVNET.OUT_FEATURES",
        "norm": "MODEL.VOVNET.NORM",
    }
    NEW_KEYS: ClassVar[Flat] = {
        "MODEL.VOVNET.CONV_BODY": "V-39-eSE",
        "MODEL.VOVNET.OUT_FEATURES": STAGES,
        "MODEL.VOVNET.NORM": "FrozenBN",
    }
    IGNORED_KEYS: ClassVar[Flat] = {
        "MODEL.VOVNET.OUT_CHANNELS": 256,
        "MODEL.VOVNET.BACKBONE_OUT_CHANNELS": 256,
    }

    @property
    def strides(self) -> dict[str, int]:
        strides = {"stem": 4, **{stage: 4 * 2**i for i, stage in enumerate(STAGES)}}
        return {name: stride for name, stride in strides.items() if name in self.out_features}

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> VoVNetConfig | FPNConfig:
        fields = keys.fields(cls.KEYS)
        vovnet = cls(
            body=fields.choice("body", tuple(BODIES)),
            out_features=fields.names("out_features", ("stem", *STAGES)),
            norm=fields.norm("norm"),
        )
        if name == "build_vovnet_backbone":
            return vovnet
        return FPNConfig.over(keys, vovnet, TopBlockConfig("LastLevelMaxPool", "p5"))


# === What computes it ===


def conv(inputs: int, outputs: int, size: int, name: str, norm: str, stride: int = 1) -> Conv2d:
    """Convolution, norm, ReLU: ``<name>/conv`` and ``<name>/norm`` in the checkpoint."""
    options: dict[str, Any] = {"stride": stride, "padding": size // 2, "bias": False, "relu": True}
    with keras.name_scope(name):
        return Conv2d(inputs, outputs, size, "conv", norm=norm, norm_beside="norm", **options)


class Stem(Module):
    """Three 3x3 convolutions, the first and the last with stride 2."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__("stem")
        widths = (channels, *STEM)
        with self.scope():
            self.convs = [
                conv(widths[i], widths[i + 1], 3, f"stem_{i + 1}", norm, stride=1 if i == 1 else 2)
                for i in range(3)
            ]

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for layer in self.convs:
            x = layer(x)
        return x


class ESE(Module):
    """Each channel times relu6(fc(mean over the map) + 3) / 6."""

    def __init__(self, channels: int) -> None:
        super().__init__("ese")
        with self.scope():
            self.fc = Conv2d(channels, channels, 1, "fc")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        mean = tf.reduce_mean(x, axis=[1, 2], keepdims=True)
        return x * (tf.nn.relu6(self.fc(mean) + 3.0) / 6.0)


class OSA(Module):
    """One-shot aggregation: 3x3 convolutions in a row, all their outputs and the input joined by a 1x1."""

    def __init__(self, inputs: int, inner: int, outer: int, count: int, name: str, norm: str) -> None:
        super().__init__(name)
        self.identity = not name.endswith("_1")  # later blocks of a stage add their input
        widths = [inputs, *[inner] * count]
        with self.scope():
            with keras.name_scope("layers"):
                self.convs = []
                for i in range(count):
                    with keras.name_scope(str(i)):
                        self.convs.append(conv(widths[i], inner, 3, f"{name}_{i}", norm))
            with keras.name_scope("concat"):
                self.concat = conv(sum(widths), outer, 1, f"{name}_concat", norm)
            self.ese = ESE(outer)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        outputs = [x]
        for layer in self.convs:
            outputs.append(layer(outputs[-1]))
        y = self.ese(self.concat(tf.concat(outputs, axis=-1)))
        return y + x if self.identity else y


class Pooling(Module):
    """3x3 max pooling with stride 2, a last incomplete window included (torch's ``ceil_mode``)."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        missing = (tf.shape(x)[1:3] + 1) % 2  # one row or column, where the number is even
        paddings = tf.stack([[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]])
        x = tf.pad(x, paddings, constant_values=x.dtype.min)
        return tf.nn.max_pool2d(x, 3, 2, "VALID")


class VoVNet(BottomUp):
    """``stem`` and ``stage2`` to ``stage5``; `BottomUp` runs and records them."""

    def __init__(self, config: VoVNetConfig, in_channels: int, name: str) -> None:
        super().__init__(name, STAGES, config.out_features)
        count, blocks = BODIES[config.body]
        self.strides["stem"], self.channels["stem"] = 4, STEM[-1]
        with self.scope():
            self.stem = Stem(in_channels, config.norm)
            inputs = STEM[-1]
            for i, stage in enumerate(STAGES):
                setattr(self, stage, self._stage(i, inputs, blocks[i], count, config.norm))
                self.strides[stage], self.channels[stage] = 4 * 2**i, OUTER[i]
                inputs = OUTER[i]

    @staticmethod
    def _stage(index: int, inputs: int, blocks: int, count: int, norm: str) -> list[Module]:
        layers: list[Module] = [Pooling("Pooling")] if index else []
        with keras.name_scope(STAGES[index]):
            for k in range(blocks):
                name = f"OSA{index + 2}_{k + 1}"
                layers.append(OSA(inputs, INNER[index], OUTER[index], count, name, norm))
                inputs = OUTER[index]
        return layers


tf_d2.extend("backbone", ["build_vovnet_backbone", "build_vovnet_fpn_backbone"], VoVNetConfig, VoVNet)
