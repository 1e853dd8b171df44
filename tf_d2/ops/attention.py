"""Attention of vision transformers in bounded memory, and their positions, absolute and relative.

Tokens are ``[N, L, d]``, where N counts heads (of windows, of images) and L the tokens of a window or map, row by row.
Source: detectron2/modeling/backbone/utils.py, vit.py ``Attention``, swin.py ``WindowAttention``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from tf_d2.ops.interpolate import bicubic, linear
from tf_d2.ops.onednn import matmul
from tf_d2.ops.windows import Size
from weights.errors import UsageError

LOGITS_BUDGET = 256 << 20  # bytes of logits, and of what is made of them, that may exist at once
_COPIES = 3  # arrays of the logits' size at once: the product, with its positions added, after the softmax

AddBias = Callable[[tf.Tensor, tf.Tensor | int, tf.Tensor | int], tf.Tensor]
Positions = tuple[tf.Tensor, tf.Tensor]  # what rows and columns have


def attend(
    q: tf.Tensor,
    k: tf.Tensor,
    v: tf.Tensor,
    scale: float,
    bias: AddBias | None = None,
    *,
    group: int = 1,
    budget: int = LOGITS_BUDGET,
) -> tf.Tensor:
    """``softmax((q * scale) @ k^T + bias) @ v``, in pieces that keep the logits within ``budget`` bytes.

    Args:
        q: ``[N, L, d]``; k, v: ``[N, M, d]``.
        bias: ``(logits [n, l, M], first, row) -> logits`` for the heads from ``first`` on and their rows from ``row``.
        group: so many heads in a row are never split (their rows neither).

    Returns:
        ``[N, L, d]``. The pieces do not change the result: every row has a softmax of its own. 16-bit tokens are
        computed in float32.
    """
    dtype = q.dtype
    if dtype != tf.float64:
        q, k, v = (tf.cast(x, tf.float32) for x in (q, k, v))
    number, rows, keys = _length(q, 0), _length(q, 1), _length(k, 1)
    together, part = _piece(number, rows, keys * q.dtype.size * _COPIES, group, budget)
    # Weights add up to 1, so the values' mean may be taken out and put back: many terms of one sign, added one after
    # the other, would round several times as much as their differences do (oneDNN's product is such a sum).
    middle = tf.reduce_mean(v, axis=1, keepdims=True)
    v = v - middle
    per_head = -(-rows // part)
    pieces = -(-number // together) * per_head

    def piece(step: Any) -> tf.Tensor:
        first, row = step // per_head * together, step % per_head * part
        heads = slice(first, first + together)
        logits = matmul(q[heads, row : row + part] * scale, k[heads], transpose_b=True)
        if bias is not None:
            logits = bias(logits, first, row)
        return tf.reshape(matmul(tf.nn.softmax(logits), v[heads]) + middle[heads], [-1, v.shape[2]])

    if isinstance(pieces, int) and pieces == 1:
        joined = piece(0)
    else:
        parts = tf.TensorArray(q.dtype, size=pieces, infer_shape=False, element_shape=[None, v.shape[2]])
        _, parts = tf.while_loop(
            lambda step, _: step < pieces,
            lambda step, parts: (step + 1, parts.write(step, piece(step))),
            (0, parts),
            parallel_iterations=1,
        )
        joined = parts.concat()
    return tf.cast(tf.reshape(joined, [number, rows, v.shape[2]]), dtype)


def _length(x: tf.Tensor, axis: int) -> int | tf.Tensor:
    known = x.shape[axis]
    return tf.shape(x)[axis] if known is None else known


def _piece(
    number: int | tf.Tensor, rows: int | tf.Tensor, row_bytes: int | tf.Tensor, group: int, budget: int
) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """How many heads at once, and how many rows of each: all, or some of one head if that is too much already."""
    if all(isinstance(x, int) for x in (number, rows, row_bytes)):
        heads = budget // (rows * row_bytes)
        together = max(heads // group * group, group)
        part = rows if heads or group > 1 else max(budget // row_bytes, 1)
        return min(together, max(number, 1)), max(min(part, rows), 1)
    wide = [tf.cast(x, tf.int64) for x in (number, rows, row_bytes)]
    heads = budget // tf.maximum(wide[1] * wide[2], 1)
    together = tf.minimum(tf.maximum(heads // group * group, group), tf.maximum(wide[0], 1))
    part = wide[1] if group > 1 else tf.where(heads > 0, wide[1], tf.maximum(budget // wide[2], 1))
    return tf.cast(together, tf.int32), tf.cast(tf.clip_by_value(part, 1, wide[1]), tf.int32)


def relative_positions(table: tf.Tensor, q_size: int | tf.Tensor, k_size: int | tf.Tensor) -> tf.Tensor:
    """The row of ``table`` ``[L, d]`` for every query and key along one axis: ``[q_size, k_size, d]``.

    A table that is not of ``2 * max(q_size, k_size) - 1`` rows is resized to that by linear interpolation first.
    Source: detectron2/modeling/backbone/utils.py ``get_rel_pos``.
    """
    if isinstance(q_size, int) and isinstance(k_size, int):
        length: int | tf.Tensor = 2 * max(q_size, k_size) - 1
        index: np.ndarray | tf.Tensor = _static_index(q_size, k_size)
    else:
        q_size, k_size = tf.convert_to_tensor(q_size), tf.convert_to_tensor(k_size)
        length, index = 2 * tf.maximum(q_size, k_size) - 1, _relative_index(q_size, k_size)
    return tf.gather(linear(table, length), index)  # of the right length it stays as it is


# detectron2 computes the index in float32 and truncates. Where the longer side is no multiple of the other the last bit
# decides, so both forms round as torch does: ratios in double, then one float32 operation at a time.
@cache
def _static_index(q_size: int, k_size: int) -> np.ndarray:
    """int32 ``[q_size, k_size]``: rows of a table of ``2 * max(q_size, k_size) - 1``."""
    q_ratio, k_ratio = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    q_at = np.arange(q_size, dtype=np.float32)[:, None] * np.float32(q_ratio)
    k_at = np.arange(k_size, dtype=np.float32)[None, :] * np.float32(k_ratio)
    return (q_at - k_at + np.float32((k_size - 1) * k_ratio)).astype(np.int32)


def _relative_index(q_size: tf.Tensor, k_size: tf.Tensor) -> tf.Tensor:
    """:func:`_static_index` of sizes that only the running graph knows."""
    q_wide, k_wide = tf.cast(q_size, tf.float64), tf.cast(k_size, tf.float64)
    one = tf.constant(1.0, tf.float64)
    q_ratio, k_ratio = tf.maximum(k_wide / q_wide, one), tf.maximum(q_wide / k_wide, one)
    q_at = tf.cast(tf.range(q_size), tf.float32)[:, None] * tf.cast(q_ratio, tf.float32)
    k_at = tf.cast(tf.range(k_size), tf.float32)[None, :] * tf.cast(k_ratio, tf.float32)
    return tf.cast(q_at - k_at + tf.cast((k_wide - 1) * k_ratio, tf.float32), tf.int32)


def positions_of_axes(tables: Positions, q_size: Size, k_size: Size) -> Positions:
    """:func:`relative_positions` of rows ``[qh, kh, d]`` and of columns ``[qw, kw, d]``, from a table ``[L, d]`` each.

    They are float32 for 16-bit tables.
    """
    dtype = tf.float64 if tables[0].dtype == tf.float64 else tf.float32
    by_row, by_column = (
        relative_positions(tf.cast(table, dtype), q, k)
        for table, q, k in zip(tables, q_size, k_size, strict=True)
    )
    return by_row, by_column


def decomposed_bias(q: tf.Tensor, positions: Positions, q_size: Size, k_size: Size) -> AddBias:
    """What adds ``q . Rh[yq, yk] + q . Rw[xq, xk]`` to the logits of :func:`attend`; ``q`` is not scaled here.

    Args:
        q: ``[N, qh * qw, d]``.
        positions: Rh and Rw, see :func:`positions_of_axes`; for all heads.

    Source: detectron2/modeling/backbone/utils.py ``add_decomposed_rel_pos``.
    """
    dtype = tf.float64 if q.dtype == tf.float64 else tf.float32
    q, rows, columns = (tf.cast(x, dtype) for x in (q, *positions))
    (q_h, q_w), (k_h, k_w) = q_size, k_size
    grid = tf.reshape(q, [-1, q_h, q_w, q.shape[2]])
    by_row = tf.einsum("nhwc,hkc->nhwk", grid, rows)
    by_column = tf.einsum("nhwc,wkc->nhwk", grid, columns)
    by_row, by_column = (tf.reshape(x, [-1, q_h * q_w, k]) for x, k in ((by_row, k_h), (by_column, k_w)))

    def add(logits: tf.Tensor, first: tf.Tensor | int, row: tf.Tensor | int) -> tf.Tensor:
        n, rows = _length(logits, 0), _length(logits, 1)
        here = (slice(first, first + n), slice(row, row + rows))
        cells = tf.reshape(logits, [n, rows, k_h, k_w])
        cells = cells + by_row[here][:, :, :, None] + by_column[here][:, :, None, :]
        return tf.reshape(cells, [n, rows, k_h * k_w])

    return add


def absolute_positions(pos_embed: tf.Tensor, has_cls_token: bool, size: Size) -> tf.Tensor:
    """Embeddings ``[1, positions, C]`` of a square grid as a map ``[1, H, W, C]``: bicubic, a = -0.75, no antialiasing.

    ``has_cls_token``: the first position belongs to no place and is dropped.
    Raises ValueError if the positions are not those of a square.
    Source: detectron2/modeling/backbone/utils.py ``get_abs_pos``.
    """
    if has_cls_token:
        pos_embed = pos_embed[:, 1:]
    positions: int = pos_embed.shape[1]  # pyright: ignore[reportAssignmentType]
    side = math.isqrt(positions)
    if side * side != positions:
        raise UsageError(f"pos_embed has {positions} positions, which is no square grid")
    grid = tf.reshape(pos_embed, [1, side, side, pos_embed.shape[2]])
    return bicubic(grid, *size)  # the same values where the size is the same


@cache
def window_position_index(window: int) -> np.ndarray:
    """Row of Swin's table for every pair of a window: int32 ``[window^2, window^2]``, query first.

    ``(dy + w - 1) * (2 w - 1) + dx + w - 1`` with (dy, dx) = query - key.
    Source: detectron2/modeling/backbone/swin.py ``WindowAttention``.
    """
    y, x = (axis.ravel() for axis in np.mgrid[:window, :window])
    rows = y[:, None] - y[None, :] + window - 1
    columns = x[:, None] - x[None, :] + window - 1
    return (rows * (2 * window - 1) + columns).astype(np.int32)
