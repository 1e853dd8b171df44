"""ROIAlign against four nested loops over samples, and against crop_and_resize."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tf_d2.ops import roi_align as module
from tf_d2.ops.boxes import assign_levels
from tf_d2.ops.roi_align import WINDOW_BYTES, Pyramid, Regions, Sampling, roi_align

TOLERANCE = {"float32": 3e-6, "float64": 1e-13}


def sample(plane, y, x):
    """One bilinear sample of ``[H, W, C]``; zero beyond one cell outside, clamped before that."""
    height, width = plane.shape[:2]
    if not (-1 <= y <= height and -1 <= x <= width):
        return np.zeros(plane.shape[2], plane.dtype)
    y, x = max(y, 0), max(x, 0)
    y0, x0 = int(y), int(x)
    y1, x1 = y0 + 1, x0 + 1
    if y0 >= height - 1:
        y0 = y1 = height - 1
        y = plane.dtype.type(y0)
    if x0 >= width - 1:
        x0 = x1 = width - 1
        x = plane.dtype.type(x0)
    ly, lx = y - y0, x - x0
    top = (1 - lx) * plane[y0, x0] + lx * plane[y0, x1]
    bottom = (1 - lx) * plane[y1, x0] + lx * plane[y1, x1]
    return (1 - ly) * top + ly * bottom


def oracle(features, boxes, image_index, bins, scale, ratio, aligned):
    """Every operation in the dtype of the features, as in torchvision's kernel."""
    t = features.dtype.type
    out = np.zeros((len(boxes), bins, bins, features.shape[-1]), features.dtype)
    offset = t(0.5 if aligned else 0)
    for n, (box, image) in enumerate(zip(boxes.astype(t), image_index, strict=True)):
        x_start, y_start, x_end, y_end = (v * t(scale) - offset for v in box)
        width, height = x_end - x_start, y_end - y_start
        if not aligned:
            width, height = max(width, t(1)), max(height, t(1))
        bin_w, bin_h = width / t(bins), height / t(bins)
        grid_w, grid_h = (ratio or math.ceil(v / t(bins)) for v in (width, height))
        count = max(grid_h * grid_w, 1)
        for p in range(bins):
            for q in range(bins):
                total = np.zeros(features.shape[-1], features.dtype)
                for iy in range(grid_h):
                    y = y_start + t(p) * bin_h + t(iy + 0.5) * bin_h / t(grid_h)
                    for ix in range(grid_w):
                        x = x_start + t(q) * bin_w + t(ix + 0.5) * bin_w / t(grid_w)
                        total += sample(features[image], y, x)
                out[n, p, q] = total / t(count)
    return out


SPECIAL = np.array(
    [
        (5, 5, 5, 5),  # no extent
        (50, 50, 20, 10),  # both sides negative
        (20, 30, 60, 30),  # no height
        (60, 10, 20, 50),  # one side negative
        (-300, -200, 500, 600),  # larger than the map on every side
        (0, 0, 136, 104),  # exactly the map
        (-8, -8, 0, 0),  # the cell outside the corner
        (-4.0001, -4, 3, 3),
        (136, 104, 144, 112),  # beyond the last cell
        (200, 200, 300, 300),  # wholly outside
        (131.99, 99.99, 135.99, 103.99),
        (3.7, 1.2, 100.1, 9.9),  # wide and flat
        (0.001, 0.002, 0.003, 0.004),
    ],
    np.float32,
)


def inputs(dtype, count=12):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 13, 17, 3)).astype(dtype)
    boxes = rng.uniform(-20, 140, (count, 4)).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    boxes = np.concatenate([SPECIAL, boxes])
    return features, boxes, rng.integers(0, 2, len(boxes)).astype(np.int32)


