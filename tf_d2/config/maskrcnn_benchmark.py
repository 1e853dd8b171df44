"""maskrcnn-benchmark's configuration. Source: maskrcnn_benchmark/config/defaults.py, modeling/."""

from __future__ import annotations

import re

from tf_d2.config.defaults import Flat
from tf_d2.config.older import RESNET, Older, Values, pyramid

DEFAULTS: Flat = {
    "MODEL.RPN_ONLY": False,
    "MODEL.MASK_ON": False,
    "MODEL.RETINANET_ON": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.WEIGHT": "",
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.PIXEL_MEAN": (102.9801, 115.9465, 122.7717),
    "INPUT.PIXEL_STD": (1.0, 1.0, 1.0),
    "INPUT.TO_BGR255": True,
    "DATASETS.TRAIN": (),
    "DATASETS.TEST": (),
    "DATALOADER.SIZE_DIVISIBILITY": 0,
    "MODEL.BACKBONE.CONV_BODY": "R-50-C4",
    "MODEL.FPN.USE_GN": False,
    "MODEL.FPN.USE_RELU": False,
    "MODEL.GROUP_NORM.DIM_PER_GP": -1,
    "MODEL.GROUP_NORM.NUM_GROUPS": 32,
    "MODEL.GROUP_NORM.EPSILON": 1e-5,
    "MODEL.RPN.USE_FPN": False,
    "MODEL.RPN.ANCHOR_SIZES": (32, 64, 128, 256, 512),
    "MODEL.RPN.ANCHOR_STRIDE": (16,),
    "MODEL.RPN.ASPECT_RATIOS": (0.5, 1.0, 2.0),
    "MODEL.RPN.PRE_NMS_TOP_N_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOP_N_TEST": 1000,
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.MIN_SIZE": 0,
    "MODEL.RPN.FPN_POST_NMS_TOP_N_TEST": 2000,
    "MODEL.RPN.RPN_HEAD": "SingleConvRPNHead",
    "MODEL.ROI_HEADS.USE_FPN": False,
    "MODEL.ROI_HEADS.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_HEADS.SCORE_THRESH": 0.05,
    "MODEL.ROI_HEADS.NMS": 0.5,
    "MODEL.ROI_HEADS.DETECTIONS_PER_IMG": 100,
    "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR": "ResNet50Conv5ROIFeatureExtractor",
    "MODEL.ROI_BOX_HEAD.PREDICTOR": "FastRCNNPredictor",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_SCALES": (1.0 / 16,),
    "MODEL.ROI_BOX_HEAD.NUM_CLASSES": 81,
    "MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.USE_GN": False,
    "MODEL.ROI_BOX_HEAD.DILATION": 1,
    "MODEL.ROI_BOX_HEAD.CONV_HEAD_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NUM_STACKED_CONVS": 4,
    "MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR": "ResNet50Conv5ROIFeatureExtractor",
    "MODEL.ROI_MASK_HEAD.PREDICTOR": "MaskRCNNC4Predictor",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_SCALES": (1.0 / 16,),
    "MODEL.ROI_MASK_HEAD.CONV_LAYERS": (256, 256, 256, 256),
    "MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR": True,
    "MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS_THRESHOLD": 0.5,
    "MODEL.ROI_MASK_HEAD.DILATION": 1,
    "MODEL.ROI_MASK_HEAD.USE_GN": False,
    "MODEL.ROI_KEYPOINT_HEAD.FEATURE_EXTRACTOR": "KeypointRCNNFeatureExtractor",
    "MODEL.ROI_KEYPOINT_HEAD.PREDICTOR": "KeypointRCNNPredictor",
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SCALES": (1.0 / 16,),
    "MODEL.ROI_KEYPOINT_HEAD.CONV_LAYERS": (512,) * 8,
    "MODEL.ROI_KEYPOINT_HEAD.NUM_CLASSES": 17,
    "MODEL.ROI_KEYPOINT_HEAD.SHARE_BOX_FEATURE_EXTRACTOR": True,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.TRANS_FUNC": "BottleneckWithFixedBatchNorm",
    "MODEL.RESNETS.STEM_FUNC": "StemWithFixedBatchNorm",
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.BACKBONE_OUT_CHANNELS": 1024,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.STAGE_WITH_DCN": (False, False, False, False),
    "MODEL.RESNETS.WITH_MODULATED_DCN": False,
    "MODEL.RESNETS.DEFORMABLE_GROUPS": 1,
    "MODEL.RETINANET.NUM_CLASSES": 81,
    "MODEL.RETINANET.ANCHOR_SIZES": (32, 64, 128, 256, 512),
    "MODEL.RETINANET.ASPECT_RATIOS": (0.5, 1.0, 2.0),
    "MODEL.RETINANET.ANCHOR_STRIDES": (8, 16, 32, 64, 128),
    "MODEL.RETINANET.OCTAVE": 2.0,
    "MODEL.RETINANET.SCALES_PER_OCTAVE": 3,
    "MODEL.RETINANET.USE_C5": True,
    "MODEL.RETINANET.NUM_CONVS": 4,
    "MODEL.RETINANET.PRE_NMS_TOP_N": 1000,
    "MODEL.RETINANET.INFERENCE_TH": 0.05,
    "MODEL.RETINANET.NMS_TH": 0.4,
    "TEST.DETECTIONS_PER_IMG": 100,
}
_IGNORED = (
    *"SOLVER. TEST.BBOX_AUG. MODEL.FBNET. MODEL.DEVICE MODEL.BACKBONE.FREEZE_CONV_BODY_AT".split(),
    *"INPUT.MIN_SIZE_TRAIN INPUT.MAX_SIZE_TRAIN INPUT.BRIGHTNESS INPUT.CONTRAST INPUT.SATURATION INPUT.HUE".split(),
    *"INPUT.HORIZONTAL_FLIP_PROB_TRAIN INPUT.VERTICAL_FLIP_PROB_TRAIN INPUT.MIN_SIZE_RANGE_TRAIN".split(),
    *"DATALOADER.NUM_WORKERS DATALOADER.ASPECT_RATIO_GROUPING MODEL.RPN.STRADDLE_THRESH".split(),
    *"MODEL.RPN.FG_IOU_THRESHOLD MODEL.RPN.BG_IOU_THRESHOLD MODEL.RPN.BATCH_SIZE_PER_IMAGE".split(),
    *"MODEL.RPN.POSITIVE_FRACTION MODEL.RPN.PRE_NMS_TOP_N_TRAIN MODEL.RPN.POST_NMS_TOP_N_TRAIN".split(),
    *"MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN MODEL.RPN.FPN_POST_NMS_PER_BATCH MODEL.ROI_HEADS.FG_IOU_THRESHOLD".split(),
    *"MODEL.ROI_HEADS.BG_IOU_THRESHOLD MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE".split(),
    *"MODEL.ROI_HEADS.POSITIVE_FRACTION MODEL.ROI_MASK_HEAD.MLP_HEAD_DIM MODEL.ROI_MASK_HEAD.RESOLUTION".split(),
    *"MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS MODEL.ROI_KEYPOINT_HEAD.MLP_HEAD_DIM".split(),
    *"MODEL.ROI_KEYPOINT_HEAD.RESOLUTION MODEL.RETINANET.STRADDLE_THRESH MODEL.RETINANET.BBOX_REG_WEIGHT".split(),
    *"MODEL.RETINANET.BBOX_REG_BETA MODEL.RETINANET.FG_IOU_THRESHOLD MODEL.RETINANET.BG_IOU_THRESHOLD".split(),
    *"MODEL.RETINANET.LOSS_ALPHA MODEL.RETINANET.LOSS_GAMMA MODEL.RETINANET.PRIOR_PROB TEST.EXPECTED_RESULTS".split(),
    *"TEST.EXPECTED_RESULTS_SIGMA_TOL TEST.IMS_PER_BATCH OUTPUT_DIR PATHS_CATALOG DTYPE AMP_VERBOSE".split(),
)
_FIXED: Flat = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.FPN.USE_RELU": False,
    "MODEL.GROUP_NORM.DIM_PER_GP": -1,
    "MODEL.GROUP_NORM.NUM_GROUPS": 32,
    "MODEL.GROUP_NORM.EPSILON": 1e-5,
    "MODEL.RPN.RPN_HEAD": "SingleConvRPNHead",
    "MODEL.ROI_BOX_HEAD.DILATION": 1,
}
_BODY = re.compile(r"R-(50|101|152)-(C4|C5|FPN|FPN-RETINANET)")


