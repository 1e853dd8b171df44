"""The operations that detectron2 takes from torchvision: ROI pooling, NMS, deformable convolution.

`roi_align`, `roi_pool`, `nms`, `batched_nms` and `deform_conv` call torchvision where it is importable,
since that is what detectron2 calls. The `own_*` functions are the same computations in plain torch, with
torchvision's order of floating point operations, for machines without it. Boxes are (N, 4) xyxy.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# How many sampled values own_roi_align and own_deform_conv hold at once.
_CHUNK_VALUES = 16 * 2**20


@functools.cache
def torchvision_ops() -> ModuleType | None:
    """torchvision.ops, or None when torchvision is not installed or does not fit this torch."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision.ops")
    except (ImportError, RuntimeError):
        # A torchvision built for another torch raises RuntimeError ("operator torchvision::nms does not
        # exist").
        return None


# ---------------------------------------------------------------------------------------------- ROI pooling


class Sampling(NamedTuple):
    """How ROIAlign samples a region."""

    size: int  # bins per side
    ratio: int  # samples per bin and axis, 0 = ceil(bin size)
    aligned: bool  # without half a pixel (ROIAlignV2)


def roi_align(features: Tensor, boxes: Tensor, scale: float, sampling: Sampling) -> Tensor:
    """Average of bilinear samples per bin. features (1, C, H, W), boxes in pixels of the network image.

    scale: feature pixels per network pixel. Returns (N, C, size, size) of the dtype of `features`.
    Source: detectron2.layers.roi_align.
    """
    library = torchvision_ops()
    if library is None:
        return own_roi_align(features, boxes, scale, sampling)
    size, ratio, aligned = sampling
    return library.roi_align(features, [boxes.to(features.dtype)], (size, size), scale, ratio, aligned)