@pytest.fixture(params=["CPU", "GPU"])
def how(request, monkeypatch):
    """Regions put together as on each device, known while a graph is traced (an export finds out when it runs)."""
    monkeypatch.setattr(module, "on_gpu", lambda: request.param == "GPU")


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, *(pytest.param(n, marks=pytest.mark.wide) for n in (1, 3)), 2])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_equals_loops(run, how, kind, ratio, aligned):
    features, boxes, index = inputs(kind)
    for bins in (7,) if ratio < 2 else (3,):
        expected = oracle(features, boxes, index, bins, 1 / 8, ratio, aligned)
        got = run(
            lambda f, b, i, p=bins: roi_align(f, b, i, p, 1 / 8, ratio, aligned), features, boxes, index
        )
        assert got.dtype == kind and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE[kind])


@pytest.mark.parametrize("scale", [1 / 4, 1 / 16, 0.3])
def test_other_scales(scale):
    features, boxes, index = inputs("float64", 8)
    expected = oracle(features, boxes, index, 7, scale, 0, True)
    got = roi_align(*map(tf.constant, (features, boxes, index)), 7, scale)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


def test_sample_on_a_ramp_recorded(run):
    """On a ramp of width 10 a sample returns its own clamped coordinate."""
    x = np.array([-1.0001, -1, -0.5, 0.25, 9, 9.5, 10, 10.0001])
    value = np.array([0, 0, 0, 0.25, 9, 9, 9, 0])
    # The value 1 added everywhere tells "no contribution" (0) from "the value of column 0" (1).
    ramp = np.broadcast_to(np.arange(10.0) + 1, (1, 10, 10))[..., None].copy()
    half = 1 / 1024
    boxes = np.stack([x + 0.5 - half, 0 * x + 4.5, x + 0.5 + half, 0 * x + 5.5], axis=1)
    got = run(lambda f, b: roi_align(f, b, np.zeros(len(x), np.int32), 1, 1.0, 1), ramp, boxes)
    inside = (x >= -1) & (x <= 10)
    # Samples are taken where a box's centre is, up to rounding of the box.
    np.testing.assert_allclose(got[:, 0, 0, 0], (value + 1) * inside, atol=1e-9)


def test_sizes_that_are_whole_multiples_of_the_bins(run):
    """21 cells in 7 bins are 3 samples per bin; a graph that multiplied by 1 / 7 would take 4."""
    features = np.random.default_rng(2).standard_normal((1, 64, 64, 2)).astype(np.float32)
    sizes = np.array([21, 42, 49, 56], np.float32)
    boxes = np.stack([0 * sizes + 1, 0 * sizes + 2, sizes + 1, sizes + 2], axis=1)
    index = np.zeros(4, np.int32)
    expected = oracle(features, boxes, index, 7, 1.0, 0, True)
    got = run(lambda f, b: roi_align(f, b, index, 7, 1.0), features, boxes)
    np.testing.assert_allclose(got, expected, atol=3e-6)


def test_samples_outside_count_in_the_mean(run, how):
    """Half of the samples of this region lie beyond the map: the mean halves."""
    ones = np.ones((1, 4, 4, 1))
    box = np.array([[-6.0, 1.0, 3.0, 3.0]])
    expected = oracle(ones, box, [0], 1, 1.0, 0, True)
    assert 0.2 < expected.item() < 0.8
    got = run(lambda f, b: roi_align(f, b, np.zeros(1, np.int32), 1, 1.0), ones, box)
    np.testing.assert_allclose(got, expected, atol=1e-13)


def test_regions_without_extent(run, how):
    """Aligned with adaptive sampling: no samples, zeros. With a fixed grid they are sampled all the same."""
    features, _, _ = inputs("float32")
    boxes = np.array([(40, 40, 40, 40), (60, 60, 20, 20)], np.float32)
    index = np.zeros(2, np.int32)
    assert not run(lambda f, b: roi_align(f, b, index, 7, 1 / 8), features, boxes).any()
    fixed = run(lambda f, b: roi_align(f, b, index, 7, 1 / 8, 2), features, boxes)
    assert np.abs(fixed).max() > 0.1
    # A region of negative size is sampled backwards.
    turned = run(lambda f, b: roi_align(f, b, index, 7, 1 / 8, 2), features, boxes[:, [2, 3, 0, 1]])
    np.testing.assert_allclose(fixed[1], turned[1, ::-1, ::-1], atol=3e-6)


