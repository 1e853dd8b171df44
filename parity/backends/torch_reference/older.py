"""What Detectron (Caffe2, 2018) and maskrcnn-benchmark compute otherwise than detectron2.

Written from those projects' sources, which each function names, and from nothing else of this repository. In both a
box names its last pixel: a width is ``x2 - x1 + 1``. Boxes are (N, 4) float32 xyxy, sizes (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .boxes import MAX_LOG_SCALE

Size = tuple[int, int]
_LEVEL_EPSILON = 1e-6

# ------------------------------------------------------------------------------------------ picture to network


def resize_factor(size: Size, shortest: int, longest: int) -> float:
    """Detectron's one factor for both sides; 1 where `shortest` is 0. Source: detectron/utils/blob.py
    prep_im_for_blob."""
    if shortest == 0:
        return 1.0
    factor = float(shortest) / min(size)
    return float(longest) / max(size) if np.round(factor * max(size)) > longest else factor


def resize_by_factor(image: np.ndarray, factor: float) -> np.ndarray:
    """cv2.resize(image, None, None, factor, factor, INTER_LINEAR) of (H, W, C) uint8, in float64: float32.

    Pixel i of the result lies at (i + 0.5) / factor - 0.5, with the factor as given. Detectron subtracts the mean
    before; as weights of a pixel sum to one that is the same but for rounding.
    """
    wide = image.astype(np.float64)
    for axis in (0, 1):
        length = image.shape[axis]
        at = (np.arange(int(np.rint(length * factor))) + 0.5) / factor - 0.5
        low = np.floor(at)
        part = (at - low)[:, None, None] if axis == 0 else (at - low)[None, :, None]
        ends = [np.clip(low.astype(np.int64) + k, 0, length - 1) for k in (0, 1)]
        wide = np.take(wide, ends[0], axis) * (1.0 - part) + np.take(wide, ends[1], axis) * part
    return wide.astype(np.float32)


def truncated_size(size: Size, shortest: int, longest: int) -> Size:
    """maskrcnn-benchmark's network size: the longer side is cut. Source: demo/predictor.py Resize.get_size."""
    least, most = float(min(size)), float(max(size))
    side = shortest
    if most / least * side > longest:
        side = round(longest * least / most)
    if least == side:
        return size
    long = int(side * max(size) / min(size))
    return (long, side) if size[1] < size[0] else (side, long)


def resize_pillow(image: np.ndarray, size: Size) -> np.ndarray:
    """Pillow's bilinear resize of (H, W, 3) uint8."""
    if size == image.shape[:2]:
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


# ------------------------------------------------------------------------------------------------------- boxes


def cell_anchors(
    stride: int, sizes: Sequence[float], ratios: Sequence[float], octaves_first: bool
) -> np.ndarray:
    """Anchors of one cell, float64 (A, 4): ratios outside, sizes inside, or the other way round.

    The window of the stride gets a ratio (rounded to whole pixels), then a scale. Source:
    detectron/modeling/generate_anchors.py; maskrcnn_benchmark/modeling/rpn/anchor_generator.py.
    """
    window = np.array([0.0, 0.0, stride - 1.0, stride - 1.0])

    def around(window: np.ndarray, wide: float, tall: float) -> np.ndarray:
        x = window[0] + 0.5 * (window[2] - window[0])
        y = window[1] + 0.5 * (window[3] - window[1])
        return np.array(
            [x - 0.5 * (wide - 1), y - 0.5 * (tall - 1), x + 0.5 * (wide - 1), y + 0.5 * (tall - 1)]
        )

    rows = []
    for ratio in ratios:
        area = (window[2] - window[0] + 1) * (window[3] - window[1] + 1)
        wide = np.round(np.sqrt(area / ratio))
        shaped = around(window, wide, np.round(wide * ratio))
        wide, tall = shaped[2] - shaped[0] + 1, shaped[3] - shaped[1] + 1
        rows.append([around(shaped, wide * (size / stride), tall * (size / stride)) for size in sizes])
    table = np.array(rows)
    return (table.transpose(1, 0, 2) if octaves_first else table).reshape(-1, 4)


