"""Detectron's configuration (Caffe2, 2018). Source: detectron/core/config.py, detectron/modeling/."""

from __future__ import annotations

import re

from tf_d2.config.defaults import Flat
from tf_d2.config.detectron_defaults import DEFAULTS, FIXED, IGNORED
from tf_d2.config.older import RESNET, Older, Values, pyramid

_TYPES = dict.fromkeys(
    "generalized_rcnn retinanet fast_rcnn mask_rcnn keypoint_rcnn mask_and_keypoint_rcnn rpn fpn_rpn faster_rcnn "
    "fpn_faster_rcnn fpn_fast_rcnn".split()
)
_BODY = re.compile(r"(FPN\.add_fpn_|ResNet\.add_)ResNet(50|101|152)_conv([45])_body")
_POOLERS = {"RoIAlign": "ROIAlign", "RoIPoolF": "ROIPool"}


def _translate(v: Values) -> Flat:
    v.choice("MODEL.TYPE", _TYPES)
    match = _BODY.fullmatch(str(v["MODEL.CONV_BODY"]))
    fpn = bool(v["FPN.FPN_ON"])
    if match is None or fpn != match[1].startswith("FPN") or (fpn and match[3] != "5"):
        v.refuse(
            "MODEL.CONV_BODY", "expected ResNet.add_ResNet50_conv4_body or, with FPN.FPN_ON, "
            "FPN.add_fpn_ResNet50_conv5_body (101, 152)"
        )  # fmt: skip
        return {}
    one_stage = v["MODEL.TYPE"] == "retinanet" or v["RETINANET.RETINANET_ON"]
    top = v["MODEL.NUM_CLASSES"] - 1
    has_rpn = v["RPN.RPN_ON"] or v["MODEL.FASTER_RCNN"] or v["MODEL.RPN_ONLY"]
    only_rpn = v["MODEL.RPN_ONLY"] or v["MODEL.TYPE"] in ("rpn", "fpn_rpn")
    if not only_rpn and top < 1:
        v.refuse("MODEL.NUM_CLASSES", "expected at least 2, for the background is one")
    flat: Flat = {
        "MODEL.WEIGHTS": v["TEST.WEIGHTS"],
        "DATASETS.TEST": v["TEST.DATASETS"],
        "INPUT.FORMAT": "BGR",
        "INPUT.MIN_SIZE_TEST": v["TEST.SCALE"],
        "INPUT.MAX_SIZE_TEST": v["TEST.MAX_SIZE"],
        "MODEL.PIXEL_MEAN": _means(v),
        "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
        "MODEL.SIZE_DIVISIBILITY": v["FPN.COARSEST_STRIDE"] if fpn else 0,
        "TEST.DETECTIONS_PER_IMAGE": v["TEST.DETECTIONS_PER_IM"] or -1,
        **_resnet(v, int(match[2]), int(match[3])),
    }
    if fpn:
        flat |= _fpn(v, one_stage)
    if one_stage:
        return flat | _retinanet(v, top)
    flat |= _rpn(v, f"res{match[3]}", fpn) if has_rpn or only_rpn else _given(v)
    if only_rpn:
        return {**flat, "MODEL.META_ARCHITECTURE": "ProposalNetwork"}
    return flat | _heads(v, top, f"res{match[3]}")


def _means(v: Values) -> tuple[float, ...]:
    means = v["PIXEL_MEANS"]
    if len(means) != 3:
        v.refuse("PIXEL_MEANS", "expected three numbers, for blue, green and red")
        return (0.0, 0.0, 0.0)
    return tuple(map(float, means))


def _resnet(v: Values, depth: int, last: int) -> Flat:
    transformation = v.choice(
        "RESNETS.TRANS_FUNC", {"bottleneck_transformation": "FrozenBN", "bottleneck_gn_transformation": "GN"}
    )
    for key, frozen, group in (
        ("RESNETS.STEM_FUNC", "basic_bn_stem", "basic_gn_stem"),
        ("RESNETS.SHORTCUT_FUNC", "basic_bn_shortcut", "basic_gn_shortcut"),
    ):
        if v[key] != (group if transformation == "GN" else frozen):
            v.refuse(key, f"expected the same norm as RESNETS.TRANS_FUNC = {v['RESNETS.TRANS_FUNC']!r}")
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.NORM": transformation,
        "MODEL.RESNETS.NUM_GROUPS": v["RESNETS.NUM_GROUPS"],
        "MODEL.RESNETS.WIDTH_PER_GROUP": v["RESNETS.WIDTH_PER_GROUP"],
        "MODEL.RESNETS.STRIDE_IN_1X1": v["RESNETS.STRIDE_1X1"],
        "MODEL.RESNETS.RES5_DILATION": v["RESNETS.RES5_DILATION"],
        "MODEL.RESNETS.OUT_FEATURES": (f"res{last}",),
    }


