"""Configurations of Detectron and maskrcnn-benchmark: recognised, translated, refused with all problems at once."""

from __future__ import annotations

import pytest

from tf_d2.config import ConfigError, class_names, load_config, load_config_text
from tf_d2.config.load import resolve_yaml_text
from tf_d2.config.parts.conventions import CONVENTIONS, DETECTRON2, with_conventions

C4 = """
MODEL:
  TYPE: generalized_rcnn
  CONV_BODY: ResNet.add_ResNet50_conv4_body
  NUM_CLASSES: 81
  FASTER_RCNN: True
FAST_RCNN:
  ROI_BOX_HEAD: ResNet.add_ResNet_roi_conv5_head
  ROI_XFORM_METHOD: RoIAlign
TRAIN:
  WEIGHTS: somewhere
"""
BENCHMARK = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  WEIGHT: catalog://ImageNetPretrained/MSRA/R-50
  RPN: {PRE_NMS_TOP_N_TEST: 6000, POST_NMS_TOP_N_TEST: 1000}
"""


def test_defaults_are_those_of_detectron():
    config = load_config_text(C4)
    assert config.conventions == CONVENTIONS["detectron"]
    assert (config.input.min_size_test, config.input.max_size_test) == (600, 1000)
    assert config.input.size_divisibility == 0 and config.backbone.norm == "AffineChannel"
    assert config.rpn is not None and (config.rpn.pre_nms_topk, config.rpn.post_nms_topk) == (12000, 2000)
    assert config.rpn.anchors.sizes == ((64.0, 128.0, 256.0, 512.0),)
    heads = config.roi_heads
    assert heads.num_classes == 80 and heads.res5.norm == "AffineChannel"
    assert heads.box_predictor.nms_thresh_test == 0.3 and heads.box_pooler.type == "ROIAlign"


def test_defaults_are_those_of_maskrcnn_benchmark():
    config = load_config_text(BENCHMARK)
    assert config.conventions == CONVENTIONS["maskrcnn-benchmark"]
    assert (config.input.min_size_test, config.input.max_size_test) == (800, 1333)
    assert config.input.pixel_mean == (102.9801, 115.9465, 122.7717)
    assert config.rpn is not None
    assert (config.rpn.post_nms_topk, config.rpn.post_nms_topk_per_level) == (1000, 1000)
    assert config.roi_heads.num_classes == 80 and config.backbone.norm == "AffineChannel"


def test_options_of_either_project():
    opts = ["TEST.SCALE", 500, "TEST.NMS", "0.4", "MODEL.RPN.NMS_THRESH", 0.6, "TEST.DETECTIONS_PER_IM", 0]
    config = load_config_text(C4, opts)
    assert config.input.min_size_test == 500 and config.rpn is not None and config.rpn.nms_thresh == 0.6
    assert config.roi_heads.box_predictor.nms_thresh_test == 0.4
    assert config.roi_heads.detections_per_image == -1  # 0 is no limit there


def test_with_the_conventions_of_detectron2_padding_is_detectron2s():
    name = "Detectron/retinanet_R-50-FPN_1x"
    assert load_config(name).input.size_divisibility == 128
    config = load_config(name, ["MODEL.CONVENTIONS", "detectron2"])
    assert config.conventions == DETECTRON2 and config.input.size_divisibility == -1
    assert config.backbone.bottom_up.norm == "FrozenBN"


@pytest.mark.parametrize("text", [C4, BENCHMARK])
def test_the_resolved_yaml_reads_back(text: str):
    assert load_config_text(resolve_yaml_text(text)) == load_config_text(text)


def test_all_problems_are_told_at_once():
    wrong = C4 + "TEST:\n  SOFT_NMS: {ENABLED: True}\n  SCALE: large\nRPN: {STRIDE: 8}\nMINE: 1\n"
    with pytest.raises(ConfigError) as error:
        load_config_text(wrong, source="f")
    text = str(error.value)
    assert text.startswith("f: a configuration of Detectron: ")
    for part in (
        "TEST.SOFT_NMS.ENABLED = True",
        "TEST.SCALE = 'large'",
        "RPN.STRIDE = 8",
        "MINE is not a key",
    ):
        assert part in text


WRONG = """
MODEL: {CONV_BODY: FPN.add_fpn_ResNet50_conv5_body, FASTER_RCNN: True}
FPN: {FPN_ON: True, MULTILEVEL_RPN: True, MULTILEVEL_ROIS: True, RPN_MAX_LEVEL: 1000000000, ROI_MIN_LEVEL: 0}
FAST_RCNN: {ROI_BOX_HEAD: fast_rcnn_heads.add_roi_2mlp_head, ROI_XFORM_METHOD: RoIAlign}
RPN: {ASPECT_RATIOS: [1, wide]}
"""


def test_numbers_that_no_model_has_are_refused_with_what_is_expected():
    with pytest.raises(ConfigError) as error:
        load_config_text(WRONG, source="f")
    told = (
        "RPN_MAX_LEVEL = 1000000000",
        "ROI_MIN_LEVEL = 0",
        "expected 2 to 7",
        "ASPECT_RATIOS = (1, 'wide')",
    )
    assert all(part in str(error.value) for part in told), error.value


def test_means_may_be_written_as_detectron_does():
    means = "PIXEL_MEANS: [[[1, 2, 3]]]\n"
    assert load_config_text(C4 + means).input.pixel_mean == (1.0, 2.0, 3.0)


def test_only_their_models_have_their_conventions():
    with pytest.raises(ConfigError, match=r"MODEL\.CONVENTIONS = 'detectron' is not supported: PanopticFPN"):
        load_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x", ["MODEL.CONVENTIONS", "detectron"])
    with pytest.raises(ConfigError, match=r"MODEL\.CONVENTIONS = 'detectrom'.*did you mean"):
        load_config("COCO-Detection/faster_rcnn_R_50_FPN_1x", ["MODEL.CONVENTIONS", "detectrom"])


def test_classes_have_names():
    assert len(class_names(load_config("Detectron/e2e_mask_rcnn_R-50-FPN_1x"))) == 80
    assert class_names(load_config("Detectron/e2e_keypoint_rcnn_R-50-FPN_1x")) == ("person",)


def test_conventions_that_contradict_each_other_or_the_project_are_refused():
    assert with_conventions(["A", 1], None) == ["A", 1]
    assert with_conventions(["A", 1], "detectron") == ["A", 1, "MODEL.CONVENTIONS", "detectron"]
    same = ["MODEL.CONVENTIONS", "detectron"]
    assert with_conventions(same, "detectron") == same * 2
    with pytest.raises(ConfigError, match=r"two conventions are asked for: 'detectron2' .* and 'detectron'"):
        with_conventions(same, "detectron2")
    for text, other in ((C4, "maskrcnn-benchmark"), (BENCHMARK, "detectron")):
        with pytest.raises(ConfigError, match=rf"f: a configuration of .*, not with '{other}'"):
            load_config_text(text, ["MODEL.CONVENTIONS", other], source="f")
        assert load_config_text(text, ["MODEL.CONVENTIONS", "detectron2"]).conventions == DETECTRON2


def test_levels_of_retinanet_from_c5_or_p5():
    text = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  RETINANET_ON: True
  BACKBONE: {CONV_BODY: R-50-FPN-RETINANET}
  RESNETS: {BACKBONE_OUT_CHANNELS: 256}
  RPN: {USE_FPN: True, PRE_NMS_TOP_N_TEST: 1000}
"""
    assert load_config_text(text).backbone.top_block.in_feature == "res5"
    config = load_config_text(text, ["MODEL.RETINANET.USE_C5", False])
    assert config.backbone.top_block.in_feature == "p5"
    assert load_config_text(resolve_yaml_text(text, ["MODEL.RETINANET.USE_C5", False])) == config
    with pytest.raises(ConfigError, match=r"MODEL\.FPN\.TOP_FEATURE = 'p5'.*whose p6 is made of p5"):
        load_config("COCO-Detection/faster_rcnn_R_50_FPN_1x", ["MODEL.FPN.TOP_FEATURE", "p5"])
