"""Normalisation and padding."""

import numpy as np
import pytest
from support.torch_process import torch

from tf_d2.ops import padding as ops

MEAN, STD = (103.530, 116.280, 123.675), (57.375, 57.120, 58.395)


def test_normalize_divides_like_torch_bit_for_bit(run):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    expected = torch.div(torch.sub(image, np.float32(MEAN)), np.float32(STD))
    np.testing.assert_array_equal(run(lambda x: ops.normalize(x, MEAN, STD), image), expected)
    np.testing.assert_array_equal(
        run(lambda x: ops.normalize(x, MEAN, STD), image.astype(np.float32)), expected
    )


def test_normalize_in_float64_keeps_the_rounded_mean(run):
    import tensorflow as tf

    image = np.full((1, 1, 3), 200, np.uint8)
    expected = (200 - np.float32(MEAN).astype(np.float64)) / np.float32(STD).astype(np.float64)
    got = run(lambda x: ops.normalize(x, MEAN, STD, tf.float64), image)
    np.testing.assert_array_equal(got[0, 0], expected)


@pytest.mark.parametrize(
    "size, divisibility, square, expected",
    [
        ((800, 1199), 32, 0, (800, 1216)),
        ((800, 1199), 0, 0, (800, 1199)),
        ((800, 1199), 1, 0, (800, 1199)),
        ((1, 1), 32, 0, (32, 32)),
        ((640, 960), 32, 1024, (1024, 1024)),
        ((640, 960), 32, 1000, (1024, 1024)),
        ((2000, 960), 0, 1024, (1024, 1024)),
    ],
)
def test_padded_size(run, size, divisibility, square, expected):
    got = run(lambda h, w: ops.padded_size(h, w, divisibility, square), *(np.int32(s) for s in size))
    assert tuple(int(v) for v in got) == expected
