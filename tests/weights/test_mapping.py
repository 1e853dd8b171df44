"""The naming rule and layouts against hand-made cases, and the accounting of every tensor."""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import weights
from weights.layouts import torch_layout


def arange(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


STATE = {
    "backbone.conv.weight": arange(4, 3, 1, 2),
    "backbone.conv.norm.weight": arange(4),
    "backbone.conv.norm.bias": arange(4) + 1,
    "backbone.conv.norm.running_mean": arange(4) + 2,
    "backbone.conv.norm.running_var": arange(4) + 3,
    "roi_heads.box_head.fc1.weight": arange(5, 4 * 2 * 3),
    "roi_heads.box_head.fc1.bias": arange(5),
    "roi_heads.box_predictor.cls_score.weight": arange(4, 5),
    "roi_heads.mask_head.deconv.weight": arange(3, 6, 2, 2),
    "backbone.pos_embed": arange(1, 7, 2),
}
SPECS = {
    "backbone/conv/kernel": (1, 2, 3, 4),
    "backbone/conv/norm/gamma": (4,),
    "backbone/conv/norm/beta": (4,),
    "backbone/conv/norm/moving_mean": (4,),
    "backbone/conv/norm/moving_variance": (4,),
    "roi_heads/box_head/fc1/kernel": (2, 3, 4, 5),
    "roi_heads/box_head/fc1/bias": (5,),
    "roi_heads/box_predictor/cls_score/kernel": (5, 4),
    "roi_heads/mask_head/deconv/kernel": (2, 2, 6, 3),
    "backbone/pos_embed": (1, 7, 2),
}


def test_every_layout():
    arrays = weights.to_keras_arrays(STATE, SPECS)
    assert {path: array.shape for path, array in arrays.items()} == SPECS
    conv, fc, linear, deconv = (arrays[path] for path in SPECS if path.endswith("kernel"))
    assert conv[0, 1, 2, 3] == STATE["backbone.conv.weight"][3, 2, 0, 1]
    # column c * H * W + h * W + w of the flattened C, H, W features
    assert fc[1, 2, 3, 4] == STATE["roi_heads.box_head.fc1.weight"][4, 3 * 6 + 1 * 3 + 2]
    assert linear[4, 2] == STATE["roi_heads.box_predictor.cls_score.weight"][2, 4]
    assert deconv[1, 0, 5, 2] == STATE["roi_heads.mask_head.deconv.weight"][2, 5, 1, 0]
    assert arrays["backbone/conv/norm/moving_variance"][0] == 3


def test_flattened_linear_equals_torch_product():
    features = arange(2, 3, 4)  # H, W, C
    kernel = weights.to_keras_arrays(STATE, SPECS)["roi_heads/box_head/fc1/kernel"]
    expected = STATE["roi_heads.box_head.fc1.weight"] @ features.transpose(2, 0, 1).ravel()
    np.testing.assert_array_equal(np.tensordot(features, kernel, 3), expected)


def test_round_trip_is_bit_exact():
    back = weights.to_state_dict(weights.to_keras_arrays(STATE, SPECS))
    assert back.keys() == STATE.keys()
    for key, value in STATE.items():
        assert back[key].shape == value.shape and back[key].dtype == value.dtype
        np.testing.assert_array_equal(back[key], value)


def test_torch_shape_decides_between_linear_and_convolution():
    kernel = arange(1, 1, 4, 5)
    assert torch_layout(kernel, "head/fc1/kernel").shape == (5, 4)
    assert torch_layout(kernel, "head/fc1/kernel", (5, 4, 1, 1)).shape == (5, 4, 1, 1)
    assert torch_layout(kernel, "head/mask_fcn1/kernel").shape == (5, 4, 1, 1)


def test_all_mismatches_are_listed_sorted():
    state = {**STATE, "zeta": arange(1), "alpha": arange(1), "backbone.pos_embed": arange(1, 8, 2)}
    del state["roi_heads.box_head.fc1.bias"], state["backbone.conv.norm.bias"]
    with pytest.raises(weights.ConversionError) as error:
        weights.to_keras_arrays(state, SPECS)
    text = str(error.value)
    assert "2 missing:\n  backbone.conv.norm.bias\n  roi_heads.box_head.fc1.bias" in text
    assert "2 unexpected:\n  alpha\n  zeta" in text
    assert "backbone.pos_embed: file (1, 8, 2), model (1, 7, 2)" in text


@pytest.mark.parametrize(
    "key",
    [
        "proposal_generator.anchor_generator.cell_anchors.0",
        "pixel_mean",
        "pixel_std",
        "backbone.conv.norm.num_batches_tracked",
        "roi_heads.box_predictor.0.fed_loss_cls_weights",
        "backbone.layers.0.attn.relative_position_index",
    ],
)
def test_harmless_extras_are_dropped(key):
    assert weights.to_keras_arrays({**STATE, key: arange(3)}, SPECS).keys() == SPECS.keys()
    assert weights.harmless_reason(key)


@pytest.mark.parametrize("key", ["pixel_means", "backbone.pixel_mean", "my_cell_anchors.0", "fc1000.weight"])
def test_similar_names_are_not_harmless(key):
    with pytest.raises(weights.ConversionError, match="1 unexpected"):
        weights.to_keras_arrays({**STATE, key: arange(3)}, SPECS)


def test_a_variable_named_like_a_harmless_extra_is_filled():
    arrays = weights.to_keras_arrays(
        {"relative_position_index": np.arange(3)}, {"relative_position_index": (3,)}
    )
    assert arrays["relative_position_index"].dtype == np.int64


def test_norm_statistics_of_old_files():
    """Fused norms hold weight and bias only (mean 0, variance 1); one that lost some is damaged."""
    old = {key: value for key, value in STATE.items() if "running" not in key}
    frozen = [path for path in SPECS if "moving" in path]
    arrays = weights.to_keras_arrays(old, SPECS, frozen=frozen)
    np.testing.assert_array_equal(arrays["backbone/conv/norm/moving_mean"], np.zeros(4))
    np.testing.assert_array_equal(arrays["backbone/conv/norm/moving_variance"], np.ones(4))
    damaged = {key: value for key, value in STATE.items() if "running_var" not in key}
    with pytest.raises(weights.ConversionError, match="running_var"):
        weights.to_keras_arrays(damaged, SPECS, frozen=frozen)
    with pytest.raises(weights.ConversionError, match=r"2 statistics .* only frozen ones"):
        weights.to_keras_arrays(old, SPECS)


def test_class_counts_are_named():
    specs = {**SPECS, "roi_heads/box_predictor/cls_score/kernel": (5, 81)}
    with pytest.raises(
        weights.ConversionError, match="NUM_CLASSES is 80 in the config; the file was trained with 3"
    ):
        weights.to_keras_arrays(STATE, specs)


CLASS_SCORE = "roi_heads.box_predictor.cls_score.weight"


@pytest.mark.parametrize(
    "shape", [(), (0,), (0, 5), (1, 5), (5, 4), (20,), (1, 4, 5), (4, 5, 1, 1), (4, 6), (9, 6), (1, 1)]
)
def test_no_class_count_of_a_shape_that_is_none(shape):
    """A weight that is damaged or in another layout says nothing about classes, and is never an internal
    error."""
    with pytest.raises(weights.ConversionError) as error:
        weights.to_keras_arrays({**STATE, CLASS_SCORE: arange(*shape)}, SPECS)
    assert f"1 of another shape:\n  {CLASS_SCORE}: file {shape}, model (4, 5)" in str(error.value)
    assert "NUM_CLASSES" not in str(error.value)


@pytest.mark.parametrize(
    ("scores", "boxes"),
    [
        ((), (36, 8, 3, 3)),
        ((27, 8), (36, 8, 3, 3)),
        ((0, 8, 3, 3), (36, 8, 3, 3)),
        ((28, 8, 3, 3), (36, 8, 3, 3)),
        ((27, 8, 3, 3), (3, 8, 3, 3)),
        ((27, 8, 3, 3), ()),
    ],
)
def test_no_class_count_of_a_retinanet_that_is_none(scores, boxes):
    assert weights.class_counts({"head.cls_score.weight": scores, "head.bbox_pred.weight": boxes}) == {}


@pytest.mark.parametrize("key", STATE)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3, 4, 5, 6)])
def test_no_shape_is_an_internal_error(key, shape):
    state = {**STATE, key: arange(*shape)}
    for fill in (weights.to_keras_arrays, weights.initial_arrays):
        with pytest.raises(weights.ConversionError, match=re.escape(f"{key}: file {shape}")):
            fill(state, SPECS)


