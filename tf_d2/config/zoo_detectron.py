"""Configurations of Detectron's published models by name: facts of ``configs/12_2017_baselines`` and
``configs/04_2018_gn_baselines``.

Names are ``Detectron/`` and the file's (``Detectron/e2e_mask_rcnn_R-50-FPN_2x``); detectron2's catalogue names 13
of them
``catalog://Caffe2Detectron/COCO/35858933/e2e_mask_rcnn_R-50-FPN_1x``.
"""

from __future__ import annotations

import re

from tf_d2.config.defaults import Flat

PREFIX = "Detectron/"
_CATALOG = re.compile(r"catalog://Caffe2Detectron/COCO/\d+/")
_NAME = re.compile(
    r"(?P<e2e>e2e_)?(?P<kind>faster_rcnn|mask_rcnn|keypoint_rcnn|fast_rcnn|fast|rpn|retinanet)_"
    r"(?P<body>R-50|R-101|X-101-32x8d|X-101-64x4d)-(?P<part>C4|FPN)_(?:1x|2x|3x|s1x)(?P<gn>_gn)?"
)
_GROUPS: dict[str, Flat] = {
    "R-50": {},
    "R-101": {},
    "X-101-32x8d": {"RESNETS.NUM_GROUPS": 32, "RESNETS.WIDTH_PER_GROUP": 8, "RESNETS.STRIDE_1X1": False},
    "X-101-64x4d": {"RESNETS.NUM_GROUPS": 64, "RESNETS.WIDTH_PER_GROUP": 4, "RESNETS.STRIDE_1X1": False},
}
_REGIONS_FPN: Flat = {
    "FPN.MULTILEVEL_ROIS": True,
    "FAST_RCNN.ROI_BOX_HEAD": "fast_rcnn_heads.add_roi_2mlp_head",
    "FAST_RCNN.ROI_XFORM_METHOD": "RoIAlign",
    "FAST_RCNN.ROI_XFORM_RESOLUTION": 7,
    "FAST_RCNN.ROI_XFORM_SAMPLING_RATIO": 2,
}
_REGIONS_C4: Flat = {
    "FAST_RCNN.ROI_BOX_HEAD": "ResNet.add_ResNet_roi_conv5_head",
    "FAST_RCNN.ROI_XFORM_METHOD": "RoIAlign",
}
_MASK_FPN: Flat = {
    "MODEL.MASK_ON": True,
    "MRCNN.ROI_MASK_HEAD": "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs",
    "MRCNN.RESOLUTION": 28,
    "MRCNN.ROI_XFORM_RESOLUTION": 14,
    "MRCNN.ROI_XFORM_SAMPLING_RATIO": 2,
    "MRCNN.DILATION": 1,
}
_MASK_C4: Flat = {
    "MODEL.MASK_ON": True,
    "MRCNN.ROI_MASK_HEAD": "mask_rcnn_heads.mask_rcnn_fcn_head_v0upshare",
    "MRCNN.RESOLUTION": 14,
    "MRCNN.ROI_XFORM_RESOLUTION": 14,
    "MRCNN.DILATION": 1,
}
_KEYPOINTS: Flat = {
    "MODEL.NUM_CLASSES": 2,
    "MODEL.KEYPOINTS_ON": True,
    "KRCNN.ROI_KEYPOINTS_HEAD": "keypoint_rcnn_heads.add_roi_pose_head_v1convX",
    "KRCNN.NUM_STACKED_CONVS": 8,
    "KRCNN.NUM_KEYPOINTS": 17,
    "KRCNN.USE_DECONV_OUTPUT": True,
    "KRCNN.CONV_HEAD_DIM": 512,
    "KRCNN.UP_SCALE": 2,
    "KRCNN.HEATMAP_SIZE": 56,
    "KRCNN.ROI_XFORM_RESOLUTION": 14,
    "KRCNN.ROI_XFORM_SAMPLING_RATIO": 2,
}
_RETINANET: Flat = {
    "MODEL.TYPE": "retinanet",
    "FPN.RPN_MAX_LEVEL": 7,
    "FPN.RPN_MIN_LEVEL": 3,
    "FPN.COARSEST_STRIDE": 128,
    "FPN.EXTRA_CONV_LEVELS": True,
    "RETINANET.RETINANET_ON": True,
    "RETINANET.ASPECT_RATIOS": (1.0, 2.0, 0.5),
}
_GN: Flat = {
    "FPN.USE_GN": True,
    "RESNETS.STRIDE_1X1": False,
    "RESNETS.TRANS_FUNC": "bottleneck_gn_transformation",
    "RESNETS.STEM_FUNC": "basic_gn_stem",
    "RESNETS.SHORTCUT_FUNC": "basic_gn_shortcut",
    "FAST_RCNN.ROI_BOX_HEAD": "fast_rcnn_heads.add_roi_Xconv1fc_gn_head",
    "MRCNN.ROI_MASK_HEAD": "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs_gn",
}


