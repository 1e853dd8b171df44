"""Copying and comparing arrays whose axes are in another order, in blocks that fit the processor's cache.

A transposed array walks through memory in strides; numpy does that element by element and misses the cache
each time. In blocks it is two to four times as fast, and changing layouts is most of what a conversion does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_SIDE = 64  # measured: 64 x 64 float32 is the best or near it, for linear layers and 3 x 3 convolutions


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple]:
    """Indices that together cover an array of ``shape``, cut along the last two axes."""
    if len(shape) < 2:
        yield (...,)
        return
    for row in range(0, shape[-2], _SIDE):
        for column in range(0, shape[-1], _SIDE):
            yield (..., slice(row, row + _SIDE), slice(column, column + _SIDE))


def contiguous(array: np.ndarray) -> np.ndarray:
    """``array`` in C order and aligned; itself if it is already."""
    if array.flags.c_contiguous and array.flags.aligned:
        return array
    result = np.empty(array.shape, array.dtype)
    for block in _blocks(array.shape):
        result[block] = array[block]
    return result


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal dtype, shape and bytes (so NaN equals itself and 0.0 differs from -0.0)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = _bits(one), _bits(other)
    if one.flags.c_contiguous and other.flags.c_contiguous:
        return np.array_equal(one, other)
    return all(np.array_equal(one[block], other[block]) for block in _blocks(one.shape))


def _bits(array: np.ndarray) -> np.ndarray:
    """The array with its bits as unsigned integers, copied only for complex numbers."""
    if array.dtype.itemsize in (1, 2, 4, 8):
        return array.view(f"u{array.dtype.itemsize}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
