"""Deformable convolution against a slow loop, an ordinary convolution, and detectron2's recorded hand
cases."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from support.torch_process import F

from tf_d2.ops import deform_conv
from tf_d2.ops.deform_conv import deform_conv2d


def sample(plane: np.ndarray, y: float, x: float) -> float:
    """Bilinear value of one [H,W] plane, zero outside (-1, H) x (-1, W) and for missing neighbours."""
    height, width = plane.shape
    if not (-1 < y < height and -1 < x < width):
        return 0.0
    top, left = math.floor(y), math.floor(x)
    total = 0.0
    for row, column in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < height and 0 <= column < width:
            total += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return total


def convolve_by_loop(x, offset, kernel, stride, padding, dilation, deformable_groups, mask=None):
    kernel_h, kernel_w, inputs, outputs = kernel.shape
    batch, out_h, out_w, _ = offset.shape
    channels, taps = x.shape[3], kernel_h * kernel_w
    result = np.zeros((batch, out_h, out_w, outputs))
    for b, oy, ox, c, i, j in itertools.product(
        *map(range, (batch, out_h, out_w, channels, kernel_h, kernel_w))
    ):
        slot = c // (channels // deformable_groups) * taps + i * kernel_w + j
        y = oy * stride - padding + i * dilation + offset[b, oy, ox, 2 * slot]
        column = ox * stride - padding + j * dilation + offset[b, oy, ox, 2 * slot + 1]
        value = sample(x[b, :, :, c], y, column) * (1 if mask is None else mask[b, oy, ox, slot])
        group = c // inputs
        per_group = outputs // (channels // inputs)
        part = slice(group * per_group, (group + 1) * per_group)
        result[b, oy, ox, part] += value * kernel[i, j, c % inputs, part]
    return result


def random_case(seed, stride, padding, dilation, deformable_groups, groups, size, modulated):
    rng = np.random.default_rng(seed)
    height, width, channels, outputs = 7, 9, 8, 4
    out_h, out_w = ((n + 2 * padding - dilation * (size - 1) - 1) // stride + 1 for n in (height, width))
    x = rng.standard_normal((2, height, width, channels))
    offset = rng.standard_normal((2, out_h, out_w, 2 * size * size * deformable_groups)) * 3
    offset[0] = np.round(offset[0])  # whole offsets: samples on the border -1 and H themselves
    kernel = rng.standard_normal((size, size, channels // groups, outputs))
    mask = rng.random((2, out_h, out_w, size * size * deformable_groups)) if modulated else None
    return x, offset, kernel, mask


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize(
    "stride, padding, dilation, deformable_groups, groups, size, modulated",
    [
        (1, 1, 1, 1, 1, 3, False),
        (2, 1, 1, 1, 2, 3, False),
        (1, 2, 2, 2, 1, 3, True),
        (2, 0, 1, 4, 4, 2, True),
        (1, 0, 1, 2, 1, 1, False),
    ],
)
def test_equals_the_loop(
    stride, padding, dilation, deformable_groups, groups, size, modulated, dtype, tolerance
):
    arguments = (stride, padding, dilation, deformable_groups)
    x, offset, kernel, mask = random_case(0, *arguments, groups, size, modulated)
    x, offset, kernel = x.astype(dtype), offset.astype(dtype), kernel.astype(dtype)
    mask = None if mask is None else mask.astype(dtype)
    expected = convolve_by_loop(x, offset, kernel, *arguments, mask)
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "deformable_groups": deformable_groups,
    }
    graph = tf.function(
        lambda x, offset: deform_conv2d(x, offset, tf.constant(kernel), **options, mask=mask),
        input_signature=[
            tf.TensorSpec([None, None, None, x.shape[3]], dtype),
            tf.TensorSpec([None, None, None, offset.shape[3]], dtype),
        ],
    )
    for result in (graph(x, offset), deform_conv2d(x, offset, kernel, **options, mask=mask)):
        assert result.dtype == dtype
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("groups", [1, 2])
def test_without_offsets_it_is_a_convolution(groups):
    rng = np.random.default_rng(1)
    x, kernel = rng.standard_normal((2, 11, 8, 6)), rng.standard_normal((3, 3, 6 // groups, 4))
    nchw, oihw = x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)
    expected = F.conv2d(nchw, oihw, stride=2, padding=2, dilation=2, groups=groups).transpose(0, 2, 3, 1)
    offset = np.zeros((*expected.shape[:3], 18))
    result = deform_conv2d(x, offset, kernel, stride=2, padding=2, dilation=2)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "dy, dx, expected", [(-0.5, 0, 1.0), (-1, 0, 0), (4.5, 0, 11), (5, 0, 0), (0, 0, 2), (0, 1, 3)]
)
def test_recorded_values(dy, dx, expected):
    x = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
    offset = np.zeros((1, 5, 5, 2), np.float32)
    offset[0, 0, 2] = dy, dx  # y comes first
    result = deform_conv2d(x, offset, np.ones((1, 1, 1, 1), np.float32))
    assert result[0, 0, 2, 0] == expected


def test_several_pieces_equal_one(monkeypatch):
    x, offset, kernel, mask = random_case(2, 1, 1, 1, 2, 2, 3, True)
    options = {"padding": 1, "deformable_groups": 2, "mask": mask}
    whole = deform_conv2d(x, offset, kernel, **options)
    monkeypatch.setattr(deform_conv, "_CHUNK_ELEMENTS", 11 * 9 * 8)
    np.testing.assert_allclose(deform_conv2d(x, offset, kernel, **options), whole, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("bfloat16")
def test_positions_of_short_floats_are_exact():
    """Position 300.5 does not exist in bfloat16, whose step is 2 there."""
    x = tf.cast(np.eye(1, 400, 300, dtype=np.float32).reshape(1, 1, 400, 1), tf.bfloat16)
    offset = np.zeros((1, 1, 400, 2), np.float32)
    offset[..., 1] = 0.5
    result = deform_conv2d(x, tf.cast(offset, tf.bfloat16), tf.ones([1, 1, 1, 1], tf.bfloat16))
    assert result.dtype == tf.bfloat16
    assert np.flatnonzero(tf.cast(result, tf.float32)).tolist() == [299, 300]


def test_non_finite_offsets_read_nothing():
    x, kernel = np.ones((1, 2, 2, 1), np.float32), np.ones((1, 1, 1, 1), np.float32)
    offset = np.array([np.nan, 0, np.inf, 0, 0, -np.inf, 0, 0], np.float32).reshape(1, 2, 2, 2)
    assert np.ravel(deform_conv2d(x, offset, kernel)).tolist() == [0, 0, 0, 1]


def test_channels_that_do_not_fit_are_refused():
    x, kernel = np.zeros((1, 4, 4, 6), np.float32), np.zeros((3, 3, 6, 2), np.float32)
    offset = np.zeros((1, 4, 4, 18), np.float32)
    with pytest.raises(ValueError, match="offset needs 36 channels"):
        deform_conv2d(x, offset, kernel, padding=1, deformable_groups=2)
    with pytest.raises(ValueError, match="mask needs 9 channels"):
        deform_conv2d(x, offset, kernel, padding=1, mask=offset)
    with pytest.raises(ValueError, match="do not divide"):
        deform_conv2d(x, offset, kernel, padding=1, deformable_groups=4)