def _translate(v: Values) -> Flat:
    match = _BODY.fullmatch(str(v["MODEL.BACKBONE.CONV_BODY"]))
    if match is None or match[0] in ("R-152-C4", "R-152-C5"):
        v.refuse("MODEL.BACKBONE.CONV_BODY", "expected R-50-C4, R-50-FPN, R-50-FPN-RETINANET, ... (101, 152)")
        return {}
    depth, body = int(match[1]), match[2]
    one_stage, fpn = v["MODEL.RETINANET_ON"], body.startswith("FPN")
    if one_stage != body.endswith("RETINANET"):
        v.refuse(
            "MODEL.BACKBONE.CONV_BODY", "MODEL.RETINANET_ON and a body that ends in RETINANET go together"
        )
    flat: Flat = {
        "MODEL.WEIGHTS": v["MODEL.WEIGHT"],
        "DATASETS.TRAIN": v["DATASETS.TRAIN"],
        "DATASETS.TEST": v["DATASETS.TEST"],
        **_input(v),
        **_resnet(v, depth, f"res{body[1]}" if not fpn else "res5"),
    }
    if fpn:
        features = RESNET[1:] if one_stage else RESNET
        builder = "build_retinanet_resnet_fpn_backbone" if one_stage else "build_resnet_fpn_backbone"
        flat |= {
            "MODEL.BACKBONE.NAME": builder,
            "MODEL.RESNETS.OUT_FEATURES": features,
            "MODEL.FPN.IN_FEATURES": features,
            "MODEL.FPN.OUT_CHANNELS": v["MODEL.RESNETS.BACKBONE_OUT_CHANNELS"],
            "MODEL.FPN.NORM": "GN" if v["MODEL.FPN.USE_GN"] else "",
            "MODEL.FPN.TOP_FEATURE": "p5" if one_stage and not v["MODEL.RETINANET.USE_C5"] else "",
        }
    if one_stage:
        return flat | _retinanet(v)
    flat |= _rpn(v, fpn, f"res{body[1]}")
    if v["MODEL.RPN_ONLY"]:
        return {**flat, "MODEL.META_ARCHITECTURE": "ProposalNetwork"}
    return flat | _heads(v, fpn, f"res{body[1]}")


