"""The units of models with the conventions of Detectron or of maskrcnn-benchmark, where they differ (`older`).

Which of the two it is stands in MODEL.CONVENTIONS. Detectron has its final boxes and keypoints in pixels of the
picture, maskrcnn-benchmark in those of the network input until the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from parity.core.units import Unit

from . import boxes as box_ops
from . import older, selection
from .layers import NO_EPSILON
from .run import POOLERS, Function, in_format, on_canvas, size_of, standardised

OPS: dict[str, Function] = {}  # by name; see `op`


def op(function: Function) -> Function:
    """Makes a function (model, unit, inputs) -> outputs the op of its name, less the underscore."""
    OPS[function.__name__.removeprefix("_")] = function
    return function


def with_own_norm(node: Mapping[str, Any]) -> dict[str, Any]:
    """A MODEL node whose frozen norms have no epsilon: Detectron's AffineChannel has no statistics,
    maskrcnn_benchmark/layers/batch_norm.py adds none."""
    resnets = node["RESNETS"]
    frozen = {**resnets, "NORM": NO_EPSILON} if resnets["NORM"] == "FrozenBN" else resnets
    return {**node, "RESNETS": frozen}


def _is_detectron(model: Any) -> bool:
    return model.config["MODEL"]["CONVENTIONS"] == "detectron"


def _factor(model: Any, image: Tensor) -> float:
    config = model.config["INPUT"]
    return older.resize_factor(size_of(image), config["MIN_SIZE_TEST"], config["MAX_SIZE_TEST"])


def _factor32(model: Any, image: Tensor) -> Tensor:
    """The factor as float32 arrays are divided by it."""
    return torch.tensor(_factor(model, image), dtype=torch.float32, device=image.device)


def _padded(model: Any, size: tuple[int, int]) -> tuple[int, int]:
    multiple = model.config["MODEL"].get("SIZE_DIVISIBILITY", -1)
    if multiple < 0:
        multiple = 2 ** model.backbone.levels[-1] if hasattr(model.backbone, "levels") else 0
    return size if multiple < 2 else (-(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple)


# ------------------------------------------------------------------------------------------------------ picture


@op
def _resize(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    config = model.config["INPUT"]
    image = in_format(inputs[0], config["FORMAT"])
    shortest, longest = config["MIN_SIZE_TEST"], config["MAX_SIZE_TEST"]
    size = (image.shape[0], image.shape[1])
    if shortest and _is_detectron(model):
        image = older.resize_by_factor(image, older.resize_factor(size, shortest, longest))
    elif shortest:
        image = older.resize_pillow(image, older.truncated_size(size, shortest, longest))
    return [torch.from_numpy(np.array(image)).to(inputs[0].device)]


@op
def _normalize(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    canvas = on_canvas(standardised(model, inputs[0]), *_padded(model, size_of(inputs[0])))
    return [canvas.to(model.dtype)]


# -------------------------------------------------------------------------------------------------- dense heads


def _anchors(model: Any, features: Sequence[str], maps: Sequence[Tensor], octaves: bool) -> list[Tensor]:
    generator = model.config["MODEL"]["ANCHOR_GENERATOR"]
    sizes, ratios = (box_ops.per_level(generator[key]) for key in ("SIZES", "ASPECT_RATIOS"))
    found = []
    for level, (name, x) in enumerate(zip(features, maps, strict=True)):
        stride = model.shapes[name][1]
        own = sizes[level if len(sizes) > 1 else 0], ratios[level if len(ratios) > 1 else 0]
        cells = older.cell_anchors(stride, *own, octaves)
        found.append(older.level_anchors(cells, (x.shape[2], x.shape[3]), stride).to(x.device))
    return found


@op
def _rpn_proposals(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    node, detectron = model.config["MODEL"], _is_detectron(model)
    *maps, resized, image = inputs if detectron else (*inputs, inputs[-1])
    rpn, count = node["RPN"], len(maps) // 2
    size = _padded(model, size_of(resized)) if detectron else size_of(resized)
    factor = float(_factor32(model, image)) if detectron else None
    anchors = _anchors(model, rpn["IN_FEATURES"], maps[:count], octaves=False)
    boxes, logits = [], []
    for level, deltas, anchor in zip(maps[:count], maps[count:], anchors, strict=True):
        values = selection.per_anchor(level, 1)[:, 0]
        best = older.by_score(values.sigmoid())[: rpn["PRE_NMS_TOPK_TEST"]]
        moved = older.decode(selection.per_anchor(deltas, 4)[best], anchor[best], rpn["BBOX_REG_WEIGHTS"])
        moved, values = older.clip(moved, size), values[best]
        large = older.large_enough(moved, node["PROPOSAL_GENERATOR"]["MIN_SIZE"], factor)
        moved, values = moved[large], values[large]
        kept = older.nms(moved, values.sigmoid(), rpn["NMS_THRESH"])  # in the order of scores
        kept = kept[: rpn.get("POST_NMS_TOPK_PER_LEVEL", 0) or None]
        boxes.append(moved[kept])
        logits.append(values[kept])
    scores = torch.cat(logits)
    best = older.by_score(scores.sigmoid())[: rpn["POST_NMS_TOPK_TEST"]]
    return [scores[best], torch.cat(boxes)[best]]


@op
def _retinanet_out(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    retina, detectron = model.config["MODEL"]["RETINANET"], _is_detectron(model)
    *maps, resized, image = inputs
    count = len(maps) // 2
    anchors = _anchors(model, retina["IN_FEATURES"], maps[count:], octaves=detectron)
    parts = []
    for level, (logits, deltas, anchor) in enumerate(zip(maps[:count], maps[count:], anchors, strict=True)):
        scores = selection.per_anchor(logits, retina["NUM_CLASSES"]).sigmoid()
        coarsest = detectron and level == count - 1
        at = torch.nonzero(scores > (0.0 if coarsest else retina["SCORE_THRESH_TEST"]))
        values = scores[at[:, 0], at[:, 1]]
        best = older.by_score(values)[: retina["TOPK_CANDIDATES_TEST"]]
        rows, classes = at[best].unbind(dim=1)
        moved = older.decode(selection.per_anchor(deltas, 4)[rows], anchor[rows], retina["BBOX_REG_WEIGHTS"])
        parts.append((moved, values[best], classes))
    boxes, scores, classes = (torch.cat(column) for column in zip(*parts, strict=True))
    if detectron:
        boxes = boxes / _factor32(model, image)
    boxes = older.clip(boxes, size_of(image if detectron else resized))
    kept = _suppressed(boxes, scores, classes, retina["NMS_THRESH_TEST"])
    limit = model.config["TEST"]["DETECTIONS_PER_IMAGE"]
    if not detectron:
        kept = kept[older.with_ties(scores[kept], limit)]
    elif limit > 0:
        kept = kept[:limit]
    boxes = boxes[kept] if detectron else _scaled(boxes[kept], resized, image)
    return [boxes, scores[kept], classes[kept]]


def _suppressed(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Rows that NMS within classes leaves, best first."""
    kept = older.per_group(classes, lambda rows: rows[older.nms(boxes[rows], scores[rows], threshold)])
    return kept[older.by_score(scores[kept])]


