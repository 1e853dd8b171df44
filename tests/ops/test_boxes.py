"""Box arithmetic: hand-checked cases recorded from detectron2, and torch float32 as an oracle."""

import math

import numpy as np
import pytest
from support.torch_process import torch

from tf_d2.ops import boxes as ops

UNIT = (1.0, 1.0, 1.0, 1.0)


def f32(*rows):
    return np.array(rows, np.float32)


def decode_oracle(deltas, boxes, weights):
    """detectron2's order of operations, with torch's functions."""
    deltas = deltas.astype(np.float32)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    cx, cy = boxes[:, 0] + 0.5 * w, boxes[:, 1] + 0.5 * h
    limit = math.log(1000.0 / 16)
    dx, dy = deltas[:, 0::4] / weights[0], deltas[:, 1::4] / weights[1]
    dw = torch.clamp(deltas[:, 2::4] / weights[2], max=limit)
    dh = torch.clamp(deltas[:, 3::4] / weights[3], max=limit)
    px, py = dx * w[:, None] + cx[:, None], dy * h[:, None] + cy[:, None]
    pw, ph = torch.exp(dw) * w[:, None], torch.exp(dh) * h[:, None]
    out = np.stack([px - 0.5 * pw, py - 0.5 * ph, px + 0.5 * pw, py + 0.5 * ph], axis=-1)
    return out.reshape(deltas.shape)


@pytest.mark.parametrize(
    "deltas, box, expected",
    [
        (
            (0, 0, 10, -100),
            (0, 0, 16, 16),
            (-492, 8, 508, 8),
        ),  # growth stops at 1000 / 16, shrinking does not
        ((0, 0, 0, 0, 1, 0, 0, 0), (0, 0, 10, 10), (0, 0, 10, 10, 10, 0, 20, 10)),  # class-major columns
        ((0, 0, 0, 0), (3, 4, 3, 4), (3, 4, 3, 4)),
    ],
)
def test_decode_recorded(run, deltas, box, expected):
    decoded = run(lambda d, b: ops.apply_deltas(d, b, UNIT), f32(deltas), f32(box))
    np.testing.assert_allclose(decoded, f32(expected), rtol=1e-6, atol=1e-5)
    assert decoded.dtype == np.float32


@pytest.mark.parametrize("weights", [UNIT, (10.0, 10.0, 5.0, 5.0), (30.0, 30.0, 15.0, 15.0)])
def test_decode_equals_torch(run, weights):
    rng = np.random.default_rng(1)
    boxes = rng.uniform(0, 1300, (200, 4)).astype(np.float32)
    deltas = (rng.standard_normal((200, 12)) * 3 * weights[2]).astype(np.float32)
    got = run(lambda d, b: ops.apply_deltas(d, b, weights), deltas, boxes)
    expected = decode_oracle(deltas, boxes, weights)
    # A rounding of exp() and of a sum apart, relative to the largest number that took part.
    largest = np.maximum(np.abs(expected).max(axis=1), np.abs(boxes).max(axis=1))
    assert (np.abs(got - expected).max(axis=1) <= 2.5e-7 * largest).all()


def test_decode_is_float32_whatever_comes_in(run):
    rng = np.random.default_rng(2)
    deltas, boxes = rng.standard_normal((50, 4)), rng.uniform(0, 500, (50, 4))
    wide = run(lambda d, b: ops.apply_deltas(d, b, UNIT), deltas, boxes)
    narrow = run(
        lambda d, b: ops.apply_deltas(d, b, UNIT), deltas.astype(np.float32), boxes.astype(np.float32)
    )
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, narrow)


def test_decode_keeps_nan_and_infinity(run):
    nan, inf = np.nan, np.inf
    deltas = f32((nan, 0, 0, 0), (0, 0, nan, 0), (0, 0, 0, nan), (0, 0, inf, 0), (inf, 0, 0, 0))
    boxes = np.tile(f32((0, 0, 16, 16)), (5, 1))
    got = run(lambda d, b: ops.apply_deltas(d, b, UNIT), deltas, boxes)
    expected = decode_oracle(deltas, boxes, UNIT)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(expected))
    np.testing.assert_allclose(got[3], (-492, 0, 508, 16), rtol=1e-6)  # exp(inf) is clamped, too