def _input(v: Values) -> Flat:
    """Without TO_BGR255 the network sees RGB between 0 and 1."""
    unit = 1.0 if v["INPUT.TO_BGR255"] else 255.0
    return {
        "INPUT.FORMAT": "BGR" if v["INPUT.TO_BGR255"] else "RGB",
        "INPUT.MIN_SIZE_TEST": v["INPUT.MIN_SIZE_TEST"],
        "INPUT.MAX_SIZE_TEST": v["INPUT.MAX_SIZE_TEST"],
        "MODEL.PIXEL_MEAN": tuple(unit * m for m in v["INPUT.PIXEL_MEAN"]),
        "MODEL.PIXEL_STD": tuple(unit * s for s in v["INPUT.PIXEL_STD"]),
        "MODEL.SIZE_DIVISIBILITY": v["DATALOADER.SIZE_DIVISIBILITY"],
    }


def _resnet(v: Values, depth: int, last: str) -> Flat:
    norms = {
        "BottleneckWithFixedBatchNorm": "FrozenBN",
        "BottleneckWithBatchNorm": "BN",
        "BottleneckWithGN": "GN",
    }
    norm = v.choice("MODEL.RESNETS.TRANS_FUNC", norms)
    stem = v["MODEL.RESNETS.TRANS_FUNC"].replace("Bottleneck", "Stem")
    if v["MODEL.RESNETS.STEM_FUNC"] != stem:
        v.refuse("MODEL.RESNETS.STEM_FUNC", f"expected {stem!r}, the norm of TRANS_FUNC")
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.NORM": norm,
        "MODEL.RESNETS.NUM_GROUPS": v["MODEL.RESNETS.NUM_GROUPS"],
        "MODEL.RESNETS.WIDTH_PER_GROUP": v["MODEL.RESNETS.WIDTH_PER_GROUP"],
        "MODEL.RESNETS.STRIDE_IN_1X1": v["MODEL.RESNETS.STRIDE_IN_1X1"],
        "MODEL.RESNETS.RES5_DILATION": v["MODEL.RESNETS.RES5_DILATION"],
        "MODEL.RESNETS.RES2_OUT_CHANNELS": v["MODEL.RESNETS.RES2_OUT_CHANNELS"],
        "MODEL.RESNETS.STEM_OUT_CHANNELS": v["MODEL.RESNETS.STEM_OUT_CHANNELS"],
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": v["MODEL.RESNETS.STAGE_WITH_DCN"],
        "MODEL.RESNETS.DEFORM_MODULATED": v["MODEL.RESNETS.WITH_MODULATED_DCN"],
        "MODEL.RESNETS.DEFORM_NUM_GROUPS": v["MODEL.RESNETS.DEFORMABLE_GROUPS"],
        "MODEL.RESNETS.OUT_FEATURES": (last,),
    }


