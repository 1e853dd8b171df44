"""Octets of a file inside a graph: parts of a string tensor, and the numbers in them, with stock ops.

``data`` is a string scalar. Positions count octets from its start and may lie behind its end, where zeros are read.
"""

from __future__ import annotations

import tensorflow as tf


def length(data: tf.Tensor) -> tf.Tensor:
    """Octets in all: int64 ``[]``."""
    return tf.cast(tf.strings.length(data), tf.int64)


def part(data: tf.Tensor, position: tf.Tensor | int, count: tf.Tensor | int) -> tf.Tensor:
    """Up to ``count`` octets from ``position``, as a string; fewer at the end of the file."""
    inside = tf.minimum(tf.cast(position, tf.int64), length(data))
    return tf.strings.substr(data, inside, tf.cast(count, tf.int64))


def starts_with(data: tf.Tensor, position: tf.Tensor | int, magic: bytes) -> tf.Tensor:
    """Whether ``magic`` is at ``position``: bool ``[]``."""
    return part(data, position, len(magic)) == magic


def octets(data: tf.Tensor, position: tf.Tensor | int, count: int) -> tf.Tensor:
    """``count`` octets from ``position``: int64 ``[count]``, 0 to 255."""
    padded = tf.strings.join([part(data, position, count), b"\0" * count])
    values = tf.io.decode_raw(tf.strings.substr(padded, 0, count), tf.uint8)
    return tf.cast(tf.ensure_shape(values, [count]), tf.int64)


def number(values: tf.Tensor, big_endian: tf.Tensor | bool) -> tf.Tensor:
    """Octets along the last axis, int64 ``[..., k]``, as unsigned numbers: int64 ``[...]``."""
    shifts = tf.range(0, 8 * int(values.shape[-1] or 0), 8, dtype=tf.int64)
    return tf.reduce_sum(tf.bitwise.left_shift(values, tf.where(big_endian, shifts[::-1], shifts)), axis=-1)
