"""Masks of TensorMask from the aligned to the natural representation.

Aligned: a cell (y, x) of the map holds, for each of V x U sub-windows (v, u), whether the object of the window *around
which the cell lies there* covers the cell. Natural: cell (y, x) holds the whole window around it.

Source: projects/TensorMask/tensormask/layers/swap_align2nat.py and the kernel beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from weights.errors import UsageError

_OUTSIDE = -6.0
"""Logit of everything that lies beyond the map or its windows: nearly certainly no object."""


class _Corners(NamedTuple):
    """Two neighbours on one axis: positions in the axis, whether they are inside, and their weights."""

    index: tuple[tf.Tensor, tf.Tensor]  # int32
    inside: tuple[tf.Tensor, tf.Tensor]  # bool
    weight: tuple[tf.Tensor, tf.Tensor]


def align2nat(x: tf.Tensor, unit: int, cells: tf.Tensor) -> tf.Tensor:
    """Natural windows at some cells.

    Value at (v, u) of the window of cell (y, x), with V cells along an aligned window: the input at
    ``y' = unit * y + v - unit * V / 2 + 1/2`` and ``v' = (v + 1/2) / unit - 1/2``, alike along x and u, linear between
    neighbours on all four axes; every neighbour outside counts as -6.

    Args:
        x: logits ``[B, H, W, V * V]``, channel ``v * V + u``.
        unit: cells of the input along one cell of the output (lambda), 1 or more.
        cells: int32 ``[N, 3]``: image, y, x of cells of the output, which has ``ceil(H / unit)`` x ``ceil(W / unit)``.

    Returns:
        ``[N, unit * V, unit * V]`` (v, u), of the dtype of ``x``.
    """
    shape = tf.shape(x)
    side = _side(x)
    rows = _pixels(cells[:, 1], unit, side, shape[1], x.dtype)  # [N, S]
    columns = _pixels(cells[:, 2], unit, side, shape[2], x.dtype)
    windows = _sub_windows(unit, side, x.dtype)  # [S]
    # Neighbours along x and u in pairs, [4, N, 1, S], so that a graph has few operations. (Those along y and v are not
    # stacked and sliced: the graph optimiser forgets the new axis of a slice of a stack.)
    image = cells[:, 0, None] * shape[1]
    pairs = [(i, j) for i in range(2) for j in range(2)]
    zeros = tf.zeros_like(columns.index[0])
    x_ = tf.stack([columns.index[i] for i, _ in pairs])[:, :, None, :]
    u = tf.stack([zeros + windows.index[j] for _, j in pairs])[:, :, None, :]
    x_inside = tf.stack([columns.inside[i] & windows.inside[j] for i, j in pairs])[:, :, None, :]
    x_weight = tf.stack([columns.weight[i] * windows.weight[j] for i, j in pairs])[:, :, None, :]
    flat, outside = tf.reshape(x, [-1]), tf.constant(_OUTSIDE, x.dtype)
    total = tf.zeros([tf.shape(cells)[0], unit * side, unit * side], x.dtype)
    for i, j in pairs:
        line = (image + rows.index[i]) * shape[2]
        place = (line[:, :, None] + x_) * side + windows.index[j][None, :, None]
        inside = (rows.inside[i] & windows.inside[j])[:, :, None] & x_inside
        weight = (rows.weight[i] * windows.weight[j])[:, :, None] * x_weight
        value = tf.where(inside, tf.gather(flat, place * side + u), outside)
        total += tf.reduce_sum(weight * value, axis=0)
    return total


def align2nat_map(x: tf.Tensor, unit: int) -> tf.Tensor:
    """:func:`align2nat` at every cell: ``[B, ceil(H / unit), ceil(W / unit), (unit * V)^2]``."""
    batch, height, width = tf.unstack(tf.shape(x)[:3])
    height, width = (height + unit - 1) // unit, (width + unit - 1) // unit
    grid = tf.meshgrid(tf.range(batch), tf.range(height), tf.range(width), indexing="ij")
    windows = align2nat(x, unit, tf.reshape(tf.stack(grid, axis=-1), [-1, 3]))
    return tf.reshape(windows, [batch, height, width, (unit * _side(x)) ** 2])


def natural_windows(x: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """Windows of a map ``[B, H, W, V * V]`` that is natural already, at cells ``[N, 3]``: ``[N, V, V]``."""
    return tf.reshape(tf.gather_nd(x, cells), [-1, _side(x), _side(x)])


def _side(x: tf.Tensor) -> int:
    channels = x.shape[-1]
    assert channels is not None
    side = round(channels**0.5)
    if side * side != channels:
        raise UsageError(f"masks of {channels} channels are not square")
    return side


def _pixels(cell: tf.Tensor, unit: int, side: int, limit: tf.Tensor, dtype: tf.DType) -> _Corners:
    """Rows (or columns) of the input that the lines of windows show: ``[N, unit * side]``."""
    # unit * side is even or odd, so that the position lies half way between two cells or on one.
    start = unit * cell[:, None] + tf.range(unit * side)[None, :] - unit * side // 2
    if (unit * side) % 2:
        both = start, start
        weights = tf.ones_like(start, dtype), tf.zeros_like(start, dtype)
    else:
        both = start, start + 1
        half = tf.fill(tf.shape(start), tf.constant(0.5, dtype))
        weights = half, half
    return _corners(both, weights, limit)


def _sub_windows(unit: int, side: int, dtype: tf.DType) -> _Corners:
    """Cells of an aligned window that the lines of a natural one lie between: ``[unit * side]``."""
    position = (tf.cast(tf.range(unit * side), tf.float64) + 0.5) / unit - 0.5
    low = tf.floor(position)
    fraction = tf.cast(position - low, dtype)
    first = tf.cast(low, tf.int32)
    return _corners((first, first + 1), (1 - fraction, fraction), tf.constant(side))


def _corners(
    index: tuple[tf.Tensor, tf.Tensor], weight: tuple[tf.Tensor, tf.Tensor], limit: tf.Tensor
) -> _Corners:
    inside = [(i >= 0) & (i < limit) for i in index]
    clipped = [tf.clip_by_value(i, 0, limit - 1) for i in index]
    return _Corners((clipped[0], clipped[1]), (inside[0], inside[1]), weight)
