"""Pasting fixed-size mask probabilities into the image with NumPy alone (Predictor and the serving client).

A mask has M x M cells stretched over its box. Output pixel j has its centre at j+0.5, which is cell
coordinate (j + 0.5 - x1) / (x2 - x1) * M - 0.5 with cell i sitting at i; the value is bilinear with zeros
outside the grid, so it fades out over half a cell beyond the box. The coordinate goes through detectron2's
normalised [-1,1] form in float32, one rounding per operation.

Bilinear with zero padding is separable: the columns are interpolated first ([M,w], small), then every
output row is a sum of two of those M lines. Rows are done in pieces that stay in cache; no [N,H,W] float
array exists. Every step is one IEEE operation, so `tf_d2.ops.mask_paste`, which does the same steps, gives
the same booleans.

Source: detectron2/layers/mask_ops.py at 02b5c4e2, CPU path; torch grid_sample (bilinear, zeros,
align_corners=False).
"""

import contextlib
import math
import mmap

import numpy as np

CHUNK_ELEMENTS = 1 << 16  # float32 values per piece of rows: 256 kB, fits the L2 cache with its temporaries
_HUGE = 1 << 22  # bytes from which numpy asks for huge pages


def paste_masks_numpy(
    masks: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> np.ndarray:
    """Booleans [N,height,width]: probability `masks` [N,M,M] (float) pasted into `boxes` [N,4] xyxy pixels
    >= threshold.

    Only the window from floor(x1)-1 to ceil(x2)+1, cut to the image, is evaluated; outside all is False,
    also for threshold 0 as on detectron2's CPU path. A box without finite positive width and height gives
    an empty mask. Memory beyond the result is below 2 MB; pages of the result that no window touches are
    not even allocated.

    Raises ValueError for masks that are not square, for boxes that do not match, and for a negative threshold
    (detectron2 then returns grey levels, for debugging).
    Source: paste_masks_in_image, detectron2/layers/mask_ops.py.
    """
    masks, boxes = checked_masks(masks, boxes)
    if not threshold >= 0:
        raise ValueError(f"mask threshold must be at least 0, got {threshold}")
    pasted = _untouched((len(masks), height, width))
    for mask, box, image in zip(masks, boxes, pasted, strict=True):
        _paste_one(mask, box, image, np.float32(threshold))
    return pasted


def _untouched(shape: tuple[int, ...]) -> np.ndarray:
    """Booleans, all False, that take memory only where something is written.

    numpy asks for huge pages: then one row of a mask takes 2 MB, which the system must clear first. Most of a mask
    is empty, so that small pages are faster and take less.
    """
    size = math.prod(int(n) for n in shape)
    if size >= _HUGE and hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux has it
        with contextlib.suppress(OSError):  # a kernel without huge pages, or no memory: for numpy to say
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            return np.frombuffer(memory, np.bool_).reshape(shape)
    return np.zeros(shape, np.bool_)


def checked_masks(masks: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float32. Raises ValueError for masks that are not square and for boxes that do not match."""
    masks, boxes = np.asarray(masks, np.float32), np.asarray(boxes, np.float32)
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks must be [N,M,M], got {list(masks.shape)}: one square mask per detection")
    if boxes.shape != (len(masks), 4):
        raise ValueError(
            f"boxes must be [{len(masks)},4] as there are {len(masks)} masks, got {list(boxes.shape)}"
        )
    return masks, boxes


def _paste_one(mask: np.ndarray, box: np.ndarray, image: np.ndarray, threshold: np.float32) -> None:
    """Write the window of one mask [M,M] into `image` [H,W] bool."""
    x1, y1, x2, y2 = box
    if not (np.isfinite(box).all() and x2 > x1 and y2 > y1):
        return
    left, columns, column_weights = _cells(x1, x2, image.shape[1], len(mask))
    top, rows, row_weights = _cells(y1, y2, image.shape[0], len(mask))
    if not columns.size or not rows.size:
        return
    lines = mask[:, columns[0]] * column_weights[0] + mask[:, columns[1]] * column_weights[1]  # [M,w]
    window = image[top : top + rows.shape[1], left : left + columns.shape[1]]
    step = max(1, CHUNK_ELEMENTS // columns.shape[1])
    for start in range(0, len(window), step):
        part = slice(start, start + step)
        value = lines[rows[0, part]] * row_weights[0, part, None]  # [rows,w]
        value += lines[rows[1, part]] * row_weights[1, part, None]
        np.greater_equal(value, threshold, out=window[part])


def _cells(low: np.float32, high: np.float32, limit: int, size: int) -> tuple[int, np.ndarray, np.ndarray]:
    """First pixel of the window of one axis, cell indices [2,n] of its pixels and their weights [2,n]
    float32."""
    first = int(min(max(np.floor(low) - 1, 0), limit))
    stop = int(max(min(np.ceil(high) + 1, limit), first))
    pixels = np.arange(first, stop, dtype=np.float32) + np.float32(0.5)
    normalised = (pixels - low) / (high - low) * np.float32(2) - np.float32(1)
    # torch rounds this product and difference once (fused multiply-add); float64 holds the product exactly.
    position = ((normalised + np.float32(1)).astype(np.float64) * (size / 2) - 0.5).astype(np.float32)
    cell = np.floor(position)
    fraction = position - cell
    index = np.clip(cell, -2, size).astype(np.int32) + np.array([[0], [1]], np.int32)
    weights = np.stack([np.float32(1) - fraction, fraction])
    weights[(index < 0) | (index >= size)] = 0
    return first, np.clip(index, 0, size - 1), weights
