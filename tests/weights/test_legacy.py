"""Caffe2 names and background rows, suffix matching, tensorpack's npz."""

import io
import pickle

import numpy as np
import pytest

import weights
from weights.legacy import caffe2_name, from_caffe2, from_tensorpack

RNG = np.random.default_rng(1)

# pairs that detectron2's own converter gives
NAMES = {
    "conv1_w": "stem.conv1.weight",
    "res_conv1_bn_s": "stem.conv1.norm.weight",
    "res2_0_branch1_w": "res2.0.shortcut.weight",
    "res2_0_branch1_bn_b": "res2.0.shortcut.norm.bias",
    "res3_1_branch2a_w": "res3.1.conv1.weight",
    "res4_22_branch2b_bn_rm": "res4.22.conv2.norm.running_mean",
    "res5_2_branch2c_bn_riv": "res5.2.conv3.norm.running_var",
    "res2_0_branch2a_bn_gamma": "res2.0.conv1.norm.weight",
    "res2_0_branch2a_bn_running_mean": "res2.0.conv1.norm.running_mean",
    "res2_0_branch2a_gn_s": "res2.0.conv1.norm.weight",
    "fpn_inner_res5_2_sum_w": "fpn_lateral5.weight",
    "fpn_inner_res4_5_sum_lateral_w": "fpn_lateral4.weight",
    "fpn_inner_res4_5_sum_lateral_gn_s": "fpn_lateral4.norm.weight",
    "fpn_res2_2_sum_b": "fpn_output2.bias",
    "fpn_res2_2_sum_gn_b": "fpn_output2.norm.bias",
    "conv_rpn_fpn2_w": "proposal_generator.rpn_head.conv.weight",
    "conv_rpn_w": "proposal_generator.rpn_head.conv.weight",
    "rpn_cls_logits_fpn2_b": "proposal_generator.rpn_head.objectness_logits.bias",
    "rpn_bbox_pred_w": "proposal_generator.rpn_head.anchor_deltas.weight",
    "fc6_w": "box_head.fc1.weight",
    "fc7_b": "box_head.fc2.bias",
    "head_conv4_w": "box_head.conv4.weight",
    "head_conv4_gn_s": "box_head.conv4.norm.weight",
    "cls_score_w": "cls_score.weight",
    "bbox_pred_b": "bbox_pred.bias",
    "_[mask]_fcn1_w": "mask_head.mask_fcn1.weight",
    "mask_fcn_logits_w": "mask_head.predictor.weight",
    "conv5_mask_w": "mask_head.deconv.weight",
    "conv_fcn8_w": "roi_heads.keypoint_head.conv_fcn8.weight",
    "kps_score_lowres_w": "roi_heads.keypoint_head.score_lowres.weight",
    "kps_score_w": "roi_heads.keypoint_head.score.weight",
    "pred_w": "linear.weight",
    "fc1000_b": "fc1000.bias",
    "body_conv_fcn3_w": "body_conv_fcn3.weight",
    "AnnIndex_lowres_w": "ann_index_lowres.weight",
    "Index_UV_lowres_w": "index_uv_lowres.weight",
    "U_lowres_b": "u_lowres.bias",
    "V_lowres_b": "v_lowres.bias",
}


@pytest.mark.parametrize("blob", NAMES)
def test_caffe2_names(blob):
    assert caffe2_name(blob) == NAMES[blob]


def test_background_rows():
    column = np.arange(12.0)[:, None]
    blobs = {
        "cls_score_b": np.arange(6.0),
        "bbox_pred_w": column,
        "mask_fcn_logits_w": column,
        "fc6_w": column,
    }
    state = from_caffe2(blobs)
    np.testing.assert_array_equal(state["cls_score.bias"], [1, 2, 3, 4, 5, 0])
    np.testing.assert_array_equal(state["bbox_pred.weight"], column[4:])
    np.testing.assert_array_equal(state["mask_head.predictor.weight"], column[1:])
    np.testing.assert_array_equal(state["box_head.fc1.weight"], column)


