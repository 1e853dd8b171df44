"""`tf_d2.ops.mask_paste_padded_numpy` as TensorFlow ops, for exports that return full masks; explained there.

Source: detectron/core/test.py ``segm_results``.
"""

from __future__ import annotations

import tensorflow as tf

_Int = int | tf.Tensor


def paste_padded_mask(
    mask: tf.Tensor, box: tf.Tensor, height: _Int, width: _Int, threshold: float = 0.5
) -> tf.Tensor:
    """One mask [M,M] in its box [4]: bool [height,width], the booleans of `paste_padded_masks_numpy`."""
    mask, box = tf.pad(tf.cast(mask, tf.float32), [[1, 1], [1, 1]]), tf.cast(box, tf.float32)
    size = tf.shape(mask)[0]
    # Rounded once, as NumPy does it.
    scale = tf.cast(tf.cast(size, tf.float64) / tf.cast(size - 2, tf.float64), tf.float32)
    half, centre = (box[2:] - box[:2]) * 0.5 * scale, (box[2:] + box[:2]) * 0.5
    low, high = tf.cast(centre - half, tf.int32), tf.cast(centre + half, tf.int32)
    left, columns, column_weights = _cells_tf(low[0], high[0], tf.cast(width, tf.int32), size)
    top, rows, row_weights = _cells_tf(low[1], high[1], tf.cast(height, tf.int32), size)
    by_cell = tf.transpose(mask)
    lines = tf.gather(by_cell, columns[0]) * column_weights[0][:, None]
    lines = tf.transpose(lines + tf.gather(by_cell, columns[1]) * column_weights[1][:, None])  # [M + 2, w]
    values = tf.gather(lines, rows[0]) * row_weights[0][:, None]
    window = values + tf.gather(lines, rows[1]) * row_weights[1][:, None] > threshold
    bottom, right = height - top - tf.shape(window)[0], width - left - tf.shape(window)[1]
    return tf.pad(window, tf.stack([[top, bottom], [left, right]]))


def _cells_tf(
    low: tf.Tensor, high: tf.Tensor, limit: tf.Tensor, size: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    length = tf.maximum(high - low + 1, 1)
    first = tf.clip_by_value(low, 0, limit)
    stop = tf.maximum(tf.minimum(low + length, limit), first)
    pixel = tf.cast(tf.range(first, stop) - low, tf.float64)
    position = (pixel + 0.5) * (tf.cast(size, tf.float64) / tf.cast(length, tf.float64)) - 0.5
    cell = tf.floor(position)
    fraction = tf.cast(position - cell, tf.float32)
    index = tf.clip_by_value(tf.cast(cell, tf.int32) + tf.constant([[0], [1]]), 0, size - 1)
    return first, index, tf.stack([1 - fraction, fraction])
