"""Names and layouts of older or foreign checkpoints, turned into detectron2's.

Three sources: Caffe2/Detectron blobs (the rules of detectron2/checkpoint/c2_model_loading.py at 02b5c4e2),
files whose names are only suffixes of the model's (backbones trained for classification), and the ``.npz``
that tensorpack's convert_d2.py makes of a detectron2 model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from weights._types import Checkpoint
from weights.errors import CheckpointError, ConversionError
from weights.layouts import Shape, path_to_key, torch_shape

State = dict[str, np.ndarray]

# --- Caffe2 -----------------------------------------------------------------------------------------

# Blob names after "_" became ".", rewritten in this order. Norms are called norm everywhere; Caffe2's
# branches are
# a block's shortcut and its convolutions; stem and RPN get the module they live in.
_CAFFE2_RULES = [
    (r"\.b$", ".bias"),
    (r"\.w$", ".weight"),
    (r"[bg]n\.s$", "norm.weight"),
    (r"[bg]n\.bias$", "norm.bias"),
    (r"bn\.(rm|running\.mean$)", "norm.running_mean"),
    (r"bn\.(riv|running\.var)$", "norm.running_var"),
    (r"bn\.gamma$", "norm.weight"),
    (r"bn\.beta$", "norm.bias"),
    (r"^(res\.conv1(?=\.norm\.)|conv1)\.", "stem.conv1."),
    (r"\.branch1\.", ".shortcut."),
    (r"\.branch2a\.", ".conv1."),
    (r"\.branch2b\.", ".conv2."),
    (r"\.branch2c\.", ".conv3."),
    (r"^body\.conv\.fcn", "body_conv_fcn"),
    (r"AnnIndex\.lowres", "ann_index_lowres"),
    (r"Index\.UV\.lowres", "index_uv_lowres"),
    (r"([UV])\.lowres", lambda match: match[1].lower() + "_lowres"),
    (r"conv\.rpn(\.fpn2)?", "proposal_generator.rpn_head.conv"),
    (r"rpn\.bbox\.pred(\.fpn2)?", "proposal_generator.rpn_head.anchor_deltas"),
    (r"rpn\.cls\.logits(\.fpn2)?", "proposal_generator.rpn_head.objectness_logits"),
    (r"^bbox\.pred", "bbox_pred"),
    (r"^cls\.score", "cls_score"),
    (r"^retnet\.cls\.conv\.n(\d)\.fpn\d\.", lambda match: f"head.cls_subnet.{2 * int(match[1])}."),
    (r"^retnet\.bbox\.conv\.n(\d)\.fpn\d\.", lambda match: f"head.bbox_subnet.{2 * int(match[1])}."),
    (r"^retnet\.cls\.pred\.fpn\d\.", "head.cls_score."),
    (r"^retnet\.bbox\.pred\.fpn\d\.", "head.bbox_pred."),
    (r"^fpn\.([67])\.", r"top_block.p\1."),
    (r"^fc6\.", "box_head.fc1."),
    (r"^fc7\.", "box_head.fc2."),
    (r"^head\.conv", "box_head.conv"),
    (r"^fpn\.inner\.res(\d+)\.(.*\.)?norm\.(?:.*\.)?(\w+)$", r"fpn_lateral\1.norm.\3"),
    (r"^fpn\.inner\.res(\d+)\.(?:.*\.)?(\w+)$", r"fpn_lateral\1.\2"),
    (r"^fpn\.res(\d+)\.(.*\.)?norm\.(?:.*\.)?(\w+)$", r"fpn_output\1.norm.\3"),
    (r"^fpn\.res(\d+)\.(?:.*\.)?(\w+)$", r"fpn_output\1.\2"),
    (r"\.\[mask\]\.fcn", "mask_head.mask_fcn"),
    (r"^\.mask\.fcn", "mask_head.mask_fcn"),
    (r"mask\.fcn\.logits", "mask_head.predictor"),
    (r"conv5\.mask", "mask_head.deconv"),
    (r"conv\.fcn", "roi_heads.keypoint_head.conv_fcn"),
    (r"kps\.score\.lowres", "roi_heads.keypoint_head.score_lowres"),
    (r"kps\.score\.", "roi_heads.keypoint_head.score."),
]
_CAFFE2_COMPILED = [(re.compile(pattern), new) for pattern, new in _CAFFE2_RULES]


def caffe2_name(blob: str) -> str:
    """The detectron2 name (a suffix of the model's key) of a Caffe2/Detectron blob."""
    name = {"pred_b": "linear_b", "pred_w": "linear_w"}.get(blob, blob).replace("_", ".")
    for pattern, new in _CAFFE2_COMPILED:
        name = pattern.sub(new, name)
    return name


def from_caffe2(blobs: Mapping[str, np.ndarray]) -> State:
    """Blobs under detectron2's names, background moved to where detectron2 has it.

    Detectron's class 0 is the background: the classifier gets it as its last row, box and mask predictors
    lose it.

    Raises:
        CheckpointError: if two blobs get one name.
    """
    state: State = {}
    for blob, value in sorted(blobs.items()):
        if _is_copy(blob, blobs):
            continue
        name = caffe2_name(blob)
        if name in state:
            raise CheckpointError(
                f"The Caffe2 blobs are ambiguous: {blob!r} and another one both mean {name!r}."
            )
        state[name] = _without_background(name, value)
    return state


def _is_copy(blob: str, blobs: Mapping[str, np.ndarray]) -> bool:
    """Whether a blob holds nothing of its own: a stage that masks share, the bilinear kernel of keypoint maps.

    Detectron upsamples heat maps by a transposed convolution whose weights are never trained.

    Raises:
        CheckpointError: it is not what Detectron fills it with.
    """
    shared = blob.removeprefix("_[mask]_")
    if shared != blob and shared.startswith("res"):
        if shared not in blobs or not np.array_equal(blobs[shared], blobs[blob]):
            raise CheckpointError(
                f"{blob!r} differs from {shared!r}: a mask head with a res5 of its own is not supported."
            )
        return True
    if blob == "kps_score_b" and blobs[blob].any():
        raise CheckpointError(
            f"{blob!r} is not zero: keypoint maps with a trained upsampling are not supported."
        )
    if blob == "kps_score_w":
        value = blobs[blob]
        taps = np.array([0.25, 0.75, 0.75, 0.25], np.float32)
        wanted = np.eye(len(value), dtype=np.float32)[:, :, None, None] * np.outer(taps, taps)
        if value.shape != wanted.shape or not np.allclose(value, wanted, rtol=0, atol=1e-6):
            raise CheckpointError(
                f"{blob!r} is not the bilinear kernel: keypoint maps with a trained upsampling are not supported."
            )
    return blob in ("kps_score_w", "kps_score_b")


def _without_background(name: str, value: np.ndarray) -> np.ndarray:
    if not value.ndim:  # a scalar: no predictor, which the shapes will show
        return value
    if name.startswith("bbox_pred."):
        return value[4:]
    if name.startswith("mask_head.predictor.") and len(value) > 1:  # one alone is for all classes
        return value[1:]
    if name.startswith("cls_score."):
        return np.concatenate([value[1:], value[:1]])
    return value


# --- names that are suffixes ------------------------------------------------------------------------


def match_heuristically(state: Mapping[str, np.ndarray], specs: Mapping[str, Shape]) -> State:
    """``state`` under the model's keys, where its names are only the ends of them (``res2.0.conv1.weight``).

    A name matches a key that equals it or ends with "." and it; the longest name wins; one of another shape
    does not count for ambiguity. Names without a match stay as they are.

    Raises:
        ConversionError: if one tensor matches several keys of the model.
    """
    result: State = {}
    owner: dict[str, str] = {}
    misfits: list[tuple[str, str]] = []
    for path, shape in sorted(specs.items()):
        key = path_to_key(path)
        name = next((suffix for suffix in _suffixes(key) if suffix in state), None)
        if name is None:
            continue
        if not _fits(state[name].shape, tuple(shape), path.rsplit("/", 1)[-1]):
            misfits.append((key, name))
            continue
        if name in owner:
            raise ConversionError(
                f"{name!r} of the checkpoint may be {key!r} or {owner[name]!r} of the model."
            )
        owner[name] = key
        result[key] = state[name]
    for key, name in misfits:  # under the model's key, so that the wrong shape is reported
        if name not in owner:
            owner[name] = key
            result[key] = state[name]
    if not owner:
        return dict(state)
    return {**result, **{name: value for name, value in state.items() if name not in owner}}


# Names of PointRend before the version 2 of its modules. Source: projects/PointRend/point_rend/roi_heads.py,
# mask_head.py.
_POINT_REND = [
    (re.compile(r"^roi_heads\.mask_point_head\."), "roi_heads.mask_head.point_head."),
    (re.compile(r"^roi_heads\.mask_coarse_head\."), "roi_heads.mask_head.coarse_head."),
    (re.compile(r"^(roi_heads\.mask_head\.(?:coarse|parameter)_head\.)coarse_mask_fc"), r"\1fc"),
]


def _with_new_names(state: State, specs: Mapping[str, Shape]) -> State:
    """``state`` with old names of PointRend under today's, where the model has those and the file has not."""
    wanted = {path_to_key(path) for path in specs} - state.keys()
    if not any(key.startswith("roi_heads.mask_head.") for key in wanted):
        return state
    renamed: State = {}
    for key, value in state.items():
        new = key
        for pattern, replacement in _POINT_REND:
            new = pattern.sub(replacement, new)
        renamed[new if new in wanted and new not in renamed else key] = value
    return renamed


def matched_state(checkpoint: Checkpoint, specs: Mapping[str, Shape]) -> State:
    """The state dict of ``checkpoint`` under the model's keys: matched where its names need it.

    Module names with a slash (VoVNet's ``stem_1/conv``) count as two levels, as in the paths of variables.

    Raises:
        ConversionError: if one tensor matches several keys of the model.
    """
    if not checkpoint.matching_heuristics:
        state = checkpoint.state
        dotted = {key: key.replace("/", ".") for key in state if "/" in key}
        if dotted and {path_to_key(path) for path in specs} >= set(dotted.values()) - set(state):
            state = {dotted.get(key, key): value for key, value in state.items()}
        return _with_new_names(state, specs)
    try:
        return match_heuristically(checkpoint.state, specs)
    except ConversionError as error:
        raise ConversionError(f"{checkpoint.path}: {error}") from None


def _suffixes(key: str) -> list[str]:
    """The dotted ends of ``key``, longest first."""
    parts = key.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _fits(shape: Shape, spec: Shape, leaf: str) -> bool:
    wanted = torch_shape(spec, leaf)
    is_flattened = (
        leaf == "kernel" and len(spec) == 4 and shape == (wanted[0], wanted[1] * wanted[2] * wanted[3])
    )
    return shape == wanted or is_flattened


# --- tensorpack -------------------------------------------------------------------------------------

_NORM = {"gamma": "weight", "beta": "bias", "mean/EMA": "running_mean", "variance/EMA": "running_var"}
_TENSORPACK_FIXED = {
    "conv0": "bottom_up.stem.conv1",
    "rpn/conv0": "proposal_generator.rpn_head.conv",
    "rpn/class": "proposal_generator.rpn_head.objectness_logits",
    "rpn/box": "proposal_generator.rpn_head.anchor_deltas",
    "maskrcnn/deconv": "roi_heads.mask_head.deconv",
    "maskrcnn/conv": "roi_heads.mask_head.predictor",
    "fastrcnn/class": "roi_heads.box_predictor.cls_score",
    "fastrcnn/box": "roi_heads.box_predictor.bbox_pred",
    "fastrcnn/outputs/class": "roi_heads.box_predictor.cls_score",
    "fastrcnn/outputs/box": "roi_heads.box_predictor.bbox_pred",
}
_CONVOLUTIONS = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "convshortcut": "shortcut"}
_TENSORPACK_RULES: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (
        r"group(\d)/block(\d+)/(conv[123]|convshortcut)",
        lambda m: f"bottom_up.res{int(m[1]) + 2}.{m[2]}.{_CONVOLUTIONS[m[3]]}",
    ),
    (r"fpn/lateral_1x1_c(\d)", lambda m: f"backbone.fpn_lateral{m[1]}"),
    (r"fpn/posthoc_3x3_p(\d)", lambda m: f"backbone.fpn_output{m[1]}"),
    (r"fastrcnn/fc(\d)", lambda m: f"roi_heads.box_head.fc{int(m[1]) - 5}"),
    (
        r"cascade_rcnn_stage(\d)/head/fc(\d)",
        lambda m: f"roi_heads.box_head.{int(m[1]) - 1}.fc{int(m[2]) - 5}",
    ),
    (r"cascade_rcnn_stage(\d)/outputs/class", lambda m: f"roi_heads.box_predictor.{int(m[1]) - 1}.cls_score"),
    (r"cascade_rcnn_stage(\d)/outputs/box", lambda m: f"roi_heads.box_predictor.{int(m[1]) - 1}.bbox_pred"),
    (r"maskrcnn/fcn(\d)", lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}"),
]


