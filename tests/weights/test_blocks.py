"""Blockwise copies and comparisons against numpy's own, at sizes around the block's."""

import itertools

import numpy as np
import pytest

from weights._blocks import contiguous, same_bits


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.complex64, np.complex128, bool])
def test_every_order_of_axes(dtype):
    values = np.arange(3 * 65 * 2 * 130).reshape(3, 65, 2, 130).astype(dtype)
    for axes in itertools.permutations(range(4)):
        turned = values.transpose(axes)
        copy = contiguous(turned)
        assert copy.flags.c_contiguous
        np.testing.assert_array_equal(copy, turned, strict=True)
        assert same_bits(copy, turned) and same_bits(turned, copy)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), (64, 64), (65, 1), (1, 129)])
def test_every_shape(shape):
    values = np.ones(shape)[..., None][..., 0]
    np.testing.assert_array_equal(contiguous(values), values, strict=True)
    assert same_bits(values, contiguous(values))


def test_what_is_contiguous_is_not_copied():
    values = np.ones((3, 4))
    assert contiguous(values) is values
    unaligned = np.frombuffer(bytes(13), np.uint8)[1:].view(np.float32)
    assert contiguous(unaligned).flags.aligned


def test_every_element_counts():
    """One flipped bit anywhere is seen, whatever block it lies in."""
    one = np.zeros((130, 70), np.float32).T
    for row, column in ((0, 0), (69, 129), (63, 64), (64, 63)):
        other = contiguous(one).copy()
        other[row, column] = -0.0
        assert not same_bits(one, other)


def test_same_bits():
    zero = np.zeros(2, np.float32)
    assert same_bits(np.array([np.nan]), np.array([np.nan]))
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.astype(np.float64))
    assert not same_bits(zero, zero[:1])
    assert not same_bits(np.zeros(2, np.int32), np.zeros(2, np.uint32))
    assert same_bits(np.array([1 + 2j]), np.array([1 + 2j]))
    assert not same_bits(np.array([1 + 2j]), np.array([1 - 2j]))