def _retinanet(v: Values) -> Flat:
    octave, count = v["MODEL.RETINANET.OCTAVE"], v.count("MODEL.RETINANET.SCALES_PER_OCTAVE")
    if v["MODEL.RETINANET.ANCHOR_STRIDES"] != (8, 16, 32, 64, 128):
        v.refuse("MODEL.RETINANET.ANCHOR_STRIDES", "expected (8, 16, 32, 64, 128)")
    return {
        "MODEL.META_ARCHITECTURE": "RetinaNet",
        "MODEL.ANCHOR_GENERATOR.SIZES": tuple(
            tuple(size * octave ** (o / count) for o in range(count))
            for size in v["MODEL.RETINANET.ANCHOR_SIZES"]
        ),
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (tuple(map(float, v["MODEL.RETINANET.ASPECT_RATIOS"])),),
        "MODEL.RETINANET.IN_FEATURES": pyramid(3, 7),
        "MODEL.RETINANET.NUM_CLASSES": v["MODEL.RETINANET.NUM_CLASSES"] - 1,
        "MODEL.RETINANET.NUM_CONVS": v["MODEL.RETINANET.NUM_CONVS"],
        "MODEL.RETINANET.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
        "MODEL.RETINANET.SCORE_THRESH_TEST": v["MODEL.RETINANET.INFERENCE_TH"],
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": v["MODEL.RETINANET.PRE_NMS_TOP_N"],
        "MODEL.RETINANET.NMS_THRESH_TEST": v["MODEL.RETINANET.NMS_TH"],
        "TEST.DETECTIONS_PER_IMAGE": v["TEST.DETECTIONS_PER_IMG"] or -1,
    }


