"""Pasting mask probabilities as Detectron and maskrcnn-benchmark do: into a whole number of pixels.

The M x M probabilities get a border of one zero; the box grows about its centre by (M + 2) / M (its sides
without + 1, in float32) and its corners are cut to whole pixels (toward zero), both ends inclusive:
``w = x2 - x1 + 1``, at least 1. The padded map is resized to w x h bilinearly (half-pixel centres, edges
repeated, no antialiasing); what is **above** the threshold and inside the image is the mask. detectron2
samples over the unrounded box instead.

`tf_d2.ops.mask_paste_padded` does the same steps in TensorFlow, for exports of full masks.

Source: detectron/core/test.py ``segm_results``, detectron/utils/boxes.py ``expand_boxes``;
maskrcnn_benchmark/modeling/roi_heads/mask_head/inference.py ``paste_mask_in_image``.
"""

from __future__ import annotations

import numpy as np

from tf_d2.ops.mask_paste_numpy import checked_masks


def paste_padded_masks_numpy(
    masks: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> np.ndarray:
    """Booleans [N,height,width] of probability `masks` [N,M,M] in `boxes` [N,4] xyxy, x2 and y2 the last pixel.

    Boxes are in pixels of the image and finite. Raises ValueError for masks that are not square or boxes that do not
    match.
    """
    masks, boxes = checked_masks(masks, boxes)
    pasted = np.zeros((len(masks), height, width), np.bool_)
    if not len(masks):
        return pasted
    padded = np.pad(masks, [(0, 0), (1, 1), (1, 1)])
    grown = _grown(boxes, masks.shape[1])
    for mask, box, image in zip(padded, grown, pasted, strict=True):
        left, columns, column_weights = _cells(box[0], box[2], width, len(mask))
        top, rows, row_weights = _cells(box[1], box[3], height, len(mask))
        if columns.size and rows.size:
            lines = mask[:, columns[0]] * column_weights[0] + mask[:, columns[1]] * column_weights[1]
            values = lines[rows[0]] * row_weights[0, :, None] + lines[rows[1]] * row_weights[1, :, None]
            image[top : top + rows.shape[1], left : left + columns.shape[1]] = values > np.float32(threshold)
    return pasted


def _grown(boxes: np.ndarray, side: int) -> np.ndarray:
    """Boxes [N,4] float32 about the padded maps, in whole pixels: int64 [N,4]."""
    scale = np.float32((side + 2.0) / side)
    half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5) * scale
    centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.int64)


def _cells(low: int, high: int, limit: int, size: int) -> tuple[int, np.ndarray, np.ndarray]:
    """First pixel inside the image, cells [2,n] and float32 weights [2,n] of those inside, along one axis."""
    length = max(high - low + 1, 1)
    first, stop = max(low, 0), min(low + length, limit)
    pixel = np.arange(first, max(stop, first)) - low
    position = (pixel + 0.5) * (size / length) - 0.5
    cell = np.floor(position)
    fraction = (position - cell).astype(np.float32)
    index = np.clip(cell.astype(np.int64) + np.array([[0], [1]]), 0, size - 1)
    return first, index, np.stack([1 - fraction, fraction])
