"""The discrete steps: which proposals, detections, keypoints and segments come out. All in float32.

Each function takes the arrays of one image. Sizes are (height, width). Sources:
detectron2.modeling.proposal_generator. proposal_utils, .roi_heads.fast_rcnn, .meta_arch.dense_detector,
.meta_arch.panoptic_fpn, .postprocessing, detectron2.structures.keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from . import boxes as box_ops
from . import ops

Size = tuple[int, int]


def per_anchor(x: Tensor, width: int) -> Tensor:
    """(1, A*width, H, W) -> (H*W*A, width): rows by cell, then anchor."""
    _, channels, tall, wide = x.shape
    x = x.reshape(channels // width, width, tall, wide)
    return x.permute(2, 3, 0, 1).reshape(-1, width)


def proposals(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    size: Size,
    model: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """RPN outputs per level -> (logits, boxes) of the proposals, best first."""
    rpn = model["RPN"]
    kept = [_best(level, rpn["PRE_NMS_TOPK_TEST"]) for level in logits]
    boxes = torch.cat(
        [
            box_ops.decode(per_anchor(delta, 4), anchor, rpn["BBOX_REG_WEIGHTS"])[index]
            for delta, anchor, (_, index) in zip(deltas, anchors, kept, strict=True)
        ]
    )
    scores = torch.cat([score for score, _ in kept])
    levels = torch.cat([torch.full_like(index, k) for k, (_, index) in enumerate(kept)])
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
    boxes, scores, levels = box_ops.clip(boxes[finite], size), scores[finite], levels[finite]
    large = box_ops.larger_than(boxes, model["PROPOSAL_GENERATOR"]["MIN_SIZE"])
    boxes, scores, levels = boxes[large], scores[large], levels[large]
    keep = ops.batched_nms(boxes, scores, levels, rpn["NMS_THRESH"])[: rpn["POST_NMS_TOPK_TEST"]]
    return scores[keep], boxes[keep]


def _best(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest logits of a level (1, A, H, W) and their anchors' indices."""
    row = per_anchor(logits, 1).reshape(1, -1)
    scores, index = row.topk(min(row.shape[1], count), dim=1)
    return scores[0], index[0]


def probabilities(logits: Tensor, sigmoid: bool) -> Tensor:
    """Class probabilities (N, K+1), background last: softmax, or element-wise sigmoid."""
    return logits.sigmoid() if sigmoid else functional.softmax(logits, dim=-1)