def test_scalars_where_predictors_should_be():
    """They stay as they are, for the comparison with the model to name."""
    for blob in ("cls_score_b", "bbox_pred_w", "mask_fcn_logits_w"):
        assert next(iter(from_caffe2({blob: np.array(1.0)}).values())) == 1
    for name in ("fastrcnn/box/b", "fastrcnn/class/b"):
        scalars = {"fastrcnn/box/b": np.ones(8), "fastrcnn/class/b": np.ones(3), name: np.array(1.0)}
        assert sum(value.ndim for value in from_tensorpack(scalars).values()) == 1


def test_ambiguous_blobs():
    with pytest.raises(weights.CheckpointError, match="ambiguous"):
        from_caffe2({"conv_rpn_w": np.ones(1), "conv_rpn_fpn2_w": np.ones(1)})


def test_detectron_file(tmp_path):
    """Blobs beside the config; momentum and the stem's zero bias go, and the report says so."""
    blobs = {"conv1_w": np.ones((4, 3, 7, 7)), "conv1_b": np.zeros(4), "conv1_w_momentum": np.ones(3)}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "A: 1"}, 2))
    found = weights.read_checkpoint(path)
    assert (found.format, found.author, found.matching_heuristics) == ("caffe2-pkl", "Caffe2", True)
    assert list(found.state) == ["stem.conv1.weight"]
    assert found.ignored == ["1 momentum blobs of the optimizer", "cfg", "conv1_b (all zero)"]
    path.write_bytes(pickle.dumps({**blobs, "conv1_b": np.ones(4)}, 2))
    assert "stem.conv1.bias" in weights.read_checkpoint(path).state


# --- matching ---------------------------------------------------------------------------------------

SPECS = {
    "backbone/bottom_up/stem/conv1/kernel": (7, 7, 3, 4),
    "backbone/bottom_up/res2/0/conv1/kernel": (1, 1, 4, 2),
    "backbone/bottom_up/res2/0/conv1/norm/gamma": (2,),
    "backbone/bottom_up/res2/0/conv1/norm/beta": (2,),
    "backbone/bottom_up/res2/0/conv1/norm/moving_mean": (2,),
    "backbone/bottom_up/res2/0/conv1/norm/moving_variance": (2,),
    "roi_heads/box_head/fc1/kernel": (7, 7, 4, 8),
}
BACKBONE = {
    "stem.conv1.weight": np.ones((4, 3, 7, 7), np.float32),
    "res2.0.conv1.weight": np.full((2, 4, 1, 1), 2, np.float32),
    "res2.0.conv1.norm.weight": np.ones(2, np.float32),
    "res2.0.conv1.norm.bias": np.zeros(2, np.float32),
    "fc1000.weight": np.ones((1000, 8), np.float32),
}


def test_matching_by_the_end_of_names():
    state = weights.match_heuristically(BACKBONE, SPECS)
    assert state["backbone.bottom_up.res2.0.conv1.weight"][0, 0, 0, 0] == 2
    assert "fc1000.weight" in state and "stem.conv1.weight" not in state


def test_the_longest_name_wins():
    specs = {"a/res2/conv1/bias": (1,), "a/conv1/bias": (1,)}
    state = weights.match_heuristically({"conv1.bias": np.zeros(1), "res2.conv1.bias": np.ones(1)}, specs)
    assert state["a.res2.conv1.bias"] == 1 and state["a.conv1.bias"] == 0


def test_names_match_whole_parts_only():
    state = weights.match_heuristically(
        {"conv1.bias": np.ones(1), "x": np.ones(2)}, {"mesh_conv1/bias": (1,), "x": (2,)}
    )
    assert "mesh_conv1.bias" not in state and "conv1.bias" in state


def test_one_tensor_for_two_variables_is_refused():
    with pytest.raises(weights.ConversionError, match="may be"):
        weights.match_heuristically({"conv1.bias": np.ones(1)}, {"a/conv1/bias": (1,), "b/conv1/bias": (1,)})
    checkpoint = weights.Checkpoint(
        {"conv1.bias": np.ones(1)}, "pycls", matching_heuristics=True, path="a.pth"
    )
    with pytest.raises(weights.ConversionError, match=r"^a\.pth: .* may be"):
        weights.matched_state(checkpoint, {"a/conv1/bias": (1,), "b/conv1/bias": (1,)})