def level_anchors(cells: np.ndarray, size: Size, stride: int) -> Tensor:
    """Anchors of a map: by row, column, then anchor of the cell; float32. A location's shift is index * stride."""
    y, x = np.meshgrid(np.arange(size[0]) * stride, np.arange(size[1]) * stride, indexing="ij")
    shifts = np.stack([x, y, x, y], axis=2).reshape(-1, 1, 4)
    return torch.from_numpy((shifts + cells[None]).reshape(-1, 4).astype(np.float32))


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Boxes (N, 4) moved by deltas (N, 4*K), float32. Source: detectron/utils/boxes.py bbox_transform."""
    deltas, boxes = deltas.float(), boxes.float()
    wide, tall = boxes[:, 2] - boxes[:, 0] + 1.0, boxes[:, 3] - boxes[:, 1] + 1.0
    x, y = boxes[:, 0] + 0.5 * wide, boxes[:, 1] + 0.5 * tall
    dx, dy, dw, dh = (deltas[:, k::4] / weight for k, weight in enumerate(weights))
    x, y = dx * wide[:, None] + x[:, None], dy * tall[:, None] + y[:, None]
    wide = torch.exp(dw.clamp(max=MAX_LOG_SCALE)) * wide[:, None]
    tall = torch.exp(dh.clamp(max=MAX_LOG_SCALE)) * tall[:, None]
    corners = [x - 0.5 * wide, y - 0.5 * tall, x + 0.5 * wide - 1, y + 0.5 * tall - 1]
    return torch.stack(corners, dim=-1).reshape(deltas.shape)


def clip(boxes: Tensor, size: Size) -> Tensor:
    """Boxes (..., 4) with x in [0, width - 1], y in [0, height - 1]. Source: clip_tiled_boxes."""
    limits = (size[1] - 1, size[0] - 1, size[1] - 1, size[0] - 1)
    return torch.stack([boxes[..., k].clamp(min=0, max=limit) for k, limit in enumerate(limits)], dim=-1)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Rows kept, ascending: greedy by score, dropped at an IoU of the threshold or more (float32, sides + 1).

    Source: detectron/utils/cython_nms.pyx nms; maskrcnn_benchmark/csrc/cpu/nms_cpu.cpp.
    """
    order = scores.sort(stable=True, descending=True).indices
    x1, y1, x2, y2 = boxes[order].float().unbind(dim=1)
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    limit = float(np.float32(threshold))
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for i in range(len(order)):
        if not alive[i]:
            continue
        wide = (torch.minimum(x2[i], x2[i + 1 :]) - torch.maximum(x1[i], x1[i + 1 :]) + 1).clamp(min=0)
        tall = (torch.minimum(y2[i], y2[i + 1 :]) - torch.maximum(y1[i], y1[i + 1 :]) + 1).clamp(min=0)
        shared = wide * tall
        alive[i + 1 :] &= ~(shared / (areas[i] + areas[i + 1 :] - shared) >= limit)
    return order[alive].sort().values


def by_score(scores: Tensor) -> Tensor:
    """Rows by descending score, equal ones in their order."""
    return scores.sort(stable=True, descending=True).indices


def per_group(groups: Tensor, keep: Callable[[Tensor], Tensor]) -> Tensor:
    """Rows that `keep` (rows of one group -> rows) keeps of each group, group after group."""
    kept = [keep(torch.nonzero(groups == group)[:, 0]) for group in torch.unique(groups)]
    return torch.cat(kept) if kept else torch.zeros(0, dtype=torch.int64, device=groups.device)


def with_ties(scores: Tensor, limit: int) -> Tensor:
    """Rows of descending scores at least as good as the `limit`-th; 0 or less: all.

    Source: detectron/core/test.py box_results_with_nms_and_limit; maskrcnn_benchmark box_head/inference.py.
    """
    rows = torch.arange(len(scores), device=scores.device)
    return rows if limit <= 0 or len(scores) <= limit else rows[scores >= scores[limit - 1]]


