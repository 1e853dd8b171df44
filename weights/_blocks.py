"""Copying and comparing arrays whose axes are in another order, in strips that fit the processor's cache.

A transposed array walks through memory in strides; numpy does that element by element and misses the cache
each time. In strips it is two to four times as fast, and changing layouts is most of what a conversion does.
Smaller pieces are as good for the cache, but numpy's threads would then mostly wait for Python.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_WIDTH = 64  # measured: 32 and 64 are the best, for linear layers and 3 x 3 convolutions


def _strips(shape: tuple[int, ...]) -> Iterator[tuple]:
    """Indices that together cover an array of ``shape``, cut along the last axis."""
    if len(shape) < 2:
        yield (...,)
        return
    for column in range(0, shape[-1], _WIDTH):
        yield (..., slice(column, column + _WIDTH))


def contiguous(array: np.ndarray) -> np.ndarray:
    """``array`` in C order and aligned; itself if it is already."""
    if array.flags.c_contiguous and array.flags.aligned:
        return array
    result = np.empty(array.shape, array.dtype)
    for strip in _strips(array.shape):
        result[strip] = array[strip]
    return result


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal dtype, shape and bytes (so NaN equals itself and 0.0 differs from -0.0)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    one, other = _bits(one), _bits(other)
    if one.flags.c_contiguous and other.flags.c_contiguous:
        return np.array_equal(one, other)
    return all(np.array_equal(one[strip], other[strip]) for strip in _strips(one.shape))


def _bits(array: np.ndarray) -> np.ndarray:
    """The array with its bits as unsigned integers, copied only for complex numbers."""
    if array.dtype.itemsize in (1, 2, 4, 8):
        return array.view(f"u{array.dtype.itemsize}")
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