def _fpn(v: Values, one_stage: bool) -> Flat:
    """Laterals reach down to the lowest level that RPN or regions use."""
    extra = v["FPN.EXTRA_CONV_LEVELS"]
    levels = [v["FPN.RPN_MIN_LEVEL"]] if v["FPN.MULTILEVEL_RPN"] else []
    levels += [v["FPN.ROI_MIN_LEVEL"]] if v["FPN.MULTILEVEL_ROIS"] else []
    lowest = min(levels, default=2)
    if not 2 <= lowest <= 5:
        v.refuse("FPN.RPN_MIN_LEVEL", "expected 2 to 5")
        lowest = 2
    if v["FPN.MULTILEVEL_RPN"] and v["FPN.RPN_MAX_LEVEL"] > (7 if extra else 6):
        v.refuse("FPN.RPN_MAX_LEVEL", "expected at most 6, or 7 with FPN.EXTRA_CONV_LEVELS")
    if extra and not one_stage:
        v.refuse("FPN.EXTRA_CONV_LEVELS", "expected False but in RetinaNet")
    features = RESNET[lowest - 2 :]
    builder = "build_retinanet_resnet_fpn_backbone" if extra else "build_resnet_fpn_backbone"
    return {
        "MODEL.BACKBONE.NAME": builder,
        "MODEL.RESNETS.OUT_FEATURES": features,
        "MODEL.FPN.IN_FEATURES": features,
        "MODEL.FPN.OUT_CHANNELS": v["FPN.DIM"],
        "MODEL.FPN.NORM": "GN" if v["FPN.USE_GN"] else "",
        "MODEL.ROI_HEADS.CANONICAL_BOX_SIZE": v["FPN.ROI_CANONICAL_SCALE"],
        "MODEL.ROI_HEADS.CANONICAL_LEVEL": v["FPN.ROI_CANONICAL_LEVEL"],
    }


def _levels(v: Values, of: str) -> tuple[int, int]:
    """The lowest and the highest level of the pyramid that RPN (or RetinaNet) or the regions use."""
    lowest = v.count(f"FPN.{of}_MIN_LEVEL", 2, 7)
    return lowest, v.count(f"FPN.{of}_MAX_LEVEL", lowest, 7)


def _retinanet(v: Values, classes: int) -> Flat:
    lowest, highest = _levels(v, "RPN")
    count = v.count("RETINANET.SCALES_PER_OCTAVE")
    octaves = [2 ** (o / count) for o in range(count)]
    if not v["FPN.FPN_ON"]:
        v.refuse("FPN.FPN_ON", "RetinaNet needs a feature pyramid")
    return {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.ANCHOR_GENERATOR.SIZES": tuple(
            tuple(2**level * octave * v["RETINANET.ANCHOR_SCALE"] for octave in octaves)
            for level in range(lowest, highest + 1)
        ),
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (tuple(map(float, v["RETINANET.ASPECT_RATIOS"])),),
        "MODEL.RETINANET.IN_FEATURES": pyramid(lowest, highest),
        "MODEL.RETINANET.NUM_CLASSES": classes,
        "MODEL.RETINANET.NUM_CONVS": v["RETINANET.NUM_CONVS"],
        "MODEL.RETINANET.SCORE_THRESH_TEST": v["RETINANET.INFERENCE_TH"],
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": v["RETINANET.PRE_NMS_TOP_N"],
        "MODEL.RETINANET.NMS_THRESH_TEST": v["TEST.NMS"],
    }


def _given(v: Values) -> Flat:
    return {
        "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals",
        "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": v["TEST.PROPOSAL_LIMIT"],
    }


