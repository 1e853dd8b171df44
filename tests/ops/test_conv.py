"""Convolution and pooling against torch.nn.functional."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from support.torch_process import F

from tf_d2 import kernels
from tf_d2.ops import conv as ops


def assert_sum(got, expected, sizes):
    """`got` is the sum `expected` (float64) up to the rounding of its dtype, whatever the order of its terms.

    `sizes` are the same sums of the absolute terms. 8 half units in the last place of those are ten times what a few
    hundred random terms miss the sum by.
    """
    assert (np.abs(got - expected) <= 4 * np.finfo(got.dtype).eps * sizes).all()


def exact(function, x, w, b, *args):
    """A convolution of torch in float64, and of the absolute values."""
    doubles = [np.asarray(t, np.float64) for t in (nchw(x), oihw(w), b)]
    return nhwc(function(*doubles, *args)), nhwc(function(*(np.abs(t) for t in doubles), *args))


def nchw(x):
    return np.moveaxis(x, -1, 1)


def nhwc(x):
    return np.moveaxis(x, 1, -1)


def oihw(kernel):
    return kernel.transpose(3, 2, 0, 1)


def data(rng, kind, *shape):
    return rng.standard_normal(shape).astype(kind)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(
    "kernel, stride, padding, dilation, groups",
    [
        (1, 1, 0, 1, 1),
        (1, 2, 0, 1, 1),
        (3, 1, 1, 1, 1),
        (3, 2, 1, 1, 1),
        (3, 1, 2, 2, 1),
        (3, 1, 1, 2, 1),
        (3, 2, 1, 1, 4),
        (3, 1, 1, 1, 8),
        (7, 2, 3, 1, 1),
        (4, 2, 1, 1, 1),
        (3, 1, 0, 1, 1),
        (2, 1, 1, 1, 1),
    ],
)
def test_conv2d(run, kind, kernel, stride, padding, dilation, groups):
    """All parities of height and width: SAME padding would differ for even sizes and stride 2."""
    rng = np.random.default_rng(0)
    w, b = data(rng, kind, kernel, kernel, 8 // groups, 16), data(rng, kind, 16)
    for height, width in itertools.product((10, 11), (12, 13)):
        x = data(rng, kind, 2, height, width, 8)
        expected, sizes = exact(F.conv2d, x, w, b, stride, padding, dilation, groups)
        got = run(lambda x: ops.conv2d(x, w, b, stride=stride, padding=padding, dilation=dilation), x)
        assert got.dtype == kind
        assert_sum(got, expected, sizes)
    without = run(lambda x: ops.conv2d(x, w, stride=stride, padding=padding, dilation=dilation), x)
    assert_sum(without + b, expected, sizes)


@pytest.mark.parametrize("kind", [tf.float32, tf.float64, tf.bfloat16])
@pytest.mark.parametrize("after", ["nothing", "relu", "sum"])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("groups, outputs", [(1, 8), (2, 16), (8, 8), (8, 16)])
def test_grouped_convolution_fused(request, kind, after, stride, dilation, groups, outputs):
    """What the graph optimiser may fuse has a kernel, for all groups up to depthwise, with oneDNN and without."""
    if kind == tf.bfloat16:
        request.getfixturevalue("bfloat16")
    rng = np.random.default_rng(2)
    x, w = (tf.constant(rng.normal(size=s), kind) for s in ((1, 6, 7, 8), (3, 3, 8 // groups, outputs)))
    b = tf.Variable(rng.normal(size=outputs), dtype=kind)

    def layer(x):
        y = ops.conv2d(x, w, tf.convert_to_tensor(b), stride=stride, padding=dilation, dilation=dilation)
        y = y + y[..., ::-1] if after == "sum" else y
        return y if after == "nothing" else tf.nn.relu(y)

    graph = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 8], kind)], autograph=False)
    arrays = [tf.cast(t, tf.float64).numpy() for t in (x, w, b)]
    expected, sizes = exact(F.conv2d, *arrays, stride, dilation, dilation, groups)
    if after == "sum":
        expected, sizes = (t + t[..., ::-1] for t in (expected, sizes))
    expected = expected if after == "nothing" else np.maximum(expected, 0)
    eps = float(np.finfo(kind.as_numpy_dtype).eps) if kind != tf.bfloat16 else 2.0**-8
    got = tf.cast(graph(x), tf.float64).numpy()
    assert (np.abs(got - expected) <= 4 * eps * sizes).all()


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(
    "kernel, stride, padding", [(2, 2, 0), (4, 2, 1), (3, 2, 0), (3, 1, 1), (2, 1, 0), (4, 4, 0)]
)
def test_conv_transpose2d(run, kind, kernel, stride, padding):
    rng = np.random.default_rng(1)
    w, b = data(rng, kind, kernel, kernel, 5, 6), data(rng, kind, 5)
    for height, width in ((1, 1), (4, 7)):
        x = data(rng, kind, 3, height, width, 6)
        # torch keeps (in, out, kh, kw): the same (2, 3, 1, 0) transpose as for a convolution, and no flip.
        expected, sizes = exact(F.conv_transpose2d, x, w, b, stride, padding)
        got = run(lambda x: ops.conv_transpose2d(x, w, b, stride=stride, padding=padding), x)
        assert_sum(got, expected, sizes)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiles_of_a_transposed_convolution(run, kind, size):
    rng = np.random.default_rng(5)
    w, b = data(rng, kind, size, size, 5, 6), data(rng, kind, 5)
    for height, width in ((1, 1), (4, 7)):
        x = data(rng, kind, 3, height, width, 6)
        expected, sizes = exact(F.conv_transpose2d, x, w, b, size)
        for bias in (b, None):
            tiles = run(lambda x, bias=bias: ops.conv_transpose_tiles(x, w, bias), x)
            assert tiles.shape == (3, height, width, size * size * 5)
            got = run(lambda t: ops.join_tiles(t, size), tiles) + (0 if bias is not None else b)
            assert_sum(got, expected, sizes)


def test_conv_transpose_recorded(run):
    kernel = np.arange(16.0).reshape(4, 4, 1, 1)
    got = run(lambda x: ops.conv_transpose2d(x, kernel, stride=2, padding=1), np.ones((1, 1, 1, 1)))
    assert got.ravel().tolist() == [5, 6, 9, 10]
    kernel = np.arange(4.0).reshape(2, 2, 1, 1)
    row = np.array([1.0, 10.0]).reshape(1, 1, 2, 1)
    got = run(lambda x: ops.conv_transpose2d(x, kernel, stride=2), row)
    assert got[0, :, :, 0].tolist() == [[0, 1, 0, 10], [2, 3, 20, 30]]


def test_conv_transpose_of_no_regions(run):
    kernel = np.ones((2, 2, 3, 4), np.float32)
    got = run(lambda x: ops.conv_transpose2d(x, kernel, stride=2), np.zeros((0, 7, 7, 4), np.float32))
    assert got.shape == (0, 14, 14, 3)


@pytest.mark.parametrize("kernel, stride, padding", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (1, 2, 0)])
def test_max_pool_pads_with_minus_infinity(run, kernel, stride, padding):
    """All values are negative: padding with zeros would win at the border."""
    rng = np.random.default_rng(2)
    for height, width in itertools.product((8, 9), (10, 11)):
        x = -1 - np.abs(data(rng, np.float32, 2, height, width, 3))
        expected = F.max_pool2d(nchw(x), kernel, stride, padding)
        got = run(lambda x: ops.max_pool2d(x, kernel, stride, padding), x)
        np.testing.assert_array_equal(got, nhwc(expected))


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (1, 0, 1), (2, 1, 1), (1, 2, 2)])
def test_convolution_of_no_regions(stride, padding, dilation):
    """TensorFlow's own convolution gives none of them the shape of its input, where oneDNN computes."""
    x, kernel = tf.zeros([0, 14, 11, 6]), tf.ones([3, 3, 6, 4])
    found = ops.conv2d(x, kernel, tf.ones([4]), stride=stride, padding=padding, dilation=dilation, relu=True)
    height, width = ((n + 2 * padding - 2 * dilation - 1) // stride + 1 for n in (14, 11))
    assert found.shape == (0, height, width, 4)


_TWO_FILTERS = """
import numpy as np
from tf_d2.ops import conv
rng = np.random.default_rng(0)
draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
x = draw(1, 12, 12, 16)
for compute, shape in (
    (lambda w: conv.conv2d(x, w, padding=1), (3, 3, 16, 16)),
    (lambda w: conv.conv2d(x, w, padding=1, stride=2), (3, 3, 16, 16)),
    (lambda w: conv.depthwise_conv2d(x, w, stride=1, padding=1), (3, 3, 16, 1)),
):
    first, second = draw(*shape), draw(*shape)
    compute(first)
    zero = compute(np.zeros(shape, np.float32)).numpy()
    print(np.abs(zero).max(), np.abs(compute(2 * second) - 2 * compute(second)).max())
"""


def test_eager_layers_keep_their_own_filters():
    """TensorFlow mixes them up where a user's environment says that filters are frozen."""
    environment = os.environ | {kernels.ONEDNN: "1", kernels.FROZEN_WEIGHTS: "1"}
    done = subprocess.run(
        [sys.executable, "-c", _TWO_FILTERS],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=environment,
    )
    assert done.stdout.split() == ["0.0"] * 6
