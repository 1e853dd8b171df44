"""The hazard exists (so the module is needed), and exact_constant avoids it, also in a saved model."""

import numpy as np
import tensorflow as tf

from tf_d2.ops.exact import exact_constant

MULTIPLES = 7.0 * np.arange(1000, dtype=np.float32)
SPEC = [tf.TensorSpec([None], tf.float32)]


def plain(x: tf.Tensor) -> tf.Tensor:
    return tf.math.ceil(x / 7.0)


def exact(x: tf.Tensor) -> tf.Tensor:
    return tf.math.ceil(x / exact_constant(7.0))


def test_plain_division_by_a_constant_is_rewritten():
    """If this fails TensorFlow has become exact and `exact_constant` can go."""
    graph = tf.function(plain, input_signature=SPEC)
    np.testing.assert_array_equal(plain(MULTIPLES), np.arange(1000))
    assert (graph(MULTIPLES).numpy() != np.arange(1000)).any()


def test_exact_constant_keeps_the_division(tmp_path):
    graph = tf.function(exact, input_signature=SPEC)
    np.testing.assert_array_equal(exact(MULTIPLES), np.arange(1000))
    np.testing.assert_array_equal(graph(MULTIPLES), np.arange(1000))
    module = tf.Module()
    module.f = graph
    tf.saved_model.save(module, str(tmp_path))
    np.testing.assert_array_equal(tf.saved_model.load(str(tmp_path)).f(MULTIPLES), np.arange(1000))


def test_dtype():
    assert exact_constant(3, tf.float64).dtype == tf.float64
    assert exact_constant(tf.constant([1.0, 2.0])).shape == (2,)