# ----------------------------------------------------------------------------------------------------- ROI heads


@op
def _roi_pool(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    node = model.config["MODEL"]
    heads = node["ROI_HEADS"]
    strides = [model.shapes[name][1] for name in heads["IN_FEATURES"]]

    def levels(boxes: Tensor, lowest: int, highest: int) -> Tensor:
        size, level = heads.get("CANONICAL_BOX_SIZE", 224), heads.get("CANONICAL_LEVEL", 4)
        return older.assign_levels(boxes, lowest, highest, float(size), level)

    return [box_ops.pool(inputs[:-1], strides, inputs[-1], node[POOLERS[unit.args[0]]], levels)]


@op
def _detect(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    node, detectron = model.config["MODEL"], _is_detectron(model)
    logits, deltas, boxes, resized, image = inputs if detectron else (*inputs, inputs[-1])
    heads, weights = node["ROI_HEADS"], node["ROI_BOX_HEAD"]["BBOX_REG_WEIGHTS"]
    if detectron:
        boxes = boxes / _factor32(model, image)
    scores = functional.softmax(logits, dim=-1)[:, :-1]
    moved = older.decode(deltas, boxes, weights)
    moved = older.clip(moved.reshape(len(moved), -1, 4), size_of(image if detectron else resized))
    rows, classes = torch.nonzero(scores > heads["SCORE_THRESH_TEST"], as_tuple=True)
    chosen = moved[rows, 0] if moved.shape[1] == 1 else moved[rows, classes]
    values = scores[rows, classes]
    kept = _suppressed(chosen, values, classes, heads["NMS_THRESH_TEST"])
    kept = kept[older.with_ties(values[kept], model.config["TEST"]["DETECTIONS_PER_IMAGE"])]
    return [chosen[kept], values[kept], classes[kept]]


@op
def _network_boxes(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [inputs[0] * _factor32(model, inputs[1])]


@op
def _keypoint_up(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    if _is_detectron(model):
        return [older.double(inputs[0])]
    return [functional.interpolate(inputs[0], scale_factor=2, mode="bilinear", align_corners=False)]


def _decoded(model: Any, inputs: Sequence[Tensor]) -> Tensor:
    """x, y, logit and score of every keypoint, (N, K, 4)."""
    maps, boxes = inputs[0], inputs[1][: len(inputs[0])]
    least = model.config["MODEL"]["ROI_KEYPOINT_HEAD"].get("INFERENCE_MIN_SIZE", 0)
    return older.keypoints(maps, boxes, least)


@op
def _keypoints(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    found = _decoded(model, inputs)
    last = found[:, :, 3:] if _is_detectron(model) else torch.ones_like(found[:, :, 3:])
    return [torch.cat([found[:, :, :2], last], dim=2)]


@op
def _keypoint_logits(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [_decoded(model, inputs)[:, :, 2]]


# ------------------------------------------------------------------------------------------------------- results


def _ratios(resized: Tensor, image: Tensor) -> list[float]:
    """Pixels of the picture per pixel of the network input: x, y."""
    return [image.shape[1] / resized.shape[1], image.shape[0] / resized.shape[0]]


def _scaled(boxes: Tensor, resized: Tensor, image: Tensor) -> Tensor:
    """To the picture, as BoxList.resize does: no clipping, nothing dropped."""
    x, y = _ratios(resized, image)
    return boxes * torch.tensor([x, y, x, y], dtype=torch.float32, device=boxes.device)


@op
def _postprocess(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    *values, resized, image = inputs
    rows = min(len(x) for x in values)
    found = {name: x[:rows] for name, x in zip(unit.args, values, strict=True)}
    if not _is_detectron(model):
        found["pred_boxes"] = _scaled(found["pred_boxes"], resized, image)
        if "pred_keypoints" in found:
            points = found["pred_keypoints"]
            found["pred_keypoints"] = points * torch.tensor([*_ratios(resized, image), 1.0]).to(points)
    if "pred_masks" in found:
        threshold = model.config["MODEL"]["ROI_MASK_HEAD"].get("THRESH", 0.5)
        masks = found["pred_masks"][:, 0]
        found["pred_masks"] = older.paste_masks(masks, found["pred_boxes"], size_of(image), threshold)
    return [found[name] for name in unit.args]


@op
def _proposals_out(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    logits, boxes, resized, image = inputs
    if _is_detectron(model):
        return [logits, boxes / _factor32(model, image)]
    return [logits, _scaled(boxes, resized, image)]