@pytest.mark.parametrize("dtype", "? i1 i4 i8 u1 u2 c8 c16".split())
def test_weights_are_floating_point(dtype):
    """A mask or a quantised tensor of the right shape is not a weight; complex numbers are not cut."""
    state = {**STATE, CLASS_SCORE: STATE[CLASS_SCORE].astype(dtype)}
    text = f"{CLASS_SCORE}: {np.dtype(dtype)}"
    for fill in (weights.to_keras_arrays, weights.initial_arrays):
        with pytest.raises(weights.ConversionError, match=rf"(?s)1 not floating point.*{re.escape(text)}"):
            fill(state, SPECS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_weights_of_every_floating_dtype(dtype):
    values = STATE[CLASS_SCORE].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    arrays = weights.to_keras_arrays({**STATE, CLASS_SCORE: values}, SPECS)
    found = arrays["roi_heads/box_predictor/cls_score/kernel"]
    np.testing.assert_array_equal(found, STATE[CLASS_SCORE].T, strict=True)


def test_messages_name_the_file_and_the_next_step():
    state = {key: value for key, value in STATE.items() if key != CLASS_SCORE}
    with pytest.raises(weights.ConversionError) as error:
        weights.to_keras_arrays(state, SPECS, path=Path("folder/model.pth"))
    text = str(error.value)
    assert text.startswith(f"{Path('folder/model.pth')}: The checkpoint does not match")
    assert "--config-file" in text and f"`tf-d2 inspect {Path('folder/model.pth')}` lists" in text
    with pytest.raises(
        weights.ConversionError, match=r"^The checkpoint does not .*\n.*\n(?s:.*)inspect FILE"
    ):
        weights.to_keras_arrays(state, SPECS)
    bad = {**STATE, CLASS_SCORE: np.full((4, 5), np.nan, np.float32)}
    with pytest.raises(weights.ConversionError, match=r"^m\.pth: 20 NaN(?s:.*)allow_nonfinite=True"):
        weights.to_keras_arrays(bad, SPECS, path="m.pth")
    with pytest.raises(weights.ConversionError, match=r"^20 NaN") as error:
        weights.initial_arrays(bad, SPECS)
    assert "allow" not in str(error.value)  # it has no such argument


def test_class_counts_of_every_predictor():
    shapes = {
        "head.cls_score.weight": (27, 8, 3, 3),
        "head.bbox_pred.weight": (36, 8, 3, 3),
        "sem_seg_head.predictor.weight": (54, 8, 1, 1),
        "roi_heads.keypoint_head.score_lowres.weight": (8, 17, 4, 4),
        "roi_heads.box_predictor.2.cls_score.weight": (9, 5),
    }
    assert weights.class_counts(shapes) == {
        "MODEL.RETINANET.NUM_CLASSES": 3,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 54,
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 17,
        "MODEL.ROI_HEADS.NUM_CLASSES": 8,
    }


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nonfinite_weights(value):
    bad = {**STATE, "backbone.pos_embed": np.where(arange(1, 7, 2) < 3, value, 1).astype(np.float32)}
    with pytest.raises(
        weights.ConversionError, match=r"3 NaN or infinite values in 1 tensors:\n  backbone.pos_embed: 3"
    ):
        weights.to_keras_arrays(bad, SPECS)
    with pytest.warns(UserWarning, match="3 NaN or infinite values"):
        weights.to_keras_arrays(bad, SPECS, allow_nonfinite=True)


def test_overflow_of_a_narrower_dtype_is_found():
    state = {"a": np.array([1e300])}
    with pytest.raises(weights.ConversionError, match="1 NaN or infinite"):
        weights.to_keras_arrays(state, {"a": (1,)})
    assert weights.to_keras_arrays(state, {"a": (1,)}, dtype=np.float64)["a"][0] == 1e300


def test_half_precision_is_widened_and_narrowed_back():
    state = {"conv.weight": arange(2, 3, 1, 1).astype(np.float16)}
    arrays = weights.to_keras_arrays(state, {"conv/kernel": (1, 1, 3, 2)})
    assert arrays["conv/kernel"].dtype == np.float32
    back = weights.to_state_dict(arrays, dtypes={"conv/kernel": np.float16})
    assert back["conv.weight"].dtype == np.float16
    np.testing.assert_array_equal(back["conv.weight"], state["conv.weight"])


def test_two_variables_of_one_key():
    with pytest.raises(weights.ConversionError, match="Two variables"):
        weights.to_state_dict({"a/kernel": arange(2), "a/gamma": arange(2)})