def large_enough(boxes: Tensor, least: float, factor: float | None) -> Tensor:
    """Which proposals stay: sides of `least`; with a `factor` (Detectron) in the picture's pixels, and of 1 or more.

    Source: detectron/ops/generate_proposals.py _filter_boxes; maskrcnn_benchmark boxlist_ops.py remove_small_boxes.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    if factor is None:
        return (sides + 1 >= least).all(dim=1)
    return (sides / factor + 1 >= max(least, 1.0)).all(dim=1)


def assign_levels(boxes: Tensor, lowest: int, highest: int, size: float, level: int) -> Tensor:
    """Level of each box, counted from `lowest`. Source: detectron/modeling/FPN.py map_rois_to_fpn_levels."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    root = torch.sqrt((sides[:, 0] * sides[:, 1]).clamp(min=0))
    found = torch.floor(level + torch.log2(root / size + _LEVEL_EPSILON))
    return found.clamp(min=lowest, max=highest).to(torch.int64) - lowest


# ------------------------------------------------------------------------------------------ masks and keypoints


def double(maps: Tensor) -> Tensor:
    """Detectron's upsampling of heat maps (N, K, S, S): a transposed convolution with a bilinear kernel, whose edges
    see zeros. Source: detectron/modeling/detector.py BilinearInterpolation."""
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=maps.dtype, device=maps.device)
    kernel = (taps[:, None] * taps[None]).expand(maps.shape[1], 1, 4, 4)
    return functional.conv_transpose2d(maps, kernel, stride=2, padding=1, groups=maps.shape[1])


def keypoints(heatmaps: Tensor, boxes: Tensor, least: int) -> Tensor:
    """Heat maps (N, K, M, M) in boxes -> (N, K, 4): x, y, logit, probability over the stretched map.

    Source: detectron/utils/keypoints.py heatmaps_to_keypoints, scores_to_probs.
    """
    result = heatmaps.new_zeros(*heatmaps.shape[:2], 4)
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    whole = sides.ceil().clamp(min=least)
    for row, maps in enumerate(heatmaps):
        wide, tall = (int(side) for side in whole[row])
        large = functional.interpolate(maps[None], size=(tall, wide), mode="bicubic", align_corners=False)[0]
        flat = large.flatten(1)
        top, at = flat.amax(dim=1), flat.argmax(dim=1)
        result[row, :, 0] = ((at % wide).float() + 0.5) * (sides[row, 0] / whole[row, 0]) + boxes[row, 0]
        result[row, :, 1] = ((at // wide).float() + 0.5) * (sides[row, 1] / whole[row, 1]) + boxes[row, 1]
        result[row, :, 2] = top
        # Added up in float64: a map has a hundred thousand cells.
        result[row, :, 3] = 1.0 / (flat - top[:, None]).double().exp().sum(dim=1).float()
    return result


def paste_masks(masks: Tensor, boxes: Tensor, size: Size, threshold: float) -> Tensor:
    """Probabilities (N, M, M) into the picture: bool (N, H, W).

    Source: detectron/core/test.py segm_results; maskrcnn_benchmark mask_head/inference.py paste_mask_in_image.
    """
    side = masks.shape[1]
    result = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    padded = functional.pad(masks.float(), (1, 1, 1, 1))
    for row, box in enumerate(boxes.float()):
        half = (box[2:] - box[:2]) * 0.5 * torch.tensor((side + 2.0) / side, dtype=torch.float32)
        centre = (box[2:] + box[:2]) * 0.5
        x1, y1, x2, y2 = (math.trunc(v) for v in torch.cat([centre - half, centre + half]).tolist())
        wide, tall = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        drawn = functional.interpolate(
            padded[row][None, None], size=(tall, wide), mode="bilinear", align_corners=False
        )[0, 0]
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x1 + wide, size[1]), min(y1 + tall, size[0])
        if right > left and bottom > top:
            part = drawn[top - y1 : bottom - y1, left - x1 : right - x1]
            result[row, top:bottom, left:right] = part > threshold
    return result
