"""Attention in pieces, relative and absolute positions."""

import numpy as np
import pytest
import tensorflow as tf

from tf_d2.ops.attention import (
    absolute_positions,
    attend,
    decomposed_bias,
    positions_of_axes,
    relative_positions,
    window_position_index,
)


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def oracle_index(q_size, k_size):
    """The row of every pair as one float32 computation after the other, as torch does it."""
    f = np.float32
    q_ratio, k_ratio = f(max(k_size / q_size, 1.0)), f(max(q_size / k_size, 1.0))
    last = f((k_size - 1) * max(q_size / k_size, 1.0))
    rows = [
        [int(f(f(f(q) * q_ratio) - f(f(k) * k_ratio)) + last) for k in range(k_size)] for q in range(q_size)
    ]
    return np.array(rows)


@pytest.mark.parametrize("q, k", [(4, 4), (8, 4), (4, 8), (25, 13), (19, 10), (3, 7), (1, 1), (50, 13)])
def test_relative_positions_follow_the_formula(q, k, run):
    table = np.arange(2 * max(q, k) - 1, dtype=np.float64)[:, None]
    got = run(lambda t: relative_positions(t, q, k), table)[:, :, 0]
    np.testing.assert_array_equal(got, oracle_index(q, k))


def test_indices_of_the_facts():
    def rows(q, k):
        table = tf.range(2 * max(q, k) - 1, dtype=tf.float64)[:, None]
        return relative_positions(table, q, k).numpy()[:, :, 0].tolist()

    assert rows(4, 4)[0] == [3, 2, 1, 0] and rows(4, 4)[3] == [6, 5, 4, 3]
    assert rows(8, 4)[:2] == [[6, 4, 2, 0], [7, 5, 3, 1]]
    assert rows(4, 8)[0] == [7, 6, 5, 4, 3, 2, 1, 0] and rows(4, 8)[1] == [9, 8, 7, 6, 5, 4, 3, 2]


@pytest.mark.parametrize("q, k", [(25, 13), (13, 25), (7, 7), (47, 12)])
def test_sizes_known_only_to_the_graph_give_the_same_rows(q, k):
    table = tf.constant(normal(11, 5))
    spec = [tf.TensorSpec([], tf.int32)] * 2
    dynamic = tf.function(lambda q, k: relative_positions(table, q, k), input_signature=spec)
    np.testing.assert_array_equal(dynamic(q, k), relative_positions(table, q, k))


def test_a_short_table_is_resized_linearly(run):
    table = np.arange(5.0)[:, None]
    got = run(lambda t: relative_positions(t, 4, 4), table)[:, :, 0]
    expected = [0, 4 / 7, 9 / 7, 2, 19 / 7, 24 / 7, 4]
    np.testing.assert_allclose(got[3], expected[:2:-1], rtol=0, atol=1e-15)
    np.testing.assert_allclose(got[0], expected[3::-1], rtol=0, atol=1e-15)


def oracle_attention(q, k, v, scale, table_h, table_w, q_size, k_size):
    out = np.empty((*q.shape[:2], v.shape[2]))
    (q_h, q_w), (k_h, k_w) = q_size, k_size
    rows, columns = oracle_index(q_h, k_h), oracle_index(q_w, k_w)
    for n in range(len(q)):
        for i in range(q.shape[1]):
            y, x = divmod(i, q_w)
            logits = np.empty(k.shape[1])
            for j in range(k.shape[1]):
                ky, kx = divmod(j, k_w)
                position = table_h[rows[y, ky]] + table_w[columns[x, kx]]
                logits[j] = scale * q[n, i] @ k[n, j] + q[n, i] @ position
            out[n, i] = softmax(logits) @ v[n]
    return out


ROW = 6 * 8 * 3  # bytes that one row of six float64 keys takes


