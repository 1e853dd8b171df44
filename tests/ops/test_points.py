"""Point sampling against loops over its definition, and positions that torch rounds in its own way."""

import numpy as np
import pytest
import tensorflow as tf

from tf_d2.ops.points import (
    points_in_image,
    regular_grid,
    replace_at,
    sample_in_boxes,
    sample_points,
    uncertain_points,
)


def sampled(image, x, y):
    """One sample of ``[H, W, C]`` at pixel (x, y), zeros outside, in float64."""
    height, width, channels = image.shape
    total = np.zeros(channels)
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def test_the_regular_grid_runs_along_x_first():
    expected = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    np.testing.assert_array_equal(regular_grid(2), expected)
    np.testing.assert_array_equal(regular_grid(1, tf.float64), [[0.5, 0.5]])
    assert regular_grid(7).dtype == tf.float32


def test_samples_are_bilinear_with_zeros_outside(run, dtype):
    random = np.random.default_rng(0)
    maps = random.normal(size=(3, 5, 8, 4))
    points = random.uniform(-0.3, 1.3, size=(4, 20, 2))
    points[0, :3] = [[0.5 / 8, 0.5 / 5], [1, 1], [0, 0.5]]  # a cell's centre, the corner, an edge
    index = np.array([2, 0, 0, 1], np.int32)
    got = run(sample_points, maps.astype(dtype), points.astype(dtype), index)
    expected = [
        [sampled(maps[i], x * 8 - 0.5, y * 5 - 0.5) for x, y in row]
        for i, row in zip(index, points, strict=True)
    ]
    limit = 1e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(got, expected, rtol=0, atol=limit * 8)
    assert not got[1][(points[1] < -0.5 / 5).any(axis=1)].any()


def test_far_and_exact_points(run):
    """Beyond the range of int32 nothing wraps around, and a point on a cell's centre gives the cell."""
    maps = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4, 1)
    points = np.array([[[1e20, 0.5], [-1e20, 0.5], [2.5 / 4, 1.5 / 3], [0.5, 3e9]]], np.float32)
    np.testing.assert_array_equal(
        run(sample_points, maps, points, np.zeros(1, np.int32))[0, :, 0], [0, 0, 7, 0]
    )


def test_positions_are_rounded_as_torch_rounds_them(run):
    """(2 p - 1) + 1 loses bits of a small p, which no simplification of the formula may give back."""
    ramp = np.arange(1 << 12, dtype=np.float32).reshape(1, 1, -1, 1)
    p = np.float32(1.2345678e-3)
    kept = (2 * p - np.float32(1)) + np.float32(1)
    assert kept != 2 * p
    expected = np.float32(np.float64(kept) * (1 << 11) - 0.5)
    points = np.array([[[p, 0.5]]], np.float32)
    got = run(sample_points, ramp, points, np.zeros(1, np.int32))
    np.testing.assert_allclose(got[0, 0, 0], expected, rtol=2e-7)
    assert abs(2 * float(p) * (1 << 11) - 0.5 - expected) > 1e-5


def test_bfloat16_maps_keep_float32_positions():
    maps = tf.cast(tf.random.stateless_normal([1, 40, 60, 2], [0, 1]), tf.bfloat16)
    points = tf.random.stateless_uniform([1, 30, 2], [0, 2])
    index = tf.zeros([1], tf.int32)
    got = sample_points(maps, points, index)
    assert got.dtype == tf.bfloat16
    wide = sample_points(tf.cast(maps, tf.float32), points, index)
    np.testing.assert_array_equal(got.numpy(), tf.cast(wide, tf.bfloat16).numpy())


def test_levels_are_joined_and_scaled_by_the_padded_map(run):
    random = np.random.default_rng(1)
    fine, coarse = random.normal(size=(2, 6, 9, 2)), random.normal(size=(2, 3, 5, 3))  # 3 x 5 of stride 8
    boxes = np.array([[2, 3, 30, 20], [0, 0, 36, 24]], np.float32)
    index, points = np.array([1, 0], np.int32), random.uniform(size=(2, 7, 2))
    got = run(
        lambda a, b, box, i, p: sample_in_boxes([a, b], [4, 8], box, i, p), fine, coarse, boxes, index, points
    )
    for r in range(2):
        x0, y0, x1, y1 = boxes[r]
        for p, (x, y) in enumerate(points[r]):
            px, py = x0 + x * (x1 - x0), y0 + y * (y1 - y0)
            expected = [
                *sampled(fine[index[r]], px / 4 - 0.5, py / 4 - 0.5),
                *sampled(coarse[index[r]], px / 8 - 0.5, py / 8 - 0.5),
            ]
            np.testing.assert_allclose(got[r, p], expected, atol=1e-13)


def test_points_of_a_box_lie_in_it():
    points = np.array([[[0, 0], [1, 1], [0.25, 0.5]]], np.float32)
    got = points_in_image(tf.constant(points), tf.constant([[10.0, 20, 30, 60]]))
    np.testing.assert_array_equal(got, [[[10, 20], [30, 60], [15, 40]]])


def test_the_extent_of_a_box_is_rounded_as_its_corners_are():
    box = np.array([[0.1, 0.2, 33.3, 44.4]], np.float32)
    got = points_in_image(tf.constant([[[0.3, 0.7]]], tf.float64), tf.constant(box))
    width, height = (float(v) for v in box[0, 2:] - box[0, :2])  # of float32 numbers
    expected = [0.3 * width + float(box[0, 0]), 0.7 * height + float(box[0, 1])]
    np.testing.assert_allclose(got[0, 0], expected, rtol=1e-15)
    assert width != float(box[0, 2]) - float(box[0, 0])


@pytest.mark.parametrize("count", [5, 12, 100])
def test_the_most_uncertain_cells(run, count):
    uncertainty = np.random.default_rng(2).permutation(24).reshape(2, 3, 4).astype(np.float32)
    index, points = run(lambda u: uncertain_points(u, count), uncertainty)
    n = min(count, 12)
    flat = uncertainty.reshape(2, -1)
    np.testing.assert_array_equal(index, np.argsort(-flat, axis=1)[:, :n])
    step_x, step_y = np.float32(1 / 4), np.float32(1 / 3)
    expected = np.stack([step_x / 2 + (index % 4) * step_x, step_y / 2 + (index // 4) * step_y], axis=-1)
    np.testing.assert_array_equal(points, expected.astype(np.float32))


def test_of_equally_uncertain_cells_the_first_are_taken():
    index, _ = uncertain_points(tf.constant([[[0.0, -1, 0], [-1, 0, -2]]]), 4)
    np.testing.assert_array_equal(index, [[0, 2, 4, 1]])


def test_replacing_changes_the_chosen_cells_only(run):
    maps = np.zeros((2, 2, 3, 2), np.float32)
    values = np.arange(1, 9, dtype=np.float32).reshape(2, 2, 2)
    got = run(replace_at, maps, np.array([[5, 0], [2, 3]], np.int32), values)
    expected = np.zeros((2, 6, 2))
    expected[0, 5], expected[0, 0], expected[1, 2], expected[1, 3] = [1, 2], [3, 4], [5, 6], [7, 8]
    np.testing.assert_array_equal(got.reshape(2, 6, 2), expected)
