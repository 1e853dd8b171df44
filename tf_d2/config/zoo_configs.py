"""Configuration values of the published models, as differences from detectron2's defaults.

A model is a base plus what sets it apart, so that a row can be read at a glance. The values are facts of the
YAML files under ``configs/`` and, for the LSJ baselines, of ``configs/new_baselines`` and
``configs/common/models/mask_rcnn_fpn.py``.
"""

from __future__ import annotations

from tf_d2.config.defaults import KEYS, Flat
from tf_d2.config.zoo_bases import (
    C4,
    DC5,
    FPN,
    IMAGENET_STD,
    R50,
    R101,
    RES_2_TO_5,
    RESNEXT,
    RETINANET,
    STRIDE_IN_3X3,
    X101,
)
from tf_d2.config.zoo_densepose import densepose_rows, point_rend_rows

_MASK: Flat = {"MODEL.MASK_ON": True}
_KEYPOINT: Flat = {
    "MODEL.KEYPOINT_ON": True,
    "MODEL.ROI_HEADS.NUM_CLASSES": 1,
    "DATASETS.TRAIN": ("keypoints_coco_2017_train",),
    "DATASETS.TEST": ("keypoints_coco_2017_val",),
}
_PANOPTIC: Flat = {
    **_MASK,
    "MODEL.META_ARCHITECTURE": "PanopticFPN",
    "DATASETS.TRAIN": ("coco_2017_train_panoptic_separated",),
    "DATASETS.TEST": ("coco_2017_val_panoptic_separated",),
}
_SEMANTIC: Flat = {
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "DATASETS.TRAIN": ("coco_2017_train_panoptic_stuffonly",),
    "DATASETS.TEST": ("coco_2017_val_panoptic_stuffonly",),
}
_CLASS_AGNOSTIC: Flat = {
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
}
_CITYSCAPES: Flat = {
    **_MASK,
    "MODEL.WEIGHTS": "detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl",
    "MODEL.ROI_HEADS.NUM_CLASSES": 8,
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.MAX_SIZE_TEST": 2048,
    "DATASETS.TRAIN": ("cityscapes_fine_instance_seg_train",),
    "DATASETS.TEST": ("cityscapes_fine_instance_seg_val",),
}
_VOC: Flat = {
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "DATASETS.TRAIN": ("voc_2007_trainval", "voc_2012_trainval"),
    "DATASETS.TEST": ("voc_2007_test",),
}
_PROPOSALS: Flat = {"MODEL.META_ARCHITECTURE": "ProposalNetwork", "MODEL.RPN.POST_NMS_TOPK_TEST": 2000}
_CASCADE: Flat = {
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
}
_DCONV: Flat = {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": (False, True, True, True)}
_FOUR_CONV_BOX: Flat = {"MODEL.ROI_BOX_HEAD.NUM_CONV": 4, "MODEL.ROI_BOX_HEAD.NUM_FC": 1}


def _lvis(version: str, classes: int) -> Flat:
    return {
        **_MASK,
        "MODEL.ROI_HEADS.NUM_CLASSES": classes,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0001,
        "TEST.DETECTIONS_PER_IMAGE": 300,
        "DATASETS.TRAIN": (f"lvis_{version}_train",),
        "DATASETS.TEST": (f"lvis_{version}_val",),
    }


def _norm(backbone: str, heads: str) -> Flat:
    return {
        "MODEL.RESNETS.NORM": backbone,
        "MODEL.FPN.NORM": backbone,
        "MODEL.ROI_BOX_HEAD.NORM": heads,
        "MODEL.ROI_MASK_HEAD.NORM": heads,
    }


def _legacy(head: str) -> Flat:
    return {f"MODEL.{head}.POOLER_SAMPLING_RATIO": 2, f"MODEL.{head}.POOLER_TYPE": "ROIAlign"}


_SYNC_BN = {**_norm("SyncBN", "SyncBN"), **_FOUR_CONV_BOX}
_GN = {**_norm("GN", "GN"), **_FOUR_CONV_BOX, **STRIDE_IN_3X3}
_R50_GN: Flat = {"MODEL.WEIGHTS": "catalog://ImageNetPretrained/FAIR/R-50-GN"}
_LSJ: Flat = {
    **_MASK,
    **_norm("SyncBN", "naiveSyncBN_N"),
    **_FOUR_CONV_BOX,
    "MODEL.RPN.CONV_DIMS": (-1, -1),
}
_S_1_TO_4 = ("s1", "s2", "s3", "s4")
# Takes back what FPN and _LSJ say of a ResNet.
_REGNET: Flat = {
    **IMAGENET_STD,
    **{key: value for key, value in KEYS.items() if key.startswith("MODEL.RESNETS.")},
    "MODEL.BACKBONE.NAME": "build_regnet_fpn_backbone",
    "MODEL.FPN.IN_FEATURES": _S_1_TO_4,
    "MODEL.REGNETS.OUT_FEATURES": _S_1_TO_4,
    "MODEL.REGNETS.NORM": "SyncBN",
    "MODEL.REGNETS.STEM_WIDTH": 32,
    "MODEL.REGNETS.W_0": 96,
}
_REGNETS: dict[str, Flat] = {
    "regnetx_4gf": {
        **_REGNET,
        "MODEL.REGNETS.DEPTH": 23,
        "MODEL.REGNETS.W_A": 38.65,
        "MODEL.REGNETS.W_M": 2.43,
        "MODEL.REGNETS.GROUP_WIDTH": 40,
    },
    "regnety_4gf": {
        **_REGNET,
        "MODEL.REGNETS.DEPTH": 22,
        "MODEL.REGNETS.W_A": 31.41,
        "MODEL.REGNETS.W_M": 2.24,
        "MODEL.REGNETS.GROUP_WIDTH": 64,
        "MODEL.REGNETS.SE_RATIO": 0.25,
    },
}

_ROWS: dict[str, tuple[Flat, ...]] = {
    "COCO-Detection/fast_rcnn_R_50_FPN_1x": (
        FPN,
        R50,
        {"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"},
    ),
    "COCO-Detection/rpn_R_50_C4_1x": (C4, R50, _PROPOSALS, {"MODEL.RPN.PRE_NMS_TOPK_TEST": 12000}),
    "COCO-Detection/rpn_R_50_FPN_1x": (FPN, R50, _PROPOSALS),
    "COCO-Detection/retinanet_R_50_FPN_1x": (RETINANET, R50),
    "COCO-Detection/retinanet_R_50_FPN_3x": (RETINANET, R50),
    "COCO-Detection/retinanet_R_101_FPN_3x": (RETINANET, R101),
    "Cityscapes/mask_rcnn_R_50_FPN": (FPN, _CITYSCAPES),
    "PascalVOC-Detection/faster_rcnn_R_50_C4": (C4, R50, _VOC),
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5": (FPN, R50, _MASK, _DCONV),
    "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5": (FPN, R50, _MASK, _DCONV),
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": (FPN, R50, _MASK, _CASCADE),
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": (FPN, R50, _MASK, _CASCADE),
    "Misc/mask_rcnn_R_50_FPN_3x_gn": (FPN, _R50_GN, _MASK, _GN),
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn": (FPN, R50, _MASK, _SYNC_BN),
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn": (FPN, _MASK, _GN),
    "Misc/scratch_mask_rcnn_R_50_FPN_9x_gn": (FPN, _MASK, _GN, IMAGENET_STD),
    "Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn": (FPN, _MASK, _SYNC_BN, IMAGENET_STD, STRIDE_IN_3X3),
    "Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x": (
        FPN,
        _PANOPTIC,
        _CASCADE,
        _DCONV,
        _norm("GN", "GN"),
        STRIDE_IN_3X3,
        {"MODEL.WEIGHTS": "catalog://ImageNetPretrained/FAIR/R-101-GN", "MODEL.RESNETS.DEPTH": 101},
        {"MODEL.ROI_BOX_HEAD.NORM": ""},
    ),
    "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv": (
        FPN,
        _MASK,
        _CASCADE,
        _DCONV,
        RESNEXT,
        _FOUR_CONV_BOX,
        {
            "MODEL.WEIGHTS": "catalog://ImageNetPretrained/FAIR/X-152-32x8d-IN5k",
            "MODEL.RESNETS.DEPTH": 152,
            "MODEL.ROI_BOX_HEAD.NORM": "GN",
            "MODEL.ROI_MASK_HEAD.NORM": "GN",
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 8,
        },
    ),
    "Detectron1-Comparisons/faster_rcnn_R_50_FPN_noaug_1x": (FPN, R50, _legacy("ROI_BOX_HEAD")),
    "Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x": (
        FPN,
        R50,
        _MASK,
        _legacy("ROI_BOX_HEAD"),
        _legacy("ROI_MASK_HEAD"),
    ),
    "Detectron1-Comparisons/keypoint_rcnn_R_50_FPN_1x": (
        FPN,
        R50,
        _KEYPOINT,
        _legacy("ROI_BOX_HEAD"),
        _legacy("ROI_KEYPOINT_HEAD"),
    ),
    **{
        f"COCO-{task}/{kind}_rcnn_{depth}_{part}_{schedule}": (base, weights, head)
        for task, kind, head in (("Detection", "faster", {}), ("InstanceSegmentation", "mask", _MASK))
        for part, base in (("C4", C4), ("DC5", DC5), ("FPN", FPN))
        for depth, schedule, weights in (("R_50", "1x", R50), ("R_50", "3x", R50), ("R_101", "3x", R101))
    },
    **{
        f"{name}_X_101_32x8d_FPN_{schedule}": (FPN, X101, head)
        for name, schedule, head in (
            ("COCO-Detection/faster_rcnn", "3x", {}),
            ("COCO-InstanceSegmentation/mask_rcnn", "3x", _MASK),
            ("COCO-Keypoints/keypoint_rcnn", "3x", _KEYPOINT),
        )
    },
    **{
        name: (FPN, weights, head)
        for name, weights, head in (
            ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x", R50, _KEYPOINT),
            ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x", R50, _KEYPOINT),
            ("COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x", R101, _KEYPOINT),
            ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x", R50, _PANOPTIC),
            ("COCO-PanopticSegmentation/panoptic_fpn_R_50_3x", R50, _PANOPTIC),
            ("COCO-PanopticSegmentation/panoptic_fpn_R_101_3x", R101, _PANOPTIC),
            # without published weights
            ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_giou", R50, _MASK),
            ("PascalVOC-Detection/faster_rcnn_R_50_FPN", R50, _VOC),
            ("Misc/semantic_R_50_FPN_1x", R50, _SEMANTIC),
            ("Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic", R50, {**_MASK, **_CLASS_AGNOSTIC}),
        )
    },
    **{
        f"LVIS{version}-InstanceSegmentation/mask_rcnn_{backbone}_FPN_1x": (
            FPN,
            weights,
            _lvis(version, classes),
        )
        for version, classes in (("v0.5", 1230), ("v1", 1203))  # v1 without published weights
        for backbone, weights in (("R_50", R50), ("R_101", R101), ("X_101_32x8d", X101))
    },
    **{
        f"new_baselines/mask_rcnn_R_{depth}_FPN_{epochs}ep_LSJ": (FPN, _LSJ, {"MODEL.RESNETS.DEPTH": depth})
        for depth in (50, 101)
        for epochs in (100, 200, 400)
    },
    "new_baselines/mask_rcnn_R_50_FPN_50ep_LSJ": (FPN, _LSJ, {"MODEL.RESNETS.DEPTH": 50}),
    **{
        f"COCO-InstanceSegmentation/mask_rcnn_{name}_dds_fpn_1x": (
            FPN,
            _MASK,
            regnet,
            {"MODEL.REGNETS.NORM": "FrozenBN"},
        )
        for name, regnet in _REGNETS.items()
    },
    **{
        f"new_baselines/mask_rcnn_{name}_dds_FPN_{epochs}ep_LSJ": (FPN, _LSJ, regnet)
        for name, regnet in _REGNETS.items()
        for epochs in (100, 200, 400)
    },
}

_TRIDENT: Flat = {
    **C4,
    "MODEL.BACKBONE.NAME": "build_trident_resnet_backbone",
    "MODEL.PROPOSAL_GENERATOR.NAME": "TridentRPN",
    "MODEL.ROI_HEADS.NAME": "TridentRes5ROIHeads",
}
_ROWS |= {
    f"projects/TridentNet/configs/tridentnet_fast_{depth}_C4_{schedule}": (_TRIDENT, weights)
    for depth, schedule, weights in (("R_50", "1x", R50), ("R_50", "3x", R50), ("R_101", "3x", R101))
}
_DEEPLAB: Flat = {
    **DC5,
    **STRIDE_IN_3X3,
    "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
    "MODEL.WEIGHTS": "detectron2://DeepLab/R-103.pkl",
    "MODEL.PIXEL_MEAN": (123.675, 116.280, 103.530),
    "MODEL.PIXEL_STD": (58.395, 57.120, 57.375),
    "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone",
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 128,
    "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3Head",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ("res5",),
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 16,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 19,
    "MODEL.SEM_SEG_HEAD.NORM": "SyncBN",
    "INPUT.FORMAT": "RGB",
    "INPUT.MIN_SIZE_TEST": 1024,
    "INPUT.MAX_SIZE_TEST": 2048,
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SIZE": (512, 1024),
    "DATASETS.TRAIN": ("cityscapes_fine_sem_seg_train",),
    "DATASETS.TEST": ("cityscapes_fine_sem_seg_val",),
}
_DEEPLAB_PLUS: Flat = {
    "MODEL.RESNETS.OUT_FEATURES": ("res2", "res5"),
    "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3PlusHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ("res2", "res5"),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
}
_ROWS |= {
    f"projects/DeepLab/configs/Cityscapes-SemanticSegmentation/deeplab_{name}_R_103_os16_mg124_poly_90k_bs16": parts
    for name, parts in (("v3", (_DEEPLAB,)), ("v3_plus", (_DEEPLAB, _DEEPLAB_PLUS)))
}
_PANOPTIC_DEEPLAB: Flat = {
    **_DEEPLAB,
    "MODEL.META_ARCHITECTURE": "PanopticDeepLab",
    "MODEL.WEIGHTS": "detectron2://DeepLab/R-52.pkl",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.OUT_FEATURES": ("res2", "res3", "res5"),
    "MODEL.SEM_SEG_HEAD.NAME": "PanopticDeepLabSemSegHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ("res2", "res3", "res5"),
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": (32, 64),
    "DATASETS.TRAIN": ("cityscapes_fine_panoptic_train",),
    "DATASETS.TEST": ("cityscapes_fine_panoptic_val",),
    # What DC5 says of heads that this model does not have.
    **{key: KEYS[key] for key in DC5 if key.startswith(("MODEL.RPN", "MODEL.ROI_"))},
}
_SEPARABLE: Flat = {
    "MODEL.SEM_SEG_HEAD.USE_DEPTHWISE_SEPARABLE_CONV": True,
    "MODEL.PANOPTIC_DEEPLAB.USE_DEPTHWISE_SEPARABLE_CONV": True,
}
_PANOPTIC_DEEPLAB_COCO: Flat = {
    **_SEPARABLE,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 133,
    "MODEL.PANOPTIC_DEEPLAB.STUFF_AREA": 4096,
    "MODEL.PANOPTIC_DEEPLAB.NMS_KERNEL": 41,
    "MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY": 640,
    "INPUT.MIN_SIZE_TEST": 640,
    "INPUT.MAX_SIZE_TEST": 640,
    "INPUT.CROP.SIZE": (640, 640),
    "DATASETS.TRAIN": ("coco_2017_train_panoptic",),
    "DATASETS.TEST": ("coco_2017_val_panoptic",),
}
_ROWS |= {
    f"projects/Panoptic-DeepLab/configs/{name}": (_PANOPTIC_DEEPLAB, own)
    for name, own in (
        ("Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024", {}),
        (
            "Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024_dsconv",
            _SEPARABLE,
        ),
        (
            "COCO-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_200k_bs64_crop_640_640_coco_dsconv",
            _PANOPTIC_DEEPLAB_COCO,
        ),
    )
}
_TENSOR_MASK: Flat = {
    **C4,
    **R50,
    "MODEL.META_ARCHITECTURE": "TensorMask",
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": RES_2_TO_5,
    "MODEL.FPN.IN_FEATURES": RES_2_TO_5,
    "MODEL.FPN.FUSE_TYPE": "avg",
    "MODEL.ANCHOR_GENERATOR.SIZES": tuple((44 * 2**i, 60 * 2**i) for i in range(6)),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ((1.0,),),
    "MODEL.TENSOR_MASK.ALIGNED_ON": True,
    "MODEL.TENSOR_MASK.BIPYRAMID_ON": True,
}
_ROWS |= {
    f"projects/TensorMask/configs/tensormask_R_50_FPN_{schedule}": (_TENSOR_MASK,)
    for schedule in ("1x", "6x")
}
_BASES = {"FPN": FPN, "R_50": R50, "R_101": R101, "X_101_32x8d": X101}
_ROWS |= point_rend_rows(_BASES) | densepose_rows(_BASES)


def published_values(name: str) -> Flat | None:
    """All keys of the published model, or None where detectron2 publishes weights without a configuration."""
    parts = _ROWS.get(name)
    if parts is None:
        return None
    merged = dict(KEYS)
    for part in parts:
        merged.update(part)
    return merged