def test_another_shape_is_no_ambiguity_but_is_reported():
    specs = {"a/conv1/bias": (1,), "b/conv1/bias": (2,)}
    state = weights.match_heuristically({"conv1.bias": np.ones(1)}, specs)
    assert list(state) == ["a.conv1.bias"]
    state = weights.match_heuristically(
        {"conv1.bias": np.ones(3), "y": np.ones(1)}, {"a/conv1/bias": (1,), "y": (1,)}
    )
    with pytest.raises(weights.ConversionError, match=r"a.conv1.bias: file \(3,\), model \(1,\)"):
        weights.to_keras_arrays(state, {"a/conv1/bias": (1,), "y": (1,)})


def test_no_match_leaves_everything():
    assert weights.match_heuristically(BACKBONE, {"zz/kernel": (1, 1)}).keys() == BACKBONE.keys()


def test_starting_from_a_backbone():
    state = weights.match_heuristically(BACKBONE, SPECS)
    arrays, missing, unexpected = weights.initial_arrays(state, SPECS)
    assert missing == ["roi_heads.box_head.fc1.weight"] and unexpected == ["fc1000.weight"]
    np.testing.assert_array_equal(arrays["backbone/bottom_up/res2/0/conv1/norm/moving_variance"], np.ones(2))
    with pytest.raises(weights.ConversionError, match=r"(?s)a backbone only.*3 missing"):
        weights.to_keras_arrays(state, SPECS)
    with pytest.raises(weights.ConversionError, match="does not match"):
        weights.initial_arrays({"zz": np.ones(1)}, SPECS)


# --- tensorpack -------------------------------------------------------------------------------------


def tensorpack_of(state, fpn=True, cascade=False, agnostic=False):
    """A detectron2 state dict as tensorpack's converter writes it."""
    left, result = dict(state), {}

    def conv(source, target):
        result[f"{target}/W"] = left.pop(f"{source}.weight").transpose(2, 3, 1, 0)
        for ours, theirs in (
            ("weight", "gamma"),
            ("bias", "beta"),
            ("running_mean", "mean/EMA"),
            ("running_var", "variance/EMA"),
        ):
            if f"{source}.norm.{ours}" in left:
                result[f"{target}/bn/{theirs}"] = left.pop(f"{source}.norm.{ours}")
        if f"{source}.bias" in left:
            result[f"{target}/b"] = left.pop(f"{source}.bias")

    def linear(source, target):
        result[f"{target}/W"] = left.pop(f"{source}.weight").T
        result[f"{target}/b"] = left.pop(f"{source}.bias")

    def predictor(source, target):
        linear(f"{source}.cls_score", f"{target}/class")
        for leaf in ("W", "b"):
            value = result[f"{target}/class/{leaf}"]
            result[f"{target}/class/{leaf}"] = np.concatenate([value[..., -1:], value[..., :-1]], -1)
        linear(f"{source}.bbox_pred", f"{target}/box")
        if not agnostic:
            for leaf in ("W", "b"):
                value = result[f"{target}/box/{leaf}"]
                result[f"{target}/box/{leaf}"] = np.concatenate([value[..., :4], value], -1)

    body = "backbone.bottom_up." if fpn else "backbone."
    conv(body + "stem.conv1", "conv0")
    for group in range(4):
        place = "roi_heads." if group == 3 and not fpn else body
        for name, target in (("shortcut", "convshortcut"), ("conv1", "conv1"), ("conv3", "conv3")):
            conv(f"{place}res{group + 2}.0.{name}", f"group{group}/block0/{target}")
    if fpn:
        conv("backbone.fpn_lateral2", "fpn/lateral_1x1_c2")
        conv("backbone.fpn_output5", "fpn/posthoc_3x3_p5")
        conv("roi_heads.mask_head.mask_fcn1", "maskrcnn/fcn0")
    conv("proposal_generator.rpn_head.conv", "rpn/conv0")
    conv("proposal_generator.rpn_head.objectness_logits", "rpn/class")
    conv("proposal_generator.rpn_head.anchor_deltas", "rpn/box")
    for stage in range(3) if cascade else [None]:
        inner, outer = ("", "fastrcnn") if stage is None else (f".{stage}", f"cascade_rcnn_stage{stage + 1}")
        if fpn:
            for fc in (1, 2):
                linear(
                    f"roi_heads.box_head{inner}.fc{fc}",
                    f"{outer}/{'' if stage is None else 'head/'}fc{fc + 5}",
                )
        predictor(f"roi_heads.box_predictor{inner}", f"{outer}/outputs" if fpn else outer)
    conv("roi_heads.mask_head.deconv", "maskrcnn/deconv")
    conv("roi_heads.mask_head.predictor", "maskrcnn/conv")
    assert not left, list(left)
    return result


