"""Configurations of TensorMask."""

from __future__ import annotations

from typing import Any

import pytest

from tf_d2.config import ConfigError, load_config, load_config_text, resolve_yaml, resolve_yaml_text

NAME = "projects/TensorMask/configs/tensormask_R_50_FPN_1x"
PREFIX, ANCHORS = "MODEL.TENSOR_MASK.", "MODEL.ANCHOR_GENERATOR."


def test_what_the_published_models_are() -> None:
    model = load_config(NAME).model
    assert load_config(NAME.replace("1x", "6x")).model == model
    assert model.mask_sizes == (11, 15) and model.largest_mask == 480
    assert [model.unit(level) for level in range(6)] == [1, 2, 4, 8, 16, 32]
    assert model.anchors.sizes[5] == (1408, 1920) and model.in_features == (
        "p2",
        "p3",
        "p4",
        "p5",
        "p6",
        "p7",
    )


@pytest.mark.parametrize(
    "opts", [[], [PREFIX + "BIPYRAMID_ON", False], [PREFIX + "NUM_CONVS", 0], ["MODEL.MASK_ON", False]]
)
def test_a_dump_says_the_same_model(opts: list[Any]) -> None:
    text = resolve_yaml(NAME, opts)
    assert load_config_text(text) == load_config(NAME, opts)
    assert resolve_yaml_text(text) == text


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([PREFIX + "ALIGNED_ON", False], "ALIGNED_ON True"),
        ([ANCHORS + "ASPECT_RATIOS", [[0.5, 1.0]]], "one ratio"),
        ([ANCHORS + "SIZES", [[3, 60]]], "its stride, 4"),
        ([ANCHORS + "NAME", "RotatedAnchorGenerator"], "DefaultAnchorGenerator"),
        ([PREFIX + "IN_FEATURES", ["p2", "p4"], ANCHORS + "SIZES", [[44, 60]]], "twice the stride"),
        ([PREFIX + "IN_FEATURES", ["res2"], ANCHORS + "SIZES", [[44, 60]]], "p2, p3"),
    ],
)
def test_what_cannot_be_is_refused(opts: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(NAME, opts=opts)
