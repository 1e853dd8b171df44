"""Bugs that only the comparison of single operations is to find."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from parity.selftest.tf_planters.base import planter, swapped
from tf_d2.ops import boxes as box_ops


@planter("nms_at_threshold")
def _nms_at(p: Any) -> Iterator[None]:
    from tf_d2.ops import nms

    def below(threshold: float) -> float:
        return float(np.nextafter(np.float32(threshold), np.float32(0)))

    with swapped(nms, "float32_threshold", below):
        yield


@planter("level_epsilon")
def _level_epsilon(p: Any) -> Iterator[None]:
    with swapped(box_ops, "log2", lambda x: tf.math.log(x + 1e-5) / tf.math.log(tf.constant(2.0, x.dtype))):
        yield


@planter("max_pool_zero_padding")
def _max_pool_zero(p: Any) -> Iterator[None]:
    from tf_d2.ops import conv

    def pool(x: Any, kernel: int, stride: int, padding: int) -> Any:
        edge = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        return tf.nn.max_pool2d(tf.pad(x, edge), kernel, stride, "VALID")

    with swapped(conv, "max_pool2d", pool):
        yield