@pytest.mark.parametrize("ratio", [0, 2])
def test_nan_and_infinite_coordinates_give_zeros_to_their_own_region_only(run, how, ratio):
    features, boxes, index = inputs("float32", 4)
    clean = oracle(features, boxes, index, 7, 1 / 8, ratio, True)
    bad = np.tile(boxes[5], (4, 1))
    bad[np.arange(4), np.arange(4)] = (np.nan, np.inf, -np.inf, np.nan)
    everything, images = np.concatenate([bad, boxes]), np.concatenate([np.zeros(4, np.int32), index])
    got = run(lambda f, b, i: roi_align(f, b, i, 7, 1 / 8, ratio), features, everything, images)
    assert not got[:4].any()
    np.testing.assert_allclose(got[4:], clean, atol=3e-6)


def test_enormous_regions_stay_cheap_and_finite(run, how):
    features, _, _ = inputs("float64")
    boxes = np.array([(-1e6, 8, 1e6, 90), (0, 0, 3e4, 3e4)], np.float32)
    got = run(lambda f, b: roi_align(f, b, np.zeros(2, np.int32), 2, 1 / 8, 2), features, boxes)
    np.testing.assert_allclose(got, oracle(features, boxes, [0, 0], 2, 1 / 8, 2, True), atol=1e-13)


def test_no_regions(run, how):
    features, boxes, index = inputs("float32")
    got = run(lambda f, b, i: roi_align(f, b, i, 7, 1 / 8), features, boxes[:0], index[:0])
    assert got.shape == (0, 7, 7, 3)


def test_maps_of_one_cell(run, how):
    features = np.random.default_rng(0).standard_normal((1, 1, 1, 2))
    boxes = np.array([(0, 0, 32, 32), (-40, -40, 70, 70), (8, 8, 9, 9)], np.float32)
    index = np.zeros(3, np.int32)
    for ratio in (0, 2):
        got = run(lambda f, b, r=ratio: roi_align(f, b, index, 7, 1 / 32, r), features, boxes)
        np.testing.assert_allclose(got, oracle(features, boxes, index, 7, 1 / 32, ratio, True), atol=1e-13)


def test_more_regions_than_one_chunk_keep_their_order(run, how):
    """Chunks of about 16 MB: 512 channels and 400 regions need several."""
    rng = np.random.default_rng(4)
    features = rng.standard_normal((2, 12, 12, 512)).astype(np.float32)
    corner = rng.uniform(0, 60, (400, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 36, (400, 2))], axis=1).astype(np.float32)
    index = rng.integers(0, 2, 400).astype(np.int32)
    assert 400 * 10 * 10 * 512 * 4 > 2 * WINDOW_BYTES
    together = run(lambda f, b, i: roi_align(f, b, i, 7, 1 / 8), features, boxes, index)
    some = rng.permutation(400)[:12]
    expected = oracle(features[..., :1], boxes[some], index[some], 7, 1 / 8, 0, True)
    np.testing.assert_allclose(together[some][..., :1], expected, atol=3e-6)


