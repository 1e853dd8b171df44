"""Square windows of a map, shifted windows, and the labels that keep a shift from joining what is apart."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Size = tuple[int | tf.Tensor, int | tf.Tensor]


def map_size(x: tf.Tensor) -> Size:
    """(H, W) of ``[N, H, W, C]``, as Python numbers where they are known."""
    shape = tf.shape(x)
    height, width = x.shape[1], x.shape[2]
    return shape[1] if height is None else height, shape[2] if width is None else width


def padded_to(size: Size, multiple: int) -> Size:
    """Both sides rounded up to a multiple."""
    return -(-size[0] // multiple) * multiple, -(-size[1] // multiple) * multiple


def pad_to(x: tf.Tensor, size: Size) -> tf.Tensor:
    """``[N, H, W, C]`` with zeros at the bottom and right up to ``size``."""
    height, width = map_size(x)
    pads: Any = [[0, 0], [0, size[0] - height], [0, size[1] - width], [0, 0]]
    return tf.ensure_shape(tf.pad(x, pads), [x.shape[0], None, None, x.shape[3]])


def window_partition(x: tf.Tensor, window: int) -> tf.Tensor:
    """Windows of ``[N, H, W, C]``, row by row, zeros added at the bottom and right where they do not fit.

    Returns ``[N * rows * columns, window, window, C]``.
    Source: detectron2/modeling/backbone/utils.py ``window_partition``.
    """
    height, width = padded_to(map_size(x), window)
    x = pad_to(x, (height, width))
    channels = x.shape[3]
    x = tf.reshape(x, [-1, height // window, window, width // window, window, channels])
    return tf.reshape(tf.transpose(x, [0, 1, 3, 2, 4, 5]), [-1, window, window, channels])


def window_unpartition(windows: tf.Tensor, size: Size) -> tf.Tensor:
    """Inverse of :func:`window_partition`: the map of ``size`` that the windows cover, padding cut off.

    Source: detectron2/modeling/backbone/utils.py ``window_unpartition``.
    """
    window: int = windows.shape[1]  # pyright: ignore[reportAssignmentType]
    channels = windows.shape[3]
    height, width = padded_to(size, window)
    x = tf.reshape(windows, [-1, height // window, width // window, window, window, channels])
    x = tf.reshape(tf.transpose(x, [0, 1, 3, 2, 4, 5]), [-1, height, width, channels])
    return x[:, : size[0], : size[1]]


def shift_mask(size: Size, window: int, shift: int, dtype: tf.DType) -> tf.Tensor:
    """What to add to the logits inside windows of a map rolled by ``(-shift, -shift)``.

    ``size``: the map's, already a multiple of the window. Tokens that were apart before the roll get -100 between
    them, all others 0. Returns ``[windows, window^2, window^2]``.
    Source: detectron2/modeling/backbone/swin.py ``BasicLayer.forward``.
    """
    rows, columns = (_band(length, window, shift) for length in size)
    labels = rows[:, None] * 3 + columns[None, :]  # [H, W]
    flat = tf.reshape(window_partition(labels[None, :, :, None], window), [-1, window * window])
    apart = flat[:, :, None] != flat[:, None, :]
    return tf.where(apart, tf.constant(-100, dtype), tf.constant(0, dtype))


def _band(length: int | tf.Tensor, window: int, shift: int) -> tf.Tensor:
    """0 before the last window, 1 in it, 2 in what the roll brought there."""
    at = tf.range(length)
    return tf.cast(at >= length - window, tf.int32) + tf.cast(at >= length - shift, tf.int32)