def from_tensorpack(arrays: Mapping[str, np.ndarray]) -> State:
    """detectron2's state dict from what tensorpack's convert_d2.py made of it (R50/R101, C4 or FPN).

    Undoes its transposes, puts the background class last again and drops the box row it added for it.

    Raises:
        CheckpointError: for a name that the converter does not write.
    """
    has_fpn = any(name.startswith("fpn/") for name in arrays)
    state: State = {}
    for name, value in arrays.items():
        module, leaf = _tensorpack_module(name)
        key = f"{_place(module, has_fpn)}.{leaf}"
        if leaf == "weight" and value.ndim >= 2:
            value = value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
        classes = arrays.get(name.replace("/box/W", "/class/b").replace("/box/b", "/class/b"))
        state[key] = _tensorpack_classes(module, value, classes)
    return state


def _tensorpack_module(name: str) -> tuple[str, str]:
    """(module, leaf) of a tensorpack variable; the module lacks its place in the backbone."""
    match = re.fullmatch(r"(.+)/(W|b|bn/(?:gamma|beta|mean/EMA|variance/EMA))", name)
    module = _tensorpack_path(match[1]) if match else None
    if match is None or module is None:
        raise CheckpointError(f"{name!r} is no variable that tensorpack's convert_d2.py writes.")
    if match[2].startswith("bn/"):
        return f"{module}.norm", _NORM[match[2][3:]]
    return module, {"W": "weight", "b": "bias"}[match[2]]


def _tensorpack_path(scope: str) -> str | None:
    if scope in _TENSORPACK_FIXED:
        return _TENSORPACK_FIXED[scope]
    for pattern, rename in _TENSORPACK_RULES:
        match = re.fullmatch(pattern, scope)
        if match:
            return rename(match)
    return None


def _place(module: str, has_fpn: bool) -> str:
    """Where the ResNet lives: below the FPN, or (C4) directly in the backbone with res5 in the heads."""
    if not module.startswith("bottom_up."):
        return module
    if has_fpn:
        return f"backbone.{module}"
    inner = module[len("bottom_up.") :]
    return f"roi_heads.{inner}" if inner.startswith("res5.") else f"backbone.{inner}"


def _tensorpack_classes(module: str, value: np.ndarray, class_bias: np.ndarray | None) -> np.ndarray:
    if not value.ndim:  # as for Caffe2
        return value
    if module.endswith(".cls_score"):
        return np.concatenate([value[1:], value[:1]])
    if module.endswith(".bbox_pred") and class_bias is not None and len(value) == 4 * class_bias.size:
        return value[4:]
    return value