def detections(
    scores: Tensor, boxes: Tensor, size: Size, model: Mapping[str, Any], limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities (N, K+1) and boxes (N, 4*K or 4) -> (boxes, scores, classes), best first."""
    heads = model["ROI_HEADS"]
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    boxes, scores = boxes[finite], scores[finite][:, :-1]
    boxes = box_ops.clip(boxes.reshape(len(boxes), -1, 4), size)
    rows, classes = torch.nonzero(scores > heads["SCORE_THRESH_TEST"], as_tuple=True)
    chosen = boxes[rows, 0] if boxes.shape[1] == 1 else boxes[rows, classes]
    values = scores[rows, classes]
    keep = ops.batched_nms(chosen, values, classes, heads["NMS_THRESH_TEST"])
    keep = keep[:limit] if limit >= 0 else keep
    return chosen[keep], values[keep], classes[keep]


def dense_detections(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    model: Mapping[str, Any],
    limit: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """RetinaNet's outputs per level -> (boxes, scores, classes), best first; boxes are not clipped."""
    retina = model["RETINANET"]
    parts = []
    for logit, delta, anchor in zip(logits, deltas, anchors, strict=True):
        scores = per_anchor(logit, retina["NUM_CLASSES"]).sigmoid()
        above = scores > retina["SCORE_THRESH_TEST"]
        index, scores = torch.nonzero(above), scores[above]
        scores, best = scores.topk(min(len(index), retina["TOPK_CANDIDATES_TEST"]))
        rows, classes = index[best].unbind(dim=1)
        moved = box_ops.decode(per_anchor(delta, 4)[rows], anchor[rows], retina["BBOX_REG_WEIGHTS"])
        parts.append((moved, scores, classes))
    boxes, scores, classes = (torch.cat(column) for column in zip(*parts, strict=True))
    keep = ops.batched_nms(boxes, scores, classes, retina["NMS_THRESH_TEST"])[:limit]
    return boxes[keep], scores[keep], classes[keep]


def rescale(boxes: Tensor, network: Size, image: Size) -> tuple[Tensor, Tensor]:
    """Network pixels -> picture pixels, clipped; and which boxes have an area left."""
    x, y = image[1] / network[1], image[0] / network[0]
    boxes = boxes.clone()
    boxes[:, 0::2] *= x
    boxes[:, 1::2] *= y
    boxes = box_ops.clip(boxes, image)
    return boxes, box_ops.larger_than(boxes, 0.0)


def instances_to_image(found: Mapping[str, Tensor], network: Size, image: Size) -> dict[str, Tensor]:
    """Fields of the detections in network pixels -> in picture pixels, with pasted masks."""
    boxes, keep = rescale(found["pred_boxes"], network, image)
    result = {name: value[keep] for name, value in found.items() if name != "pred_boxes"}
    result = {"pred_boxes": boxes[keep], **result}
    if "pred_masks" in result:
        result["pred_masks"] = ops.paste_masks(result["pred_masks"][:, 0], result["pred_boxes"], image)
    if "pred_keypoints" in result:
        scale = torch.tensor([image[1] / network[1], image[0] / network[0], 1.0])
        result["pred_keypoints"] = result["pred_keypoints"] * scale.to(result["pred_keypoints"])
    return result


def keypoints(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """Heat map logits (N, K, M, M) and boxes (N, 4) -> (N, K, 3): x, y in the boxes' pixels, score.

    The map is resized to the box's size in whole pixels with a cubic filter (a = -0.75); the first largest
    pixel's centre, mapped back, is the location. The score is 1 / sum over the unresized map of exp(logit -
    largest).
    """
    result = heatmaps.new_zeros(*heatmaps.shape[:2], 3)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    whole = sides.ceil()
    correction = sides / whole
    for row, heatmap in enumerate(heatmaps):
        wide, tall = (int(side) for side in whole[row])
        large = functional.interpolate(heatmap[None], size=(tall, wide), mode="bicubic", align_corners=False)[
            0
        ]
        top, position = large.flatten(1).max(dim=1)
        position = large.flatten(1).argmax(dim=1)
        x, y = position % wide, position // wide
        result[row, :, 0] = (x.float() + 0.5) * correction[row, 0] + boxes[row, 0]
        result[row, :, 1] = (y.float() + 0.5) * correction[row, 1] + boxes[row, 1]
        result[row, :, 2] = 1.0 / (heatmap - top[:, None, None]).exp().sum(dim=(1, 2))
    return result


def panoptic(
    semantic: Tensor, masks: Tensor, scores: Tensor, classes: Tensor, combine: Mapping[str, Any]
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Class logits (C, H, W) and instances of one picture -> int32 (H, W) of segment ids and their
    descriptions."""
    labels = semantic.argmax(dim=0)
    result = torch.zeros_like(labels, dtype=torch.int32)
    segments: list[dict[str, Any]] = []
    for index in torch.argsort(-scores).tolist():
        score = scores[index].item()
        if score < combine["INSTANCES_CONFIDENCE_THRESH"]:
            break
        free = _free_part(masks[index], result, combine["OVERLAP_THRESH"])
        if free is None:
            continue
        result[free] = len(segments) + 1
        thing = {"score": score, "category_id": classes[index].item(), "instance_id": index}
        segments.append({"id": len(segments) + 1, "isthing": True, **thing})
    for label in torch.unique(labels).tolist():
        stuff = (labels == label) & (result == 0)
        area = int(stuff.sum())
        if label == 0 or area < combine["STUFF_AREA_LIMIT"]:
            continue  # label 0 stands for all things
        result[stuff] = len(segments) + 1
        segments.append({"id": len(segments) + 1, "isthing": False, "category_id": label, "area": area})
    return result, segments


def _free_part(mask: Tensor, taken: Tensor, limit: float) -> Tensor | None:
    """The part of a mask on pixels not yet taken, or None when too much of it (or all) is taken or it is
    empty."""
    area = mask.sum().item()
    overlap = (mask & (taken > 0)).sum().item()
    return None if area == 0 or overlap / area > limit else mask & (taken == 0)
