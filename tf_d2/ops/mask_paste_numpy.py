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
import typing

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
    an empty mask. Memory beyond the result is a few MB; pages of the result that no window touches are
    not even allocated.

    Raises ValueError for masks that are not square, for boxes that do not match, and for a negative threshold
    (detectron2 then returns grey levels, for debugging).
    Source: paste_masks_in_image, detectron2/layers/mask_ops.py.
    """
    masks, boxes = checked_masks(masks, boxes)
    if not threshold >= 0:
        raise ValueError(f"mask threshold must be at least 0, got {threshold}")
    pasted = _untouched((len(masks), height, width))
    usable = np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    at_once = max(1, CHUNK_ELEMENTS // max(height, width, 1))
    buffers = np.empty((2, max(CHUNK_ELEMENTS, width)), np.float32)
    for some in np.split(np.flatnonzero(usable), range(at_once, int(usable.sum()), at_once)):
        columns = _cells(boxes[some, 0], boxes[some, 2], width, masks.shape[1])
        rows = _cells(boxes[some, 1], boxes[some, 3], height, masks.shape[1])
        for i, axes in zip(some, zip(rows, columns, strict=True), strict=True):
            _paste_one(masks[i], axes, pasted[i], np.float32(threshold), buffers)
    return pasted


def copy_masks(pasted: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A copy of pasted masks, booleans [N,height,width], that takes memory only in the windows of `boxes` [N,4] xyxy
    pixels, from floor(x1)-1 to ceil(x2)+1; they are False elsewhere."""
    copied = _untouched(pasted.shape)
    height, width = pasted.shape[1:]
    first = np.clip(np.nan_to_num(np.floor(boxes[:, :2])) - 1, 0, [width, height]).astype(int)
    stop = np.clip(np.nan_to_num(np.ceil(boxes[:, 2:])) + 1, 0, [width, height]).astype(int)
    for source, target, (left, top), (right, bottom) in zip(pasted, copied, first, stop, strict=True):
        target[top:bottom, left:right] = source[top:bottom, left:right]
    return copied


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


class _Axis(typing.NamedTuple):
    """One axis of a mask's window in the image."""

    first: int  # pixel
    cells: np.ndarray  # int [2,n], between which each pixel lies
    weights: np.ndarray  # float32 [2,n]


def _paste_one(
    mask: np.ndarray, axes: tuple[_Axis, _Axis], image: np.ndarray, threshold: np.float32, buffers: np.ndarray
) -> None:
    """Write the window of one mask [M,M], of which `axes` are rows and columns, into `image` [H,W] bool."""
    rows, columns = axes
    height, width = rows.cells.shape[1], columns.cells.shape[1]
    if not height or not width:
        return
    left, right = (mask[:, columns.cells[k]] * columns.weights[k] for k in (0, 1))
    lines = left + right  # [M,w]
    window = image[rows.first : rows.first + height, columns.first : columns.first + width]
    step = max(1, CHUNK_ELEMENTS // width)
    for start in range(0, height, step):
        part = slice(start, min(start + step, height))
        count = part.stop - start
        upper, lower = (buffer[: count * width].reshape(count, width) for buffer in buffers)
        for k, value in enumerate((upper, lower)):
            np.take(lines, rows.cells[k, part], axis=0, out=value, mode="clip")  # no index needs clipping
            value *= rows.weights[k, part, None]
        upper += lower
        np.greater_equal(upper, threshold, out=window[part])


def _cells(low: np.ndarray, high: np.ndarray, limit: int, size: int) -> list[_Axis]:
    """One axis of some windows, from the lower to the higher coordinates [n] of their boxes."""
    first = np.clip(np.floor(low) - 1, 0, limit).astype(int)
    stop = np.maximum(np.clip(np.ceil(high) + 1, 0, limit).astype(int), first)
    low, high = low[:, None], high[:, None]
    pixels = np.arange(limit, dtype=np.float32) + np.float32(0.5)
    normalised = (pixels - low) / (high - low) * np.float32(2) - np.float32(1)  # [n,limit]
    # torch rounds this product and difference once (fused multiply-add); float64 holds the product exactly.
    position = ((normalised + np.float32(1)).astype(np.float64) * (size / 2) - 0.5).astype(np.float32)
    cell = np.floor(position)
    fraction = position - cell
    index = np.clip(cell, -2, size).astype(np.int32)[:, None] + np.array([[0], [1]], np.int32)  # [n,2,limit]
    weights = np.stack([np.float32(1) - fraction, fraction], axis=1)
    weights[(index < 0) | (index >= size)] = 0
    index = np.clip(index, 0, size - 1)
    return [
        _Axis(int(a), index[k, :, a:b], weights[k, :, a:b])
        for k, (a, b) in enumerate(zip(first, stop, strict=True))
    ]
