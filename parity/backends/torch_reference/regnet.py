"""RegNet under detectron2's module names. Source: detectron2.modeling.backbone.regnet."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from .layers import Conv, make_norm


class SqueezeExcitation(nn.Module):
    """Every channel scaled by a number in (0, 1) that the means of all channels give."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.f_ex = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.f_ex(x.mean(dim=(2, 3), keepdim=True))


class _Shape(NamedTuple):
    """Of a block."""

    inputs: int
    outputs: int
    stride: int
    groups: int
    hidden: int  # channels of squeeze and excitation; 0 = none
    norm: str


class _RegNetTransform(nn.Module):
    """1x1, grouped 3x3, squeeze and excitation (``hidden`` > 0), 1x1; a norm after each convolution."""

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        inputs, outputs, stride, groups, hidden, norm = shape
        self.a, self.a_bn = Conv(inputs, outputs, 1, bias=False), _norm(norm, outputs)
        self.b = Conv(outputs, outputs, 3, stride=stride, groups=groups, bias=False)
        self.b_bn = _norm(norm, outputs)
        self.se = SqueezeExcitation(outputs, hidden) if hidden else None
        self.c, self.c_bn = Conv(outputs, outputs, 1, bias=False), _norm(norm, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.a_bn(self.a(x)))
        x = functional.relu(self.b_bn(self.b(x)))
        x = x if self.se is None else self.se(x)
        return self.c_bn(self.c(x))


class _RegNetBlock(nn.Module):
    """The transform and a shortcut, projected where channels or size change."""

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        inputs, outputs, stride, norm = shape.inputs, shape.outputs, shape.stride, shape.norm
        self.proj = self.bn = None
        if inputs != outputs or stride != 1:
            self.proj = Conv(inputs, outputs, 1, stride=stride, bias=False)
            self.bn = _norm(norm, outputs)
        self.f = _RegNetTransform(shape)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.proj is None or self.bn is None else self.bn(self.proj(x))
        return functional.relu(shortcut + self.f(x))


class _RegNetStem(nn.Module):
    """3x3 stride-2 convolution, norm, ReLU."""

    def __init__(self, inputs: int, channels: int, norm: str) -> None:
        super().__init__()
        self.conv, self.bn = Conv(inputs, channels, 3, stride=2, bias=False), _norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _norm(name: str, channels: int) -> nn.Module:
    norm = make_norm(name, channels)
    if norm is None:
        raise ValueError("MODEL.REGNETS.NORM '' is not supported: every convolution of a RegNet has a norm")
    return norm


def _regnet_stages(regnets: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """(blocks, channels, groups) of each stage.

    Block k asks for w_0 + k w_a channels; it gets w_0 times the nearest power of w_m, rounded to a multiple
    of 8. Blocks of equal width are a stage, whose width is then rounded to whole groups.
    """
    start, slope, ratio = regnets["W_0"], regnets["W_A"], regnets["W_M"]
    powers = [round(math.log((start + k * slope) / start, ratio)) for k in range(regnets["DEPTH"])]
    blocks = Counter(8 * round(start * ratio**power / 8) for power in powers)
    stages = []
    for width, count in sorted(blocks.items()):
        group = min(width, regnets["GROUP_WIDTH"])
        groups = max(1, round(width / group))
        stages.append((count, groups * group, groups))
    return stages


class RegNet(nn.Module):
    """Stem (stride 2) and the stages s1, s2, ... (strides 4, 8, ...), also those after the last one asked for."""

    def __init__(self, regnets: Mapping[str, Any], channels_in: int) -> None:
        super().__init__()
        inputs, norm = regnets["STEM_WIDTH"], regnets["NORM"]
        self.stem = _RegNetStem(channels_in, inputs, norm)
        self.out_features = sorted(regnets["OUT_FEATURES"], key=lambda name: int(name.removeprefix("s")))
        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        for number, (blocks, outputs, groups) in enumerate(_regnet_stages(regnets), 1):
            stage = nn.Sequential()
            for k in range(blocks):
                hidden = round(inputs * regnets["SE_RATIO"])
                block = _RegNetBlock(_Shape(inputs, outputs, 1 if k else 2, groups, hidden, norm))
                stage.add_module(f"b{k + 1}", block)
                inputs = outputs
            self.add_module(f"s{number}", stage)
            self.channels[f"s{number}"], self.strides[f"s{number}"] = outputs, 2 ** (number + 1)