def _rpn(v: Values, feature: str, fpn: bool) -> Flat:
    flat: Flat = {
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": v["TEST.RPN_MIN_SIZE"],
        "MODEL.RPN.PRE_NMS_TOPK_TEST": v["TEST.RPN_PRE_NMS_TOP_N"],
        "MODEL.RPN.POST_NMS_TOPK_TEST": v["TEST.RPN_POST_NMS_TOP_N"],
        "MODEL.RPN.POST_NMS_TOPK_PER_LEVEL": v["TEST.RPN_POST_NMS_TOP_N"],
        "MODEL.RPN.NMS_THRESH": v["TEST.RPN_NMS_THRESH"],
    }
    if not fpn:
        if v["RPN.STRIDE"] != 16:
            v.refuse("RPN.STRIDE", "expected 16")
        return flat | {
            "MODEL.RPN.IN_FEATURES": (feature,),
            "MODEL.ANCHOR_GENERATOR.SIZES": (tuple(map(float, v["RPN.SIZES"])),),
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (tuple(map(float, v["RPN.ASPECT_RATIOS"])),),
        }
    if not v["FPN.MULTILEVEL_RPN"]:
        v.refuse("FPN.MULTILEVEL_RPN", "expected True: an RPN on one level of a pyramid is not supported")
    lowest, highest = _levels(v, "RPN")
    start = float(v["FPN.RPN_ANCHOR_START_SIZE"])
    return flat | {
        "MODEL.RPN.IN_FEATURES": pyramid(lowest, highest),
        "MODEL.ANCHOR_GENERATOR.SIZES": tuple((start * 2**i,) for i in range(highest - lowest + 1)),
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (tuple(map(float, v["FPN.RPN_ASPECT_RATIOS"])),),
    }


def _heads(v: Values, classes: int, feature: str) -> Flat:
    rois = pyramid(*_levels(v, "ROI")) if v["FPN.FPN_ON"] else (feature,)
    if v["FPN.FPN_ON"] and not v["FPN.MULTILEVEL_ROIS"]:
        v.refuse("FPN.MULTILEVEL_ROIS", "expected True: regions on one level of a pyramid are not supported")
    flat: Flat = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.MASK_ON": v["MODEL.MASK_ON"],
        "MODEL.KEYPOINT_ON": v["MODEL.KEYPOINTS_ON"],
        "MODEL.ROI_HEADS.IN_FEATURES": rois,
        "MODEL.ROI_HEADS.NUM_CLASSES": classes,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": v["TEST.SCORE_THRESH"],
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": v["TEST.NMS"],
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": tuple(map(float, v["MODEL.BBOX_REG_WEIGHTS"])),
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": v["MODEL.CLS_AGNOSTIC_BBOX_REG"],
        **_pooler(v, "FAST_RCNN", "ROI_BOX_HEAD"),
        **_box_head(v),
    }
    if v["MODEL.MASK_ON"]:
        flat |= _mask_head(v, flat["MODEL.ROI_HEADS.NAME"] == "Res5ROIHeads")
    if v["MODEL.KEYPOINTS_ON"]:
        flat |= _keypoint_head(v)
    return flat


def _pooler(v: Values, section: str, head: str) -> Flat:
    return {
        f"MODEL.{head}.POOLER_TYPE": v.choice(f"{section}.ROI_XFORM_METHOD", _POOLERS),
        f"MODEL.{head}.POOLER_RESOLUTION": v[f"{section}.ROI_XFORM_RESOLUTION"],
        f"MODEL.{head}.POOLER_SAMPLING_RATIO": v[f"{section}.ROI_XFORM_SAMPLING_RATIO"],
    }


def _box_head(v: Values) -> Flat:
    key, prefix = "FAST_RCNN.ROI_BOX_HEAD", "MODEL.ROI_BOX_HEAD."
    kind, norm = v.choice(
        key,
        {
            "ResNet.add_ResNet_roi_conv5_head": ("res5", ""),
            "fast_rcnn_heads.add_roi_2mlp_head": ("mlp", ""),
            "head_builder.add_roi_2mlp_head": ("mlp", ""),  # its older name
            "fast_rcnn_heads.add_roi_Xconv1fc_head": ("convs", ""),
            "fast_rcnn_heads.add_roi_Xconv1fc_gn_head": ("convs", "GN"),
        },
    )
    if kind == "res5":
        if v["FAST_RCNN.ROI_XFORM_RESOLUTION"] != 14:
            v.refuse("FAST_RCNN.ROI_XFORM_RESOLUTION", f"expected 14 with {v[key]}")
        return {"MODEL.ROI_HEADS.NAME": "Res5ROIHeads"}
    return {
        "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
        f"{prefix}NAME": "FastRCNNConvFCHead",
        f"{prefix}NUM_CONV": v["FAST_RCNN.NUM_STACKED_CONVS"] if kind == "convs" else 0,
        f"{prefix}CONV_DIM": v["FAST_RCNN.CONV_HEAD_DIM"],
        f"{prefix}NUM_FC": 1 if kind == "convs" else 2,
        f"{prefix}FC_DIM": v["FAST_RCNN.MLP_HEAD_DIM"],
        f"{prefix}NORM": norm,
    }