def _rpn(v: Values, fpn: bool, feature: str) -> Flat:
    prefix = "MODEL.RPN."
    strides = (4, 8, 16, 32, 64) if fpn else (16,)
    if v["MODEL.RPN.USE_FPN"] != fpn:
        v.refuse("MODEL.RPN.USE_FPN", f"expected {fpn} with this body")
    if v["MODEL.RPN.ANCHOR_STRIDE"] != strides:
        v.refuse("MODEL.RPN.ANCHOR_STRIDE", f"expected {strides}")
    sizes = tuple(map(float, v["MODEL.RPN.ANCHOR_SIZES"]))
    after = v["MODEL.RPN.FPN_POST_NMS_TOP_N_TEST" if fpn else "MODEL.RPN.POST_NMS_TOP_N_TEST"]
    return {
        "MODEL.ANCHOR_GENERATOR.SIZES": tuple((size,) for size in sizes) if fpn else (sizes,),
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": (tuple(map(float, v["MODEL.RPN.ASPECT_RATIOS"])),),
        f"{prefix}IN_FEATURES": pyramid(2, 6) if fpn else (feature,),
        f"{prefix}PRE_NMS_TOPK_TEST": v["MODEL.RPN.PRE_NMS_TOP_N_TEST"],
        f"{prefix}POST_NMS_TOPK_TEST": after,
        f"{prefix}POST_NMS_TOPK_PER_LEVEL": v["MODEL.RPN.POST_NMS_TOP_N_TEST"],
        f"{prefix}NMS_THRESH": v["MODEL.RPN.NMS_THRESH"],
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": v["MODEL.RPN.MIN_SIZE"],
    }


