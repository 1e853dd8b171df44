"""Every key of detectron2's configuration with its default value, flat: ``"MODEL.RPN.NMS_THRESH": 0.7``.

Two tables, by what a key does to inference. The values are facts of ``detectron2/config/defaults.py``.
Sequences are tuples throughout; a YAML list merges into them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weights.errors import UsageError

Flat = dict[str, Any]

_CASCADE_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))

# Not keys of detectron2's own YAML: a key, or all keys that start so. They are written only where one of them is
# not the default. MODEL.REGNETS.* and MODEL.FPN.SQUARE_PAD are names of this project for arguments only LazyConfig
# can set; a depth or width of 0 is "not given"; INPUT.CROP.* is detectron2's, but only
# DeepLab reads it at inference. `add_keys` adds those of projects and of a user's own parts.
OPTIONAL = [
    "MODEL.FPN.SQUARE_PAD",
    "MODEL.REGNETS.",
    "INPUT.CROP.",
    # Detectron's and maskrcnn-benchmark's settings that detectron2 has no key for
    "MODEL.CONVENTIONS",
    "MODEL.SIZE_DIVISIBILITY",
    "MODEL.FPN.TOP_FEATURE",
    "MODEL.RPN.POST_NMS_TOPK_PER_LEVEL",
    "MODEL.ROI_HEADS.CANONICAL_",
    "MODEL.ROI_MASK_HEAD.THRESH",
    "MODEL.ROI_MASK_HEAD.DILATION",
    "MODEL.ROI_KEYPOINT_HEAD.INFERENCE_MIN_SIZE",
]

# Keys that decide what a trained model computes, in the order `resolve_yaml` writes them.
INFERENCE: Flat = {
    "VERSION": 2,
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.CONVENTIONS": "detectron2",
    "MODEL.SIZE_DIVISIBILITY": -1,  # of the padded input; -1 = the backbone's own
    "MODEL.WEIGHTS": "",
    "MODEL.PIXEL_MEAN": (103.53, 116.28, 123.675),
    "MODEL.PIXEL_STD": (1.0, 1.0, 1.0),
    "MODEL.MASK_ON": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.FPN.IN_FEATURES": (),
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FPN.NORM": "",
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.FPN.TOP_FEATURE": "",  # what P6 and P7 of RetinaNet are made of; "" = the last of the network below
    "MODEL.FPN.SQUARE_PAD": 0,
    "MODEL.PROPOSAL_GENERATOR.NAME": "RPN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 0,
    "MODEL.ANCHOR_GENERATOR.NAME": "DefaultAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.SIZES": ((32, 64, 128, 256, 512),),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ((0.5, 1.0, 2.0),),
    "MODEL.ANCHOR_GENERATOR.ANGLES": ((-90, 0, 90),),
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.0,
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.RPN.IN_FEATURES": ("res4",),
    "MODEL.RPN.CONV_DIMS": (-1,),
    "MODEL.RPN.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_PER_LEVEL": 0,  # 0 = no limit of a level's own
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.IN_FEATURES": ("res4",),
    "MODEL.ROI_HEADS.CANONICAL_BOX_SIZE": 224,
    "MODEL.ROI_HEADS.CANONICAL_LEVEL": 4,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_BOX_HEAD.NAME": "",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 256,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": _CASCADE_WEIGHTS,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.5, 0.6, 0.7),  # only their number: one per stage
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 256,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.DILATION": 1,
    "MODEL.ROI_MASK_HEAD.THRESH": 0.5,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": "KRCNNConvDeconvUpsampleHead",
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (512,) * 8,
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 17,
    "MODEL.ROI_KEYPOINT_HEAD.INFERENCE_MIN_SIZE": 0,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ("p2", "p3", "p4", "p5"),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 54,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 128,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": 0.5,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 4096,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": 0.5,
    "MODEL.RETINANET.NUM_CLASSES": 80,
    "MODEL.RETINANET.IN_FEATURES": ("p3", "p4", "p5", "p6", "p7"),
    "MODEL.RETINANET.NUM_CONVS": 4,
    "MODEL.RETINANET.NORM": "",
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.05,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 1000,
    "MODEL.RETINANET.NMS_THRESH_TEST": 0.5,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.OUT_FEATURES": ("res4",),
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (False, False, False, False),
    "MODEL.RESNETS.DEFORM_MODULATED": False,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 1,
    "MODEL.REGNETS.DEPTH": 0,
    "MODEL.REGNETS.W_A": 0.0,
    "MODEL.REGNETS.W_0": 0,
    "MODEL.REGNETS.W_M": 0.0,
    "MODEL.REGNETS.GROUP_WIDTH": 0,
    "MODEL.REGNETS.STEM_WIDTH": 0,
    "MODEL.REGNETS.SE_RATIO": 0.0,
    "MODEL.REGNETS.NORM": "BN",
    "MODEL.REGNETS.OUT_FEATURES": (),
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "DATASETS.TRAIN": (),
    "DATASETS.TEST": (),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
    "TEST.DETECTIONS_PER_IMAGE": 100,
}

# Keys that only training, evaluation or the choice of hardware reads. They are recognised and ignored.
# TEST.AUG is applied by detectron2's training tools, never by DefaultPredictor. LOAD_PROPOSALS and
# PANOPTIC_FPN.COMBINE.ENABLED are not read at inference. BACKBONE.FREEZE_AT freezes without changing a value.
IGNORED: Flat = {
    "MODEL.LOAD_PROPOSALS": False,
    "MODEL.DEVICE": "cuda",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RPN.BOUNDARY_THRESH": -1,
    "MODEL.RPN.IOU_THRESHOLDS": (0.3, 0.7),
    "MODEL.RPN.IOU_LABELS": (0, -1, 1),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": "smooth_l1",
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
    "MODEL.RPN.LOSS_WEIGHT": 1.0,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": (0.5,),
    "MODEL.ROI_HEADS.IOU_LABELS": (0, 1),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "smooth_l1",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": False,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": 50,
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": 1,
    "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True,
    "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": 1.0,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 1.0,
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": 1.0,
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": True,
    "MODEL.RETINANET.IOU_THRESHOLDS": (0.4, 0.5),
    "MODEL.RETINANET.IOU_LABELS": (0, -1, 1),
    "MODEL.RETINANET.PRIOR_PROB": 0.01,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": 2.0,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.25,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.1,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "smooth_l1",
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.MASK_FORMAT": "polygon",
    "DATASETS.PROPOSAL_FILES_TRAIN": (),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
    "DATASETS.PROPOSAL_FILES_TEST": (),
    "DATALOADER.NUM_WORKERS": 4,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.0,
    "DATALOADER.REPEAT_SQRT": True,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.MAX_ITER": 40000,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.BASE_LR_END": 0.0,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": False,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.STEPS": (30000,),
    "SOLVER.NUM_DECAYS": 3,
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.RESCALE_INTERVAL": False,
    "SOLVER.CHECKPOINT_PERIOD": 5000,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.WEIGHT_DECAY_BIAS": None,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "value",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "SOLVER.AMP.ENABLED": False,
    "TEST.EXPECTED_RESULTS": (),
    "TEST.EVAL_PERIOD": 0,
    "TEST.KEYPOINT_OKS_SIGMAS": (),
    "TEST.AUG.ENABLED": False,
    "TEST.AUG.MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
    "TEST.AUG.MAX_SIZE": 4000,
    "TEST.AUG.FLIP": True,
    "TEST.PRECISE_BN.ENABLED": False,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "OUTPUT_DIR": "./output",
    "SEED": -1,
    "CUDNN_BENCHMARK": False,
    "FLOAT32_PRECISION": "",
    "VIS_PERIOD": 0,
    "GLOBAL.HACK": 1.0,
}

KEYS: Flat = {**INFERENCE, **IGNORED}

# Whole sections that inference never reads: keys that a fork added there cannot change a detection.
IGNORED_SECTIONS = ("SOLVER.", "DATALOADER.")


def _sections(keys: Iterable[str]) -> set[str]:
    names = set()
    for key in keys:
        parts = key.split(".")
        names.update(".".join(parts[:i]) for i in range(1, len(parts)))
    return names


SECTIONS = _sections(KEYS)
"""Every key that holds other keys, e.g. ``MODEL`` and ``MODEL.RPN``."""


def add_keys(inference: Flat, ignored: Flat) -> None:
    """Make keys of a part known, with their defaults; twice the same is fine.

    Raises:
        ValueError: a key has another default already, or holds other keys.
    """
    for table, new in ((INFERENCE, inference), (IGNORED, ignored)):
        for key, value in new.items():
            if (key in KEYS and KEYS[key] != value) or key in SECTIONS:
                raise UsageError(f"{key} is a key already, with another default or with keys below it")
            section = key.rpartition(".")[0]
            start = f"{section}." if section and section not in SECTIONS else key
            if key not in KEYS and not key.startswith(tuple(OPTIONAL)):
                OPTIONAL.append(start)
            table[key] = KEYS[key] = value
    SECTIONS.update(_sections([*inference, *ignored]))


PROJECTS: dict[str, str] = {
    "INPUT.POINT_SUP": "PointSup",
    "MODEL.FCOS": "AdelaiDet (FCOS)",
    "MODEL.BASIS_MODULE": "AdelaiDet (BlendMask)",
    "MODEL.CENTERNET": "CenterNet2",
    "MODEL.VOVNET": "VoVNet",
    "MODEL.SWIN": "Swin for detectron2",
    "MODEL.VIT": "a ViT fork",
    "MODEL.MASK_FORMER": "MaskFormer / Mask2Former",
    "MODEL.DETR": "DETR",
    "MODEL.MOBILENET": "a MobileNet fork",
    "MODEL.FBNET_V2": "D2Go (FBNet)",
}
"""Keys that projects add to detectron2's configuration (the key itself or anything below it)."""
