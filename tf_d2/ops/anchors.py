"""Anchors: the reference boxes of RPN and RetinaNet.

An anchor's size is an absolute length in pixels of the network input: the square root of its area.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> np.ndarray:
    """The anchors of one cell, centred on the origin.

    For each size (outer loop) and ratio h / w (inner loop): ``w = sqrt(size^2 / ratio)``, ``h = ratio * w``,
    computed in float64 and rounded to float32 once.

    Returns:
        float32 ``[len(sizes) * len(aspect_ratios), 4]`` xyxy pixels.

    Source: detectron2/modeling/anchor_generator.py ``generate_cell_anchors``.
    """
    rows = []
    for size in sizes:
        for ratio in aspect_ratios:
            w = np.sqrt(size**2.0 / ratio)
            h = ratio * w
            rows.append((-w / 2.0, -h / 2.0, w / 2.0, h / 2.0))
    return np.asarray(rows, np.float64).astype(np.float32)


def window_anchors(
    stride: int, sizes: Sequence[float], aspect_ratios: Sequence[float], *, ratios_first: bool = True
) -> np.ndarray:
    """The anchors of one cell as Detectron makes them: rounded at the scale of the stride, x2 and y2 the last pixel.

    For a ratio r = h / w, the window of the stride becomes ``w = round(sqrt(stride^2 / r))``,
    ``h = round(w * r)`` (halves to the even number); then both are multiplied with size / stride. Centre
    ``(stride - 1) / 2``, corners ``centre -+ (w - 1) / 2``. With stride 4, size 32 and ratio 0.5: 48 x 24.

    Args:
        stride: pixels of the network input per cell.
        sizes: of the anchors, in pixels.
        aspect_ratios: h / w.
        ratios_first: ratios are the outer loop (RPN, and RetinaNet in maskrcnn-benchmark); otherwise sizes
            (RetinaNet in Detectron).

    Returns:
        float32 ``[len(sizes) * len(aspect_ratios), 4]`` xyxy pixels, for a grid without offset.

    Source: detectron/modeling/generate_anchors.py, detectron/core/test_retinanet.py ``_create_cell_anchors``.
    """
    rows = []
    for ratio in aspect_ratios:
        w = np.round(np.sqrt(stride * stride / ratio))
        h = np.round(w * ratio)
        for size in sizes:
            half_w, half_h = (w * (size / stride) - 1) / 2, (h * (size / stride) - 1) / 2
            centre = (stride - 1) / 2
            rows.append((centre - half_w, centre - half_h, centre + half_w, centre + half_h))
    anchors = np.asarray(rows, np.float64).reshape(len(aspect_ratios), len(sizes), 4)
    if not ratios_first:
        anchors = anchors.transpose(1, 0, 2)
    return anchors.reshape(-1, 4).astype(np.float32)


def rotated_cell_anchors(
    sizes: Sequence[float], aspect_ratios: Sequence[float], angles: Sequence[float]
) -> np.ndarray:
    """Rotated anchors of one cell: (0, 0, w, h, angle in degrees), loops size, ratio, angle.

    Returns:
        float32 ``[len(sizes) * len(aspect_ratios) * len(angles), 5]``.

    Source: detectron2/modeling/anchor_generator.py ``RotatedAnchorGenerator``.
    """
    rows = []
    for size in sizes:
        for ratio in aspect_ratios:
            w = np.sqrt(size**2.0 / ratio)
            h = ratio * w
            rows.extend((0, 0, w, h, angle) for angle in angles)
    return np.asarray(rows, np.float64).astype(np.float32)


def grid_anchors(
    cells: np.ndarray, height: tf.Tensor, width: tf.Tensor, stride: int, offset: float
) -> tf.Tensor:
    """Every anchor of one feature map.

    The cell (i, j) is shifted by ``((j + offset) * stride, (i + offset) * stride)``; the sum is float32.

    Args:
        cells: float32 ``[A, 4]`` (or ``[A, 5]``, of which only the centre moves).
        height, width: the size of the (padded) feature map in cells.
        stride: pixels of the network input per cell.
        offset: 0 puts anchor centres on the top left corner of a cell, 0.5 in its middle.

    Returns:
        float32 ``[height * width * A, 4 or 5]``, ordered by y, then x, then anchor of the cell.

    Source: detectron2/modeling/anchor_generator.py ``_create_grid_offsets``, ``grid_anchors``.
    """
    shift_x = _shifts(width, stride, offset)  # [W]
    shift_y = _shifts(height, stride, offset)  # [H]
    grid_y, grid_x = tf.meshgrid(shift_y, shift_x, indexing="ij")  # [H, W]
    if cells.shape[1] == 5:
        zero = tf.zeros_like(grid_x)
        shifts = tf.stack([grid_x, grid_y, zero, zero, zero], axis=-1)
    else:
        shifts = tf.stack([grid_x, grid_y, grid_x, grid_y], axis=-1)  # [H, W, 4]
    anchors = shifts[:, :, None, :] + tf.constant(cells)  # [H, W, A, 4]
    return tf.reshape(anchors, [-1, cells.shape[1]])


def _shifts(cells: tf.Tensor, stride: int, offset: float) -> tf.Tensor:
    """``(i + offset) * stride`` for each cell, accumulated in float64 as torch.arange does, then float32."""
    steps = tf.cast(tf.range(cells), tf.float64) * stride + offset * stride
    return tf.cast(steps, tf.float32)