def _heads(v: Values, fpn: bool, feature: str) -> Flat:
    flat: Flat = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.MASK_ON": v["MODEL.MASK_ON"],
        "MODEL.KEYPOINT_ON": v["MODEL.KEYPOINT_ON"],
        "MODEL.ROI_HEADS.NUM_CLASSES": v["MODEL.ROI_BOX_HEAD.NUM_CLASSES"] - 1,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": v["MODEL.ROI_HEADS.SCORE_THRESH"],
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": v["MODEL.ROI_HEADS.NMS"],
        "TEST.DETECTIONS_PER_IMAGE": v["MODEL.ROI_HEADS.DETECTIONS_PER_IMG"] or -1,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": tuple(map(float, v["MODEL.ROI_HEADS.BBOX_REG_WEIGHTS"])),
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": v["MODEL.CLS_AGNOSTIC_BBOX_REG"],
        **_pooler(v, "ROI_BOX_HEAD"),
    }
    key = "MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR"
    allowed = {
        "ResNet50Conv5ROIFeatureExtractor": "res5",
        "FPN2MLPFeatureExtractor": "mlp",
        "FPNXconv1fcFeatureExtractor": "convs",
    }
    kind = v.choice(key, allowed)
    if (kind == "res5") == fpn:
        v.refuse(key, "expected ResNet50Conv5ROIFeatureExtractor without a feature pyramid, another with one")
    if kind == "res5":
        flat |= {"MODEL.ROI_HEADS.NAME": "Res5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES": (feature,)}
        if v["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"] != 14:
            v.refuse("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "expected 14")
    else:
        prefix, convs = "MODEL.ROI_BOX_HEAD.", kind == "convs"
        flat |= {
            "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES": pyramid(2, 5),
            f"{prefix}NAME": "FastRCNNConvFCHead",
            f"{prefix}NUM_CONV": v["MODEL.ROI_BOX_HEAD.NUM_STACKED_CONVS"] if convs else 0,
            f"{prefix}CONV_DIM": v["MODEL.ROI_BOX_HEAD.CONV_HEAD_DIM"],
            f"{prefix}NUM_FC": 1 if convs else 2,
            f"{prefix}FC_DIM": v["MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM"],
            f"{prefix}NORM": "GN" if v["MODEL.ROI_BOX_HEAD.USE_GN"] else "",
        }
        if v["MODEL.ROI_BOX_HEAD.USE_GN"] and not convs:
            v.refuse("MODEL.ROI_BOX_HEAD.USE_GN", "expected False but with FPNXconv1fcFeatureExtractor")
    if v["MODEL.MASK_ON"]:
        flat |= _mask_head(v, kind == "res5")
    if v["MODEL.KEYPOINT_ON"]:
        flat |= _keypoint_head(v)
    return flat


def _pooler(v: Values, head: str) -> Flat:
    return {
        f"MODEL.{head}.POOLER_TYPE": "ROIAlign",
        f"MODEL.{head}.POOLER_RESOLUTION": v[f"MODEL.{head}.POOLER_RESOLUTION"],
        f"MODEL.{head}.POOLER_SAMPLING_RATIO": v[f"MODEL.{head}.POOLER_SAMPLING_RATIO"],
    }


def _mask_head(v: Values, res5: bool) -> Flat:
    section, prefix = "MODEL.ROI_MASK_HEAD.", "MODEL.ROI_MASK_HEAD."
    extractor = "ResNet50Conv5ROIFeatureExtractor" if res5 else "MaskRCNNFPNFeatureExtractor"
    if v[f"{section}FEATURE_EXTRACTOR"] != extractor:
        v.refuse(f"{section}FEATURE_EXTRACTOR", f"expected {extractor!r}")
    if v[f"{section}PREDICTOR"] != "MaskRCNNC4Predictor":
        v.refuse(f"{section}PREDICTOR", "expected 'MaskRCNNC4Predictor'")
    if v[f"{section}SHARE_BOX_FEATURE_EXTRACTOR"] != res5:
        v.refuse(f"{section}SHARE_BOX_FEATURE_EXTRACTOR", f"expected {res5}")
    layers = v[f"{section}CONV_LAYERS"]
    if len(set(layers)) != 1:
        v.refuse(f"{section}CONV_LAYERS", "expected equal numbers of channels")
    return {
        f"{prefix}NUM_CONV": 0 if res5 else len(layers),
        f"{prefix}CONV_DIM": layers[-1] if layers else 256,
        f"{prefix}NORM": "GN" if v[f"{section}USE_GN"] and not res5 else "",
        f"{prefix}DILATION": 1 if res5 else v[f"{section}DILATION"],
        f"{prefix}THRESH": v[f"{section}POSTPROCESS_MASKS_THRESHOLD"],
        **_pooler(v, "ROI_MASK_HEAD"),
    }


def _keypoint_head(v: Values) -> Flat:
    section = "MODEL.ROI_KEYPOINT_HEAD."
    if v[f"{section}FEATURE_EXTRACTOR"] != "KeypointRCNNFeatureExtractor":
        v.refuse(f"{section}FEATURE_EXTRACTOR", "expected 'KeypointRCNNFeatureExtractor'")
    if v[f"{section}SHARE_BOX_FEATURE_EXTRACTOR"]:
        v.refuse(f"{section}SHARE_BOX_FEATURE_EXTRACTOR", "expected False")
    return {
        f"{section}CONV_DIMS": v[f"{section}CONV_LAYERS"],
        f"{section}NUM_KEYPOINTS": v[f"{section}NUM_CLASSES"],
        **_pooler(v, "ROI_KEYPOINT_HEAD"),
    }


MASKRCNN_BENCHMARK = Older("maskrcnn-benchmark", "maskrcnn-benchmark", DEFAULTS, _IGNORED, _FIXED, _translate)
_MARKS = (
    ("BACKBONE", "CONV_BODY"),
    ("ROI_BOX_HEAD", "FEATURE_EXTRACTOR"),
    ("ROI_BOX_HEAD", "PREDICTOR"),
    ("RPN", "USE_FPN"),
    ("RPN", "ANCHOR_STRIDE"),
    ("ROI_HEADS", "USE_FPN"),
    ("RPN", "PRE_NMS_TOP_N_TEST"),
    ("RPN", "POST_NMS_TOP_N_TEST"),
    ("ROI_MASK_HEAD", "PREDICTOR"),
    ("ROI_MASK_HEAD", "SHARE_BOX_FEATURE_EXTRACTOR"),
)


def is_maskrcnn_benchmark(data: dict) -> bool:
    """Whether the mapping of a YAML file is maskrcnn-benchmark's: it has a key that detectron2 never had."""
    model = data.get("MODEL")
    if not isinstance(model, dict):
        return False
    return any(isinstance(model.get(a), dict) and b in model[a] for a, b in _MARKS)
