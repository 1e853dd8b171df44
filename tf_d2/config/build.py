"""The flat, merged keys -> `ModelConfig`, refusing every setting this version cannot reproduce exactly.

Each refusal names the key, its value and what is supported. What detectron2 asserts at construction
(``modeling/**/from_config``) is asserted here, so that a configuration fails before a model is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from typing import Any

from tf_d2.config.defaults import INFERENCE, Flat
from tf_d2.config.errors import ConfigError, did_you_mean
from tf_d2.config.regnet import WIDTH_MULTIPLE, regnet_stages
from tf_d2.config.schema import (
    AnchorConfig,
    BoxHeadConfig,
    Floats,
    FPNConfig,
    InputConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    PanopticConfig,
    PoolerConfig,
    RegNetConfig,
    ResNetConfig,
    RetinaNetConfig,
    ROIHeadsConfig,
    RPNConfig,
    SemSegHeadConfig,
)

META_ARCHITECTURES = ("GeneralizedRCNN", "ProposalNetwork", "RetinaNet", "SemanticSegmentor", "PanopticFPN")
REGNET_BACKBONES = ("build_regnet_backbone", "build_regnet_fpn_backbone")  # names of this project
BACKBONES = (
    "build_resnet_backbone",
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
    *REGNET_BACKBONES,
)
ROI_HEADS = ("Res5ROIHeads", "StandardROIHeads", "CascadeROIHeads", "RROIHeads")
PROPOSAL_GENERATORS = ("RPN", "RRPN", "PrecomputedProposals")
NORMS = ("", "FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "GN", "LN")
POOLERS = ("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")
STRIDES = {"stem": 4, "res2": 4, "res3": 8, "res4": 16, "res5": 32}
MAX_REGNET_DEPTH = 1000

# What a value elsewhere in detectron2's own tree or its projects would need, for a message that helps.
_ELSEWHERE = {
    "PointRend": "PointRend",
    "ImplicitPointRend": "PointRend",
    "TridentNet": "TridentNet",
    "TridentRes5": "TridentNet",
    "TridentStandard": "TridentNet",
    "build_trident": "TridentNet",
    "TensorMask": "TensorMask",
    "PanopticDeepLab": "Panoptic-DeepLab",
    "DeepLab": "DeepLab",
    "build_resnet_deeplab": "DeepLab",
    "DensePose": "DensePose",
    "build_hrfpn": "DensePose",
    "FCOS": "FCOS",
}


def _fail(key: str, value: Any, expected: str) -> ConfigError:
    project = next((name for start, name in _ELSEWHERE.items() if str(value).startswith(start)), None)
    note = f" (a setting of {project})" if project else ""
    if isinstance(value, str) and value.startswith("python:"):
        note = " (Python code, which is not run; give its value as an option)"
    return ConfigError(f"{key} = {value!r}{note} is not supported: {expected}")


def _choice(flat: Flat, key: str, allowed: Sequence) -> Any:
    if flat[key] not in allowed:
        hint = did_you_mean(str(flat[key]), [str(a) for a in allowed])
        raise _fail(key, flat[key], f"expected one of {', '.join(map(repr, allowed))}{hint}")
    return flat[key]


def _int(flat: Flat, key: str, least: int) -> int:
    if type(flat[key]) is not int or not least <= flat[key] < 2**31:
        raise _fail(key, flat[key], f"expected a whole number, at least {least}")
    return flat[key]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)


def _floats(flat: Flat, key: str, lengths: Sequence[int] = ()) -> Floats:
    values = flat[key]
    if not isinstance(values, tuple) or not values or not all(map(_is_number, values)):
        raise _fail(key, values, "expected a list of finite numbers")
    if lengths and len(values) not in lengths:
        raise _fail(key, values, f"expected {' or '.join(map(str, lengths))} numbers")
    return tuple(map(float, values))


def _float(flat: Flat, key: str) -> float:
    if not _is_number(flat[key]):
        raise _fail(key, flat[key], "expected a finite number")
    return float(flat[key])


def _nms_threshold(flat: Flat, key: str) -> float:
    """An IoU; above 1 nothing is suppressed."""
    value = _float(flat, key)
    if value < 0:
        raise _fail(key, value, "a negative IoU would leave one box of each image")
    return value


def _nonzero(flat: Flat, key: str, lengths: Sequence[int] = ()) -> Floats:
    values = _floats(flat, key, lengths)
    if 0.0 in values:
        raise _fail(key, values, "zero would divide by zero")
    return values


def _names(flat: Flat, key: str, available: Sequence[str] | None = None) -> tuple[str, ...]:
    names = flat[key]
    if not isinstance(names, tuple) or not names or not all(isinstance(n, str) for n in names):
        raise _fail(key, names, "expected a list of names")
    if len(set(names)) != len(names):
        raise _fail(key, names, "a name occurs twice")
    unknown = [n for n in names if available is not None and n not in available]
    if unknown:
        raise _fail(key, names, f"this backbone makes only {', '.join(available or ())}")
    return names


def _nested(flat: Flat, key: str) -> tuple[Floats, ...]:
    """One tuple per level; a flat list of numbers is one tuple (``_broadcast_params`` of detectron2)."""
    values = flat[key]
    levels = (values,) if isinstance(values, tuple) and values and all(map(_is_number, values)) else values
    if not isinstance(levels, tuple) or not levels:
        raise _fail(key, values, "expected a list of lists of numbers, one per feature level")
    for level in levels:
        if not isinstance(level, tuple) or not level or not all(map(_is_number, level)):
            raise _fail(key, values, "expected a list of non-empty lists of numbers")
    return tuple(tuple(map(float, level)) for level in levels)


def _pooler(flat: Flat, head: str, allowed: Sequence[str]) -> PoolerConfig:
    return PoolerConfig(
        type=_choice(flat, f"MODEL.{head}.POOLER_TYPE", allowed),
        resolution=_int(flat, f"MODEL.{head}.POOLER_RESOLUTION", 1),
        sampling_ratio=_int(flat, f"MODEL.{head}.POOLER_SAMPLING_RATIO", 0),
    )


def _input(flat: Flat) -> InputConfig:
    mean = _floats(flat, "MODEL.PIXEL_MEAN")
    return InputConfig(
        format=_choice(flat, "INPUT.FORMAT", ("BGR", "RGB")),
        min_size_test=_int(flat, "INPUT.MIN_SIZE_TEST", 0),
        max_size_test=_int(flat, "INPUT.MAX_SIZE_TEST", 1),
        pixel_mean=mean,
        pixel_std=_nonzero(flat, "MODEL.PIXEL_STD", [len(mean)]),
    )


def _check_basic_blocks(resnet: ResNetConfig) -> None:
    """ResNet-18 and -34 (``build_resnet_backbone``) have no room for these options."""
    fixed = {
        "RES2_OUT_CHANNELS": (resnet.res2_out_channels, 64),
        "RES5_DILATION": (resnet.res5_dilation, 1),
        "NUM_GROUPS": (resnet.num_groups, 1),
        "DEFORM_ON_PER_STAGE": (resnet.deform_on_per_stage, (False,) * 4),
    }
    for name, (value, needed) in fixed.items():
        if value != needed:
            raise _fail(f"MODEL.RESNETS.{name}", value, f"with DEPTH {resnet.depth} it must be {needed}")


def _resnet(flat: Flat) -> ResNetConfig:
    prefix = "MODEL.RESNETS."
    deform = flat[prefix + "DEFORM_ON_PER_STAGE"]
    if not (isinstance(deform, tuple) and len(deform) == 4 and all(type(d) is bool for d in deform)):
        raise _fail(prefix + "DEFORM_ON_PER_STAGE", deform, "expected four booleans, for res2 to res5")
    resnet = ResNetConfig(
        depth=_choice(flat, prefix + "DEPTH", (18, 34, 50, 101, 152)),
        out_features=_names(flat, prefix + "OUT_FEATURES", tuple(STRIDES)),
        norm=_choice(flat, prefix + "NORM", NORMS),
        num_groups=_int(flat, prefix + "NUM_GROUPS", 1),
        width_per_group=_int(flat, prefix + "WIDTH_PER_GROUP", 1),
        stride_in_1x1=flat[prefix + "STRIDE_IN_1X1"],
        res2_out_channels=_int(flat, prefix + "RES2_OUT_CHANNELS", 1),
        stem_out_channels=_int(flat, prefix + "STEM_OUT_CHANNELS", 1),
        res5_dilation=_choice(flat, prefix + "RES5_DILATION", (1, 2)),
        deform_on_per_stage=deform,
        deform_modulated=flat[prefix + "DEFORM_MODULATED"],
        deform_num_groups=_int(flat, prefix + "DEFORM_NUM_GROUPS", 1),
    )
    if resnet.depth in (18, 34):
        _check_basic_blocks(resnet)
    return resnet


def _regnet(flat: Flat) -> RegNetConfig:
    prefix = "MODEL.REGNETS."
    regnet = RegNetConfig(
        depth=_int(flat, prefix + "DEPTH", 1),
        w_a=_float(flat, prefix + "W_A"),
        w_0=_int(flat, prefix + "W_0", 1),
        w_m=_float(flat, prefix + "W_M"),
        group_width=_int(flat, prefix + "GROUP_WIDTH", 1),
        stem_width=_int(flat, prefix + "STEM_WIDTH", 1),
        se_ratio=_float(flat, prefix + "SE_RATIO"),
        norm=_choice(flat, prefix + "NORM", NORMS[1:]),
        out_features=_names(flat, prefix + "OUT_FEATURES"),
    )
    bounds = {
        "DEPTH": (regnet.depth <= MAX_REGNET_DEPTH, f"expected at most {MAX_REGNET_DEPTH} blocks"),
        "W_A": (0 <= regnet.w_a < 2**31, "expected 0 or more"),
        "W_0": (regnet.w_0 % WIDTH_MULTIPLE == 0, f"expected a multiple of {WIDTH_MULTIPLE}"),
        "W_M": (regnet.w_m > 1, "expected a number above 1"),
        "SE_RATIO": (0 <= regnet.se_ratio < 2**31, "expected 0 (none) or more"),
    }
    for name, (holds, expected) in bounds.items():
        if not holds:
            raise _fail(prefix + name, flat[prefix + name], expected)
    _names(flat, prefix + "OUT_FEATURES", ("stem", *(stage.name for stage in regnet_stages(regnet))))
    return regnet


def _bottom_up(flat: Flat) -> ResNetConfig | RegNetConfig:
    """The network that MODEL.BACKBONE.NAME says; the keys of the other one must not be set."""
    name = _choice(flat, "MODEL.BACKBONE.NAME", BACKBONES)
    used, unused = ("REGNETS", "RESNETS") if name in REGNET_BACKBONES else ("RESNETS", "REGNETS")
    for key, default in INFERENCE.items():
        if key.startswith(f"MODEL.{unused}.") and flat[key] != default:
            expected = f"MODEL.BACKBONE.NAME {name} is made from MODEL.{used}; leave it {default!r}"
            raise _fail(key, flat[key], expected)
    return _regnet(flat) if used == "REGNETS" else _resnet(flat)


def _check_pyramid(key: str, names: tuple[str, ...], strides: dict[str, int]) -> None:
    """Levels in ascending order, each twice the stride of the one before, as detectron2 asserts."""
    values = [strides[n] for n in names]
    if any(b != 2 * a for a, b in pairwise(values)):
        raise _fail(key, names, f"strides must double from one to the next, they are {values}")


def _fpn(flat: Flat, out_features: tuple[str, ...], strides: dict[str, int]) -> FPNConfig | None:
    name = flat["MODEL.BACKBONE.NAME"]
    if "_fpn_" not in name:
        return None
    in_features = _names(flat, "MODEL.FPN.IN_FEATURES", out_features)
    _check_pyramid("MODEL.FPN.IN_FEATURES", in_features, strides)
    p6p7 = name == "build_retinanet_resnet_fpn_backbone"
    if p6p7 and "res5" not in out_features:
        raise _fail("MODEL.RESNETS.OUT_FEATURES", out_features, f"{name} needs res5")
    if not p6p7 and strides[in_features[-1]] != 32:
        raise _fail(
            "MODEL.FPN.IN_FEATURES", in_features, f"{name} makes p6 from p5, so it must end at stride 32"
        )
    return FPNConfig(
        in_features=in_features,
        out_channels=_int(flat, "MODEL.FPN.OUT_CHANNELS", 1),
        norm=_choice(flat, "MODEL.FPN.NORM", (*NORMS, None)),
        fuse_type=_choice(flat, "MODEL.FPN.FUSE_TYPE", ("sum", "avg")),
        top_block="LastLevelP6P7" if p6p7 else "LastLevelMaxPool",
        square_pad=_int(flat, "MODEL.FPN.SQUARE_PAD", 0),
    )


def _bottom_up_strides(bottom_up: ResNetConfig | RegNetConfig) -> dict[str, int]:
    if isinstance(bottom_up, RegNetConfig):
        strides = {"stem": 2, **{stage.name: stage.stride for stage in regnet_stages(bottom_up)}}
    else:
        strides = STRIDES | ({"res5": 16} if bottom_up.res5_dilation == 2 else {})
    return {f: stride for f, stride in strides.items() if f in bottom_up.out_features}


def feature_strides(bottom_up: ResNetConfig | RegNetConfig, fpn: FPNConfig | None) -> dict[str, int]:
    """Feature name -> stride in pixels of what the backbone returns, lowest level first."""
    strides = _bottom_up_strides(bottom_up)
    if fpn is None:
        return strides
    levels = [strides[f].bit_length() - 1 for f in fpn.in_features]
    extra = {"LastLevelMaxPool": 1, "LastLevelP6P7": 2, None: 0}[fpn.top_block]
    return {f"p{level}": 2**level for level in range(levels[0], levels[-1] + 1 + extra)}


def _anchors(flat: Flat, key: str, in_features: tuple[str, ...]) -> AnchorConfig:
    prefix = "MODEL.ANCHOR_GENERATOR."
    name = _choice(flat, prefix + "NAME", ("DefaultAnchorGenerator", "RotatedAnchorGenerator"))
    anchors = AnchorConfig(
        name=name,
        sizes=_nested(flat, prefix + "SIZES"),
        aspect_ratios=_nested(flat, prefix + "ASPECT_RATIOS"),
        angles=_nested(flat, prefix + "ANGLES"),
        offset=_float(flat, prefix + "OFFSET"),
    )
    used = {"SIZES": anchors.sizes, "ASPECT_RATIOS": anchors.aspect_ratios}
    if name == "RotatedAnchorGenerator":
        used["ANGLES"] = anchors.angles
    for part, levels in used.items():
        if len(levels) not in (1, len(in_features)):
            expected = f"expected 1 list, or {len(in_features)}: one for each of {key} {in_features}"
            raise _fail(prefix + part, levels, expected)
        if len({len(level) for level in levels}) != 1:
            raise _fail(prefix + part, levels, "every level needs the same number of anchors")
        if part != "ANGLES" and min(map(min, levels)) <= 0:
            raise _fail(prefix + part, levels, "expected positive numbers")
    if not 0.0 <= anchors.offset < 1.0:
        raise _fail(prefix + "OFFSET", anchors.offset, "expected 0 <= offset < 1")
    return anchors


def _rpn(flat: Flat, strides: dict[str, int]) -> RPNConfig | None:
    name = _choice(flat, "MODEL.PROPOSAL_GENERATOR.NAME", PROPOSAL_GENERATORS)
    if name == "PrecomputedProposals":
        return None
    _choice(flat, "MODEL.RPN.HEAD_NAME", ("StandardRPNHead",))
    dims = flat["MODEL.RPN.CONV_DIMS"]
    if not dims or not all(type(d) is int and (d == -1 or d > 0) for d in dims):
        raise _fail("MODEL.RPN.CONV_DIMS", dims, "expected a list of channel numbers, -1 to keep the number")
    rotated = name == "RRPN"
    generator = "RotatedAnchorGenerator" if rotated else "DefaultAnchorGenerator"
    if flat["MODEL.ANCHOR_GENERATOR.NAME"] != generator:
        raise _fail(
            "MODEL.ANCHOR_GENERATOR.NAME", flat["MODEL.ANCHOR_GENERATOR.NAME"], f"{name} needs {generator}"
        )
    min_size = flat["MODEL.PROPOSAL_GENERATOR.MIN_SIZE"]
    if min_size < 0:
        raise _fail("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", min_size, "expected at least 0")
    return RPNConfig(
        name=name,
        in_features=_names(flat, "MODEL.RPN.IN_FEATURES", tuple(strides)),
        conv_dims=dims,
        bbox_reg_weights=_nonzero(flat, "MODEL.RPN.BBOX_REG_WEIGHTS", [5 if rotated else 4]),
        pre_nms_topk=_int(flat, "MODEL.RPN.PRE_NMS_TOPK_TEST", 1),
        post_nms_topk=_int(flat, "MODEL.RPN.POST_NMS_TOPK_TEST", 1),
        nms_thresh=_nms_threshold(flat, "MODEL.RPN.NMS_THRESH"),
        min_size=float(min_size),
    )


def _stage_weights(flat: Flat, name: str) -> tuple[Floats, ...]:
    if name != "CascadeROIHeads":
        return (_nonzero(flat, "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", [5 if name == "RROIHeads" else 4]),)
    key = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"
    if flat["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"] is not True:
        raise _fail("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, f"{name} needs True")
    ious = flat["MODEL.ROI_BOX_CASCADE_HEAD.IOUS"]
    if len(ious) != len(flat[key]):
        raise _fail(key, flat[key], f"expected as many as MODEL.ROI_BOX_CASCADE_HEAD.IOUS = {ious!r}")
    if not flat[key]:
        raise _fail(key, flat[key], "expected at least one stage")
    return tuple(_nonzero({key: stage}, key, [4]) for stage in flat[key])


def _box_head(flat: Flat, name: str) -> BoxHeadConfig:
    prefix = "MODEL.ROI_BOX_HEAD."
    res5 = name == "Res5ROIHeads"  # reads neither NAME nor the layers: stage res5 is its head
    poolers = ("ROIAlignRotated",) if name == "RROIHeads" else POOLERS[:3]
    if not res5:
        _choice(flat, prefix + "NAME", ("FastRCNNConvFCHead",))
    head = BoxHeadConfig(
        name="" if res5 else flat[prefix + "NAME"],
        num_conv=0 if res5 else _int(flat, prefix + "NUM_CONV", 0),
        conv_dim=_int(flat, prefix + "CONV_DIM", 1),
        num_fc=0 if res5 else _int(flat, prefix + "NUM_FC", 0),
        fc_dim=_int(flat, prefix + "FC_DIM", 1),
        norm="" if res5 else _choice(flat, prefix + "NORM", NORMS),
        pooler=_pooler(flat, "ROI_BOX_HEAD", poolers),
        bbox_reg_weights=_stage_weights(flat, name),
        cls_agnostic_bbox_reg=flat[prefix + "CLS_AGNOSTIC_BBOX_REG"],
        use_sigmoid_ce=flat[prefix + "USE_SIGMOID_CE"],
    )
    if not res5 and head.num_conv + head.num_fc == 0:
        raise _fail(prefix + "NUM_FC", 0, "FastRCNNConvFCHead needs NUM_CONV or NUM_FC above 0")
    return head


def _mask_head(flat: Flat) -> MaskHeadConfig | None:
    if not flat["MODEL.MASK_ON"]:
        return None
    prefix = "MODEL.ROI_MASK_HEAD."
    _choice(flat, prefix + "NAME", ("MaskRCNNConvUpsampleHead",))
    return MaskHeadConfig(
        num_conv=_int(flat, prefix + "NUM_CONV", 0),
        conv_dim=_int(flat, prefix + "CONV_DIM", 1),
        norm=_choice(flat, prefix + "NORM", NORMS),
        pooler=_pooler(flat, "ROI_MASK_HEAD", POOLERS[:3]),
        cls_agnostic_mask=flat[prefix + "CLS_AGNOSTIC_MASK"],
    )


def _keypoint_head(flat: Flat) -> KeypointHeadConfig | None:
    if not flat["MODEL.KEYPOINT_ON"]:
        return None
    prefix = "MODEL.ROI_KEYPOINT_HEAD."
    _choice(flat, prefix + "NAME", ("KRCNNConvDeconvUpsampleHead",))
    dims = flat[prefix + "CONV_DIMS"]
    if not all(type(d) is int and d > 0 for d in dims):
        raise _fail(prefix + "CONV_DIMS", dims, "expected a list of channel numbers")
    return KeypointHeadConfig(
        conv_dims=dims,
        num_keypoints=_int(flat, prefix + "NUM_KEYPOINTS", 1),
        pooler=_pooler(flat, "ROI_KEYPOINT_HEAD", POOLERS[:3]),
    )


def _check_res5(flat: Flat, in_features: tuple[str, ...]) -> None:
    """What ``Res5ROIHeads`` asserts; it takes res4 and ends at stride 32."""
    if flat["MODEL.KEYPOINT_ON"]:
        raise _fail("MODEL.KEYPOINT_ON", True, "Res5ROIHeads has no keypoint head; use StandardROIHeads")
    if flat["MODEL.RESNETS.DEFORM_ON_PER_STAGE"][-1]:
        raise _fail("MODEL.RESNETS.DEFORM_ON_PER_STAGE", True, "Res5ROIHeads has no deformable res5")
    if in_features != ("res4",):
        raise _fail("MODEL.ROI_HEADS.IN_FEATURES", in_features, "Res5ROIHeads needs ('res4',)")


def _roi_heads(flat: Flat, strides: dict[str, int], rpn: RPNConfig | None) -> ROIHeadsConfig:
    name = _choice(flat, "MODEL.ROI_HEADS.NAME", ROI_HEADS)
    in_features = _names(flat, "MODEL.ROI_HEADS.IN_FEATURES", tuple(strides))
    rotated = name == "RROIHeads"
    if rpn is not None and rotated != (rpn.name == "RRPN"):
        expected = "RROIHeads and RRPN (rotated boxes) go together"
        raise _fail("MODEL.ROI_HEADS.NAME", name, expected)
    if name == "Res5ROIHeads":
        _check_res5(flat, in_features)
    else:
        _check_pyramid("MODEL.ROI_HEADS.IN_FEATURES", in_features, strides)
    if rotated:
        for key in ("MODEL.MASK_ON", "MODEL.KEYPOINT_ON"):
            if flat[key]:
                raise _fail(key, True, "RROIHeads has boxes only")
    return ROIHeadsConfig(
        name=name,
        in_features=in_features,
        num_classes=_int(flat, "MODEL.ROI_HEADS.NUM_CLASSES", 1),
        score_thresh_test=_float(flat, "MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
        nms_thresh_test=_nms_threshold(flat, "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
        detections_per_image=_int(flat, "TEST.DETECTIONS_PER_IMAGE", -1),
        box_head=_box_head(flat, name),
        mask_head=_mask_head(flat),
        keypoint_head=_keypoint_head(flat),
    )


def _retinanet(flat: Flat, strides: dict[str, int]) -> RetinaNetConfig:
    prefix = "MODEL.RETINANET."
    if flat["MODEL.ANCHOR_GENERATOR.NAME"] != "DefaultAnchorGenerator":
        value = flat["MODEL.ANCHOR_GENERATOR.NAME"]
        raise _fail("MODEL.ANCHOR_GENERATOR.NAME", value, "RetinaNet needs DefaultAnchorGenerator")
    return RetinaNetConfig(
        num_classes=_int(flat, prefix + "NUM_CLASSES", 1),
        in_features=_names(flat, prefix + "IN_FEATURES", tuple(strides)),
        num_convs=_int(flat, prefix + "NUM_CONVS", 1),
        norm=_choice(flat, prefix + "NORM", NORMS),
        bbox_reg_weights=_nonzero(flat, prefix + "BBOX_REG_WEIGHTS", [4]),
        score_thresh_test=_float(flat, prefix + "SCORE_THRESH_TEST"),
        topk_candidates_test=_int(flat, prefix + "TOPK_CANDIDATES_TEST", 1),
        nms_thresh_test=_nms_threshold(flat, prefix + "NMS_THRESH_TEST"),
        detections_per_image=_int(flat, "TEST.DETECTIONS_PER_IMAGE", -1),
    )


def _sem_seg(flat: Flat, strides: dict[str, int]) -> SemSegHeadConfig:
    prefix = "MODEL.SEM_SEG_HEAD."
    _choice(flat, prefix + "NAME", ("SemSegFPNHead",))
    head = SemSegHeadConfig(
        in_features=_names(flat, prefix + "IN_FEATURES", tuple(strides)),
        num_classes=_int(flat, prefix + "NUM_CLASSES", 1),
        convs_dim=_int(flat, prefix + "CONVS_DIM", 1),
        common_stride=_choice(flat, prefix + "COMMON_STRIDE", (1, 2, 4, 8, 16, 32, 64, 128)),
        norm=_choice(flat, prefix + "NORM", NORMS),
    )
    # A level is doubled until it is at the common stride, but at least once if it is not there.
    ends = {
        s if s == head.common_stride else min(s // 2, head.common_stride)
        for s in map(strides.get, head.in_features)
        if s
    }
    if len(ends) > 1:
        expected = f"levels finer than COMMON_STRIDE {head.common_stride} do not meet the others"
        raise _fail(prefix + "IN_FEATURES", head.in_features, expected)
    return head


def _panoptic(flat: Flat) -> PanopticConfig:
    prefix = "MODEL.PANOPTIC_FPN.COMBINE."
    return PanopticConfig(
        overlap_thresh=_float(flat, prefix + "OVERLAP_THRESH"),
        stuff_area_limit=_float(flat, prefix + "STUFF_AREA_LIMIT"),
        instances_confidence_thresh=_float(flat, prefix + "INSTANCES_CONFIDENCE_THRESH"),
    )


def _dataset(flat: Flat) -> str:
    for key in ("DATASETS.TEST", "DATASETS.TRAIN"):
        if flat[key]:
            return _names(flat, key)[0]
    return ""


def build_config(flat: Flat) -> ModelConfig:
    """The model that the merged keys describe.

    Raises:
        ConfigError: a value is not supported, out of range, or inconsistent with another key.
    """
    meta = _choice(flat, "MODEL.META_ARCHITECTURE", META_ARCHITECTURES)
    bottom_up = _bottom_up(flat)
    fpn = _fpn(flat, bottom_up.out_features, feature_strides(bottom_up, None))
    strides = feature_strides(bottom_up, fpn)
    two_stage = meta in ("GeneralizedRCNN", "PanopticFPN")
    rpn = _rpn(flat, strides) if two_stage or meta == "ProposalNetwork" else None
    if rpn is None and meta in ("ProposalNetwork", "PanopticFPN"):
        raise _fail("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", f"{meta} needs RPN")
    if meta == "PanopticFPN" and not flat["MODEL.MASK_ON"]:
        raise _fail("MODEL.MASK_ON", False, "PanopticFPN needs masks")
    retinanet = _retinanet(flat, strides) if meta == "RetinaNet" else None
    anchor_key = "MODEL.RETINANET.IN_FEATURES" if retinanet else "MODEL.RPN.IN_FEATURES"
    dense = retinanet or rpn
    anchor_levels = dense.in_features if dense else flat[anchor_key]
    return ModelConfig(
        meta_architecture=meta,
        input=_input(flat),
        resnet=bottom_up if isinstance(bottom_up, ResNetConfig) else None,
        regnet=bottom_up if isinstance(bottom_up, RegNetConfig) else None,
        fpn=fpn,
        anchors=_anchors(flat, anchor_key, anchor_levels),
        rpn=rpn,
        roi_heads=_roi_heads(flat, strides, rpn) if two_stage else None,
        retinanet=retinanet,
        sem_seg_head=_sem_seg(flat, strides) if meta in ("SemanticSegmentor", "PanopticFPN") else None,
        panoptic=_panoptic(flat) if meta == "PanopticFPN" else None,
        precomputed_proposal_topk=_int(flat, "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", 0),
        weights=flat["MODEL.WEIGHTS"],
        dataset=_dataset(flat),
    )
