"""Convolution and linear layers against torch modules holding the same numbers."""

import numpy as np
import pytest
import tensorflow as tf
from support.torch_process import F

from tf_d2.layers.base import walk
from tf_d2.layers.conv import Conv2d, ConvTranspose2d, DeformConv2d, Linear

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def fill(layer, seed=0):
    """Random variables; variances positive. Returns float64 arrays by path."""
    rng = np.random.default_rng(seed)
    values = {}
    for variable in layer.variables:
        value = rng.standard_normal(variable.shape)
        variable.assign(np.abs(value) + 0.5 if variable.path.endswith("variance") else value)
        values[variable.path] = variable.value.numpy()
    return values


def nchw(x):
    return np.moveaxis(x, -1, 1)


def torch_kernel(kernel):
    return kernel.transpose(3, 2, 0, 1)


def random(dtype, *shape):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def test_names_are_detectron2s():
    layer = Conv2d(4, 6, 3, "conv1", padding=1, bias=False, norm="FrozenBN")
    names = {f"conv1/norm/{leaf}" for leaf in ("gamma", "beta", "moving_mean", "moving_variance")}
    assert {v.path for v in layer.variables} == names | {"conv1/kernel"}
    assert {v.path for v in Conv2d(4, 6, 3, "p6").variables} == {"p6/kernel", "p6/bias"}


@pytest.mark.parametrize("norm, bias", [("", True), ("BN", False), ("FrozenBN", True)])
@pytest.mark.parametrize("relu", [False, True])
def test_convolution_then_norm_then_relu(dtype, norm, bias, relu):
    layer = Conv2d(8, 12, 3, "conv", stride=2, padding=1, groups=4, bias=bias, norm=norm, relu=relu)
    values, x = fill(layer), random(dtype, 2, 9, 10, 8)
    weight = torch_kernel(values["conv/kernel"])
    expected = F.conv2d(nchw(x), weight, values["conv/bias"] if bias else None, 2, 1, 1, 4)
    if norm:
        leaves = ("moving_mean", "moving_variance", "gamma", "beta")
        expected = F.batch_norm(expected, *(values[f"conv/norm/{v}"] for v in leaves), eps=1e-5)
    expected = np.moveaxis(F.relu(expected) if relu else expected, 1, -1)
    got = layer(tf.constant(x)).numpy()
    assert got.dtype == dtype
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[dtype] * 10)
    layer.fold()
    folded = layer(tf.constant(x)).numpy()
    np.testing.assert_allclose(folded, expected, rtol=0, atol=TOLERANCE[dtype] * 10)
    layer.unfold()
    np.testing.assert_array_equal(layer(tf.constant(x)), got)


def test_fold_uses_the_values_at_that_time_and_leaves_variables_alone():
    layer = Conv2d(3, 4, 1, "conv", bias=False, norm="BN")
    before, x = fill(layer), tf.constant(random("float32", 1, 4, 4, 3))
    layer.fold()
    first = layer(x).numpy()
    assert all((v.value.numpy() == before[v.path]).all() for v in layer.variables)
    layer.norm.beta.assign(layer.norm.beta + 1)
    np.testing.assert_array_equal(layer(x), first)
    layer.fold()
    np.testing.assert_allclose(layer(x), first + 1, atol=1e-5)


def test_fold_can_take_the_memory_of_the_kernel():
    kept, released = (Conv2d(3, 4, 1, "conv", bias=False, norm="BN") for _ in range(2))
    values, x = fill(kept), tf.constant(random("float32", 1, 4, 4, 3))
    for variable in released.variables:
        variable.assign(values[variable.path])
    kept.fold()
    released.fold(release=True)
    np.testing.assert_array_equal(released(x), kept(x))
    np.testing.assert_array_equal(released.kernel.value, kept._folded[0])
    assert released._folded[0] is released.kernel
    for again in (released.fold, released.unfold):
        with pytest.raises(ValueError, match=r"conv/kernel: .*merged"):
            again()


def test_norms_that_depend_on_the_input_are_not_folded():
    layer = Conv2d(3, 32, 1, "conv", bias=False, norm="GN")
    fill(layer)
    x = tf.constant(random("float32", 1, 4, 4, 3))
    before = layer(x).numpy()
    layer.fold()
    np.testing.assert_array_equal(layer(x), before)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="unknown norm 'XBN'"):
        Conv2d(3, 4, 1, "conv", norm="XBN")


@pytest.mark.parametrize("kernel, padding", [(2, 0), (4, 1), (6, 2)])
def test_conv_transpose(dtype, kernel, padding):
    layer = ConvTranspose2d(6, 5, kernel, "deconv", relu=True)
    values, x = fill(layer), random(dtype, 3, 5, 4, 6)
    weight, bias = torch_kernel(values["deconv/kernel"]), values["deconv/bias"]
    expected = F.relu(F.conv_transpose2d(nchw(x), weight, bias, 2, padding))
    got = layer(tf.constant(x)).numpy()
    assert got.shape == (3, 10, 8, 5)
    np.testing.assert_allclose(got, np.moveaxis(expected, 1, -1), rtol=0, atol=TOLERANCE[dtype] * 10)


def test_linear_after_pooling_equals_torchs_chw_flatten(dtype):
    """The kernel keeps its (H, W, C, out) axes: torch flattens C first."""
    layer = Linear(3 * 7 * 7, 10, "fc1", spatial=7, relu=True)
    values, x = fill(layer), random(dtype, 4, 7, 7, 3)
    weight = torch_kernel(values["fc1/kernel"]).reshape(10, -1)  # (out, C * H * W)
    expected = F.relu(F.linear(nchw(x).reshape(4, -1), weight, values["fc1/bias"]))
    assert values["fc1/kernel"].shape == (7, 7, 3, 10)
    np.testing.assert_allclose(layer(tf.constant(x)), expected, rtol=0, atol=TOLERANCE[dtype] * 10)


def test_linear(dtype):
    layer = Linear(10, 4, "cls_score")
    values, x = fill(layer), random(dtype, 5, 10)
    weight = values["cls_score/kernel"].T
    expected = F.linear(x, weight, values["cls_score/bias"])
    np.testing.assert_allclose(layer(tf.constant(x)), expected, rtol=0, atol=TOLERANCE[dtype] * 10)
    assert layer(tf.zeros([0, 10], dtype)).shape == (0, 4)


@pytest.mark.parametrize("norm", ["", "BN"])
def test_deformable_without_offsets_is_a_convolution(dtype, norm):
    plain = Conv2d(8, 6, 3, "conv2", padding=1, bias=False, norm=norm, relu=True)
    deform = DeformConv2d(8, 6, 3, name="conv2", padding=1, norm=norm, relu=True, deformable_groups=2)
    values = fill(plain)
    for variable in deform.variables:
        variable.assign(values[variable.path])
    x = tf.constant(random(dtype, 1, 7, 8, 8))
    offset = tf.zeros([1, 7, 8, 36], dtype)
    np.testing.assert_allclose(deform(x, offset), plain(x), rtol=0, atol=TOLERANCE[dtype] * 10)
    half = deform(x, offset, tf.fill([1, 7, 8, 18], tf.constant(0.5, dtype)))
    assert not np.allclose(half, plain(x))
    deform.fold()
    np.testing.assert_allclose(deform(x, offset), plain(x), rtol=0, atol=TOLERANCE[dtype] * 10)


def test_walk_reaches_every_layer_once():
    layer = Conv2d(3, 4, 1, "conv", norm="BN")
    assert [x.name for x in walk(layer)] == ["conv", "norm"]
