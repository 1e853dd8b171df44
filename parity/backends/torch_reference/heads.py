"""The heads under detectron2's module names: RPN, box, mask, keypoint, semantic segmentation and RetinaNet.

Sources: detectron2.modeling.proposal_generator.rpn, .roi_heads.{box,mask,keypoint}_head,
.roi_heads.fast_rcnn, .meta_arch.semantic_seg, .meta_arch.retinanet.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from .backbone import bottleneck_stage, stage_options
from .boxes import per_level
from .layers import Conv, LevelNorm, make_norm


def anchors_per_cell(generator: Mapping[str, Any]) -> int:
    """How many anchors each cell has; detectron2 wants the same number on every level."""
    sizes, ratios = per_level(generator["SIZES"]), per_level(generator["ASPECT_RATIOS"])
    width = max(len(sizes), len(ratios))
    sizes = sizes * width if len(sizes) == 1 else sizes
    ratios = ratios * width if len(ratios) == 1 else ratios
    counts = {len(a) * len(b) for a, b in zip(sizes, ratios, strict=True)}
    if len(counts) != 1:
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR gives {sorted(counts)} anchors per cell, one number is needed"
        )
    return counts.pop()


class RPNHead(nn.Module):
    """3x3 convolutions shared by all levels, then logits and deltas."""

    def __init__(self, channels: int, anchors: int, dims: Sequence[int]) -> None:
        super().__init__()
        widths = [channels]
        for dim in dims:
            widths.append(widths[-1] if dim == -1 else dim)
        convs = [Conv(a, b, 3, relu=True) for a, b in itertools.pairwise(widths)]
        self.conv = convs[0] if len(convs) == 1 else nn.Sequential()
        if isinstance(self.conv, nn.Sequential):
            for k, conv in enumerate(convs):
                self.conv.add_module(f"conv{k}", conv)
        self.objectness_logits = Conv(widths[-1], anchors, 1)
        self.anchor_deltas = Conv(widths[-1], anchors * 4, 1)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        hidden = [self.conv(feature) for feature in features]
        return [self.objectness_logits(x) for x in hidden], [self.anchor_deltas(x) for x in hidden]


class _BoxHead(nn.Module):
    """Convolutions, then fully connected layers over the features flattened C, H, W."""

    def __init__(self, channels: int, box: Mapping[str, Any]) -> None:
        super().__init__()
        if box["NAME"] != "FastRCNNConvFCHead":
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.NAME {box['NAME']!r} is not supported; use FastRCNNConvFCHead"
            )
        self.counts = (box["NUM_CONV"], box["NUM_FC"])
        if sum(self.counts) == 0:
            raise ValueError("MODEL.ROI_BOX_HEAD.NUM_CONV and NUM_FC are both 0")
        for k in range(1, box["NUM_CONV"] + 1):
            self.add_module(f"conv{k}", Conv(channels, box["CONV_DIM"], 3, norm=box["NORM"], relu=True))
            channels = box["CONV_DIM"]
        width = channels * box["POOLER_RESOLUTION"] ** 2
        for k in range(1, box["NUM_FC"] + 1):
            self.add_module(f"fc{k}", nn.Linear(width, box["FC_DIM"]))
            width = box["FC_DIM"]
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        convs, linears = self.counts
        for k in range(1, convs + 1):
            x = self.get_submodule(f"conv{k}")(x)
        for k in range(1, linears + 1):
            x = functional.relu(self.get_submodule(f"fc{k}")(x.flatten(1)))
        return x


class _BoxPredictor(nn.Module):
    """Class logits (background last) and box deltas, class-major."""

    def __init__(self, width: int, classes: int, agnostic: bool) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, classes + 1)
        self.bbox_pred = nn.Linear(width, 4 if agnostic else 4 * classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flatten(1)
        return self.cls_score(x), self.bbox_pred(x)


class _MaskHead(nn.Module):
    """3x3 convolutions, a x2 transposed convolution and 1x1 logits per class."""

    def __init__(self, channels: int, mask: Mapping[str, Any], classes: int) -> None:
        super().__init__()
        if mask["NAME"] != "MaskRCNNConvUpsampleHead":
            raise ValueError(f"MODEL.ROI_MASK_HEAD.NAME {mask['NAME']!r} is not supported")
        self.count, width = mask["NUM_CONV"], mask["CONV_DIM"]
        # Dilated in Detectron; not a key of detectron2.
        options: dict[str, Any] = {"norm": mask["NORM"], "relu": True, "dilation": mask.get("DILATION", 1)}
        for k in range(1, self.count + 1):
            self.add_module(f"mask_fcn{k}", Conv(channels, width, 3, **options))
            channels = width
        self.deconv = nn.ConvTranspose2d(channels, width, kernel_size=2, stride=2)
        self.predictor = Conv(width, 1 if mask["CLS_AGNOSTIC_MASK"] else classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        for k in range(1, self.count + 1):
            x = self.get_submodule(f"mask_fcn{k}")(x)
        return self.predictor(functional.relu(self.deconv(x)))


class _KeypointHead(nn.Module):
    """3x3 convolutions and a x2 transposed convolution. The x2 bilinear step after it is another unit."""

    def __init__(self, channels: int, keypoint: Mapping[str, Any]) -> None:
        super().__init__()
        if keypoint["NAME"] != "KRCNNConvDeconvUpsampleHead":
            raise ValueError(f"MODEL.ROI_KEYPOINT_HEAD.NAME {keypoint['NAME']!r} is not supported")
        self.count = len(keypoint["CONV_DIMS"])
        for k, width in enumerate(keypoint["CONV_DIMS"], 1):
            self.add_module(f"conv_fcn{k}", Conv(channels, width, 3, relu=True))
            channels = width
        self.score_lowres = nn.ConvTranspose2d(channels, keypoint["NUM_KEYPOINTS"], 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for k in range(1, self.count + 1):
            x = self.get_submodule(f"conv_fcn{k}")(x)
        return self.score_lowres(x)


class ROIHeads(nn.Module):
    """The second stage. Pooling and selection are functions elsewhere; this holds the weights."""

    def __init__(self, model: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        heads, classes = model["ROI_HEADS"], model["ROI_HEADS"]["NUM_CLASSES"]
        channels = shapes[heads["IN_FEATURES"][0]][0]
        agnostic = model["ROI_BOX_HEAD"]["CLS_AGNOSTIC_BBOX_REG"]
        if heads["NAME"] == "Res5ROIHeads":
            self.res5, channels = _res5(model["RESNETS"])
            self.box_predictor = _BoxPredictor(channels, classes, agnostic)
        elif heads["NAME"] == "CascadeROIHeads":
            if not agnostic:
                raise ValueError("CascadeROIHeads needs MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True")
            count = len(model["ROI_BOX_CASCADE_HEAD"]["BBOX_REG_WEIGHTS"])
            box_heads = [_BoxHead(channels, model["ROI_BOX_HEAD"]) for _ in range(count)]
            self.box_head = nn.ModuleList(box_heads)
            self.box_predictor = nn.ModuleList(_BoxPredictor(head.width, classes, True) for head in box_heads)
        else:
            self.box_head = _BoxHead(channels, model["ROI_BOX_HEAD"])
            self.box_predictor = _BoxPredictor(self.box_head.width, classes, agnostic)
        if model["MASK_ON"]:
            self.mask_head = _MaskHead(channels, model["ROI_MASK_HEAD"], classes)
        if model["KEYPOINT_ON"]:
            self.keypoint_head = _KeypointHead(channels, model["ROI_KEYPOINT_HEAD"])


def _res5(resnets: Mapping[str, Any]) -> tuple[nn.Sequential, int]:
    """The fifth stage as a head: three bottleneck blocks, never dilated, stride 2."""
    outputs = resnets["RES2_OUT_CHANNELS"] * 8
    options = {**stage_options(resnets, 5), "dilation": 1}
    if options["deform"]:
        raise ValueError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE: the last stage of Res5ROIHeads cannot be deformable"
        )
    return bottleneck_stage(3, outputs // 2, outputs, 2, options), outputs


class SemSegHead(nn.Module):
    """Per level a few (3x3 convolution, norm, ReLU, x2 bilinear), summed, 1x1 logits, bilinear to stride
    1."""

    def __init__(self, head: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        if head["NAME"] != "SemSegFPNHead":
            raise ValueError(f"MODEL.SEM_SEG_HEAD.NAME {head['NAME']!r} is not supported; use SemSegFPNHead")
        self.common, width = head["COMMON_STRIDE"], head["CONVS_DIM"]
        # Coarser levels are added after finer ones.
        self.in_features = sorted(head["IN_FEATURES"], key=lambda name: shapes[name][1])
        for name in self.in_features:
            channels, stride = shapes[name]
            layers: list[nn.Module] = []
            for _ in range(max(1, round(math.log2(stride) - math.log2(self.common)))):
                layers.append(Conv(channels, width, 3, norm=head["NORM"], relu=True))
                channels = width
                if stride != self.common:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.add_module(name, nn.Sequential(*layers))
        self.predictor = Conv(width, head["NUM_CLASSES"], 1)

    def layers(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits at the common stride."""
        total: Tensor | None = None
        for name in self.in_features:
            part = self.get_submodule(name)(features[name])
            total = part if total is None else total + part
        assert total is not None
        return self.predictor(total)

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor]:
        x = self.layers(features)
        return (functional.interpolate(x, scale_factor=self.common, mode="bilinear", align_corners=False),)