def detector(fpn=True, cascade=False, agnostic=False, classes=3):
    """A made-up state dict with every kind of layer that the converter knows."""
    state = {}

    def add(name, *shape, norm=False, bias=True):
        state[f"{name}.weight"] = RNG.normal(size=shape).astype(np.float32)
        if norm:
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                state[f"{name}.norm.{leaf}"] = RNG.normal(size=shape[0]).astype(np.float32)
        elif bias:
            state[f"{name}.bias"] = RNG.normal(size=shape[0]).astype(np.float32)

    body = "backbone.bottom_up." if fpn else "backbone."
    add(body + "stem.conv1", 4, 3, 7, 7, norm=True)
    for stage in range(2, 6):
        place = "roi_heads." if stage == 5 and not fpn else body
        for name in ("shortcut", "conv1", "conv3"):
            add(f"{place}res{stage}.0.{name}", 5, 4, 1, 1, norm=True)
    if fpn:
        add("backbone.fpn_lateral2", 6, 5, 1, 1)
        add("backbone.fpn_output5", 6, 6, 3, 3)
        add("roi_heads.mask_head.mask_fcn1", 6, 6, 3, 3)
    for name, out in (("conv", 6), ("objectness_logits", 3), ("anchor_deltas", 12)):
        add(f"proposal_generator.rpn_head.{name}", out, 6, 1, 1)
    for stage in [".0", ".1", ".2"] if cascade else [""]:
        if fpn:
            add(f"roi_heads.box_head{stage}.fc1", 8, 6 * 4)
            add(f"roi_heads.box_head{stage}.fc2", 8, 8)
        add(f"roi_heads.box_predictor{stage}.cls_score", classes + 1, 8)
        add(f"roi_heads.box_predictor{stage}.bbox_pred", 4 if agnostic else 4 * classes, 8)
    add("roi_heads.mask_head.deconv", 6, 7, 2, 2)
    state["roi_heads.mask_head.deconv.bias"] = RNG.normal(size=7).astype(np.float32)
    add("roi_heads.mask_head.predictor", classes, 7, 1, 1)
    return state


@pytest.mark.parametrize(
    "kind", [{}, {"fpn": False}, {"cascade": True, "agnostic": True}], ids=["FPN", "C4", "cascade"]
)
@pytest.mark.parametrize("compressed", [False, True])
def test_tensorpack_round_trip(tmp_path, kind, compressed):
    state = detector(**kind)
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **tensorpack_of(state, **kind))
    (tmp_path / "converted.npz").write_bytes(buffer.getvalue())
    found = weights.read_checkpoint(tmp_path / "converted.npz")
    assert found.format == "tensorpack-npz" and not found.matching_heuristics
    assert found.state.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(found.state[key], value, strict=True, err_msg=key)


def test_tensorpack_with_other_variables():
    with pytest.raises(weights.CheckpointError, match="learning_rate"):
        from_tensorpack({"conv0/W": np.ones((1, 1, 1, 1)), "learning_rate": np.ones(1)})