def test_interior_regions_equal_crop_and_resize_with_the_half_pixel_put_right(run):
    """With g samples per bin a region is one crop of P g x P g corner-aligned samples, averaged g x g."""
    rng = np.random.default_rng(7)
    features = rng.standard_normal((1, 40, 40, 4)).astype(np.float32)
    corner = rng.uniform(2, 14, (30, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.uniform(8, 13.9, (30, 2)).astype(np.float32)], axis=1)
    bins, g = 7, 2  # 7 < size <= 14: two samples per bin
    bin_size = (boxes[:, 2:] - boxes[:, :2]) / bins
    first = boxes[:, :2] - 0.5 + bin_size / (2 * g)
    last = boxes[:, 2:] - 0.5 - bin_size / (2 * g)
    crops = tf.image.crop_and_resize(
        features,
        np.concatenate([first[:, ::-1], last[:, ::-1]], axis=1) / 39,
        np.zeros(30, np.int32),
        (bins * g, bins * g),
    )
    expected = tf.nn.avg_pool2d(crops, g, g, "VALID").numpy()
    got = run(lambda f, b: roi_align(f, b, np.zeros(30, np.int32), bins, 1.0), features, boxes)
    np.testing.assert_allclose(got, expected, atol=3e-5)  # the crop's coordinates are rounded as fractions


