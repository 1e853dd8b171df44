"""Functions of the argument alone: against float64 rounded once, in every place of arrays of every length."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tf_d2.ops import elementary as ops

LENGTHS = (1, 7, 16, 33, 130)
RNG = np.random.default_rng(0)
VALUES = np.concatenate([[0, -0.0, 17, -87, 88, -30], RNG.normal(size=58) * 5]).astype(np.float32)


def places(function, value):
    """All results of the function of `value` in arrays of several lengths, each once, as bits."""
    results = [function(tf.fill([n], value)).numpy() for n in LENGTHS]
    return np.unique(np.concatenate(results).view(np.int32))


@pytest.mark.parametrize(
    "name, truth",
    [
        ("exp", np.exp),
        ("cos", np.cos),
        ("sin", np.sin),
        ("rsqrt", lambda x: np.float64(np.float32(1) / np.sqrt(np.float32(x)))),
    ],
)
def test_rounded_once_in_every_place(name, truth):
    function = tf.function(getattr(ops, name), autograph=False)
    for value in np.abs(VALUES) + np.float32(1e-3) if name == "rsqrt" else VALUES:
        expected = truth(np.float64(value)).astype(np.float32)
        np.testing.assert_array_equal(places(function, value).view(np.float32), [expected])


def test_sigmoid_rounds_as_torch():
    function = tf.function(ops.sigmoid, autograph=False)
    for value in VALUES:
        power = np.exp(-np.float64(value)).astype(np.float32)
        expected = np.float32(1) / (np.float32(1) + power)
        np.testing.assert_array_equal(places(function, value), expected[None].view(np.int32))


def test_tensorflow_depends_on_the_place():
    """If this fails for all of them TensorFlow has become exact and the module can go."""
    differs = [any(len(places(f, abs(v) + 0.1)) > 1 for v in VALUES) for f in (tf.exp, tf.math.rsqrt)]
    assert any(differs)


def test_sigmoid_of_other_dtypes():
    x = tf.constant(VALUES, tf.float64)
    np.testing.assert_allclose(ops.sigmoid(x), special.expit(VALUES.astype(np.float64)), rtol=1e-14)
    half = tf.cast(x, tf.bfloat16)
    expected = tf.cast(ops.sigmoid(tf.cast(half, tf.float32)), tf.bfloat16)
    assert ops.sigmoid(half).dtype == tf.bfloat16
    np.testing.assert_array_equal(ops.sigmoid(half), expected)


@pytest.mark.parametrize("rows", [1, 10, 999])
@pytest.mark.parametrize("classes", [2, 3, 81, 1204])
def test_softmax_of_equal_rows(run, rows, classes):
    row = RNG.normal(size=classes).astype(np.float32) * 6
    got = run(ops.softmax, np.tile(row, (rows, 1)))
    assert len(np.unique(got, axis=0)) == 1
    powers = np.exp((row - row.max()).astype(np.float64)).astype(np.float32)
    total = powers.astype(np.float64).sum().astype(np.float32)
    np.testing.assert_array_equal(got[0], powers / total)


def test_softmax_at_its_ends(run):
    logits = np.array([[25, 0, 0], [0, 0, 20], [np.nan, 0, 0], [np.inf, 0, 1], [-np.inf, 0, 0]], np.float32)
    got = run(ops.softmax, logits)
    assert got[0, 0] == 1 and got[1, 2] == 1
    assert np.isnan(got[2:4]).all()
    np.testing.assert_array_equal(got[4], [0, 0.5, 0.5])


def test_probabilities_below_the_smallest_normal_number(run):
    """torch gives these; a kernel on one of TensorFlow's threads would make them 0."""
    logits = np.array([[0, -90, -95, 5], [0, -100, -104, 0]], np.float32)
    got = run(ops.softmax, logits)
    expected = np.array([[5.484682189367334e-42, 3.783505853677006e-44], [1.961817850054744e-44, 0]])
    np.testing.assert_array_equal(got[:, 1:3].astype(np.float64), expected)


def test_narrow_and_widen_keep_all_float32():
    bits = np.concatenate([np.arange(5), [2**23 - 1, 2**23, 2**23 + 1, 2**30], RNG.integers(0, 2**30, 1000)])
    values = bits.astype(np.int32).view(np.float32)
    both = tf.function(lambda x: (ops.widen(x), ops.narrow(ops.widen(x))), autograph=False)
    wide, narrow = (t.numpy() for t in both(tf.constant(values)))
    np.testing.assert_array_equal(wide, values.astype(np.float64))
    np.testing.assert_array_equal(narrow.view(np.int32), bits)
    assert np.isnan(ops.narrow(tf.constant(np.nan, tf.float64)))
    assert ops.narrow(tf.constant(2.0**-126 * (1 - 1e-9), tf.float64)).numpy() == np.float32(2.0**-126)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1e-42, 0.05, 1.0])
def test_above(run, threshold):
    values = np.array([np.nan, -1, -0.0, 0, 1e-45, 1e-42, 2e-42, 1e-38, 0.05, 0.051, 1, np.inf], np.float32)
    got = run(lambda x: ops.above(x, threshold), values)
    np.testing.assert_array_equal(got, values > np.float32(threshold))


def test_rank_key_is_the_order(run):
    values = np.array([-np.inf, -1, -1e-38, -1e-45, 0, 1e-45, 3e-45, 1e-38, 0.5, np.inf], np.float32)
    key = run(ops.rank_key, values)
    assert (np.diff(key.astype(np.int64)) > 0).all()
    assert run(ops.rank_key, np.float32([-0.0])) == run(ops.rank_key, np.float32([0.0]))
