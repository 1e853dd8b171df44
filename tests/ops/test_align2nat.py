"""From aligned to natural masks, against the sum over sixteen neighbours written value by value."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from tf_d2.ops.align2nat import align2nat, align2nat_map, natural_windows


def neighbours(position: float) -> list[tuple[int, float]]:
    low, high = math.floor(position), math.ceil(position)
    return [(low, 1 - (position - low)), (high, position - low)]


def reference(x: np.ndarray, unit: int) -> np.ndarray:
    """``[H, W, V, U]`` -> ``[ceil(H / unit), ceil(W / unit), unit * V, unit * U]``."""
    height, width, side, _ = x.shape
    large = unit * side
    out = np.zeros([-(-height // unit), -(-width // unit), large, large])
    for y, x_, v, u in itertools.product(*(range(n) for n in out.shape)):
        positions = (
            y * unit + v - large / 2 + 0.5,
            x_ * unit + u - large / 2 + 0.5,
            (v + 0.5) / unit - 0.5,
            (u + 0.5) / unit - 0.5,
        )
        for corner in itertools.product(*map(neighbours, positions)):
            index = [i for i, _ in corner]
            inside = all(0 <= i < n for i, n in zip(index, x.shape, strict=True))
            value = x[tuple(index)] if inside else -6.0
            out[y, x_, v, u] += math.prod(w for _, w in corner) * value
    return out


CASES = [(1, 3, 4, 5), (1, 4, 3, 6), (2, 3, 5, 4), (2, 2, 6, 7), (4, 2, 5, 9), (3, 3, 4, 4), (8, 1, 3, 2)]


@pytest.mark.parametrize(("unit", "side", "height", "width"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_windows(unit: int, side: int, height: int, width: int, dtype: type) -> None:
    x = np.random.default_rng(unit).normal(size=[2, height, width, side * side]).astype(dtype)
    pairs = x.reshape([2, height, width, side, side])
    expected = np.stack([reference(pairs[i].astype(np.float64), unit) for i in range(2)])
    got = align2nat_map(tf.constant(x), unit)
    assert got.dtype == dtype
    # Sixteen products of two rounded numbers and their sum, of values up to 6.
    limit = 6 * 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(got, expected.reshape(got.numpy().shape), rtol=0, atol=limit)
    cells = tf.constant([[1, expected.shape[1] - 1, expected.shape[2] - 1], [0, 0, 0]])
    in_graph = tf.function(lambda x, cells: align2nat(x, unit, cells))
    for count in (
        1,
        2,
    ):  # TensorFlow's optimiser once mistook one axis for another, without an error for one cell
        some = tf.reshape(in_graph(tf.constant(x), cells[:count]), [count, -1])
        np.testing.assert_allclose(some, tf.gather_nd(got, cells[:count]), rtol=0, atol=limit)


def test_natural_windows_are_taken_as_they_are() -> None:
    x = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 3, 4)
    windows = natural_windows(tf.constant(x), tf.constant([[1, 0, 2], [0, 1, 1]]))
    np.testing.assert_array_equal(windows, [x[1, 0, 2].reshape(2, 2), x[0, 1, 1].reshape(2, 2)])


def test_channels_that_are_no_square() -> None:
    with pytest.raises(ValueError, match="5 channels"):
        natural_windows(tf.zeros([1, 1, 1, 5]), tf.zeros([1, 3], tf.int32))
