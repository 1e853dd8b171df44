"""Statistics, architecture guesses and differences against hand-made cases."""

import numpy as np
import pytest

from weights import summary
from weights.summary import differences, guess_architecture, summarize


def test_statistics():
    row = summarize("a.weight", np.array([[1, np.nan, -3], [np.inf, 8, 2]], np.float32))
    assert (row.minimum, row.maximum, row.mean, row.nan, row.inf) == (-3, 8, 2, 1, 1)
    assert (row.shape, row.dtype, row.ignored) == ((2, 3), "float32", None)
    assert summarize("x.num_batches_tracked", np.array(3)).ignored == "a counter of training steps"


@pytest.mark.parametrize("array", [np.zeros((0, 2)), np.full(3, np.nan)])
def test_statistics_of_nothing(array):
    row = summarize("a", array)
    assert (row.minimum, row.maximum, row.mean) == (None, None, None)


def test_statistics_in_pieces(monkeypatch):
    monkeypatch.setattr(summary, "_CHUNK", 7)
    values = np.random.default_rng(0).normal(size=(13, 5)).astype(np.float32).T
    row = summarize("a", values)
    assert (row.minimum, row.maximum) == (values.min(), values.max())
    assert row.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-12)


def test_float16_does_not_overflow():
    assert summarize("a", np.full(10, 60000, np.float16)).mean == 60000


def test_differences():
    one = {"same": np.ones(2), "v": np.array([3.0, 4.0]), "s": np.ones(2), "d": np.ones(2), "a": np.ones(1)}
    other = {
        "same": np.ones(2),
        "v": np.array([3.0, 4.5]),
        "s": np.ones(3),
        "d": np.ones(2, np.float32),
        "b": np.ones(1),
    }
    rows = {row.name: row for row in differences(one, other)}
    assert {name: row.status for name, row in rows.items()} == {
        "a": "only A",
        "b": "only B",
        "d": "dtype",
        "s": "shape",
        "same": "same",
        "v": "values",
    }
    assert (rows["v"].max_abs, rows["v"].relative_l2) == (0.5, 0.1)
    assert rows["d"].max_abs == 0


def test_differences_in_nan_and_sign_of_zero():
    nan = np.array([np.nan, 1.0])
    assert next(differences({"a": nan}, {"a": nan.copy()})).status == "same"
    row = next(differences({"a": nan}, {"a": np.array([0.0, 1.0])}))
    assert row.status == "values" and "1 values finite in one file only" in row.detail
    assert next(differences({"a": np.zeros(1)}, {"a": -np.zeros(1)})).status == "values"
    assert next(differences({"a": np.zeros(1)}, {"a": np.ones(1)})).relative_l2 == float("inf")


def state(*keys, **shapes):
    return {key: np.zeros(shapes.get(key, (2,))) for key in keys}


def resnet(prefix, blocks, bottleneck=True):
    convs = ("conv1", "conv2", "conv3") if bottleneck else ("conv1", "conv2")
    return {
        f"{prefix}res{stage}.{block}.{conv}.weight": np.zeros((8, 8, 1, 1))
        for stage, count in zip(range(2, 6), blocks, strict=True)
        for block in range(count)
        for conv in convs
    }


FPN = {"backbone.fpn_lateral2.weight": np.zeros((2, 2, 1, 1))}
BOX = {"roi_heads.box_predictor.cls_score.weight": np.zeros((4, 8))}


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        (
            {
                **resnet("backbone.bottom_up.", (3, 4, 6, 3)),
                **FPN,
                **BOX,
                **state("roi_heads.mask_head.deconv.weight"),
            },
            "Mask R-CNN, ResNet-50 FPN, no norm, MODEL.ROI_HEADS.NUM_CLASSES 3",
        ),
        (
            {
                **resnet("backbone.bottom_up.", (2, 2, 2, 2), False),
                **FPN,
                **state("head.cls_subnet.0.weight"),
            },
            "RetinaNet, ResNet-18 FPN, no norm",
        ),
        (
            {**resnet("backbone.", (3, 4, 23, 3)), **BOX, **state("roi_heads.res5.0.conv1.norm.running_var")},
            "R-CNN detector, ResNet-101 C4, FrozenBatchNorm or BatchNorm, MODEL.ROI_HEADS.NUM_CLASSES 3",
        ),
        (
            {**resnet("", (3, 4, 6, 3)), **state("stem.conv1.norm.weight", "stem.conv1.norm.running_var")},
            "a backbone, ResNet-50, FrozenBatchNorm or BatchNorm",
        ),
        (state("roi_heads.box_predictor.0.cls_score.bias", "roi_heads.mask_head.x"), "Cascade Mask R-CNN"),
        (state("roi_heads.box_predictor.bbox_pred.bias", "sem_seg_head.p2.0.weight"), "Panoptic FPN"),
        (
            state("backbone.net.blocks.0.attn.qkv.weight", "roi_heads.box_head.fc1.weight"),
            "transformer backbone",
        ),
        (
            state("backbone.bottom_up.res2.0.conv2_offset.weight", "proposal_generator.rpn_head.conv.weight"),
            "RPN",
        ),
        (state("x"), "unknown architecture, unknown backbone"),
    ],
)
def test_architectures(checkpoint, expected):
    assert expected in guess_architecture(checkpoint)


def test_groups_of_resnext():
    checkpoint = resnet("backbone.bottom_up.", (3, 4, 23, 3))
    checkpoint["backbone.bottom_up.res2.0.conv2.weight"] = np.zeros((256, 8, 3, 3))
    checkpoint["backbone.bottom_up.res2.0.conv1.weight"] = np.zeros((256, 64, 1, 1))
    assert "ResNeXt-101 (groups 32)" in guess_architecture(checkpoint)
