"""State dicts of maskrcnn-benchmark under detectron2's names. Source: maskrcnn_benchmark/modeling/.

Its class 0 is the background: the classifier gets it as its last row, box and mask predictors lose it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from weights.errors import CheckpointError

_DROPPED = re.compile(r"rpn\.anchor_generator\.cell_anchors\.\d+")
_BLOCK = r"(?:conv(?P<c>[123])|bn(?P<b>[123])|downsample\.(?P<d>[01]))"
_LEAVES = {"0": "shortcut", "1": "shortcut.norm"}
# Module paths; what follows them (weight, bias, running_mean ...) stays. Rules see the whole name.
_RULES: list[tuple[str, str]] = [
    (r"backbone\.body\.stem\.conv1\.", "{bottom}stem.conv1."),
    (r"backbone\.body\.stem\.bn1\.", "{bottom}stem.conv1.norm."),
    (r"backbone\.fpn\.top_blocks\.(p[67])\.", r"backbone.top_block.\1."),
    (r"rpn\.head\.conv\.", "proposal_generator.rpn_head.conv."),
    (r"roi_heads\.box\.feature_extractor\.fc([67])\.", "roi_heads.box_head.fc{minus5}."),
    (r"roi_heads\.box\.predictor\.", "roi_heads.box_predictor."),
    (r"roi_heads\.mask\.feature_extractor\.(mask_fcn\d)\.", r"roi_heads.mask_head.\1."),
    (r"roi_heads\.mask\.predictor\.conv5_mask\.", "roi_heads.mask_head.deconv."),
    (r"roi_heads\.mask\.predictor\.mask_fcn_logits\.", "roi_heads.mask_head.predictor."),
    (r"roi_heads\.keypoint\.feature_extractor\.(conv_fcn\d)\.", r"roi_heads.keypoint_head.\1."),
    (r"roi_heads\.keypoint\.predictor\.kps_score_lowres\.", "roi_heads.keypoint_head.score_lowres."),
]
_COMPILED = [(re.compile(pattern), new) for pattern, new in _RULES]
_WHERE = r"(?P<where>backbone\.body|roi_heads\.box\.feature_extractor\.head)"
_STAGE = re.compile(rf"{_WHERE}\.layer(\d)\.(\d+)\.{_BLOCK}\.(.+)")
_PYRAMID = re.compile(r"backbone\.fpn\.fpn_(inner|layer)(\d)\.(?:(\d)\.)?(.+)")
_RETINANET = [
    (re.compile(r"rpn\.head\.cls_tower\."), "head.cls_subnet."),
    (re.compile(r"rpn\.head\.bbox_tower\."), "head.bbox_subnet."),
    (re.compile(r"rpn\.head\.cls_logits\."), "head.cls_score."),
    (re.compile(r"rpn\.head\.bbox_pred\."), "head.bbox_pred."),
]
_RPN = [
    (re.compile(r"rpn\.head\.cls_logits\."), "proposal_generator.rpn_head.objectness_logits."),
    (re.compile(r"rpn\.head\.bbox_pred\."), "proposal_generator.rpn_head.anchor_deltas."),
]


def is_maskrcnn_benchmark(names: Iterable[str]) -> bool:
    """Whether these are names of maskrcnn-benchmark's modules."""
    return any(name.startswith("backbone.body.stem.conv1.") for name in names)


def from_maskrcnn_benchmark(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``state`` under detectron2's names, background last; stored anchors left out, unknown names as they are.

    Raises:
        CheckpointError: if two tensors get one name.
    """
    has_fpn = any(name.startswith("backbone.fpn.") for name in state)
    dense = _RETINANET if any(name.startswith("rpn.head.cls_tower.") for name in state) else _RPN
    renamed: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if _DROPPED.fullmatch(name):
            continue
        new = _name(name, has_fpn, dense)
        if new in renamed:
            raise CheckpointError(f"{name!r} and another tensor both mean {new!r}.")
        renamed[new] = _without_background(new, value)
    return renamed


def _name(name: str, has_fpn: bool, dense: list[tuple[re.Pattern[str], str]]) -> str:
    bottom = "backbone.bottom_up." if has_fpn else "backbone."
    match = _STAGE.fullmatch(name)
    if match:
        where = bottom if match["where"] == "backbone.body" else "roi_heads."
        if match["d"]:
            part = _LEAVES[match["d"]]
        else:
            part = f"conv{match['c']}" if match["c"] else f"conv{match['b']}.norm"
        return f"{where}res{int(match[2]) + 1}.{match[3]}.{part}.{match[match.lastindex or 0]}"
    match = _PYRAMID.fullmatch(name)
    if match:  # with group norm the convolution is child 0 and the norm child 1
        kind = "lateral" if match[1] == "inner" else "output"
        norm = "norm." if match[3] == "1" else ""
        return f"backbone.fpn_{kind}{int(match[2]) + 1}.{norm}{match[4]}"
    for pattern, new in [*_COMPILED, *dense]:
        match = pattern.match(name)
        if match:
            digit = match[1] if match.groups() else ""
            place = new.replace("{bottom}", bottom)
            if "{minus5}" in place:
                place = place.replace("{minus5}", str(int(digit) - 5))
            return match.expand(place) + name[match.end() :]
    return name


def _without_background(name: str, value: np.ndarray) -> np.ndarray:
    if not value.ndim:
        return value
    if name.startswith("roi_heads.box_predictor.bbox_pred."):
        return value[4:]
    if name.startswith("roi_heads.mask_head.predictor.") and len(value) > 1:
        return value[1:]
    if name.startswith("roi_heads.box_predictor.cls_score."):
        return np.concatenate([value[1:], value[:1]])
    return value