def _mask_head(v: Values, res5: bool) -> Flat:
    key, prefix = "MRCNN.ROI_MASK_HEAD", "MODEL.ROI_MASK_HEAD."
    shared = {"mask_rcnn_heads.mask_rcnn_fcn_head_v0upshare": (0, "")}
    convolutions = {
        "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs": (4, ""),
        "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs_gn": (4, "GN"),
        "mask_rcnn_heads.mask_rcnn_fcn_head_v1up": (2, ""),
    }
    convs, norm = v.choice(key, shared if res5 else convolutions)
    side = v["MRCNN.ROI_XFORM_RESOLUTION"] * (1 if res5 else 2)
    if v["MRCNN.RESOLUTION"] != side:
        v.refuse("MRCNN.RESOLUTION", f"expected {side} from regions of MRCNN.ROI_XFORM_RESOLUTION")
    if v["MRCNN.UPSAMPLE_RATIO"] != 1:
        v.refuse("MRCNN.UPSAMPLE_RATIO", "expected 1")
    if v["MRCNN.USE_FC_OUTPUT"]:
        v.refuse("MRCNN.USE_FC_OUTPUT", "expected False")
    if res5 and v["MRCNN.DILATION"] != 1:
        v.refuse("MRCNN.DILATION", "expected 1 with the shared stage")
    if res5 and any(
        v[f"MRCNN.ROI_XFORM_{k}"] != v[f"FAST_RCNN.ROI_XFORM_{k}"]
        for k in ("METHOD", "RESOLUTION", "SAMPLING_RATIO")
    ):
        v.refuse(
            "MRCNN.ROI_XFORM_METHOD", "expected regions pooled as FAST_RCNN pools them, whose stage is shared"
        )
    return {
        f"{prefix}NUM_CONV": convs,
        f"{prefix}CONV_DIM": v["MRCNN.DIM_REDUCED"],
        f"{prefix}NORM": norm,
        f"{prefix}DILATION": v["MRCNN.DILATION"],
        f"{prefix}THRESH": v["MRCNN.THRESH_BINARIZE"],
        f"{prefix}CLS_AGNOSTIC_MASK": not v["MRCNN.CLS_SPECIFIC_MASK"],
        **_pooler(v, "MRCNN", "ROI_MASK_HEAD"),
    }


def _keypoint_head(v: Values) -> Flat:
    prefix = "MODEL.ROI_KEYPOINT_HEAD."
    v.choice("KRCNN.ROI_KEYPOINTS_HEAD", {"keypoint_rcnn_heads.add_roi_pose_head_v1convX": None})
    for key, value in (
        ("USE_DECONV", False),
        ("USE_DECONV_OUTPUT", True),
        ("UP_SCALE", 2),
        ("DILATION", 1),
        ("CONV_HEAD_KERNEL", 3),
        ("DECONV_KERNEL", 4),
        ("HEATMAP_SIZE", 4 * v["KRCNN.ROI_XFORM_RESOLUTION"]),
    ):
        if v[f"KRCNN.{key}"] != value:
            v.refuse(f"KRCNN.{key}", f"expected {value}")
    return {
        f"{prefix}CONV_DIMS": (v["KRCNN.CONV_HEAD_DIM"],) * v.count("KRCNN.NUM_STACKED_CONVS"),
        f"{prefix}NUM_KEYPOINTS": v["KRCNN.NUM_KEYPOINTS"],
        f"{prefix}INFERENCE_MIN_SIZE": v["KRCNN.INFERENCE_MIN_SIZE"],
        **_pooler(v, "KRCNN", "ROI_KEYPOINT_HEAD"),
    }


DETECTRON = Older("Detectron", "detectron", DEFAULTS, IGNORED, FIXED, _translate)


def is_detectron(data: dict) -> bool:
    """Whether the mapping of a YAML file is Detectron's: it names a CONV_BODY where only Detectron has one."""
    model = data.get("MODEL")
    return isinstance(model, dict) and ("CONV_BODY" in model or "TYPE" in model)
