"""ROIAlign: bilinear samples of a feature map, averaged per bin of a region of interest.

The continuous pixel coordinate c lies at the index ``c - 0.5`` of an array whose element i covers ``[i, i + 1]``. So
for a box in pixels of the network input and a feature map of scale s, sampling starts at the index ``x1 * s - 0.5``
(``aligned=True``, detectron2's ROIAlignV2). The older ``aligned=False`` (ROIAlign of Detectron) forgets the half
pixel and stretches regions to at least one cell.

With ``size = x2 * s - x1 * s``, ``bin = size / P`` and a grid of g samples per bin (``g = sampling_ratio``, or
``ceil(size / P)`` for 0), the samples of bin p lie at ``start + p * bin + (i + 0.5) * bin / g``, i < g. A sample below
-1 or above H counts as zero (but counts); the rest is clamped to ``[0, H - 1]`` and interpolated. x likewise.

Bilinear interpolation, the clamping and the mean are all separable, so a region is ``A_y @ window @ A_x^T``, where
``window`` is the part of the map that the region touches and row p of ``A_y`` holds the mean of g triangles. That is
exact for any sampling ratio in float32 and float64, needs no padded copy of the map and no four-corner gather, and
leaves the arithmetic to matrix products. Regions are handled in groups of equal window size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_d2.ops.exact import exact_constant

# Bytes of feature windows gathered at once: large enough to fill the cores, small enough to stay near the caches.
WINDOW_BYTES = 16 * 2**20


# Window sizes in multiples of the number of bins: few kinds of windows, little waste. Larger ones stay exact
# because no window is larger than the map.
_WINDOW_STEPS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 1024, 2**24], np.int32)


class _Axis(NamedTuple):
    """One axis of N regions, in cells of the feature map."""

    start: tf.Tensor  # [N] index coordinate of the region's edge
    bin_size: tf.Tensor  # [N]
    grid: tf.Tensor  # [N] int32, samples per bin; <= 0 means none
    window: tf.Tensor  # [N] int32, cells of the window that holds every sample
    first: tf.Tensor  # [N] int32, first cell of the window


def roi_align(
    features: tf.Tensor,
    boxes: tf.Tensor,
    image_index: tf.Tensor,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> tf.Tensor:
    """Pool every box from a feature map.

    Args:
        features: ``[B, H, W, C]`` float32, float64 or bfloat16.
        boxes: ``[N, 4]`` xyxy, pixels of the network input; cast to the dtype of ``features`` (bfloat16: float32).
        image_index: int ``[N]``, the image of the batch each box lies in.
        output_size: bins per side, P.
        spatial_scale: cells per pixel, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 = as many as the bin has cells, rounded up.
        aligned: subtract the half pixel (ROIAlignV2).

    Returns:
        ``[N, P, P, C]``, dtype of ``features``. A region without extent is all zeros for ``aligned`` with
        ``sampling_ratio=0``, a NaN coordinate gives zeros.

    Source: detectron2/layers/roi_align.py, torchvision/csrc/ops/cpu/roi_align_kernel.cpp.
    """
    level = tf.zeros(tf.shape(boxes)[:1], tf.int32)
    return multilevel_roi_align(
        [features], boxes, image_index, level, output_size, [spatial_scale], sampling_ratio, aligned
    )


def multilevel_roi_align(
    features: Sequence[tf.Tensor],
    boxes: tf.Tensor,
    image_index: tf.Tensor,
    levels: tf.Tensor,
    output_size: int,
    scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> tf.Tensor:
    """ROIAlign of each box on its own pyramid level: ``levels`` int32 ``[N]``, -1 = no level, all zeros.

    Other arguments and the result are those of :func:`roi_align`; the order of the boxes is kept.
    Source: detectron2/modeling/poolers.py ``ROIPooler.forward``.
    """
    arguments = (features, boxes, image_index, levels, output_size, scales, sampling_ratio, aligned)
    return Regions(*arguments).pool().in_order()


class Pooled(NamedTuple):
    """Pooled regions in the order that suited pooling. What is computed from them is smaller: order that instead.

    Row 0 is zero and stands for boxes without a level; so there is a row to compute on even without boxes.
    """

    values: tf.Tensor  # [1 + M, P, P, C]
    rows: tf.Tensor  # [N] int32, the row of each box

    @classmethod
    def join(cls, values: tf.Tensor, boxes: tf.Tensor, count: tf.Tensor) -> Pooled:
        """From the box that each row after row 0 belongs to, int32 ``[M]``, and the number of all boxes, N."""
        return cls(values, _rows(boxes, count))

    def in_order(self, computed: tf.Tensor | None = None) -> tf.Tensor:
        """Rows of the regions, or of what was computed from them, ``[1 + M, ...]``, in the order of the boxes."""
        return tf.gather(self.values if computed is None else computed, self.rows)


def _rows(boxes: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    return tf.scatter_nd(boxes[:, None], tf.range(1, tf.shape(boxes)[0] + 1), [count])


class Regions:
    """Boxes sorted into chunks that are pooled at once: for pooling all of them, or so many at a time."""

    def __init__(
        self,
        features: Sequence[tf.Tensor],
        boxes: tf.Tensor,
        image_index: tf.Tensor,
        levels: tf.Tensor,
        output_size: int,
        scales: Sequence[float],
        sampling_ratio: int = 0,
        aligned: bool = True,
    ) -> None:
        """Arguments of :func:`multilevel_roi_align`."""
        self.dtype = features[0].dtype
        self.bins = output_size
        self.channels: int = features[0].shape[-1]  # pyright: ignore[reportAttributeAccessIssue]
        accurate = tf.float64 if self.dtype == tf.float64 else tf.float32
        boxes, image_index = tf.cast(boxes, accurate), tf.cast(image_index, tf.int32)
        self._tables = [tf.reshape(f, [-1, self.channels]) for f in features]  # [B * H * W, C], views
        self._map_sizes = tf.stack([tf.shape(f)[1:3] for f in features])  # [L, 2] height, width
        own_level = tf.maximum(levels, 0)
        scale = tf.gather(tf.constant(scales, accurate), own_level)  # [N]
        heights, widths = tf.unstack(tf.gather(self._map_sizes, own_level), axis=1)
        self._x, self._y = (
            _axis(boxes[:, i], boxes[:, i + 2], cells, output_size, scale, sampling_ratio, aligned)
            for i, cells in enumerate((widths, heights))
        )
        self._base = image_index * heights * widths
        self._chunks = _chunks(levels, self._y.window, self._x.window, self.channels * self.dtype.size)
        without = tf.reduce_sum(tf.cast(levels < 0, tf.int32))  # these are first in the order
        self.rows = _rows(self._chunks.order[without:], tf.shape(boxes)[0])  # as in `Pooled`

    @property
    def region_bytes(self) -> int:
        """Memory of one pooled region."""
        return self.bins**2 * self.channels * self.dtype.size

    def pool(self) -> Pooled:
        """All regions."""
        return Pooled(self._pool_chunks(0, tf.shape(self._chunks.starts)[0]), self.rows)

    def compute(
        self, function: Callable[[tf.Tensor], Sequence[tf.Tensor]], outputs: int, block_bytes: int
    ) -> list[tf.Tensor]:
        """What ``function`` makes of the regions, ``[1 + M, P, P, C]`` -> ``outputs`` tensors ``[1 + M, ...]`` of the
        dtype of the features; in the order of the boxes, ``[N, ...]``.

        It is called with as many regions as fit into ``block_bytes`` (or little more), so that memory for all of them
        is needed for its results alone.
        """
        edges = tf.concat([self._chunks.starts, [tf.int32.max]], 0)
        number = tf.shape(edges)[0] - 1
        block_rows = max(block_bytes // self.region_bytes, 1)
        shapes: list[tf.TensorShape] = []  # of one row of each result

        def step(i: tf.Tensor, first: tf.Tensor, *results: tf.TensorArray) -> tuple[Any, ...]:
            end = tf.searchsorted(self._chunks.starts, [edges[first] + block_rows])[0]
            end = tf.clip_by_value(end, tf.minimum(first + 1, number), number)
            computed = function(self._pool_chunks(first, end))
            shapes[:] = [x.shape[1:] for x in computed]
            # Row 0, of no region, is needed once.
            rows = [x[tf.minimum(i, 1) :] for x in computed]
            return i + 1, end, *(r.write(i, x) for r, x in zip(results, rows, strict=True))

        def more(i: tf.Tensor, first: tf.Tensor, *results: tf.TensorArray) -> tf.Tensor:
            del results
            return (i == 0) | (first < number)

        empty = [tf.TensorArray(self.dtype, 0, dynamic_size=True, infer_shape=False) for _ in range(outputs)]
        _, _, *results = tf.while_loop(more, step, (0, 0, *empty), parallel_iterations=1)
        joined = [r.concat() for r in results]
        return [
            tf.gather(tf.ensure_shape(x, [None, *shape]), self.rows)
            for x, shape in zip(joined, shapes, strict=True)
        ]

    def _pool_chunks(self, first: tf.Tensor | int, end: tf.Tensor) -> tf.Tensor:
        """A row of zeros, then the regions of the chunks from ``first`` up to ``end``."""

        def step(i: tf.Tensor, pooled: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            members = self._chunks.order[self._chunks.starts[i] : self._chunks.ends[i]]
            return i + 1, pooled.write(i - first + 1, self._pool_members(members, self._chunks.levels[i]))

        row = [self.bins, self.bins, self.channels]
        pooled = tf.TensorArray(self.dtype, end - first + 1, infer_shape=False, element_shape=[None, *row])
        pooled = pooled.write(0, tf.zeros([1, *row], self.dtype))
        _, pooled = tf.while_loop(lambda i, _: i < end, step, (first, pooled))
        return pooled.concat()

    def _pool_members(self, members: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
        """Regions of one chunk: boxes of one level whose windows have one size."""
        y, x = _take(self._y, members), _take(self._x, members)
        height, width = tf.unstack(self._map_sizes[level])
        rows, weights_y = _window(y, self.bins, height)  # [n, Wh], [n, P, Wh]
        columns, weights_x = _window(x, self.bins, width)
        cells = tf.gather(self._base, members)[:, None, None] + rows[:, :, None] * width + columns[:, None, :]
        window = _gather_from(self._tables, level, cells)  # [n, Wh, Ww, C]
        weights_y, weights_x = tf.cast(weights_y, self.dtype), tf.cast(weights_x, self.dtype)
        return _contract(window, weights_y, weights_x, self.bins, self.channels)


def _gather_from(tables: Sequence[tf.Tensor], level: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """Rows of one of several tables, without joining the tables (they are the largest tensors of a model)."""
    if len(tables) == 1:
        return tf.gather(tables[0], cells)
    return tf.switch_case(level, [lambda table=table: tf.gather(table, cells) for table in tables])


def _axis(
    low: tf.Tensor,
    high: tf.Tensor,
    cells: tf.Tensor,
    bins: int,
    scale: tf.Tensor,
    sampling_ratio: int,
    aligned: bool,
) -> _Axis:
    """Sampling along one axis, each operation in the order (and rounding) of torchvision's kernel.

    ``low``, ``high``: ``[N]`` pixels; ``cells`` int32 ``[N]`` and ``scale`` ``[N]`` of the map each region lies on.
    """
    offset = tf.constant(0.5 if aligned else 0.0, low.dtype)
    start = low * scale - offset
    size = (high * scale - offset) - start
    if not aligned:
        size = tf.maximum(size, 1.0)
    finite = tf.math.is_finite(start) & tf.math.is_finite(size)
    start, size = tf.where(finite, start, 0), tf.where(finite, size, 0)
    bin_size = size / exact_constant(bins, low.dtype)
    needed = tf.cast(tf.math.ceil(tf.minimum(tf.abs(bin_size), 2.0**24)), tf.int32)
    if sampling_ratio > 0:
        grid = tf.where(finite, sampling_ratio, 0)
    else:
        grid = tf.where(size > 0, needed, 0)
    half_step = 0.5 * bin_size / tf.cast(tf.maximum(grid, 1), low.dtype)
    lowest = start + half_step
    margin = 0
    if sampling_ratio > 0:
        # A region of negative size is sampled backwards; its last sample is rounded differently there.
        lowest, margin = tf.minimum(lowest, start + size - half_step), 1
    first = tf.floor(tf.clip_by_value(lowest, 0, tf.cast(cells - 1, low.dtype)))
    # The samples span less than bins * needed - 1 cells, so their neighbours lie in bins * needed + 2 cells.
    fitting = tf.gather(_WINDOW_STEPS, tf.searchsorted(_WINDOW_STEPS, needed))
    window = tf.minimum(tf.minimum(fitting, cells) * bins + 2, cells + 1) + margin
    return _Axis(start, bin_size, grid, window, tf.maximum(tf.cast(first, tf.int32) - margin, 0))


def _take(axis: _Axis, members: tf.Tensor) -> _Axis:
    return _Axis(*(tf.gather(field, members) for field in axis))


class _Chunks(NamedTuple):
    """Regions sorted by level and window size, and T ranges of that order whose regions are pooled together."""

    order: tf.Tensor  # [N] int32
    starts: tf.Tensor  # [T] int32, half-open ranges of ``order``
    ends: tf.Tensor  # [T] int32
    levels: tf.Tensor  # [T] int32


def _chunks(levels: tf.Tensor, window_y: tf.Tensor, window_x: tf.Tensor, cell_bytes: int) -> _Chunks:
    """Chunks of one level, one window size and about ``WINDOW_BYTES``; regions without a level are in none."""
    side = 2**24  # more than any window has cells
    key = tf.cast(levels, tf.int64) * side + tf.cast(window_y, tf.int64)
    key = key * side + tf.cast(window_x, tf.int64)
    order = tf.argsort(key, stable=True)
    kinds, first, counts = _runs(tf.gather(key, order))
    level = tf.cast(kinds // side // side, tf.int32)
    side_y, side_x = (tf.math.floormod(k, side) for k in (kinds // side, kinds))
    per_chunk = tf.cast(tf.maximum(WINDOW_BYTES // tf.maximum(side_y * side_x * cell_bytes, 1), 1), tf.int32)
    pieces = tf.where(level < 0, 0, (counts + per_chunk - 1) // per_chunk)  # [K] chunks per kind
    chunk = tf.range(tf.reduce_sum(pieces))
    # What tf.repeat would do, which takes fifty operations each time.
    kind = tf.searchsorted(tf.cumsum(pieces), chunk, side="right")  # [T]
    number = chunk - tf.gather(tf.cumsum(pieces, exclusive=True), kind)
    length, last = tf.gather(per_chunk, kind), tf.gather(first + counts, kind)
    starts = tf.gather(first, kind) + number * length
    return _Chunks(order, starts, tf.minimum(starts + length, last), tf.gather(level, kind))


def _runs(ordered: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The runs of equal values of a sorted vector: value, first index, length."""
    values, _, counts = tf.unique_with_counts(ordered)
    return values, tf.cumsum(counts, exclusive=True), counts


