"""Settings of PointRend and DensePose: defaults that change nothing, what is refused, what is written."""

import pytest
import yaml

from tf_d2.config import (
    ConfigError,
    category_ids,
    class_names,
    load_config,
    load_config_text,
    resolve_yaml,
    resolve_yaml_text,
)
from tf_d2.config.defaults import IGNORED, INFERENCE
from tf_d2.config.parts.densepose import DensePoseROIHeadsConfig
from tf_d2.config.parts.point_rend import PointRendMaskHeadConfig

MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x"
C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x"
INSTANCE = "projects/PointRend/configs/InstanceSegmentation/pointrend_rcnn_R_50_FPN_3x_coco"
IMPLICIT = "projects/PointRend/configs/InstanceSegmentation/implicit_pointrend_R_50_FPN_1x_coco"
SEMANTIC = "projects/PointRend/configs/SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes"
CHART = "projects/DensePose/configs/densepose_rcnn_R_101_FPN_DL_WC2M_s1x"
LEGACY = "projects/DensePose/configs/densepose_rcnn_R_50_FPN_s1x_legacy"
ANIMALS = "projects/DensePose/configs/cse/densepose_rcnn_R_50_FPN_soft_animals_finetune_4k"
PUBLISHED = (INSTANCE, IMPLICIT, SEMANTIC, CHART, LEGACY, ANIMALS)


def nested(flat):
    tree = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return tree


def merged(base, *parts):
    for part in parts:
        for key, value in part.items():
            if isinstance(value, dict) and isinstance(base.get(key), dict):
                merged(base[key], value)
            else:
                base[key] = value
    return base


@pytest.mark.parametrize("part", [PointRendMaskHeadConfig, DensePoseROIHeadsConfig])
def test_a_plain_model_with_the_keys_of_a_project_is_the_plain_model(part):
    keys = {**part.NEW_KEYS, **part.IGNORED_KEYS}
    assert len(keys) > 20 and all(key in {**INFERENCE, **IGNORED} for key in keys)
    plain = yaml.safe_load(resolve_yaml(MASK))
    assert "POINT_HEAD" not in plain["MODEL"] and "ROI_DENSEPOSE_HEAD" not in plain["MODEL"]
    text = yaml.safe_dump(merged(plain, nested(keys)))
    assert load_config_text(text) == load_config(MASK)
    assert resolve_yaml_text(text) == resolve_yaml(MASK)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_is_read_again(name):
    text = resolve_yaml(name)
    assert load_config_text(text) == load_config(name)
    assert resolve_yaml_text(text) == text


