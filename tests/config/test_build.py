"""What the merged keys become, and that every setting which cannot be reproduced is refused by name."""

from dataclasses import replace

import pytest

from tf_d2.config import ConfigError, FPNConfig, RegNetConfig, ResNetConfig, load_config
from tf_d2.config.build import build_config, to_keys
from tf_d2.config.defaults import KEYS
from tf_d2.config.parts.fpn import TopBlockConfig
from tf_d2.config.parts.rcnn import GeneralizedRCNNConfig
from tf_d2.config.zoo import unsupported_reason, zoo_lazy
from tf_d2.config.zoo_table import zoo_models

FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
C4 = "COCO-Detection/faster_rcnn_R_50_C4_3x"
DC5 = "COCO-Detection/faster_rcnn_R_50_DC5_3x"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_3x"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_3x"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x"
FAST = "COCO-Detection/fast_rcnn_R_50_FPN_1x"
RPN = "COCO-Detection/rpn_R_50_FPN_1x"
KEYPOINT = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x"
REGNET = "new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ"

ROTATED = [
    *("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
    *("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
    *("MODEL.RPN.BBOX_REG_WEIGHTS", (1, 1, 1, 1, 1)),
    *("MODEL.ROI_HEADS.NAME", "RROIHeads"),
    *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"),
    *("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (10, 10, 5, 5, 1)),
    *("MODEL.MASK_ON", False),
]


def test_mask_rcnn_fpn():
    config = load_config(FPN)
    assert config.meta_architecture == "GeneralizedRCNN"
    model = config.model
    assert isinstance(model, GeneralizedRCNNConfig) and isinstance(model.backbone, FPNConfig)
    assert isinstance(model.backbone.bottom_up, ResNetConfig)
    assert model.backbone.top_block == TopBlockConfig("LastLevelMaxPool", "p5")
    assert model.backbone.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert config.rpn is model.proposal_generator and config.roi_heads is config.detector is model.roi_heads
    assert config.rpn.anchors.sizes == ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    assert config.rpn.anchors.aspect_ratios == ((0.5, 1.0, 2.0),)
    assert config.rpn.pre_nms_topk == config.rpn.post_nms_topk == 1000
    heads = config.roi_heads
    assert heads.box_predictor.bbox_reg_weights == ((10.0, 10.0, 5.0, 5.0),)
    assert heads.box_head.fc_dims == (1024, 1024) and heads.mask_head.conv_dims == (256,) * 5
    assert heads.detections_per_image == 100 and heads.mask_side() == 28
    assert (config.sem_seg_head, config.panoptic, config.needs_proposals) == (None, None, False)


def test_retinanet():
    config = load_config(RETINANET)
    assert config.rpn is None and config.roi_heads is None and config.detector is config.model
    assert config.backbone.top_block == TopBlockConfig("LastLevelP6P7", "res5")
    assert config.backbone.strides == {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    assert len(config.model.anchors.sizes) == 5 and len(config.model.anchors.sizes[0]) == 3


def test_backbones_without_a_pyramid():
    c4, dc5 = load_config(C4), load_config(DC5)
    assert isinstance(c4.backbone, ResNetConfig) and isinstance(dc5.backbone, ResNetConfig)
    assert c4.backbone.strides == {"res4": 16}
    assert dc5.backbone.strides == {"res5": 16}
    assert c4.roi_heads.box_head is None and c4.roi_heads.res5.depth == 50
    assert c4.rpn is not None and c4.rpn.anchors.sizes == ((32.0, 64.0, 128.0, 256.0, 512.0),)


def test_regnet():
    backbone = load_config(REGNET).backbone
    assert backbone.bottom_up == RegNetConfig(
        *(23, 38.65, 96, 2.43, 40, 32, 0.0, "SyncBN", ("s1", "s2", "s3", "s4"))
    )
    assert backbone.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert backbone.bottom_up.strides == {"s1": 4, "s2": 8, "s3": 16, "s4": 32}


def test_other_families():
    fast, rpn, panoptic, keypoint = map(load_config, (FAST, RPN, PANOPTIC, KEYPOINT))
    assert fast.needs_proposals and fast.rpn is None and fast.precomputed_proposal_topk == 1000
    assert rpn.roi_heads is None and rpn.rpn is not None and rpn.rpn.post_nms_topk == 2000
    assert panoptic.sem_seg_head is not None and panoptic.sem_seg_head.num_classes == 54
    assert panoptic.panoptic is not None and panoptic.panoptic.stuff_area_limit == 4096.0
    assert keypoint.roi_heads.keypoint_head.conv_dims == (512,) * 8


def test_cascade_has_weights_for_each_stage():
    heads = load_config(CASCADE).roi_heads
    assert heads.box_predictor.bbox_reg_weights == ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))


def test_rotated_boxes():
    config = load_config(FPN, ROTATED)
    assert config.rpn is not None and config.rpn.rotated and config.roi_heads.rotated
    assert len(config.roi_heads.box_predictor.bbox_reg_weights[0]) == 5
    assert config.rpn.anchors.angles == ((-90.0, 0.0, 90.0),)


def test_a_model_becomes_keys_again():
    names = [
        name
        for name, row in zoo_models().items()
        if unsupported_reason(row) is None and zoo_lazy(name) is None
    ]
    assert len(names) >= 64 + 47  # detectron2's own, PointRend and DensePose
    for config in [*map(load_config, names), load_config(FPN, ROTATED)]:
        keys = to_keys(config)
        assert keys is not None and list(keys) == list(KEYS) and build_config(keys) == config
    # widths that differ from layer to layer, which keys cannot say
    heads = load_config(FPN).roi_heads
    odd = replace(heads, box_head=replace(heads.box_head, fc_dims=(8, 16)))
    config = load_config(FPN)
    assert to_keys(replace(config, model=replace(config.model, roi_heads=odd))) is None


def test_variants_a_user_may_train():
    load_config(
        FPN,
        [
            *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
            *("MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.FPN.FUSE_TYPE", "avg", "MODEL.FPN.NORM", "GN"),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
            *("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [0.5, 1.0]),
            *("MODEL.PIXEL_MEAN", [1.0], "MODEL.PIXEL_STD", [2.0]),
            *("TEST.DETECTIONS_PER_IMAGE", -1, "INPUT.MIN_SIZE_TEST", 0, "MODEL.RPN.CONV_DIMS", [-1, 64]),
        ],
    )
    three_levels = ["MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]]
    three_levels += ["MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4", "p5"]]
    three_levels += ["MODEL.RPN.IN_FEATURES", ["p3", "p4", "p5", "p6"]]
    three_levels += ["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256]]]
    load_config(FPN, three_levels)


def test_what_training_alone_uses_changes_nothing():
    opts = ["TEST.AUG.ENABLED", True, "MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.LOAD_PROPOSALS", True]
    opts += [
        "MODEL.PANOPTIC_FPN.COMBINE.ENABLED",
        False,
        "SOLVER.MAX_ITER",
        1,
        "MODEL.RPN.BOUNDARY_THRESH",
        5,
    ]
    opts += ["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "MODEL.DEVICE", "cpu", "INPUT.CROP.ENABLED", True]
    assert load_config(FPN, opts) == load_config(FPN)


REFUSED = [
    (FPN, ["MODEL.BACKBONE.NAME", "build_regnet_fpn_backbone"], "MODEL.REGNETS.DEPTH = 0.*at least 1"),
    (REGNET, ["MODEL.REGNETS.DEPTH", 0], "at least 1"),
    (REGNET, ["MODEL.REGNETS.DEPTH", 1001], "at most 1000"),
    (REGNET, ["MODEL.REGNETS.W_A", -1], "0 or more"),
    (FPN, ["MODEL.ROI_BOX_HEAD.NUM_CONV", 10**9], r"MODEL\.ROI_BOX_HEAD\.NUM_CONV.*at most 1000 layers"),
    (
        FPN,
        ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NUM_CONV", 10**9],
        r"MASK_HEAD\.NUM_CONV.*at most 1000",
    ),
    (REGNET, ["MODEL.REGNETS.W_0", 12], "multiple of 8"),
    (REGNET, ["MODEL.REGNETS.W_M", 1], "above 1"),
    (REGNET, ["MODEL.REGNETS.SE_RATIO", -0.5], "0 .none. or more"),
    (REGNET, ["MODEL.REGNETS.NORM", ""], "'FrozenBN'"),
    (REGNET, ["MODEL.REGNETS.OUT_FEATURES", ["s1", "res5"]], "makes only stem, s1, s2, s3, s4"),
    (REGNET, ["MODEL.FPN.IN_FEATURES", ["s1", "s2"]], "p6 from p5"),
    (REGNET, ["MODEL.ROI_HEADS.NAME", "Res5ROIHeads"], "needs .'res4',."),
    (FPN, ["MODEL.META_ARCHITECTURE", "PanopticFCN"], "PanopticFCN.*GeneralizedRCNN.*PanopticDeepLab"),
    (FPN, ["MODEL.META_ARCHITECTURE", "GeneralisedRCNN"], "did you mean GeneralizedRCNN"),
    (FPN, ["MODEL.BACKBONE.NAME", "build_trident_resnet_backbone"], "makes only res2, res3, res4, res5"),
    (
        FPN,
        ["MODEL.BACKBONE.NAME", "build_mobilenet"],
        "MODEL.BACKBONE.NAME = 'build_mobilenet'.*tf_d2.extend",
    ),
    (FPN, ["MODEL.ROI_HEADS.NAME", "DensePoseROIHeads"], "ROI_DENSEPOSE_HEAD.NAME = .*DensePoseV1ConvXHead"),
    (FPN, ["MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead"], "POINT_HEAD_ON.*needs True"),
    (FPN, ["MODEL.ROI_BOX_HEAD.NAME", ""], "FastRCNNConvFCHead"),
    (FPN, ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV3"], "ROIAlignV2"),
    (FPN, ["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"], "ROIAlignV2"),
    (FPN, ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""], "ROIAlignV2"),
    (FPN, ["MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", -1], "at least 0"),
    (FPN, ["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 0], "at least 1"),
    (FPN, ["MODEL.ROI_BOX_HEAD.NUM_FC", 0], "NUM_CONV or NUM_FC above 0"),
    (FPN, ["MODEL.RESNETS.NORM", "IN"], "'FrozenBN'"),
    (FPN, ["MODEL.FPN.NORM", "frozenbn"], "'FrozenBN'"),
    (FPN, ["MODEL.FPN.FUSE_TYPE", "max"], "'avg'"),
    (FPN, ["MODEL.FPN.IN_FEATURES", ["res2", "res4", "res5"]], "strides must double"),
    (FPN, ["MODEL.FPN.IN_FEATURES", ["res5", "res4"]], "strides must double"),
    (FPN, ["MODEL.FPN.IN_FEATURES", ["res2", "res3"]], "p6 from p5"),
    (FPN, ["MODEL.FPN.IN_FEATURES", ["res6"]], "makes only"),
    (FPN, ["MODEL.FPN.IN_FEATURES", []], "list of names"),
    (FPN, ["MODEL.RESNETS.RES5_DILATION", 2], "strides must double"),
    (FPN, ["MODEL.RESNETS.RES5_DILATION", 4], "one of 1, 2"),
    (FPN, ["MODEL.RESNETS.DEPTH", 51], "18, 34, 50, 101, 152"),
    (FPN, ["MODEL.RESNETS.DEPTH", 18], "RES2_OUT_CHANNELS = 256.*must be 64"),
    (FPN, ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res2"]], "occurs twice"),
    (FPN, ["MODEL.RESNETS.OUT_FEATURES", ["res9"]], "makes only"),
    (FPN, ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [True]], "four booleans"),
    (FPN, ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [0, 1, 1, 1]], "four booleans"),
    (FPN, ["MODEL.RPN.IN_FEATURES", ["p2", "p7"]], "makes only p2, p3, p4, p5, p6"),
    (FPN, ["MODEL.RPN.HEAD_NAME", "OtherHead"], "StandardRPNHead"),
    (FPN, ["MODEL.RPN.CONV_DIMS", []], "channel numbers"),
    (FPN, ["MODEL.RPN.CONV_DIMS", [0]], "channel numbers"),
    (FPN, ["MODEL.RPN.BBOX_REG_WEIGHTS", (1, 1, 1)], "4 numbers"),
    (FPN, ["MODEL.RPN.BBOX_REG_WEIGHTS", (1, 1, 1, 0)], "divide by zero"),
    (FPN, ["MODEL.RPN.PRE_NMS_TOPK_TEST", 0], "at least 1"),
    (FPN, ["MODEL.RPN.NMS_THRESH", float("nan")], "finite"),
    (FPN, ["MODEL.RPN.NMS_THRESH", -0.5], "negative IoU"),
    (FPN, ["MODEL.ROI_HEADS.NMS_THRESH_TEST", -1], "negative IoU"),
    (FPN, ["MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"], "RotatedAnchorGenerator"),
    (FPN, ["MODEL.PROPOSAL_GENERATOR.MIN_SIZE", -1], "at least 0"),
    (FPN, ["MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"], "RPN needs Default"),
    (FPN, ["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]], "expected 1 list, or 5"),
    (
        FPN,
        ["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512, 1024]]],
        "same number of anchors",
    ),
    (FPN, ["MODEL.ANCHOR_GENERATOR.SIZES", [[-32]]], "positive"),
    (FPN, ["MODEL.ANCHOR_GENERATOR.SIZES", []], "list of lists"),
    (FPN, ["MODEL.ANCHOR_GENERATOR.SIZES", [["big"]]], "lists of numbers"),
    (FPN, ["MODEL.ANCHOR_GENERATOR.SIZES", [[], []]], "non-empty"),
    (FPN, ["MODEL.ANCHOR_GENERATOR.SIZES", [32, [64]]], "lists of numbers"),
    (FPN, ["MODEL.ANCHOR_GENERATOR.OFFSET", 1.0], "0 <= offset < 1"),
    (FPN, ["MODEL.ROI_HEADS.NUM_CLASSES", 0], "at least 1"),
    (FPN, ["MODEL.ROI_HEADS.NUM_CLASSES", 2**40], "whole number"),
    (FPN, ["MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p4"]], "strides must double"),
    (FPN, ["MODEL.ROI_HEADS.IN_FEATURES", "(3,)"], "list of names"),
    (FPN, ["MODEL.ROI_HEADS.NAME", "RROIHeads"], "go together"),
    (FPN, [*ROTATED, "MODEL.MASK_ON", True], "boxes only"),
    (FPN, ["MODEL.PIXEL_STD", [1.0, 1.0]], "3 numbers"),
    (FPN, ["MODEL.PIXEL_STD", [1.0, 1.0, 0.0]], "divide by zero"),
    (FPN, ["MODEL.PIXEL_MEAN", []], "finite numbers"),
    (FPN, ["MODEL.PIXEL_MEAN", [1.0, float("inf"), 1.0]], "finite numbers"),
    (FPN, ["INPUT.FORMAT", "L"], "one channel, and pixel_mean has 3"),
    (FPN, ["INPUT.FORMAT", "YUV"], "'BGR', 'RGB'"),
    (FPN, ["INPUT.MIN_SIZE_TEST", -1], "at least 0"),
    (FPN, ["INPUT.MAX_SIZE_TEST", 0], "at least 1"),
    (FPN, ["DATASETS.TEST", [3]], "list of names"),
    (C4, ["MODEL.KEYPOINT_ON", True], "no keypoint head"),
    (C4, ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True]], "no deformable res5"),
    (C4, ["MODEL.ROI_HEADS.IN_FEATURES", ["res5"]], "makes only res4"),
    (CASCADE, ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False], "needs True"),
    (CASCADE, ["MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [[1, 1, 1, 1]]], "as many as .*IOUS"),
    (CASCADE, ["MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [1, 2, 3]], "list of finite numbers"),
    (KEYPOINT, ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", [512, 0]], "channel numbers"),
    (KEYPOINT, ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 0], "at least 1"),
    (KEYPOINT, ["MODEL.ROI_KEYPOINT_HEAD.NAME", "Other"], "KRCNNConvDeconvUpsampleHead"),
    (PANOPTIC, ["MODEL.SEM_SEG_HEAD.NAME", "PointRendSemSegHead"], "POINT_HEAD.NUM_CLASSES"),
    (PANOPTIC, ["MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 3], "one of"),
    (PANOPTIC, ["MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8], "finer than COMMON_STRIDE 8 do not meet"),
    (PANOPTIC, ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"], "PanopticFPN needs RPN"),
    (PANOPTIC, ["MODEL.MASK_ON", False], "PanopticFPN needs masks"),
    (RETINANET, ["MODEL.RETINANET.IN_FEATURES", ["p2"]], "makes only p3"),
    (RETINANET, ["MODEL.RETINANET.NUM_CLASSES", 0], "at least 1"),
    (RETINANET, ["MODEL.RETINANET.TOPK_CANDIDATES_TEST", 0], "at least 1"),
    (RETINANET, ["MODEL.RETINANET.NMS_THRESH_TEST", -1], "negative IoU"),
    (RETINANET, ["MODEL.RETINANET.NUM_CONVS", 0], "at least 1"),
    (RETINANET, ["MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"]], "makes only res3, res4"),
    (RETINANET, ["MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"], "DefaultAnchorGenerator"),
]


@pytest.mark.parametrize(("name", "opts", "message"), REFUSED)
def test_refused_settings_name_key_value_and_what_is_supported(name, opts, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(name, opts)
    assert str(caught.value).startswith((name, "option"))
    assert "MODEL." in str(caught.value) or opts[-2] in str(caught.value)