@pytest.mark.parametrize("budget", [1 << 20, 12 * ROW * 2, 12 * ROW, 5 * ROW, ROW, 1])
def test_attention_in_pieces_is_the_same(budget, run):
    q_size, k_size = (4, 3), (2, 3)
    q, k, v = normal(3, 12, 5), normal(3, 6, 5, seed=1), normal(3, 6, 5, seed=2)
    tables = normal(7, 5, seed=3), normal(5, 5, seed=4)

    def compute(q, k, v, *tables):
        bias = decomposed_bias(q, positions_of_axes(tables, q_size, k_size), q_size, k_size)
        return attend(q, k, v, 0.3, bias, budget=budget)

    got = run(compute, q, k, v, *tables)
    np.testing.assert_allclose(
        got, oracle_attention(q, k, v, 0.3, *tables, q_size, k_size), rtol=0, atol=1e-13
    )


def test_logits_stay_within_the_budget():
    sizes = []

    def spy(logits, first, row):
        sizes.append(3 * int(tf.size(logits)) * 4)
        return logits

    q = tf.constant(normal(4, 64, 8, dtype=np.float32))
    whole = attend(q, q, q, 1.0)
    np.testing.assert_allclose(attend(q, q, q, 1.0, spy, budget=10_000), whole, rtol=0, atol=1e-6)
    assert len(sizes) == 20 and max(sizes) <= 10_000  # 13 rows of 64 keys, five times for each of four heads


@pytest.mark.parametrize("mean", [1.0, -3.0])
def test_a_mean_of_the_values_costs_no_precision(mean, run):
    """Every output is near the mean: to its last bit, where a float32 sum of 484 terms of one sign loses two more."""
    q, k, v = (normal(2, 484, 8, seed=i).astype(np.float32) for i in range(3))
    v = 0.1 * v + np.float32(mean)
    got = run(lambda q, k, v: attend(q, k, v, 0.3), q, k, v)
    wide = [tf.constant(x.astype(np.float64)) for x in (q, k, v)]
    exact = attend(wide[0], wide[1], wide[2], 0.3).numpy()
    assert got.dtype == np.float32
    assert np.linalg.norm(got - exact) < 2.0**-24 * np.linalg.norm(exact)


def test_heads_of_a_group_stay_together():
    shapes = []

    def spy(logits, first, row):
        shapes.append((int(first), tuple(logits.shape)))
        return logits

    q = tf.constant(normal(12, 4, 8))
    attend(q, q, q, 1.0, spy, group=3, budget=7 * 4 * 4 * 8 * 3)
    assert shapes == [(0, (6, 4, 4)), (6, (6, 4, 4))]


def test_bfloat16_is_computed_in_float32():
    q, k, v = (tf.cast(tf.constant(normal(2, 300, 8, seed=i)), tf.bfloat16) for i in range(3))
    wide = attend(*(tf.cast(x, tf.float64) for x in (q, k, v)), 0.5)
    got = attend(q, k, v, 0.5)
    assert got.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(got, tf.float64), wide, rtol=2**-8, atol=1e-6)


def test_absolute_positions_drop_the_class_token_and_keep_a_grid_of_the_same_size():
    embed = normal(1, 10, 2)
    same = absolute_positions(tf.constant(embed), True, (3, 3))
    np.testing.assert_array_equal(same, embed[:, 1:].reshape(1, 3, 3, 2))
    with pytest.raises(ValueError, match="10 positions"):
        absolute_positions(tf.constant(embed), False, (3, 3))


def test_absolute_positions_are_bicubic_also_when_they_shrink():
    """A linear ramp is reproduced inside; the edge shows a = -0.75."""
    ramp = np.broadcast_to(np.arange(8.0)[:, None], (8, 8)).reshape(1, 64, 1)
    got = absolute_positions(tf.constant(ramp), False, (4, 8)).numpy()[0, :, 0, 0]
    np.testing.assert_allclose(got[1:3], [2.5, 4.5], atol=1e-12)
    assert abs(got[0] - (0.59375 * 1 - 0.09375 * 2)) < 1e-12  # the row above the edge repeats the first


def test_window_positions():
    index = window_position_index(2)
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