def _window(axis: _Axis, bins: int, cells: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The cells of each window and the weight each bin gives them: int32 ``[n, S]``, ``[n, P, S]``."""
    dtype = axis.start.dtype
    index = axis.first[:, None] + tf.range(axis.window[0])  # [n, S]
    samples = tf.maximum(tf.reduce_max(axis.grid), 1)
    i = tf.cast(tf.range(samples), dtype)
    p = tf.cast(tf.range(bins), dtype)
    grid = tf.cast(tf.maximum(axis.grid, 1), dtype)[:, None]  # [n, 1]
    bin_start = axis.start[:, None] + p * axis.bin_size[:, None]  # [n, P]
    inside_bin = (i + 0.5) * axis.bin_size[:, None] / grid  # [n, G]
    position = bin_start[:, :, None] + inside_bin[:, None, :]  # [n, P, G]
    limit = tf.cast(cells, dtype)
    counted = (position >= -1) & (position <= limit) & (tf.range(samples) < axis.grid[:, None])[:, None, :]
    position = tf.clip_by_value(position, 0, limit - 1)
    distance = tf.abs(position[:, :, :, None] - tf.cast(index, dtype)[:, None, None, :])  # [n, P, G, S]
    triangle = tf.where(counted[:, :, :, None], tf.maximum(1 - distance, 0), 0)
    weights = tf.reduce_sum(triangle, axis=2) / grid[:, :, None]
    return tf.minimum(index, cells - 1), weights


def _contract(
    window: tf.Tensor, weights_y: tf.Tensor, weights_x: tf.Tensor, bins: int, channels: int
) -> tf.Tensor:
    """``A_y @ window @ A_x^T`` per region and channel: ``[n, Wh, Ww, C]`` -> ``[n, P, P, C]``."""
    n, height, width = tf.unstack(tf.shape(window)[:3])
    rows = tf.matmul(weights_y, tf.reshape(window, [n, height, width * channels]))  # [n, P, Ww * C]
    rows = tf.reshape(rows, [n, bins, width, channels])
    return tf.matmul(weights_x[:, None], rows)  # [n, 1, P, Ww] x [n, P, Ww, C]
