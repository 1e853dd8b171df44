"""What the published models have in common, as differences from detectron2's defaults: backbones and pyramids."""

from __future__ import annotations

from tf_d2.config.defaults import Flat
from tf_d2.config.safe_yaml import anchor_sizes

RES_2_TO_5 = ("res2", "res3", "res4", "res5")
_RETINANET_SIZES = "[[x, x * 2**(1.0/3), x * 2**(2.0/3)] for x in [32, 64, 128, 256, 512]]"

C4: Flat = {"DATASETS.TRAIN": ("coco_2017_train",), "DATASETS.TEST": ("coco_2017_val",)}
DC5: Flat = {
    **C4,
    "MODEL.RESNETS.OUT_FEATURES": ("res5",),
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.RPN.IN_FEATURES": ("res5",),
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ("res5",),
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
}
FPN: Flat = {
    **DC5,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": RES_2_TO_5,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.FPN.IN_FEATURES": RES_2_TO_5,
    "MODEL.ANCHOR_GENERATOR.SIZES": ((32,), (64,), (128,), (256,), (512,)),
    "MODEL.RPN.IN_FEATURES": ("p2", "p3", "p4", "p5", "p6"),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.IN_FEATURES": ("p2", "p3", "p4", "p5"),
}
RETINANET: Flat = {
    **C4,
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": RES_2_TO_5[1:],
    "MODEL.FPN.IN_FEATURES": RES_2_TO_5[1:],
    "MODEL.ANCHOR_GENERATOR.SIZES": tuple(map(tuple, anchor_sizes(_RETINANET_SIZES))),
}

R50: Flat = {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl"}
R101: Flat = {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl", "MODEL.RESNETS.DEPTH": 101}
IMAGENET_STD: Flat = {"MODEL.PIXEL_STD": (57.375, 57.12, 58.395)}
STRIDE_IN_3X3: Flat = {"MODEL.RESNETS.STRIDE_IN_1X1": False}
RESNEXT: Flat = {**STRIDE_IN_3X3, "MODEL.RESNETS.NUM_GROUPS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 8}
X101: Flat = {
    **IMAGENET_STD,
    **RESNEXT,
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl",
    "MODEL.RESNETS.DEPTH": 101,
}
