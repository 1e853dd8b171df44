"""Configurations of DeepLab."""

from __future__ import annotations

from typing import Any

import pytest

from tf_d2.config import ConfigError, load_config, load_config_text, resolve_yaml, resolve_yaml_text

FOLDER = "projects/DeepLab/configs/Cityscapes-SemanticSegmentation/"
V3 = FOLDER + "deeplab_v3_R_103_os16_mg124_poly_90k_bs16.yaml"
PLUS = FOLDER + "deeplab_v3_plus_R_103_os16_mg124_poly_90k_bs16.yaml"
PLAIN = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
RESNETS, HEAD = "MODEL.RESNETS.", "MODEL.SEM_SEG_HEAD."


def test_strides_dilations_and_pooling() -> None:
    v3, plus = load_config(V3), load_config(PLUS)
    assert v3.backbone.dilations(3, 3) == (2, 4, 8)
    assert v3.backbone.dilations(2, 23) == (1,) * 23
    assert plus.backbone.strides == {"res2": 4, "res5": 16}
    assert v3.sem_seg_head.pool_kernel == plus.sem_seg_head.pool_kernel == (32, 64)
    dilated = load_config(V3, opts=[RESNETS + "RES4_DILATION", 2, RESNETS + "RES5_DILATION", 4])
    assert dilated.backbone.strides == {"res5": 8}
    assert dilated.backbone.dilations(2, 2) == (2, 2) and dilated.backbone.dilations(3, 3) == (4, 8, 16)


@pytest.mark.parametrize("name", [V3, PLUS])
@pytest.mark.parametrize("opts", [[], ["INPUT.CROP.ENABLED", False], [HEAD + "ASPP_DILATIONS", [1, 2, 3]]])
def test_a_dump_says_the_same_model(name: str, opts: list[Any]) -> None:
    text = resolve_yaml(name, opts)
    assert load_config_text(text) == load_config(name, opts)
    assert resolve_yaml_text(text) == text


def test_crops_of_a_training_do_not_change_another_model() -> None:
    crops = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [300, 500]]
    assert load_config(PLAIN, crops) == load_config(PLAIN)


@pytest.mark.parametrize(
    ("name", "opts", "message"),
    [
        (V3, [RESNETS + "DEPTH", 34, RESNETS + "RES2_OUT_CHANNELS", 64], "RES5_DILATION|50, 101, 152"),
        (V3, [RESNETS + "STEM_TYPE", "wide"], "'deeplab'"),
        (V3, [RESNETS + "STEM_OUT_CHANNELS", 63], "even"),
        (V3, [RESNETS + "RES5_MULTI_GRID", [1, 2]], "3 numbers above 0"),
        (V3, [RESNETS + "RES4_DILATION", 2], "RES5_DILATION must be 4"),
        (V3, [RESNETS + "RES5_DILATION", 3], "1, 2, 4"),
        (V3, [HEAD + "ASPP_DILATIONS", [6, 12]], "3 numbers above 0"),
        (V3, [HEAD + "CONVS_DIM", 128], "ASPP_CHANNELS, 256"),
        (V3, ["INPUT.CROP.TYPE", "relative"], "absolute"),
        (V3, ["INPUT.CROP.SIZE", [100, 1024]], "multiples of the stride 16"),
        (PLUS, [HEAD + "NAME", "DeepLabV3Head"], "needs one"),
        (PLUS, [HEAD + "PROJECT_CHANNELS", [1, 2]], "1 numbers above 0"),
    ],
)
def test_what_cannot_be_is_refused(name: str, opts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(name, opts=opts)
