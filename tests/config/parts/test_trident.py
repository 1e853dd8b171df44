"""Configurations of TridentNet."""

from __future__ import annotations

from typing import Any

import pytest

from tf_d2.config import ConfigError, load_config, load_config_text, resolve_yaml, resolve_yaml_text
from tf_d2.config.parts.trident import TridentResNetConfig

MODEL = "projects/TridentNet/configs/tridentnet_fast_R_101_C4_3x.yaml"
PLAIN = "COCO-Detection/faster_rcnn_R_101_C4_3x.yaml"
TRIDENT = "MODEL.TRIDENT."
ALL = [TRIDENT + "TEST_BRANCH_IDX", -1]


def test_it_is_a_c4_model_whose_res4_is_dilated() -> None:
    config, plain = load_config(MODEL), load_config(PLAIN)
    backbone = config.backbone
    assert isinstance(backbone, TridentResNetConfig)
    assert [backbone.dilations(i, 2) for i in range(4)] == [(1, 1), (1, 1), (2, 2), (1, 1)]
    assert backbone.strides == plain.backbone.strides
    assert config.model.roi_heads.res5 == plain.model.roi_heads.res5


def test_its_dump_says_it_again() -> None:
    text = resolve_yaml(MODEL, [TRIDENT + "TEST_BRANCH_IDX", 2])
    assert "TridentRes5ROIHeads" in text and "TridentRPN" in text and "TEST_BRANCH_IDX: 2" in text
    assert resolve_yaml_text(text) == text


def test_all_branches() -> None:
    config = load_config(MODEL, opts=ALL)
    assert config.backbone.merged_dilations == (1, 2, 3) and config.roi_heads.merged_branches == 3
    assert load_config_text(resolve_yaml(MODEL, ALL)) == config
    one = load_config(MODEL)
    assert one.backbone.merged_dilations == () and one.roi_heads.merged_branches == 1


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([*ALL, "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"], "ROI_HEADS.NAME.*that of TridentNet"),
        ([*ALL, "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"], "GENERATOR.NAME.*that of TridentNet"),
        ([*ALL, "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4"]], "from res4 on"),
        ([TRIDENT + "TEST_BRANCH_IDX", 3], "branches 0 to 2"),
        ([TRIDENT + "NUM_BRANCH", 2], "as many numbers above 0 as MODEL.TRIDENT.NUM_BRANCH, 2"),
        ([TRIDENT + "TRIDENT_STAGE", "res6"], "'res5'"),
        (["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64], "50, 101, 152"),
        (["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, True, False]], "no deformable res4"),
    ],
)
def test_what_cannot_be_is_refused(opts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(MODEL, opts=opts)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("MODEL.PROPOSAL_GENERATOR.NAME", "TridentRPN"),
        ("MODEL.ROI_HEADS.NAME", "TridentRes5ROIHeads"),
    ],
)
def test_no_part_takes_three_branches_of_a_plain_backbone(key: str, name: str) -> None:
    assert load_config(PLAIN, opts=[key, name]).backbone == load_config(PLAIN).backbone
    with pytest.raises(ConfigError, match="TEST_BRANCH_IDX = -1"):
        load_config(PLAIN, opts=[key, name, TRIDENT + "TEST_BRANCH_IDX", -1])
