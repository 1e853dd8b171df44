"""Interpolation against torch.nn.functional.interpolate and hand cases, eager and in one graph."""

import numpy as np
import pytest
import tensorflow as tf
from support.torch_process import F

from tf_d2.ops.interpolate import add_nearest2x, bicubic, bilinear, linear

FUNCTIONS = {"bilinear": bilinear, "bicubic": bicubic}
# float32: a rounding of each product and sum of values up to about 4; float64 the same, 2**29 times finer.
TOLERANCE = {np.float32: 3e-6, np.float64: 1e-13}


def torch_interpolate(x: np.ndarray, mode: str, **size) -> np.ndarray:
    nchw = x.transpose(0, 3, 1, 2)
    return F.interpolate(nchw, mode=mode, align_corners=False, **size).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_equals_torch_at_random_sizes(mode, dtype):
    rng = np.random.default_rng(0)
    scalars = [tf.TensorSpec([], tf.int32)] * 2
    graph = tf.function(FUNCTIONS[mode], input_signature=[tf.TensorSpec([None] * 4, dtype), *scalars])
    for _ in range(40):
        n, h, w, c = rng.integers(1, [3, 50, 50, 7]).tolist()
        size = tuple(rng.integers(1, 200, 2).tolist())
        x = rng.standard_normal((n, h, w, c)).astype(dtype)
        expected = torch_interpolate(x, mode, size=size)
        for result in (graph(x, *size), FUNCTIONS[mode](x, *size)):
            assert result.dtype == dtype
            np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE[dtype])
    assert graph.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_equals_torch_at_integer_factors(dtype, factor):
    x = np.random.default_rng(1).standard_normal((2, 13, 9, 5)).astype(dtype)
    expected = torch_interpolate(x, "bilinear", scale_factor=factor)
    result = bilinear(x, 13 * factor, 9 * factor)
    np.testing.assert_allclose(result, expected, rtol=0, atol=TOLERANCE[dtype])


def test_bilinear_positions_are_rounded_as_torch_rounds_them():
    """At column 1000 a position rounded twice is off by 6e-5; on a steep ramp that shows."""
    ramp = (np.arange(1216, dtype=np.float32) % 2).reshape(1, 1, -1, 1)
    expected = torch_interpolate(ramp, "bilinear", size=(1, 1917))
    np.testing.assert_allclose(bilinear(ramp, 1, 1917), expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_neighbours_give_exactly_their_value(dtype):
    """Panoptic-DeepLab's centres are compared with ==, and at the edge of a picture values repeat."""
    x = np.random.default_rng(3).standard_normal((1, 40, 58, 3)).astype(dtype)
    columns, rows = np.repeat(x[:, :, :1], 58, axis=2), np.repeat(x[:, :1], 40, axis=1)
    for function in (bilinear, tf.function(bilinear)):
        wide, tall = function(columns, 83, 119).numpy(), function(rows, 83, 119).numpy()
        assert (wide == wide[:, :, :1]).all() and (tall == tall[:, :1]).all()
    np.testing.assert_array_equal(linear(rows[0, :, :, 0], 83), np.repeat(rows[0, :1, :, 0], 83, axis=0))


def test_bilinear_in_several_chunks_equals_torch():
    x = np.random.default_rng(2).standard_normal((2, 90, 120, 40)).astype(np.float32)
    for size in ((61, 75), (201, 155)):
        expected = torch_interpolate(x, "bilinear", size=size)
        np.testing.assert_allclose(bilinear(x, *size), expected, rtol=0, atol=3e-6)


def test_bicubic_impulse_by_hand():
    impulse = np.array([0, 0, 1, 0, 0], np.float32).reshape(1, 1, 5, 1)
    expected = [0, -0.0352, -0.1055, 0.2617, 0.8789, 0.8789, 0.2617, -0.1055, -0.0352, 0]
    np.testing.assert_allclose(np.ravel(bicubic(impulse, 1, 10)), expected, atol=5e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_add_nearest2x_repeats_pixels(dtype):
    coarse = np.arange(24, dtype=dtype).reshape(2, 2, 3, 2)
    fine = np.arange(96, dtype=dtype).reshape(2, 4, 6, 2) * 100
    expected = fine + coarse.repeat(2, axis=1).repeat(2, axis=2)
    graph = tf.function(add_nearest2x, input_signature=[tf.TensorSpec([None, None, None, 2], dtype)] * 2)
    np.testing.assert_array_equal(add_nearest2x(tf.constant(fine), tf.constant(coarse)), expected)
    np.testing.assert_array_equal(graph(fine, coarse), expected)


@pytest.mark.parametrize("function", [bilinear, bicubic])
def test_integer_maps_are_refused(function):
    with pytest.raises(TypeError, match="uint8; cast first"):
        function(np.zeros((1, 2, 2, 1), np.uint8), 4, 4)


def test_empty_batch_is_kept():
    x = np.zeros((0, 4, 5, 3), np.float32)
    for function in (bilinear, bicubic):
        assert function(x, 8, 10).shape == (0, 8, 10, 3)
        assert function(x, 7, 9).shape == (0, 7, 9, 3)


@pytest.mark.parametrize("function", [bilinear, bicubic])
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_short_floats_are_computed_in_float32(function, dtype):
    x = tf.cast(np.random.default_rng(3).standard_normal((1, 5, 6, 3)), dtype)
    for size in ((10, 12), (7, 9)):
        result = function(x, *size)
        assert result.dtype == dtype
        expected = tf.cast(function(tf.cast(x, tf.float32), *size), dtype)
        np.testing.assert_array_equal(tf.cast(result, tf.float32), tf.cast(expected, tf.float32))