class RetinaNetHead(nn.Module):
    """Two towers shared by all levels: class logits and box deltas."""

    def __init__(self, channels: int, anchors: int, retina: Mapping[str, Any], levels: int) -> None:
        super().__init__()
        count, norm = retina["NUM_CONVS"], retina["NORM"]
        self.cls_subnet = _tower(channels, count, norm, levels)
        self.bbox_subnet = _tower(channels, count, norm, levels)
        self.cls_score = Conv(channels, anchors * retina["NUM_CLASSES"], 3)
        self.bbox_pred = Conv(channels, anchors * 4, 3)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = [], []
        for level, feature in enumerate(features):
            for module in self.modules():
                if isinstance(module, LevelNorm):
                    module.level = level
            logits.append(self.cls_score(self.cls_subnet(feature)))
            deltas.append(self.bbox_pred(self.bbox_subnet(feature)))
        return logits, deltas


def _tower(channels: int, count: int, norm: str, levels: int) -> nn.Sequential:
    """count x (3x3 convolution with bias, norm, ReLU); "BN" and "SyncBN" keep statistics per level."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers.append(Conv(channels, channels, 3))
        made = LevelNorm(channels, levels) if norm in ("BN", "SyncBN") else make_norm(norm, channels)
        layers += [] if made is None else [made]
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