def own_roi_align(features: Tensor, boxes: Tensor, scale: float, sampling: Sampling) -> Tensor:
    """`roi_align` in plain torch: the samples of a bin are added in torchvision's order (rows, then
    columns)."""
    size, ratio, aligned = sampling
    boxes = boxes.to(features.dtype)
    start, length = _roi_extent(boxes, scale, aligned)
    bins = length / size
    grid = torch.full_like(bins, float(ratio)) if ratio > 0 else torch.ceil(length / size)
    grid = grid.to(torch.int64)
    result = features.new_zeros(len(boxes), features.shape[1], size, size)
    for shape in torch.unique(grid, dim=0).tolist():
        if min(shape) <= 0:
            continue  # an empty grid sums nothing: the bin stays 0
        rows = torch.nonzero((grid == grid.new_tensor(shape)).all(dim=1))[:, 0]
        step = max(1, _CHUNK_VALUES // (features.shape[1] * size * size))
        for part in rows.split(step):
            result[part] = _roi_align_group(features[0], start[part], bins[part], shape, size)
    return result


def _roi_extent(boxes: Tensor, scale: float, aligned: bool) -> tuple[Tensor, Tensor]:
    """(start, length) of each box in feature pixels, each (N, 2) in the order y, x."""
    offset = 0.5 if aligned else 0.0
    start = boxes[:, [1, 0]] * scale - offset
    end = boxes[:, [3, 2]] * scale - offset
    length = end - start
    return start, length if aligned else length.clamp(min=1.0)


def _roi_align_group(features: Tensor, start: Tensor, bins: Tensor, grid: list[int], size: int) -> Tensor:
    """ROIs that share one sampling grid. features (C, H, W), start and bins (n, 2). Returns (n, C, size,
    size)."""
    rows, columns = (
        [_axis_samples(start, bins, (size, grid[axis], extent), axis, i) for i in range(grid[axis])]
        for axis, extent in enumerate(features.shape[1:])
    )
    table = features.flatten(1).t().contiguous()  # (H*W, C)
    total = features.new_zeros(len(start), size, size, features.shape[0])
    for y_low, y_high, y_weight, y_inside in rows:
        for x_low, x_high, x_weight, x_inside in columns:
            value = _blend(table, features.shape[2], (y_low, y_high, y_weight), (x_low, x_high, x_weight))
            inside = y_inside[:, :, None] & x_inside[:, None, :]
            if not inside.all():
                value = torch.where(inside[..., None], value, value.new_zeros(()))
            total += value
    return (total / max(grid[0] * grid[1], 1)).permute(0, 3, 1, 2)


def _axis_samples(
    start: Tensor, bins: Tensor, counts: tuple[int, int, int], axis: int, index: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sample `index` of each bin along one axis: lower cell, upper cell, the upper's weight, inside; each
    (n, size).

    counts: bins, samples per bin, and feature pixels along the axis.
    """
    size, grid, extent = counts
    cell = torch.arange(size, dtype=start.dtype, device=start.device)
    first, width = start[:, axis, None], bins[:, axis, None]
    # start + p*bin + (i + 0.5)*bin/grid, evaluated from left to right
    position = first + cell * width + (index + 0.5) * width / grid
    inside = (position >= -1.0) & (position <= extent)
    position = torch.where(inside, position.clamp(min=0.0), torch.zeros_like(position))
    low = position.to(torch.int64)
    last = low >= extent - 1
    low = low.clamp(max=extent - 1)
    high = torch.where(last, low, low + 1)
    weight = torch.where(last, torch.zeros_like(position), position - low)
    return low, high, weight, inside


def _blend(
    table: Tensor, width: int, y: tuple[Tensor, Tensor, Tensor], x: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Bilinear values at all pairs of y and x samples: (n, size, size, C)."""
    y_low, y_high, y_weight = (part[:, :, None] for part in y)
    x_low, x_high, x_weight = (part[:, None, :] for part in x)
    terms = (
        ((1.0 - y_weight) * (1.0 - x_weight), y_low * width + x_low),
        ((1.0 - y_weight) * x_weight, y_low * width + x_high),
        (y_weight * (1.0 - x_weight), y_high * width + x_low),
        (y_weight * x_weight, y_high * width + x_high),
    )
    value: Tensor | None = None
    for weight, index in terms:
        part = table.index_select(0, index.flatten()).unflatten(0, index.shape).mul_(weight[..., None])
        value = part if value is None else value.add_(part)
    assert value is not None
    return value


def roi_pool(features: Tensor, boxes: Tensor, scale: float, size: int) -> Tensor:
    """Maximum per bin of a box rounded to whole feature pixels; an empty bin is 0. Source: torchvision
    roi_pool."""
    library = torchvision_ops()
    if library is None:
        return own_roi_pool(features, boxes, scale, size)
    return library.roi_pool(features, [boxes.to(features.dtype)], (size, size), scale)


def own_roi_pool(features: Tensor, boxes: Tensor, scale: float, size: int) -> Tensor:
    """`roi_pool` in plain torch, one box after the other."""
    scaled = boxes.to(features.dtype) * scale
    # Rounds half away from zero, as C's round() does; torch.round rounds half to even.
    corners = (torch.sign(scaled) * torch.floor(scaled.abs() + 0.5)).to(torch.int64).tolist()
    result = features.new_zeros(len(boxes), features.shape[1], size, size)
    for row, (x1, y1, x2, y2) in enumerate(corners):
        tall, wide = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        ys = _pool_edges(y1, tall, size, features)
        xs = _pool_edges(x1, wide, size, features)
        for i, (top, bottom) in enumerate(_clipped(ys, features.shape[2])):
            for j, (left, right) in enumerate(_clipped(xs, features.shape[3])):
                if bottom > top and right > left:
                    result[row, :, i, j] = features[0, :, top:bottom, left:right].amax(dim=(1, 2))
    return result


def _pool_edges(first: int, length: int, size: int, like: Tensor) -> list[tuple[int, int]]:
    """(start, end) of each bin; the bin size is computed in the dtype of the features."""
    step = torch.tensor(float(length), dtype=like.dtype) / size
    cells = torch.arange(size, dtype=like.dtype)
    starts, ends = torch.floor(cells * step), torch.ceil((cells + 1) * step)
    return [(first + int(a), first + int(b)) for a, b in zip(starts, ends, strict=True)]


def _clipped(edges: list[tuple[int, int]], extent: int) -> list[tuple[int, int]]:
    return [(min(max(a, 0), extent), min(max(b, 0), extent)) for a, b in edges]


# ------------------------------------------------------------------------------------------------------ NMS


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices kept by greedy suppression at IoU > threshold, best score first. Source: torchvision nms."""
    library = torchvision_ops()
    return own_nms(boxes, scores, threshold) if library is None else library.nms(boxes, scores, threshold)


def own_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """`nms` in plain torch.

    The IoU is float32; it is compared with the threshold in float64 on the CPU and in float32 on a GPU, as
    torchvision's two kernels do. Equal scores keep their order. 0/0 suppresses nothing.
    """
    limit = threshold if boxes.device.type == "cpu" else float(torch.tensor(threshold, dtype=torch.float32))
    order = scores.sort(stable=True, dim=0, descending=True).indices
    ranked = boxes[order].cpu()
    x1, y1, x2, y2 = ranked.unbind(dim=1)
    areas = (x2 - x1) * (y2 - y1)
    alive = torch.ones(len(ranked), dtype=torch.bool)
    kept: list[int] = []
    for i in range(len(ranked)):
        if not alive[i]:
            continue
        kept.append(i)
        wide = (torch.minimum(x2[i], x2[i + 1 :]) - torch.maximum(x1[i], x1[i + 1 :])).clamp(min=0)
        tall = (torch.minimum(y2[i], y2[i + 1 :]) - torch.maximum(y1[i], y1[i + 1 :])).clamp(min=0)
        shared = wide * tall
        overlap = shared / (areas[i] + areas[i + 1 :] - shared)
        alive[i + 1 :] &= ~(overlap.double() > limit)
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """NMS within each group. Indices kept, best score first. Source: detectron2.layers.batched_nms."""
    library = torchvision_ops()
    if library is None:
        return own_batched_nms(boxes.float(), scores, groups, threshold)
    return library.boxes.batched_nms(boxes.float(), scores, groups, threshold)


def own_batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """`batched_nms` in plain torch: up to 1000 boxes (25000 on a GPU) the groups are moved apart and
    suppressed at once, beyond that group after group. The two differ in rounding, hence the same switch as
    torchvision's."""
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    if boxes.numel() <= (4000 if boxes.device.type == "cpu" else 100000):
        moved = boxes + (groups.to(boxes) * (boxes.max() + 1.0))[:, None]
        return own_nms(moved, scores, threshold)
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for group in torch.unique(groups):
        members = torch.nonzero(groups == group)[:, 0]
        keep[members[own_nms(boxes[members], scores[members], threshold)]] = True
    found = torch.nonzero(keep)[:, 0]
    return found[scores[found].sort(descending=True).indices]


# ----------------------------------------------------------------------------------- deformable convolution


class Steps(NamedTuple):
    """Of a convolution, in pixels; the same for rows and columns."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1


def deform_conv(image: Tensor, offset: Tensor, weight: Tensor, steps: Steps, mask: Tensor | None) -> Tensor:
    """Convolution whose taps are moved by `offset` (1, 2*G*taps, h, w: dy, dx per tap) and weighted by `mask`
    (1, G*taps, h, w) if given. image (1, C, H, W), weight (O, C/groups, kh, kw), no bias.

    Source: detectron2.layers.deform_conv. On the CPU detectron2 itself runs only one deformable group
    without mask.
    """
    library = torchvision_ops()
    if library is None:
        return own_deform_conv(image, offset, weight, steps, mask)
    return library.deform_conv2d(image, offset, weight, mask=mask, **steps._asdict())


def own_deform_conv(
    image: Tensor, offset: Tensor, weight: Tensor, steps: Steps, mask: Tensor | None
) -> Tensor:
    """`deform_conv` in plain torch, for one image, a chunk of output rows at a time."""
    tall, wide = offset.shape[2:]
    taps = weight.shape[2] * weight.shape[3]
    step = max(1, _CHUNK_VALUES // (image.shape[1] * taps * wide))
    rows = [slice(top, min(top + step, tall)) for top in range(0, tall, step)]
    kernel = (weight.shape[2], weight.shape[3])
    parts = []
    for part in rows:
        moved = offset[:, :, part].unflatten(1, (-1, taps, 2))[0]  # (G, taps, 2, h, w)
        weights = None if mask is None else mask[:, :, part].unflatten(1, (-1, taps))[0]
        place = (steps.stride, steps.padding, steps.dilation, part.start)
        columns = _deform_columns(image[0], moved, weights, kernel, place)
        parts.append(_grouped_product(columns, weight))
    return torch.cat(parts, dim=1)[None]


def _deform_columns(
    image: Tensor,
    moved: Tensor,
    mask: Tensor | None,
    kernel: tuple[int, int],
    steps: tuple[int, int, int, int],
) -> Tensor:
    """Sampled values (C, taps, h, w) of image (C, H, W); steps: stride, padding, dilation, first output
    row."""
    stride, padding, dilation, top = steps
    groups, _, _, tall, wide = moved.shape
    options = {"dtype": image.dtype, "device": image.device}
    i = torch.arange(kernel[0], **options).repeat_interleave(kernel[1])[:, None, None] * dilation
    j = torch.arange(kernel[1], **options).repeat(kernel[0])[:, None, None] * dilation
    y = (torch.arange(tall, **options) + top)[None, :, None] * stride - padding + i + moved[:, :, 0]
    x = torch.arange(wide, **options)[None, None, :] * stride - padding + j + moved[:, :, 1]
    values = [_sample_zero(part, y[g], x[g]) for g, part in enumerate(image.chunk(groups))]
    if mask is not None:
        values = [value * mask[g] for g, value in enumerate(values)]
    return torch.cat(values)


def _sample_zero(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear values of image (C, H, W) at (y, x); pixels outside count as 0. Returns (C, *y.shape)."""
    tall, wide = image.shape[1:]
    y0, x0 = torch.floor(y), torch.floor(x)
    dy, dx = y - y0, x - x0
    total = image.new_zeros(image.shape[0], *y.shape)
    flat = image.flatten(1)
    for step_y, weight_y in ((0, 1 - dy), (1, dy)):
        for step_x, weight_x in ((0, 1 - dx), (1, dx)):
            row, column = y0 + step_y, x0 + step_x
            inside = (row >= 0) & (row < tall) & (column >= 0) & (column < wide)
            index = torch.where(inside, row * wide + column, torch.zeros_like(row)).to(torch.int64)
            weight = torch.where(inside, weight_y * weight_x, torch.zeros_like(dy))
            total = total + weight * flat[:, index.flatten()].unflatten(1, y.shape)
    return total


def _grouped_product(columns: Tensor, weight: Tensor) -> Tensor:
    """columns (C, taps, h, w), weight (O, C/groups, kh, kw) -> (O, h, w)."""
    groups = columns.shape[0] // weight.shape[1]
    parts = zip(columns.chunk(groups), weight.chunk(groups), strict=True)
    size = columns.shape[2:]
    return torch.cat([kernel.flatten(1) @ part.flatten(0, 1).flatten(1) for part, kernel in parts]).unflatten(
        1, size
    )


# ---------------------------------------------------------------------------------------------- mask paste


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Resample ROI masks (N, M, M) of boxes onto the image: bool (N, height, width), probability >=
    threshold.

    Between mask cells bilinear, outside the mask 0. Source:
    detectron2.layers.mask_ops.paste_masks_in_image, whose CPU form samples a window around each box and
    whose GPU form samples the whole image; here always the window.
    """
    height, width = size
    result = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    for row, box in enumerate(boxes):
        x1, y1, x2, y2 = box.tolist()
        if not all(math.isfinite(value) for value in (x1, y1, x2, y2)):
            continue
        left, top = max(math.floor(x1) - 1, 0), max(math.floor(y1) - 1, 0)
        right, bottom = min(math.ceil(x2) + 1, width), min(math.ceil(y2) + 1, height)
        if right > left and bottom > top:
            window = _paste_window(masks[row], box, (top, bottom), (left, right))
            result[row, top:bottom, left:right] = window >= threshold
    return result


def _paste_window(mask: Tensor, box: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Probabilities at the pixel centres of a window of the image."""
    x1, y1, x2, y2 = box.unbind()
    y = torch.arange(*rows, device=mask.device, dtype=torch.float32) + 0.5
    x = torch.arange(*columns, device=mask.device, dtype=torch.float32) + 0.5
    y = (y - y1) / (y2 - y1) * 2 - 1
    x = (x - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack([x[None, :].expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=2)
    return functional.grid_sample(mask[None, None].float(), grid[None], align_corners=False)[0, 0]
