"""Elementary functions of which the result follows from the argument alone: not from the place in the array, the
length of it, the instruction set, or oneDNN.

TensorFlow's kernels take several values at once, in other arithmetic than the last few that fill no register:
`tf.exp`, `tf.sigmoid`, `tf.math.log`, `tf.math.rsqrt` differ between the two by up to 3 units in the last place, and
`tf.nn.softmax` without oneDNN multiplies by an approximate reciprocal (equal logits then have probability 0.99999994
in one row and 1 in another). NMS keeps the box with the higher score, so such a bit decides which box is returned.

Here float32 functions are computed in float64 and rounded once, operation by operation as torch does it in float32:
two float64 results one unit apart round to different float32 about once in 10^8. Values below 2^-126 are made from
their bits, for kernels on TensorFlow's threads replace such results and arguments by 0.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_d2.ops.exact import exact_constant

_TINY = 2.0**-126  # the smallest float32 that has all its bits
_STEP = 2.0**-149  # the distance of the float32 below it
_INFINITY_BITS = 0x7F800000


def exp(x: tf.Tensor) -> tf.Tensor:
    """e^x of any float dtype and shape, rounded once. Results below 2^-126 may be 0.

    Source: torch.exp (on CPU within one unit in the last place of this).
    """
    return tf.exp(x) if x.dtype == tf.float64 else tf.cast(tf.exp(tf.cast(x, tf.float64)), x.dtype)


def cos(x: tf.Tensor) -> tf.Tensor:
    """The cosine of radians of any float dtype and shape, rounded once. Source: torch.cos."""
    return tf.cast(tf.cos(tf.cast(x, tf.float64)), x.dtype)


def sin(x: tf.Tensor) -> tf.Tensor:
    """The sine of radians of any float dtype and shape, rounded once. Source: torch.sin."""
    return tf.cast(tf.sin(tf.cast(x, tf.float64)), x.dtype)


def sigmoid(x: tf.Tensor) -> tf.Tensor:
    """1 / (1 + e^-x), each operation rounded to float32 (float64 for that): 1 from 17 on, as in torch.

    Any shape; bfloat16 is computed in float32 and rounded. Source: torch.sigmoid.
    """
    if x.dtype == tf.float64:
        return reciprocal(1 + tf.exp(-x))
    denominator = _rounded(1 + _rounded(tf.exp(-tf.cast(x, tf.float64))))
    return tf.cast(narrow(reciprocal(denominator)), x.dtype)


def softmax(x: tf.Tensor) -> tf.Tensor:
    """Probabilities over the last axis of float32 `[..., C]`: e^(x - max) / their sum, each rounded to float32.

    Equal rows have equal results. Source: torch.nn.functional.softmax.
    """
    x = tf.cast(x, tf.float32)
    shifted = x - tf.reduce_max(x, axis=-1, keepdims=True)
    powers = widen(narrow(tf.exp(tf.cast(shifted, tf.float64))))
    return narrow(powers / _rounded(tf.reduce_sum(powers, axis=-1, keepdims=True)))


def rsqrt(x: tf.Tensor) -> tf.Tensor:
    """1 / sqrt(x), a root and a division, both correctly rounded in the dtype of `x`. Source: torch.rsqrt."""
    return reciprocal(sqrt(x))


def reciprocal(x: tf.Tensor) -> tf.Tensor:
    """1 / x as a division, which the graph optimiser would replace by an approximation."""
    return exact_constant(1.0, x.dtype) / x


def sqrt(x: tf.Tensor) -> tf.Tensor:
    """sqrt(x) by which one can divide: the graph optimiser would make an approximate rsqrt of the two."""
    return exact_constant(tf.sqrt(x))


def narrow(x: tf.Tensor) -> tf.Tensor:
    """float64 -> the nearest float32, also between -2^-126 and 2^-126 where `tf.cast` may give 0. Not negative."""
    bits = tf.cast(tf.round(tf.where(x < _TINY, x, 0.0) * (1 / _STEP)), tf.int32)
    return tf.where(x < _TINY, tf.bitcast(bits, tf.float32), tf.cast(x, tf.float32))


def widen(x: tf.Tensor) -> tf.Tensor:
    """float32 -> float64 without loss, also below 2^-126 where `tf.cast` may give 0. Not negative."""
    bits = tf.bitcast(x, tf.int32)
    small = (bits >= 0) & (bits < 1 << 23)
    return tf.where(small, tf.cast(bits, tf.float64) * _STEP, tf.cast(x, tf.float64))


def above(x: tf.Tensor, threshold: float) -> tf.Tensor:
    """`x > threshold` with the threshold as a float32, bool of the shape of float32 `x`; false for NaN.

    Values below 2^-126 count, too, which a plain comparison may take for 0.
    """
    limit = np.float32(threshold)
    if not 0 <= limit < _TINY:
        return x > limit
    bits = tf.bitcast(x, tf.int32)
    return (bits > int(limit.view(np.int32))) & (bits <= _INFINITY_BITS)


def rank_key(x: tf.Tensor) -> tf.Tensor:
    """Integers int32 in the order of float32 `x` (not NaN), of any shape: all float32 apart, -0 equal to 0."""
    bits = tf.bitcast(x, tf.int32)
    return tf.where(bits >= 0, bits, -tf.bitwise.bitwise_and(bits, 0x7FFFFFFF))


def _rounded(x: tf.Tensor) -> tf.Tensor:
    """float64 rounded to float32 and back."""
    return tf.cast(tf.cast(x, tf.float32), tf.float64)
