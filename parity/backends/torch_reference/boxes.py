"""Anchors, box deltas, clipping, level assignment. Boxes are (N, 4) float32 xyxy in network pixels.

Sources: detectron2.modeling.anchor_generator, .box_regression, .poolers, detectron2.structures.boxes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import ops

# exp() of a width or height delta is at most 1000/16.
MAX_LOG_SCALE = math.log(1000.0 / 16)
_CANONICAL_SIZE = 224  # a box of this side belongs to this level
_CANONICAL_LEVEL = 4


def per_level(values: Sequence[Any]) -> list[Any]:
    """Sizes or ratios as one list per level; plain numbers are one list for all levels, as in detectron2."""
    return list(values) if isinstance(values[0], Sequence) else [values]


def level_anchors(generator: Mapping[str, Any], level: int, size: tuple[int, int], stride: int) -> Tensor:
    """Anchors of one feature map of `size` (rows, columns): ordered by row, column, then size, then ratio.

    An anchor of size s and ratio r (= height/width) is s/sqrt(r) wide and s*sqrt(r) high around the cell's
    point ((column + offset) * stride, (row + offset) * stride).
    """
    if generator["NAME"] != "DefaultAnchorGenerator":
        raise ValueError(f"MODEL.ANCHOR_GENERATOR.NAME {generator['NAME']!r} is not supported")
    sizes, ratios = per_level(generator["SIZES"]), per_level(generator["ASPECT_RATIOS"])
    sizes, ratios = sizes[level if len(sizes) > 1 else 0], ratios[level if len(ratios) > 1 else 0]
    cells = []
    for side in sizes:
        for ratio in ratios:
            width = math.sqrt(side**2.0 / ratio)
            height = ratio * width
            cells.append([-width / 2.0, -height / 2.0, width / 2.0, height / 2.0])
    cell = torch.tensor(cells, dtype=torch.float32)
    first = generator["OFFSET"] * stride
    y, x = (torch.arange(first, n * stride, step=stride, dtype=torch.float32) for n in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    points = torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4)
    return (points + cell[None]).reshape(-1, 4)


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Move boxes (N, 4) by deltas (N, 4*K): (N, 4*K) in float32.

    With d = delta / weight: centre += d * size, size *= exp(min(d, ln(1000/16))).
    """
    deltas = deltas.float()
    boxes = boxes.to(deltas.dtype)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    x, y = boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height
    dx, dy, dw, dh = (deltas[:, k::4] / weight for k, weight in enumerate(weights))
    dw, dh = dw.clamp(max=MAX_LOG_SCALE), dh.clamp(max=MAX_LOG_SCALE)
    x, y = dx * width[:, None] + x[:, None], dy * height[:, None] + y[:, None]
    width, height = torch.exp(dw) * width[:, None], torch.exp(dh) * height[:, None]
    corners = [x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height]
    return torch.stack(corners, dim=-1).reshape(deltas.shape)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) with x in [0, width] and y in [0, height]; size = (height, width)."""
    limits = (size[1], size[0], size[1], size[0])
    return torch.stack([boxes[..., k].clamp(min=0, max=limit) for k, limit in enumerate(limits)], dim=-1)


def larger_than(boxes: Tensor, limit: float) -> Tensor:
    """Which boxes are wider and higher than `limit` (strict)."""
    return ((boxes[:, 2] - boxes[:, 0]) > limit) & ((boxes[:, 3] - boxes[:, 1]) > limit)


def pool(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    pooler: Mapping[str, Any],
    levels_of: Callable[[Tensor, int, int], Tensor] | None = None,
) -> Tensor:
    """Pool boxes out of the features, each from the level that fits its size: (N, C, P, P) in box order.

    pooler: a config node with POOLER_RESOLUTION, POOLER_SAMPLING_RATIO, POOLER_TYPE. levels_of: another rule than
    `assign_levels`.
    """
    size, levels = pooler["POOLER_RESOLUTION"], [round(math.log2(stride)) for stride in strides]
    if len(features) == 1:
        return _pool_level(features[0], boxes, 1.0 / strides[0], pooler)
    index = (levels_of or assign_levels)(boxes, levels[0], levels[-1])
    result = features[0].new_zeros(len(boxes), features[0].shape[1], size, size)
    for k, feature in enumerate(features):
        rows = torch.nonzero(index == k)[:, 0]
        if len(rows):
            result[rows] = _pool_level(feature, boxes[rows], 1.0 / strides[k], pooler)
    return result


def assign_levels(boxes: Tensor, lowest: int, highest: int) -> Tensor:
    """Which of the levels lowest..highest each box is pooled from, counted from 0; computed in float32."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    # The small term keeps log2 finite for an empty box.
    level = torch.floor(_CANONICAL_LEVEL + torch.log2(torch.sqrt(area) / _CANONICAL_SIZE + 1e-8))
    return level.clamp(min=lowest, max=highest).to(torch.int64) - lowest


def _pool_level(feature: Tensor, boxes: Tensor, scale: float, pooler: Mapping[str, Any]) -> Tensor:
    kind, size, ratio = (pooler[f"POOLER_{key}"] for key in ("TYPE", "RESOLUTION", "SAMPLING_RATIO"))
    if kind == "ROIPool":
        return ops.roi_pool(feature, boxes, scale, size)
    if kind not in ("ROIAlign", "ROIAlignV2"):
        raise ValueError(f"POOLER_TYPE {kind!r} is not supported; supported: ROIAlign, ROIAlignV2, ROIPool")
    return ops.roi_align(feature, boxes, scale, ops.Sampling(size, ratio, aligned=kind == "ROIAlignV2"))