def file_name(name: str) -> str:
    """``Detectron/x`` or its catalogue name -> x; "" for other names. ``R_50`` may stand for ``R-50``."""
    catalog = _CATALOG.match(name)
    if catalog:
        return name[catalog.end() :]
    if not name.startswith(PREFIX):
        return ""
    stem = name.removeprefix(PREFIX).removesuffix(".yaml")
    return (
        re.sub(r"_(R|X)[_-](50|101)[_-]", r"_\1-\2-", stem)
        .replace("8d_FPN", "8d-FPN")
        .replace("4d_FPN", "4d-FPN")
    )


def detectron_data(name: str) -> Flat | None:
    """Detectron's keys of a published model, as its YAML file gives them, or None for another name."""
    match = _NAME.fullmatch(file_name(name))
    if match is None or (
        match["part"] == "C4" and (match["gn"] or match["kind"] in ("keypoint_rcnn", "retinanet"))
    ):
        return None
    kind, fpn = match["kind"], match["part"] == "FPN"
    depth = match["body"].split("-")[1]
    data: Flat = {
        "MODEL.TYPE": "generalized_rcnn",
        "MODEL.CONV_BODY": (
            f"FPN.add_fpn_ResNet{depth}_conv5_body" if fpn else f"ResNet.add_ResNet{depth}_conv4_body"
        ),
        "MODEL.NUM_CLASSES": 81,
        "TEST.DATASETS": ("coco_2014_minival",),
        "TEST.SCALE": 800,
        "TEST.MAX_SIZE": 1333,
        **_GROUPS[match["body"]],
    }
    if fpn:
        data |= {"FPN.FPN_ON": True, "FPN.MULTILEVEL_RPN": True}
    else:
        data |= {"RPN.SIZES": (32, 64, 128, 256, 512)}
    if kind == "retinanet":
        return data | _RETINANET | {"TEST.NMS": 0.5}
    if kind == "rpn":
        tops = {"TEST.RPN_PRE_NMS_TOP_N": 1000, "TEST.RPN_POST_NMS_TOP_N": 2000} if fpn else {}
        return data | {"MODEL.RPN_ONLY": True} | tops
    data |= {"TEST.NMS": 0.5, **(_REGIONS_FPN if fpn else _REGIONS_C4)}
    if match["e2e"]:
        data |= {
            "MODEL.FASTER_RCNN": True,
            "TEST.RPN_PRE_NMS_TOP_N": 1000 if fpn else 6000,
            "TEST.RPN_POST_NMS_TOP_N": 1000,
        }
    else:
        data |= {"TEST.PROPOSAL_LIMIT": 1000}
    if kind == "mask_rcnn":
        data |= _MASK_FPN if fpn else _MASK_C4
    if kind == "keypoint_rcnn":
        data |= _KEYPOINTS | {"TEST.DATASETS": ("keypoints_coco_2014_minival",)}
    return data | _GN if match["gn"] else data
