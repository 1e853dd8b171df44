"""Windows of a map and the labels of shifted windows."""

import numpy as np
import pytest
import tensorflow as tf

from tf_d2.ops.windows import pad_to, padded_to, shift_mask, window_partition, window_unpartition


@pytest.mark.parametrize("height, width", [(4, 6), (5, 7), (1, 2)])
def test_partition_pads_with_zeros_and_has_an_inverse(height, width, run):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3))
    windows = run(lambda x: window_partition(x, 2), x)
    padded = np.zeros((2, -(-height // 2) * 2, -(-width // 2) * 2, 3))
    padded[:, :height, :width] = x
    expected = [
        padded[n, i : i + 2, j : j + 2]
        for n in range(2)
        for i in range(0, padded.shape[1], 2)
        for j in range(0, padded.shape[2], 2)
    ]
    np.testing.assert_array_equal(windows, expected)
    back = window_unpartition(tf.constant(windows), (height, width))
    np.testing.assert_array_equal(back, x)


def test_padding_sizes():
    assert padded_to((13, 14), 7) == (14, 14)
    assert pad_to(tf.ones([1, 2, 3, 1]), (4, 3)).shape == (1, 4, 3, 1)


@pytest.mark.parametrize("size", [(6, 9), (3, 3), (9, 3)])
def test_shift_mask_separates_what_was_apart(size):
    """Tokens of one window may see each other if the roll moved them together, band by band."""
    window, shift = 3, 1

    def band(at, length):
        return 0 if at < length - window else 1 if at < length - shift else 2

    expected = []
    for top in range(0, size[0], window):
        for left in range(0, size[1], window):
            cells = [(top + i, left + j) for i in range(window) for j in range(window)]
            labels = [(band(y, size[0]), band(x, size[1])) for y, x in cells]
            expected.append([[0 if a == b else -100 for b in labels] for a in labels])
    np.testing.assert_array_equal(shift_mask(size, window, shift, tf.float64), expected)
    spec = [tf.TensorSpec([], tf.int32)] * 2
    graph = tf.function(lambda h, w: shift_mask((h, w), window, shift, tf.float64), input_signature=spec)
    np.testing.assert_array_equal(graph(*size), expected)
