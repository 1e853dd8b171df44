"""ResNet and FPN under detectron2's module names. Source: detectron2.modeling.backbone.resnet and .fpn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from .layers import Conv, DeformConv
from .ops import Steps
from .regnet import RegNet

# Blocks per stage res2..res5.
_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BASIC = (18, 34)


class Stem(nn.Module):
    """7x7 stride-2 convolution, norm, ReLU, 3x3 stride-2 maximum: stride 4."""

    def __init__(self, inputs: int, channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = Conv(inputs, channels, 7, stride=2, norm=norm, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(functional.relu(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.shortcut = _shortcut(inputs, outputs, stride, norm)
        self.conv1 = Conv(inputs, outputs, 3, stride=stride, norm=norm, bias=False)
        self.conv2 = Conv(outputs, outputs, 3, norm=norm, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(functional.relu(self.conv1(x)))
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 (grouped, dilated), 1x1 and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, options: Mapping[str, Any]) -> None:
        """options: width, norm, groups, dilation, stride_in_1x1 (see `make_stage`)."""
        super().__init__()
        width, norm = options["width"], options["norm"]
        first, second = (stride, 1) if options["stride_in_1x1"] else (1, stride)
        self.shortcut = _shortcut(inputs, outputs, stride, norm)
        self.conv1 = Conv(inputs, width, 1, stride=first, norm=norm, bias=False)
        self._add_middle(second, options)
        self.conv3 = Conv(width, outputs, 1, norm=norm, bias=False)

    def _add_middle(self, stride: int, options: Mapping[str, Any]) -> None:
        width, norm, groups, dilation = (options[key] for key in ("width", "norm", "groups", "dilation"))
        self.conv2 = Conv(
            width, width, 3, stride=stride, dilation=dilation, groups=groups, norm=norm, bias=False
        )

    def middle(self, x: Tensor) -> Tensor:
        return self.conv2(x)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.conv1(x))
        y = self.conv3(functional.relu(self.middle(y)))
        return functional.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class DeformBottleneckBlock(BottleneckBlock):
    """A bottleneck whose 3x3 convolution is deformable; `conv2_offset` (with bias) says where its taps go."""

    def _add_middle(self, stride: int, options: Mapping[str, Any]) -> None:
        width, norm, groups, dilation = (options[key] for key in ("width", "norm", "groups", "dilation"))
        self.modulated = options["modulated"]
        channels = (27 if self.modulated else 18) * options["deform_groups"]
        self.conv2_offset = Conv(width, channels, 3, stride=stride, dilation=dilation)
        self.conv2 = DeformConv(width, width, Steps(stride, dilation, dilation), groups=groups, norm=norm)

    def middle(self, x: Tensor) -> Tensor:
        moved = self.conv2_offset(x)
        if not self.modulated:
            return self.conv2(x, moved)
        # The last third holds one mask logit per tap; the rest are the offsets, dy and dx interleaved.
        split = moved.shape[1] // 3 * 2
        return self.conv2(x, moved[:, :split], moved[:, split:].sigmoid())


def _shortcut(inputs: int, outputs: int, stride: int, norm: str) -> Conv | None:
    if inputs == outputs:
        return None
    return Conv(inputs, outputs, 1, stride=stride, norm=norm, bias=False)


def stage_options(resnets: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What the bottleneck blocks of stage res<number> are built with."""
    factor = 2 ** (number - 2)
    return {
        "width": resnets["NUM_GROUPS"] * resnets["WIDTH_PER_GROUP"] * factor,
        "norm": resnets["NORM"],
        "groups": resnets["NUM_GROUPS"],
        "dilation": resnets["RES5_DILATION"] if number == 5 else 1,
        "stride_in_1x1": resnets["STRIDE_IN_1X1"],
        "deform": resnets["DEFORM_ON_PER_STAGE"][number - 2],
        "modulated": resnets["DEFORM_MODULATED"],
        "deform_groups": resnets["DEFORM_NUM_GROUPS"],
    }


def bottleneck_stage(
    blocks: int, inputs: int, outputs: int, stride: int, options: Mapping[str, Any]
) -> nn.Sequential:
    """A stage of bottleneck blocks of which the first one strides."""
    kind = DeformBottleneckBlock if options["deform"] else BottleneckBlock
    return nn.Sequential(
        *(kind(outputs if k else inputs, outputs, 1 if k else stride, options) for k in range(blocks))
    )


class ResNet(nn.Module):
    """Stem and the residual stages up to the last one asked for; `stem`, `res2`, ... `channels`, `strides`
    by name. `channels_in`: of the picture."""

    def __init__(self, resnets: Mapping[str, Any], channels_in: int) -> None:
        super().__init__()
        depth = resnets["DEPTH"]
        if depth not in _DEPTHS:
            raise ValueError(f"MODEL.RESNETS.DEPTH {depth} is not supported; supported: {sorted(_DEPTHS)}")
        inputs, outputs, stride = resnets["STEM_OUT_CHANNELS"], resnets["RES2_OUT_CHANNELS"], 4
        self.stem = Stem(channels_in, inputs, resnets["NORM"])
        self.out_features = sorted(resnets["OUT_FEATURES"])
        self.channels: dict[str, int] = {}
        self.strides: dict[str, int] = {}
        for number in range(2, int(self.out_features[-1].removeprefix("res")) + 1):
            step = 1 if number == 2 or (number == 5 and resnets["RES5_DILATION"] == 2) else 2
            stride *= step
            self.add_module(f"res{number}", _stage(resnets, number, inputs, outputs, step))
            self.channels[f"res{number}"], self.strides[f"res{number}"] = outputs, stride
            inputs, outputs = outputs, outputs * 2


