"""Normalisation layers against torch, in float64 too: there a wrong epsilon cannot hide."""

import numpy as np
import pytest
import tensorflow as tf
from support.torch_process import F

from tf_d2.layers.norm import BATCH_NORMS, BatchNorm, CycleBatchNorm, GroupNorm, LayerNorm, get_norm

# Relative L2. The inputs lie 60 standard deviations from zero, which costs float32 two digits.
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}


def fill(layer):
    rng = np.random.default_rng(0)
    for variable in layer.variables:
        value = rng.standard_normal(variable.shape)
        # Small variances: an epsilon of 1e-3 instead of 1e-5 changes the result by percents.
        variable.assign(np.abs(value) * 1e-2 if variable.path.endswith("variance") else value)
    return layer


def inputs(dtype, channels=64):
    x = np.random.default_rng(1).standard_normal((2, 5, 7, channels)) * 0.05 + 3
    return x.astype(dtype)


def nchw(x):
    return np.moveaxis(x, -1, 1)


def value_of(variable):
    return variable.value.numpy()


def close(got, expected, dtype):
    expected = np.moveaxis(expected, 1, -1)
    assert got.dtype == dtype
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert error < TOLERANCE[dtype], error


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_batch_norms(run, dtype, kind):
    layer, x = fill(get_norm(kind, 64)), inputs(dtype)
    parts = (value_of(v) for v in (layer.moving_mean, layer.moving_variance, layer.gamma, layer.beta))
    eps = 0.0 if kind == "AffineChannel" else 1e-5  # the frozen norm of maskrcnn-benchmark has none
    close(run(layer, x), F.batch_norm(nchw(x), *parts, eps=eps), dtype)


def test_scale_and_shift_are_the_same_map(dtype):
    layer, x = fill(BatchNorm(64)), inputs(dtype)
    scale, shift = layer.scale_and_shift()
    assert scale.dtype == np.float64
    np.testing.assert_allclose(layer(tf.constant(x)), x * scale + shift, rtol=0, atol=TOLERANCE[dtype] * 1000)


@pytest.mark.parametrize("channels", [32, 64, 96])
def test_group_norm(run, dtype, channels):
    layer, x = fill(GroupNorm(channels)), inputs(dtype, channels)
    close(run(layer, x), F.group_norm(nchw(x), 32, value_of(layer.gamma), value_of(layer.beta), 1e-5), dtype)


def test_group_norm_of_no_regions(run):
    layer = fill(GroupNorm(32))
    assert run(layer, np.zeros((0, 7, 7, 32), np.float32)).shape == (0, 7, 7, 32)


def test_group_norm_needs_full_groups():
    with pytest.raises(ValueError, match="multiple of 32 channels, got 48"):
        GroupNorm(48)


def test_layer_norm_is_per_pixel_with_its_own_epsilon(run, dtype):
    layer, x = fill(LayerNorm(64)), inputs(dtype)
    by_pixel = F.layer_norm(x, (64,), value_of(layer.gamma), value_of(layer.beta), eps=1e-6)
    close(run(layer, x), by_pixel.transpose(0, 3, 1, 2), dtype)


def test_cycle_batch_norm_has_statistics_per_level_and_one_affine_map(dtype):
    layer, x = fill(CycleBatchNorm(3, 16, "1")), inputs(dtype, 16)
    assert {v.path for v in layer.variables} == {"1/gamma", "1/beta"} | {
        f"1/{level}/moving_{leaf}" for level in range(3) for leaf in ("mean", "variance")
    }
    for level in range(3):
        stats = getattr(layer, f"level{level}")
        parts = (value_of(v) for v in (stats.moving_mean, stats.moving_variance, layer.gamma, layer.beta))
        got = layer(tf.constant(x), level=level).numpy()
        close(got, F.batch_norm(nchw(x), *parts, eps=1e-5), dtype)


def test_no_norm_and_unknown_norms():
    assert get_norm("", 8) is None
    with pytest.raises(ValueError, match="unknown norm 'IN'; supported are"):
        get_norm("IN", 8)


@pytest.mark.parametrize("norm", ["FrozenBN", "GN", "LN"])
def test_graphs_refer_to_variables_only(norm):
    """An export stores variables; a large constant would be copied with every copy of its graph."""
    layer = get_norm(norm, 32)
    assert layer is not None
    spec = tf.TensorSpec([None, None, None, 32], tf.float32)
    graph = tf.function(layer.call, autograph=False).get_concrete_function(spec)
    assert graph.captured_inputs
    assert all(tensor.dtype == tf.resource for tensor in graph.captured_inputs)
