"""Names of maskrcnn-benchmark's and Detectron's tensors under detectron2's, background last."""

from __future__ import annotations

import numpy as np
import pytest

from weights.errors import CheckpointError
from weights.legacy import from_caffe2
from weights.maskrcnn_benchmark import from_maskrcnn_benchmark, is_maskrcnn_benchmark

ONE = np.zeros(1, np.float32)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.body.stem.bn1.running_var", "backbone.bottom_up.stem.conv1.norm.running_var"),
        ("backbone.body.layer1.0.downsample.0.weight", "backbone.bottom_up.res2.0.shortcut.weight"),
        ("backbone.body.layer4.2.downsample.1.bias", "backbone.bottom_up.res5.2.shortcut.norm.bias"),
        ("backbone.body.layer3.5.bn2.weight", "backbone.bottom_up.res4.5.conv2.norm.weight"),
        ("backbone.fpn.fpn_inner1.bias", "backbone.fpn_lateral2.bias"),
        ("backbone.fpn.fpn_layer4.1.weight", "backbone.fpn_output5.norm.weight"),
        ("backbone.fpn.top_blocks.p6.weight", "backbone.top_block.p6.weight"),
        ("rpn.head.cls_logits.bias", "proposal_generator.rpn_head.objectness_logits.bias"),
        ("roi_heads.box.feature_extractor.fc7.weight", "roi_heads.box_head.fc2.weight"),
        ("roi_heads.mask.predictor.conv5_mask.weight", "roi_heads.mask_head.deconv.weight"),
        ("roi_heads.keypoint.predictor.kps_score_lowres.bias", "roi_heads.keypoint_head.score_lowres.bias"),
        ("something.else", "something.else"),
    ],
)
def test_names_with_a_pyramid(theirs: str, ours: str) -> None:
    state = {"backbone.body.stem.conv1.weight": ONE, "backbone.fpn.fpn_inner4.bias": ONE, theirs: ONE}
    assert is_maskrcnn_benchmark(state)
    assert ours in from_maskrcnn_benchmark(state)


def test_names_without_a_pyramid_and_of_retinanet() -> None:
    names = [
        "backbone.body.layer1.0.conv1.weight",
        "roi_heads.box.feature_extractor.head.layer4.0.conv3.weight",
    ]
    assert list(from_maskrcnn_benchmark(dict.fromkeys(names, ONE))) == [
        "backbone.res2.0.conv1.weight",
        "roi_heads.res5.0.conv3.weight",
    ]
    dense = {"rpn.head.cls_tower.2.weight": ONE, "rpn.head.bbox_pred.bias": ONE}
    stored = {"rpn.anchor_generator.cell_anchors.0": ONE}
    assert list(from_maskrcnn_benchmark(dense | stored)) == [
        "head.cls_subnet.2.weight",
        "head.bbox_pred.bias",
    ]


def test_background_goes_last_or_away() -> None:
    rows = np.arange(12, dtype=np.float32)
    state = {
        "roi_heads.box.predictor.cls_score.bias": rows[:3],
        "roi_heads.box.predictor.bbox_pred.bias": rows,
        "roi_heads.mask.predictor.mask_fcn_logits.bias": rows[:3],
    }
    scores, boxes, masks = from_maskrcnn_benchmark(state).values()
    assert scores.tolist() == [1, 2, 0] and boxes.tolist() == rows[4:].tolist() and masks.tolist() == [1, 2]


def test_blobs_of_retinanet() -> None:
    names = ["retnet_cls_conv_n3_fpn3_w", "retnet_bbox_pred_fpn3_b", "retnet_cls_pred_fpn3_w", "fpn_6_w"]
    assert sorted(from_caffe2(dict.fromkeys(names, ONE))) == [
        "head.bbox_pred.bias",
        "head.cls_score.weight",
        "head.cls_subnet.6.weight",
        "top_block.p6.weight",
    ]


def test_blobs_that_hold_nothing_of_their_own() -> None:
    taps = np.array([0.25, 0.75, 0.75, 0.25], np.float32)
    kernel = np.eye(2, dtype=np.float32)[:, :, None, None] * np.outer(taps, taps)
    blobs = {
        "kps_score_w": kernel,
        "kps_score_b": np.zeros(2),
        "res5_0_branch1_w": ONE,
        "_[mask]_res5_0_branch1_w": ONE,
    }
    assert list(from_caffe2(blobs)) == ["res5.0.shortcut.weight"]
    for change in (
        {"kps_score_w": kernel + 0.1},
        {"kps_score_b": np.ones(2)},
        {"_[mask]_res5_0_branch1_w": ONE + 1},
    ):
        with pytest.raises(CheckpointError, match="not supported"):
            from_caffe2(blobs | change)