def test_refinement_starts_where_every_point_is_new():
    head = load_config(INSTANCE).roi_heads.mask_head
    assert head.start_and_steps == (28, 3) and head.mask_side() == 224
    fewer = load_config(INSTANCE, ["MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 400]).roi_heads.mask_head
    assert fewer.start_and_steps == (14, 4)
    implicit = load_config(IMPLICIT).roi_heads.mask_head
    assert implicit.start_and_steps == (28, 3) and implicit.mask_side() == 224


def test_the_old_name_of_the_mask_head():
    name = "MODEL.ROI_HEADS.NAME"
    old = ["MODEL.ROI_MASK_HEAD.NAME", "CoarseMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"]
    config = load_config(INSTANCE, [name, "PointRendROIHeads", *old])
    assert config.roi_heads.mask_head == load_config(INSTANCE).roi_heads.mask_head
    with pytest.raises(ConfigError, match="CoarseMaskHead"):
        load_config(INSTANCE, old)


def test_meshes_of_classes():
    head = load_config(ANIMALS).roi_heads.densepose
    assert dict(head.class_to_mesh)[0] == "bear_4936" and len(head.embedders) == 9
    assert head.predictor.fields == {
        "embedding": ("embed_lowres", 16),
        "coarse_segm": ("coarse_segm_lowres", 2),
    }
    assert load_config(ANIMALS, ["MODEL.DENSEPOSE_ON", False]).roi_heads.densepose is None
    assert class_names(load_config(ANIMALS))[:3] == ("bear", "cow", "cat")
    assert class_names(load_config(CHART)) == ("person",) and category_ids(load_config(CHART)) == (1,)


def test_fields_of_charts():
    head = load_config(CHART).roi_heads.densepose
    confidences = ["sigma_2", "kappa_u", "kappa_v", "fine_segm_confidence", "coarse_segm_confidence"]
    assert list(head.predictor.fields) == ["coarse_segm", "fine_segm", "u", "v", *confidences]
    assert head.output_side == 112
    legacy = load_config(LEGACY).roi_heads.densepose
    assert legacy.output_side == 56 and legacy.decoder is None


POINT, DENSE = "MODEL.POINT_HEAD.", "MODEL.ROI_DENSEPOSE_HEAD."
REFUSED = [
    (INSTANCE, ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"], "POOLER_TYPE.*needs ''"),
    (INSTANCE, ["MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", False], "POINT_HEAD_ON"),
    (INSTANCE, ["MODEL.ROI_MASK_HEAD.IN_FEATURES", ["p6"]], "some of MODEL.ROI_HEADS.IN_FEATURES"),
    (INSTANCE, [POINT + "IN_FEATURES", ["res2"]], "POINT_HEAD.IN_FEATURES"),
    (INSTANCE, ["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 7], "even number"),
    (INSTANCE, [POINT + "NUM_CLASSES", 81], "POINT_HEAD.NUM_CLASSES.*80"),
    (INSTANCE, [POINT + "NAME", "ImplicitPointHead"], "'StandardPointHead'"),
    (INSTANCE, [POINT + "SUBDIVISION_NUM_POINTS", 10**6], "more points"),
    (IMPLICIT, [POINT + "SUBDIVISION_NUM_POINTS", 785], "square number"),
    (IMPLICIT, [POINT + "NUM_FC", 0], "at least 1"),
    (
        IMPLICIT,
        [
            "MODEL.IMPLICIT_POINTREND.IMAGE_FEATURE_ENABLED",
            False,
            "MODEL.IMPLICIT_POINTREND.POS_ENC_ENABLED",
            False,
        ],
        "must be True",
    ),
    (SEMANTIC, [POINT + "IN_FEATURES", ["p2", "p3"]], "needs one of"),
    (SEMANTIC, [POINT + "CLS_AGNOSTIC_MASK", True], "two best classes"),
    (SEMANTIC, [POINT + "COARSE_SEM_SEG_HEAD_NAME", "DeepLabV3Head"], "'SemSegFPNHead'"),
    (
        C4,
        [
            *("MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True),
            *("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "", "MODEL.ROI_MASK_HEAD.IN_FEATURES", ["res4"]),
            *(POINT + "IN_FEATURES", ["res4"]),
        ],
        "what it pooled",
    ),
    (CHART, [DENSE + "NAME", "Other"], "DensePoseDeepLabHead"),
    (CHART, [DENSE + "PREDICTOR_NAME", "Other"], "DensePoseChartPredictor"),
    (CHART, [DENSE + "UV_CONFIDENCE.TYPE", "iso"], "indep_aniso"),
    (CHART, [DENSE + "DECODER_NUM_CLASSES", 128], "256"),
    (CHART, [DENSE + "DECODER_COMMON_STRIDE", 8], "stride of p2"),
    (CHART, [DENSE + "POOLER_TYPE", "ROIAlignRotated"], "ROIAlignV2"),
    (CHART, [DENSE + "DEEPLAB.NONLOCAL_ON", 2], "0 or 1"),
    (
        CHART,
        ["MODEL.HRNET", {"STEM_INPLANES": 64}, "MODEL.BACKBONE.NAME", "build_hrfpn_backbone"],
        "DensePose",
    ),
]


@pytest.mark.parametrize(("name", "opts", "message"), REFUSED)
def test_what_cannot_be_reproduced_is_refused_by_name(name, opts, message):
    with pytest.raises(ConfigError, match=message):
        load_config(name, opts)


def test_options_reach_into_the_meshes():
    key = "MODEL.ROI_DENSEPOSE_HEAD.CSE.EMBEDDERS"
    published = yaml.safe_load(resolve_yaml(ANIMALS))
    text = resolve_yaml(ANIMALS, [f"{key}.cat_5001.NUM_VERTICES", "60", f"{key}.cat_5001.FEATURE_DIM", 8])
    meshes = published["MODEL"]["ROI_DENSEPOSE_HEAD"]["CSE"]["EMBEDDERS"]
    changed = meshes | {"cat_5001": meshes["cat_5001"] | {"NUM_VERTICES": 60, "FEATURE_DIM": 8}}
    assert yaml.safe_load(text)["MODEL"]["ROI_DENSEPOSE_HEAD"]["CSE"]["EMBEDDERS"] == changed
    assert yaml.safe_load(resolve_yaml(ANIMALS)) == published  # the published values are not touched


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cat_5002.NUM_VERTICES", "EMBEDDERS has no cat_5002 .did you mean cat_5001"),
        ("cat_5001.VERTICES", "cat_5001 has no VERTICES .did you mean NUM_VERTICES"),
        ("cat_5001.NUM_VERTICES.X", "NUM_VERTICES is 5001, with nothing below it"),
    ],
)
def test_options_of_a_mesh_that_is_not_there_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        load_config(ANIMALS, [f"MODEL.ROI_DENSEPOSE_HEAD.CSE.EMBEDDERS.{name}", 60])
