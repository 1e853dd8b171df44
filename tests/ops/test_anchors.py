"""Anchors: recorded cases and a triple loop."""

import numpy as np
import pytest

from tf_d2.ops import anchors as ops


def test_half_extents_recorded():
    cells = ops.cell_anchors((32,), (0.5, 1.0, 2.0))
    half = np.array([(22.6274, 11.3137), (16, 16), (11.3137, 22.6274)])
    np.testing.assert_allclose(cells, np.concatenate([-half, half], axis=1), atol=1e-4)
    assert cells.dtype == np.float32


def test_sizes_are_the_outer_loop():
    cells = ops.cell_anchors((32, 64), (0.5, 1.0, 2.0))
    np.testing.assert_allclose(cells[3:], 2 * cells[:3], rtol=1e-7)
    np.testing.assert_allclose(cells[1], (-16, -16, 16, 16))


def test_retinanet_cell_recorded():
    cells = ops.cell_anchors([32 * 2 ** (k / 3) for k in range(3)], (0.5, 1.0, 2.0))
    squares = cells[1::3]
    np.testing.assert_allclose(squares[:, 2] - squares[:, 0], (32, 40.3175, 50.7968), atol=1e-4)
    assert cells.shape == (9, 4)


def test_rotated_loops_size_ratio_angle():
    cells = ops.rotated_cell_anchors((8, 16), (1.0, 4.0), (-90, 0, 90))
    assert cells.shape == (12, 5)
    np.testing.assert_allclose(
        cells[:4], [(0, 0, 8, 8, -90), (0, 0, 8, 8, 0), (0, 0, 8, 8, 90), (0, 0, 4, 16, -90)]
    )
    np.testing.assert_allclose(cells[6], (0, 0, 16, 16, -90))


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("rotated", [False, True])
def test_grid_equals_loops(run, offset, rotated):
    if rotated:
        cells = ops.rotated_cell_anchors((10, 21), (0.5, 2.0), (0, 45))
    else:
        cells = ops.cell_anchors((10, 21), (0.5, 2.0))
    height, width, stride = 3, 5, 16
    expected = []
    for y in range(height):
        for x in range(width):
            for cell in cells:
                at = np.float32((x + offset) * stride), np.float32((y + offset) * stride)
                shift = (*at, 0, 0, 0) if rotated else (*at, *at)
                expected.append(cell + np.array(shift, np.float32))
    got = run(lambda h, w: ops.grid_anchors(cells, h, w, stride, offset), np.int32(height), np.int32(width))
    np.testing.assert_array_equal(got, np.array(expected))
    assert got.dtype == np.float32


def test_fcos_anchor_is_its_cell(run):
    """Size = stride with offset 0.5: the anchor of cell (i, j) covers exactly that cell."""
    cells = ops.cell_anchors((8,), (1.0,))
    got = run(lambda h, w: ops.grid_anchors(cells, h, w, 8, 0.5), np.int32(2), np.int32(3))
    assert got.tolist() == [[8 * x, 8 * y, 8 * x + 8, 8 * y + 8] for y in range(2) for x in range(3)]
