"""Activations beyond ReLU."""

from __future__ import annotations

import math

import tensorflow as tf


def gelu(x: tf.Tensor) -> tf.Tensor:
    """``x / 2 * (1 + erf(x / sqrt(2)))``: the exact form, never the one with tanh. Same shape and dtype.

    16-bit values are computed in float32 and rounded once, as torch does. Source: torch.nn.GELU.
    """
    wide = x if x.dtype == tf.float64 else tf.cast(x, tf.float32)
    y = wide * 0.5 * (1.0 + tf.math.erf(wide * math.sqrt(0.5)))
    return tf.cast(y, x.dtype)