def test_levels_are_pooled_apart_and_put_back_in_order(run, how):
    rng = np.random.default_rng(8)
    strides = (4, 8, 16, 32)
    maps = [rng.standard_normal((2, 256 // s, 320 // s, 3)) for s in strides]
    size = np.exp(rng.uniform(np.log(5), np.log(900), (20, 1)))
    corner = rng.uniform(0, 200, (20, 2))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    boxes[3] = (50, 50, 40, 60)  # no level
    index = rng.integers(0, 2, 20).astype(np.int32)
    levels = assign_levels(tf.constant(boxes), 2, 5).numpy()
    assert set(levels) == {-1, 0, 1, 2, 3}
    scales = [1 / s for s in strides]
    got = run(
        lambda b, i, n, *f: Regions(Pyramid(f, scales), b, i, n, Sampling(7)).pool().in_order(),
        boxes,
        index,
        levels,
        *maps,
    )
    expected = np.zeros((20, 7, 7, 3))
    for n, level in enumerate(levels):
        if level >= 0:
            one = slice(n, n + 1)
            expected[n] = oracle(maps[level], boxes[one], index[one], 7, scales[level], 0, True)[0]
    np.testing.assert_allclose(got, expected, atol=1e-13)
    assert not got[3].any()


def test_a_gpu_gets_few_large_groups(monkeypatch):
    """1000 boxes of all sizes: every group is a turn of the loop, some eighty kernels."""
    rng = np.random.default_rng(0)
    maps = [tf.zeros([1, 800 // s, 1216 // s, 256]) for s in (4, 8, 16, 32)]
    sides = np.exp(rng.uniform(np.log(16), np.log(600), (1000, 2)))
    corner = rng.uniform(0, 1, (1000, 2)) * (np.array([1216, 800]) - sides)
    boxes = tf.constant(np.concatenate([corner, corner + sides], axis=1), tf.float32)
    groups = {}
    for name in ("CPU", "GPU"):
        monkeypatch.setattr(module, "on_gpu", lambda name=name: tf.constant(name == "GPU"))
        index = tf.zeros([1000], tf.int32)
        pyramid = Pyramid(maps, [1 / 4, 1 / 8, 1 / 16, 1 / 32])
        regions = Regions(pyramid, boxes, index, assign_levels(boxes, 2, 5), Sampling(7))
        groups[name] = len(regions._chunks)
    assert 30 < groups["CPU"] < 150 and groups["GPU"] < 7


@pytest.mark.parametrize(
    ("count", "block"),
    [
        *((0, 1), (40, 1), (40, 5)),
        *(
            pytest.param(*case, marks=pytest.mark.wide)
            for case in ((0, 5), (0, 1000), (1, 1), (1, 5), (1, 1000), (40, 1000))
        ),
    ],
)
def test_what_is_computed_in_blocks_of_regions_is_what_is_computed_on_all(
    run, how, monkeypatch, count, block
):
    monkeypatch.setattr(module, "READ_BYTES", 1 << 14)
    monkeypatch.setattr(module, "WINDOW_BYTES", 1 << 14)  # chunks of 1 to 17 regions
    rng = np.random.default_rng(9)
    maps = [rng.standard_normal((2, 256 // s, 320 // s, 3)).astype(np.float32) for s in (4, 8)]
    corner = rng.uniform(0, 200, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 60, (count, 2))], axis=1).astype(np.float32)
    index = rng.integers(0, 2, count).astype(np.int32)
    levels = rng.integers(-1, 2, count).astype(np.int32)
    sizes = []

    def function(pooled):
        sizes.append(pooled.shape[0])
        return [pooled * 2, tf.reduce_max(pooled, axis=[1, 2])]

    def in_blocks(boxes, index, levels, *maps):
        regions = Regions(Pyramid(maps, [1 / 4, 1 / 8]), boxes, index, levels, Sampling(7))
        return regions.compute(function, 2, block * regions.region_bytes)

    def at_once(boxes, index, levels, *maps):
        regions = Regions(Pyramid(maps, [1 / 4, 1 / 8]), boxes, index, levels, Sampling(7))
        return regions.pool().in_order()

    doubled, largest = run(in_blocks, boxes, index, levels, *maps)
    pooled = run(at_once, boxes, index, levels, *maps)
    np.testing.assert_array_equal(doubled, pooled * 2)
    np.testing.assert_array_equal(largest, pooled.max((1, 2)) if count else np.zeros((0, 3)))
    if None not in sizes:  # not a graph
        pooled_rows = np.sum(levels >= 0)
        assert sum(sizes) == pooled_rows + len(sizes)  # each block has a row of zeros
        assert max(sizes) <= block + 17 and (len(sizes) > 1) == (block < 40 == count)


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_features_are_sampled_at_float32_positions(run, how):
    features, boxes, index = inputs("float32", 10)
    rounded = tf.cast(features, tf.bfloat16)
    expected = oracle(tf.cast(rounded, tf.float32).numpy(), boxes, index, 7, 1 / 8, 0, True)
    got = run(lambda b, i: tf.cast(roi_align(rounded, b, i, 7, 1 / 8), tf.float32), boxes, index)
    np.testing.assert_allclose(got, expected, atol=4e-2)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("ratio", [0, 2])
def test_a_cell_that_is_not_finite_stays_with_the_bins_that_read_it(
    how: None, odd: float, ratio: int
) -> None:
    features = np.random.default_rng(0).random((1, 16, 16, 2)).astype(np.float32)
    boxes = np.array([[0, 0, 2, 2], [4.6, 4.6, 8, 8], [2, 2, 9, 9]], np.float32)
    arguments = boxes, np.zeros(3, np.int32), 7, 1.0, ratio
    clean = roi_align(tf.constant(features), *arguments).numpy()
    features[0, 3, 3, 0] = odd
    pooled = roi_align(tf.constant(features), *arguments).numpy()
    np.testing.assert_array_equal(pooled[:2], clean[:2])
    np.testing.assert_array_equal(pooled[..., 1], clean[..., 1])
    reached = ~np.isfinite(pooled[2, :, :, 0])
    # Bins of 1 pixel from index 1.5 on: those that read row (and column) 3 are the first three.
    assert reached.any() and not reached[3:].any() and not reached[:, 3:].any()
    np.testing.assert_array_equal(pooled[2, :, :, 0][reached], np.full(reached.sum(), odd, np.float32))
    np.testing.assert_allclose(pooled[2, :, :, 0][~reached], clean[2, :, :, 0][~reached], rtol=1e-6)


def test_a_cell_that_is_not_finite_stays_out_of_regions_elsewhere(how: None) -> None:
    """Bins of five cells with two samples per axis hold cells that no sample reads."""
    features = np.random.default_rng(0).random((1, 40, 40, 2)).astype(np.float32)
    features[0, 0, 0] = np.nan
    pooled = roi_align(
        tf.constant(features), np.array([[2, 2, 37, 37]], np.float32), np.zeros(1, np.int32), 7, 1.0, 2
    )
    assert np.isfinite(pooled.numpy()).all()