def test_decode_of_nothing(run):
    empty = np.zeros((0, 4), np.float32)
    assert run(lambda d, b: ops.apply_deltas(d, b, UNIT), np.zeros((0, 8), np.float32), empty).shape == (0, 8)


def test_clip(run):
    boxes = f32((-5, 3, 2000, 900), (-10, -10, -5, -5), (1, 2, 3, 4))
    got = run(lambda b: ops.clip(b, 800, 1200), boxes)
    np.testing.assert_array_equal(got, f32((0, 3, 1200, 800), (0, 0, 0, 0), (1, 2, 3, 4)))


def test_clip_to_the_size_of_each_row(run):
    boxes = np.tile(f32((-1, -1, 99, 99)), (2, 1))
    sizes = np.array([10, 20], np.int32), np.array([30, 40], np.int32)
    got = run(lambda b, h, w: ops.clip(b, h, w), boxes, *sizes)
    np.testing.assert_array_equal(got, f32((0, 0, 30, 10), (0, 0, 40, 20)))


def test_nonempty_is_strict(run):
    boxes = f32((0, 0, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0), (2, 2, 1, 3), (0, 0, 1e-3, 1e-3))
    np.testing.assert_array_equal(run(ops.nonempty, boxes), [True, False, False, False, True])
    np.testing.assert_array_equal(run(lambda b: ops.nonempty(b, 1.0), boxes), [False] * 5)
    assert run(lambda b: ops.nonempty(b, 0.5), boxes).tolist() == [True, False, False, False, False]


def squares(sizes):
    sizes = np.asarray(sizes, np.float32)
    zero = np.zeros_like(sizes)
    return np.stack([zero, zero, sizes, sizes], axis=1)


RECORDED_LEVELS = [
    (224, 4),
    (223.99998, 4),
    (223.9999, 3),
    (112, 3),
    (448, 5),
    (447.9999, 5),
    (56, 2),
    (0, 2),
    (2000, 5),
]


def test_levels_recorded(run):
    sizes, levels = zip(*RECORDED_LEVELS, strict=True)
    got = run(lambda b: ops.assign_levels(b, 2, 5), squares(sizes))
    assert (got + 2).tolist() == list(levels)
    assert got.dtype == np.int32


def level_oracle(boxes, low, high):
    b = boxes
    area = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    level = torch.floor(4 + torch.log2(torch.sqrt(area) / 224 + 1e-8))
    return torch.clamp(level, min=low, max=high).astype(np.int64) - low


def test_levels_equal_torch_for_all_integer_sizes_and_around_every_boundary(run):
    boundary = [np.float32(56 * 2**k).view(np.int32) for k in range(5)]
    near = np.concatenate([np.arange(b - 40, b + 41) for b in boundary]).astype(np.int32).view(np.float32)
    rng = np.random.default_rng(0)
    others = rng.uniform(0, 600, (2000, 4)).astype(np.float32)
    others[:, 2:] += others[:, :2]
    boxes = np.concatenate([squares(np.arange(4000)), squares(near), others])
    got = run(lambda b: ops.assign_levels(b, 2, 5), boxes)
    np.testing.assert_array_equal(got, level_oracle(boxes, 2, 5))


def test_negative_area_has_no_level(run):
    boxes = f32((5, 5, 3, 9), (5, 5, 3, 3), (np.nan, 0, 1, 1))
    # Two negative sides make a positive area: detectron2 gives such a box a level.
    assert run(lambda b: ops.assign_levels(b, 2, 5), boxes).tolist() == [-1, 0, -1]


def test_levels_of_other_pyramids(run):
    boxes = squares([100, 800, 3000])
    assert run(lambda b: ops.assign_levels(b, 3, 7), boxes).tolist() == [0, 2, 4]
    assert run(lambda b: ops.assign_levels(b, 2, 5, 112.0, 3), boxes).tolist() == [0, 3, 3]


def test_log2_is_exact_at_powers_of_two(run):
    powers = 2.0 ** np.arange(-20, 20, dtype=np.float32)
    np.testing.assert_array_equal(run(ops.log2, powers), np.arange(-20, 20, dtype=np.float32))