def _stage(resnets: Mapping[str, Any], number: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    depth, blocks = resnets["DEPTH"], _DEPTHS[resnets["DEPTH"]][number - 2]
    options = stage_options(resnets, number)
    if depth not in _BASIC:
        return bottleneck_stage(blocks, inputs, outputs, stride, options)
    if options["deform"] or options["dilation"] != 1 or options["groups"] != 1:
        raise ValueError(f"MODEL.RESNETS.DEPTH {depth} allows no deformable, dilated or grouped stage")
    norm = resnets["NORM"]
    return nn.Sequential(
        *(BasicBlock(outputs if k else inputs, outputs, 1 if k else stride, norm) for k in range(blocks))
    )


class _TopBlock(nn.Module):
    """p6 and p7 of RetinaNet, from res5 or p5; p6 is returned before the ReLU that p7 sees."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.p6 = Conv(inputs, channels, 3, stride=2)
        self.p7 = Conv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> list[Tensor]:
        p6 = self.p6(x)
        return [p6, self.p7(functional.relu(p6))]


class FPN(nn.Module):
    """Top-down pyramid over `bottom_up`; p6 (and p7) by a stride-2 pick of p5 or by a `top_block`."""

    def __init__(self, bottom_up: ResNet | RegNet, fpn: Mapping[str, Any], top_block: bool) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.in_features: Sequence[str] = fpn["IN_FEATURES"]
        if fpn["FUSE_TYPE"] not in ("sum", "avg"):
            raise ValueError(
                f"MODEL.FPN.FUSE_TYPE {fpn['FUSE_TYPE']!r} is not supported; supported: sum, avg"
            )
        self.average = fpn["FUSE_TYPE"] == "avg"
        channels = fpn["OUT_CHANNELS"]
        norms = {"norm": fpn["NORM"] or "", "bias": fpn["NORM"] == ""}  # null: neither norm nor bias
        self.levels: list[int] = [round(math.log2(bottom_up.strides[name])) for name in self.in_features]
        for level, name in zip(self.levels, self.in_features, strict=True):
            self.add_module(f"fpn_lateral{level}", Conv(bottom_up.channels[name], channels, 1, **norms))
            self.add_module(f"fpn_output{level}", Conv(channels, channels, 3, **norms))
        # Not a key of detectron2's YAML but an argument of its LazyConfig, and USE_C5 of maskrcnn-benchmark.
        self.top_feature: str = fpn.get("TOP_FEATURE") or "res5"
        below = bottom_up.channels
        width = below[self.top_feature] if self.top_feature in below else channels
        self.top_block = _TopBlock(width, channels) if top_block else None
        self.channels: int = channels

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """features: bottom-up outputs by name. Returns the pyramid by name, finest level first."""
        outputs: list[Tensor] = []
        previous: Tensor | None = None
        for level, name in reversed(list(zip(self.levels, self.in_features, strict=True))):
            current = self.get_submodule(f"fpn_lateral{level}")(features[name])
            if previous is not None:
                current = current + functional.interpolate(previous, scale_factor=2.0, mode="nearest")
                current = current / 2 if self.average else current
            previous = current
            outputs.insert(0, self.get_submodule(f"fpn_output{level}")(current))
        if self.top_block is None:
            outputs.append(functional.max_pool2d(outputs[-1], kernel_size=1, stride=2, padding=0))
        else:
            of_network = self.top_feature in features
            outputs += self.top_block(features[self.top_feature] if of_network else outputs[-1])
        return {f"p{self.levels[0] + k}": output for k, output in enumerate(outputs)}


# MODEL.BACKBONE.NAME of a backbone with a pyramid -> whether p6 and p7 come from a top block.
_PYRAMIDS = {
    "build_resnet_fpn_backbone": False,
    "build_retinanet_resnet_fpn_backbone": True,
    "build_regnet_fpn_backbone": False,
}


def make_backbone(model: Mapping[str, Any]) -> ResNet | RegNet | FPN:
    """The backbone of a configuration's MODEL node."""
    name = model["BACKBONE"]["NAME"]
    if name not in ("build_resnet_backbone", "build_regnet_backbone", *_PYRAMIDS):
        raise ValueError(f"MODEL.BACKBONE.NAME {name!r} is not supported")
    channels = len(model["PIXEL_MEAN"])
    bottom_up = (
        RegNet(model["REGNETS"], channels) if "_regnet_" in name else ResNet(model["RESNETS"], channels)
    )
    return FPN(bottom_up, model["FPN"], top_block=_PYRAMIDS[name]) if name in _PYRAMIDS else bottom_up


def feature_shapes(backbone: ResNet | RegNet | FPN) -> dict[str, tuple[int, int]]:
    """(channels, stride) of each output by name."""
    channels = backbone.channels
    if isinstance(channels, dict):  # a bottom-up network; every level of an FPN has the same number
        return {name: (channels[name], backbone.strides[name]) for name in backbone.out_features}  # pyright: ignore
    levels = [*backbone.levels, *range(backbone.levels[-1] + 1, backbone.levels[-1] + 3)]  # pyright: ignore
    return {f"p{level}": (channels, 2**level) for level in levels}
