"""GELU in its exact form."""

import math

import numpy as np
import tensorflow as tf

from tf_d2.ops.activation import gelu


def exact(x):
    return np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x])


X = np.concatenate([np.linspace(-12, 12, 1001), [-3.7, 0.0, 1e-30, 30.0]])


def test_gelu_is_the_form_with_erf(run):
    np.testing.assert_allclose(run(gelu, X), exact(X), rtol=0, atol=4e-15)
    narrow = X.astype(np.float32)
    error = np.abs(run(gelu, narrow) - exact(narrow.astype(np.float64)))
    assert (error <= 4 * 2**-24 * np.abs(narrow)).all()  # the form with tanh is 5e-4 away


def test_bfloat16_is_rounded_once():
    x = tf.cast(tf.constant(X[X > -4]), tf.bfloat16)
    wide = tf.cast(x, tf.float64).numpy()
    error = np.abs(tf.cast(gelu(x), tf.float64).numpy() - exact(wide))
    assert (error <= 2**-8 * np.abs(exact(wide)) + 4 * 2**-24 * np.abs(wide)).all()


def test_a_value_does_not_depend_on_its_place():
    x = tf.constant(X, tf.float32)
    whole = gelu(x).numpy()
    for start in range(17):
        np.testing.assert_array_equal(gelu(x[start : start + 19]), whole[start : start + 19])
