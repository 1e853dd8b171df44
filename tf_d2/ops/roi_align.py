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

That is some eighty operations a group, too many for a GPU. There each bin is the weighted sum of the cells that it
reads, a list of a million for a thousand regions, and two or three groups hold all. Products of matrices would round to
TensorFloat32 besides, which detectron2's ROIAlign never does.

What belongs to regions and cells is int64: TensorFlow computes int32 on the host, also where it has a GPU, and copies
it there and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_d2.ops.device import either, on_gpu
from tf_d2.ops.exact import exact_constant
from tf_d2.ops.onednn import matmul

# On a CPU: large enough to fill the cores, small enough to stay near the caches; few kinds of windows, little waste.
WINDOW_BYTES = 16 * 2**20  # of feature windows gathered at once
# Window sizes in multiples of the number of bins. Larger windows than the last stay exact because none is larger
# than the map.
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 1024, 2**24)

# On a GPU every operation costs microseconds before it starts, while memory is fast.
READ_BYTES = 512 * 2**20  # of feature cells gathered at once
# Regions of at most so many samples per bin and axis are weighted together: their weights are dense arrays.
GRIDS = (8, 64, 512, 2**24)


class _Axes(NamedTuple):
    """Both axes (y, then x) of N regions, in cells of the feature map."""

    edges: tf.Tensor  # [2, N, P] index coordinate of each bin's edge
    bin_size: tf.Tensor  # [2, N]
    grid: tf.Tensor  # [2, N] int64, samples per bin; <= 0 means none
    divisor: tf.Tensor  # [2, N] the same in floating point, at least 1
    first: tf.Tensor  # [2, N] int64, first cell of the window
    cells: tf.Tensor  # [2, N] int64, of the map


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
    levels = tf.zeros(tf.shape(boxes)[:1], tf.int32)
    pyramid, sampling = Pyramid([features], [spatial_scale]), Sampling(output_size, sampling_ratio, aligned)
    return Regions(pyramid, boxes, image_index, levels, sampling).pool().in_order()


class Pyramid(NamedTuple):
    """Feature maps ``[B, H, W, C]``, and of each the cells per pixel, 1 / stride."""

    maps: Sequence[tf.Tensor]
    scales: Sequence[float]


class Sampling(NamedTuple):
    """Arguments of :func:`roi_align` that say how a region is sampled."""

    bins: int
    ratio: int = 0
    aligned: bool = True


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
    """ROIAlign of boxes, each on its own pyramid level, for pooling all of them or so many at a time.

    They are sorted into chunks that are pooled at once.
    Source: detectron2/modeling/poolers.py ``ROIPooler.forward``.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        boxes: tf.Tensor,
        image_index: tf.Tensor,
        levels: tf.Tensor,
        sampling: Sampling,
    ) -> None:
        """``boxes`` and ``image_index`` as for :func:`roi_align`; ``levels`` int32 ``[N]`` says which map each box is
        pooled from, -1 = none: all zeros."""
        features, scales = pyramid
        self.dtype = features[0].dtype
        self.bins = sampling.bins
        self.channels: int = features[0].shape[-1]  # pyright: ignore[reportAttributeAccessIssue]
        accurate = tf.float64 if self.dtype == tf.float64 else tf.float32
        boxes = tf.cast(boxes, accurate)
        tables = [tf.reshape(f, [-1, self.channels]) for f in features]  # [B * H * W, C], views
        map_sizes = tf.cast(tf.stack([tf.shape(f)[1:3] for f in features]), tf.int64)  # [L, 2] height, width
        levels = tf.cast(levels, tf.int64)
        own_level = tf.maximum(levels, 0)
        scale = tf.gather(tf.constant(scales, accurate), own_level)  # [N]
        sizes = tf.transpose(tf.gather(map_sizes, own_level))  # [2, N]
        axes, needed = _axes(boxes, sizes, scale, sampling)
        self._on_gpu = on_gpu()
        base = tf.cast(image_index, tf.int64) * sizes[0] * sizes[1]  # of each region's map in its table
        self._tables = tables

        def by_reads() -> tuple[tf.Tensor, ...]:
            # All regions read from one table, which ends with a cell of zeros.
            rows = tf.cast(tf.stack([tf.shape(t)[0] for t in tables]), tf.int64)
            table = tf.concat([*tables, tf.zeros([1, self.channels], self.dtype)], 0)
            reach = _reach(axes)
            reads = tf.reduce_sum(reach.cells[0], 1) * tf.reduce_sum(reach.cells[1], 1)
            grid = tf.reduce_max(axes.grid, 0)
            order, chunks = _chunks_of_reads(levels, grid, reads, self.bins, self.channels * 4)
            in_order = (tf.gather(field, order, axis=1) for field in reach)
            return (
                order,
                chunks,
                base + tf.gather(tf.cumsum(rows, exclusive=True), own_level),
                table,
                *in_order,
            )

        def by_windows() -> tuple[tf.Tensor, ...]:
            windows = _window_sizes(needed, sizes, sampling)
            order, chunks = _chunks(levels, windows, self.channels * self.dtype.size)
            nothing = tf.zeros([2, 0, 0], tf.int64)
            return order, chunks, base, tables[0][:0], nothing, nothing

        order, self._chunks, base, self._table, *reach = either(self._on_gpu, by_reads, by_windows)
        # In that order, a chunk is a slice.
        self._axes = _Axes(*(tf.gather(field, order, axis=1) for field in axes))
        self._reach = _Reach(*reach)
        self._base = tf.gather(base, order)
        without = tf.reduce_sum(tf.cast(levels < 0, tf.int64))  # these are first in the order
        count = tf.shape(boxes)[0]
        row = tf.maximum(tf.cast(tf.range(1, count + 1), tf.int64) - without, 0)
        self.rows = tf.cast(tf.scatter_nd(order[:, None], row, [count]), tf.int32)  # as in `Pooled`

    @property
    def region_bytes(self) -> int:
        """Memory of one pooled region."""
        return self.bins**2 * self.channels * self.dtype.size

    def pool(self) -> Pooled:
        """All regions."""
        return Pooled(self._pool_chunks(0, tf.shape(self._chunks)[0]), self.rows)

    def compute(
        self, function: Callable[[tf.Tensor], Sequence[tf.Tensor]], outputs: int, block_bytes: int
    ) -> list[tf.Tensor]:
        """What ``function`` makes of the regions, ``[1 + M, P, P, C]`` -> ``outputs`` tensors ``[1 + M, ...]`` of the
        dtype of the features; in the order of the boxes, ``[N, ...]``.

        It is called with as many regions as fit into ``block_bytes`` (or little more), so that memory for all of them
        is needed for its results alone.
        """
        starts = self._chunks[:, 0]
        number = tf.shape(starts)[0]
        starts_and_one = tf.concat([starts, [0]], 0)  # so that there is a first one even without chunks
        block_rows = max(block_bytes // self.region_bytes, 1)
        shapes: list[tf.TensorShape] = []  # of one row of each result

        def step(i: tf.Tensor, first: tf.Tensor, *results: tf.TensorArray) -> tuple[Any, ...]:
            end = tf.searchsorted(starts, [starts_and_one[first] + block_rows])[0]
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
            return i + 1, pooled.write(i - first + 1, self._pool_chunk(_Chunk(*tf.unstack(self._chunks[i]))))

        row = [self.bins, self.bins, self.channels]
        pooled = tf.TensorArray(self.dtype, end - first + 1, infer_shape=False, element_shape=[None, *row])
        pooled = pooled.write(0, tf.zeros([1, *row], self.dtype))
        _, pooled = tf.while_loop(lambda i, _: i < end, step, (first, pooled))
        return pooled.concat()

    def _pool_chunk(self, chunk: _Chunk) -> tf.Tensor:
        return either(self._on_gpu, lambda: self._pool_reads(chunk), lambda: self._pool_windows(chunk))

    def _pool_reads(self, chunk: _Chunk) -> tf.Tensor:
        """Bin by bin the weighted sum of the cells that its samples read."""
        members = slice(chunk.start, chunk.end)
        axes = _Axes(*(field[:, members] for field in self._axes))
        reach = _Reach(*(field[:, members] for field in self._reach))
        bins = self.bins
        longest = tf.reduce_max(reach.cells)
        index = reach.first[:, :, :, None] + tf.range(longest)  # [2, n, P, S]
        weights, touched = _bin_weights(axes, index)
        inside = tf.minimum(index, axes.cells[:, :, None, None] - 1)
        nowhere = -tf.cast(2**48, tf.int64)
        rows = inside[0] * axes.cells[1, :, None, None] + self._base[members, None, None]
        rows = tf.reshape(tf.where(touched[0], rows, nowhere), [-1])
        columns = tf.reshape(tf.where(touched[1], inside[1], nowhere), [-1])

        # One read after the other: of which bin, and which cell (y, x) of that bin?
        wide = tf.reshape(tf.tile(reach.cells[1][:, None, :], [1, bins, 1]), [-1])  # [n * P * P]
        of_bins = reach.cells[0][:, :, None] * reach.cells[1][:, None, :]  # [n, P, P]
        ends = tf.cumsum(tf.reshape(of_bins, [-1]))
        starts = tf.concat([tf.zeros([1], tf.int64), ends[:-1]], 0)
        reads = tf.range(ends[-1])
        begins = tf.scatter_nd(starts[1:, None], tf.ones_like(starts[1:]), ends[-1:])
        of_bin = tf.cumsum(begins)  # ascending; a search in `starts` has no kernel for int64 there
        local = reads - tf.gather(starts, of_bin)
        width = tf.gather(wide, of_bin)
        cell_y = local // width
        cell_x = local - cell_y * width
        row_of_bins = of_bin // bins  # region * P + y
        column_of_bins = of_bin - row_of_bins * bins + row_of_bins // bins * bins  # region * P + x
        at_y = row_of_bins * longest + cell_y
        at_x = column_of_bins * longest + cell_x
        weight = tf.gather(tf.reshape(weights[0], [-1]), at_y) * tf.gather(tf.reshape(weights[1], [-1]), at_x)
        cell = tf.gather(rows, at_y) + tf.gather(columns, at_x)
        zeros = tf.cast(tf.shape(self._table)[0] - 1, tf.int64)
        values = tf.gather(self._table, tf.where(cell < 0, zeros, cell))  # [R, C]
        values = tf.cast(values, weight.dtype)

        def sums(of_cells: tf.Tensor) -> tf.Tensor:
            pooled = tf.math.segment_sum(of_cells, of_bin)
            return tf.cast(tf.reshape(pooled, [-1, bins, bins, self.channels]), self.dtype)

        pooled = sums(values * weight[:, None])

        def with_care() -> tf.Tensor:
            # A cell that is not finite makes a bin that reads it so, be it with weight 0.
            return sums(tf.where(tf.math.is_finite(values), values * weight[:, None], values))

        return tf.cond(tf.math.is_finite(tf.reduce_sum(pooled)), lambda: pooled, with_care)

    def _pool_windows(self, chunk: _Chunk) -> tf.Tensor:
        """Group by group, as products of matrices with windows of the map."""
        members = slice(chunk.start, chunk.end)
        axes = _Axes(*(field[:, members] for field in self._axes))
        length = tf.maximum(chunk.height, chunk.width)
        index, weights = _windows(axes, length)
        rows, weights_y = index[0, :, : chunk.height], weights[0, :, :, : chunk.height]  # [n, Wh], [n, P, Wh]
        columns, weights_x = index[1, :, : chunk.width], weights[1, :, :, : chunk.width]
        cells = (self._base[members, None] + rows * axes.cells[1, :, None])[:, :, None] + columns[:, None, :]
        window = _gather_from(self._tables, chunk.table, cells)  # [n, Wh, Ww, C]
        weights_y, weights_x = tf.cast(weights_y, self.dtype), tf.cast(weights_x, self.dtype)
        pooled = _contract(window, weights_y, weights_x, self.bins, self.channels)

        def with_care() -> tf.Tensor:
            touched = tf.cast(_touched(axes, length), self.dtype)
            touched_y, touched_x = touched[0, :, :, : chunk.height], touched[1, :, :, : chunk.width]
            finite = tf.where(tf.math.is_finite(window), window, tf.zeros_like(window))
            sums = _contract(finite, weights_y, weights_x, self.bins, self.channels)
            for odd in (np.inf, -np.inf, np.nan):
                found = tf.math.is_nan(window) if np.isnan(odd) else window == tf.cast(odd, self.dtype)
                count = _contract(tf.cast(found, self.dtype), touched_y, touched_x, self.bins, self.channels)
                sums += tf.where(count > 0, tf.cast(odd, self.dtype), tf.zeros_like(count))
            return sums

        # A cell that is not finite makes all bins of its window so, by 0 * NaN, also those that do not read it. (The
        # sum may run over: then the same comes out with more work.)
        return tf.cond(tf.math.is_finite(tf.reduce_sum(pooled)), lambda: pooled, with_care)


def _gather_from(tables: Sequence[tf.Tensor], chosen: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """Rows of one of several tables (they are the largest tensors of a model: on a CPU they are not joined)."""
    if len(tables) == 1:
        return tf.gather(tables[0], cells)
    return tf.switch_case(chosen, [lambda table=table: tf.gather(table, cells) for table in tables])


def _axes(
    boxes: tf.Tensor, cells: tf.Tensor, scale: tf.Tensor, sampling: Sampling
) -> tuple[_Axes, tf.Tensor]:
    """Sampling along both axes, each operation in the order (and rounding) of torchvision's kernel.

    ``boxes``: ``[N, 4]`` xyxy pixels; ``cells`` int64 ``[2, N]`` and ``scale`` ``[N]`` of the map each region lies
    on. Also returns the cells of a bin, rounded up, int64 ``[2, N]``.
    """
    bins, sampling_ratio, aligned = sampling
    low, high = (tf.stack([boxes[:, i + 1], boxes[:, i]]) for i in (0, 2))  # [2, N] (y, x)
    offset = tf.constant(0.5 if aligned else 0.0, low.dtype)
    start = low * scale - offset
    size = (high * scale - offset) - start
    if not aligned:
        size = tf.maximum(size, 1.0)
    finite = tf.math.is_finite(start) & tf.math.is_finite(size)
    start, size = tf.where(finite, start, 0), tf.where(finite, size, 0)
    bin_size = size / exact_constant(bins, low.dtype)
    needed = tf.cast(tf.math.ceil(tf.minimum(tf.abs(bin_size), 2.0**24)), tf.int64)
    if sampling_ratio > 0:
        grid = tf.where(finite, np.int64(sampling_ratio), np.int64(0))
    else:
        grid = tf.where(size > 0, needed, 0)
    divisor = tf.cast(tf.maximum(grid, 1), low.dtype)
    half_step = 0.5 * bin_size / divisor
    lowest = start + half_step
    margin = 0
    if sampling_ratio > 0:
        # A region of negative size is sampled backwards; its last sample is rounded differently there.
        lowest, margin = tf.minimum(lowest, start + size - half_step), 1
    first = tf.floor(tf.clip_by_value(lowest, 0, tf.cast(cells - 1, low.dtype)))
    edges = start[:, :, None] + tf.cast(tf.range(bins), low.dtype) * bin_size[:, :, None]
    first = tf.maximum(tf.cast(first, tf.int64) - margin, 0)
    return _Axes(edges, bin_size, grid, divisor, first, cells), needed


def _window_sizes(needed: tf.Tensor, cells: tf.Tensor, sampling: Sampling) -> tf.Tensor:
    """The size of each window, int64 ``[2, N]``, which holds every sample, from the cells of a bin and of the map."""
    bins, margin = sampling.bins, int(sampling.ratio > 0)
    # The samples span less than bins * needed - 1 cells, so their neighbours lie in bins * needed + 2 cells.
    steps = tf.constant(STEPS, tf.int64)
    fitting = tf.gather(steps, tf.searchsorted(steps, tf.reshape(needed, [-1])))
    fitting = tf.reshape(fitting, tf.shape(needed))
    return tf.minimum(tf.minimum(fitting, cells) * bins + 2, cells + 1) + margin


class _Chunk(NamedTuple):
    """Regions of one table and window size that are pooled together: a range of the order of pooling."""

    start: tf.Tensor  # int32, all of them
    end: tf.Tensor
    table: tf.Tensor
    height: tf.Tensor  # of the windows
    width: tf.Tensor


def _chunks(tables: tf.Tensor, windows: tf.Tensor, cell_bytes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The order of pooling, int32 ``[N]``, by table and size of the window, and chunks of about ``WINDOW_BYTES``.

    Chunks are int32 ``[T, 5]``, the fields of :class:`_Chunk`. Regions without a table (-1) come first and are in none.
    """
    side = 2**24  # more than any window has cells
    key = (tables * side + windows[0]) * side + windows[1]
    order = tf.argsort(key, stable=True)
    kinds, first, counts = _runs(tf.gather(key, order))
    table = kinds // side // side
    height, width = (tf.math.floormod(k, side) for k in (kinds // side, kinds))
    per_chunk = tf.cast(tf.maximum(WINDOW_BYTES // tf.maximum(height * width * cell_bytes, 1), 1), tf.int32)
    pieces = tf.where(table < 0, 0, (counts + per_chunk - 1) // per_chunk)  # [K] chunks per kind
    chunk = tf.range(tf.reduce_sum(pieces))
    # What tf.repeat would do, which takes fifty operations each time.
    kind = tf.searchsorted(tf.cumsum(pieces), chunk, side="right")  # [T]
    number = chunk - tf.gather(tf.cumsum(pieces, exclusive=True), kind)
    length, last = tf.gather(per_chunk, kind), tf.gather(first + counts, kind)
    start = tf.gather(first, kind) + number * length
    shape = tf.gather(tf.cast(tf.stack([table, height, width], axis=1), tf.int32), kind)
    return order, tf.concat([tf.stack([start, tf.minimum(start + length, last)], axis=1), shape], axis=1)


def _chunks_of_reads(
    levels: tf.Tensor, grid: tf.Tensor, reads: tf.Tensor, bins: int, cell_bytes: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The same by what a GPU gathers: about ``READ_BYTES`` a chunk, of regions whose ``grid`` (int64 ``[N]``, samples
    per bin and axis) lies between the same of ``GRIDS``. ``reads``: int64 ``[N]``, cells that all bins of each read.
    """
    # Not a search, which has no kernel for int64 there.
    kind = tf.reduce_sum(tf.cast(grid[:, None] > tf.constant(GRIDS, tf.int64), tf.int64), axis=1)
    kind = tf.where(levels < 0, np.int64(-1), kind)
    order = tf.argsort(kind, stable=True)
    kind = tf.gather(kind, order)
    limit = tf.gather(tf.constant(GRIDS, tf.int64), tf.maximum(kind, 0))
    limit = tf.minimum(limit, tf.reduce_max(grid)) + 2
    weights = 8 * bins * limit * limit  # bytes, of two axes in float32, some four times
    size = tf.gather(reads, order) * cell_bytes + 4 * weights
    chunk = kind * 2**40 + tf.where(kind < 0, np.int64(0), tf.cumsum(size) // READ_BYTES)
    _, first, counts = _runs(chunk)
    bounds = tf.stack([first, first + counts], axis=1)
    bounds = tf.boolean_mask(bounds, tf.gather(kind, first) >= 0)
    return order, tf.pad(bounds, [[0, 0], [0, 3]])


def _runs(ordered: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The runs of equal values of a sorted vector: value, first index, length."""
    values, _, counts = tf.unique_with_counts(ordered)
    return values, tf.cumsum(counts, exclusive=True), counts


def _windows(axes: _Axes, length: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The first ``length`` cells of each window and the weight each bin gives them: int64 ``[2, n, S]``,
    ``[2, n, P, S]``."""
    dtype = axes.bin_size.dtype
    index = axes.first[:, :, None] + tf.cast(tf.range(length), tf.int64)  # [2, n, S]
    position, counted = _samples(axes)
    distance = tf.abs(
        tf.expand_dims(position, -1) - tf.cast(index, dtype)[:, :, None, None, :]
    )  # [2, n, P, G, S]
    triangle = tf.where(tf.expand_dims(counted, -1), tf.maximum(1 - distance, 0), 0)
    weights = tf.reduce_sum(triangle, axis=3) / axes.divisor[:, :, None, None]
    return tf.minimum(index, axes.cells[:, :, None] - 1), weights


class _Reach(NamedTuple):
    """The cells that the bins of N regions read along both axes (y, then x)."""

    first: tf.Tensor  # [2, N, P] int64, of each bin
    cells: tf.Tensor  # [2, N, P] int64, how many from there on; at least 1


def _reach(axes: _Axes) -> _Reach:
    """Rounding is monotonic: what lies between the first and the last sample of a bin comes out between them."""
    limit = tf.cast(axes.cells, axes.bin_size.dtype)[:, :, None] - 1
    divisor = axes.divisor
    ends = [
        tf.clip_by_value(axes.edges + ((i + 0.5) * axes.bin_size / divisor)[:, :, None], 0, limit)
        for i in (tf.zeros_like(divisor), divisor - 1)
    ]
    # Of a region of negative size, the last sample is the lowest.
    first = tf.cast(tf.floor(tf.minimum(ends[0], ends[1])), tf.int64)
    last = tf.minimum(
        tf.cast(tf.floor(tf.maximum(ends[0], ends[1])), tf.int64) + 1, axes.cells[:, :, None] - 1
    )
    return _Reach(first, last - first + 1)


def _bin_weights(axes: _Axes, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The weight that each bin gives to the cells ``index`` (int64 ``[2, n, P, S]``), and whether its samples read
    them."""
    position, counted = _samples(axes)
    offset = tf.cast(index, position.dtype)[:, :, :, None, :] - position[:, :, :, :, None]  # [2, n, P, G, S]
    read = counted[:, :, :, :, None] & (offset > -1) & (offset <= 1)
    triangle = tf.where(read, 1 - tf.abs(offset), 0)
    return tf.reduce_sum(triangle, axis=3) / axes.divisor[:, :, None, None], tf.reduce_any(read, axis=3)


def _touched(axes: _Axes, length: tf.Tensor) -> tf.Tensor:
    """Which of the first ``length`` cells of each window the samples of a bin read, be it with weight 0: bool
    ``[2, n, P, S]``."""
    index = axes.first[:, :, None] + tf.cast(tf.range(length), tf.int64)
    position, counted = _samples(axes)
    offset = tf.cast(index, position.dtype)[:, :, None, None, :] - tf.expand_dims(position, -1)
    return tf.reduce_any(tf.expand_dims(counted, -1) & (offset > -1) & (offset <= 1), axis=3)


def _samples(axes: _Axes) -> tuple[tf.Tensor, tf.Tensor]:
    """Index coordinates of the samples, clamped to the map, and which of them count: ``[2, n, P, G]``."""
    dtype = axes.bin_size.dtype
    sample = tf.cast(tf.range(tf.maximum(tf.cast(tf.reduce_max(axes.grid), tf.int32), 1)), tf.int64)
    divisor = axes.divisor[:, :, None]
    inside_bin = (tf.cast(sample, dtype) + 0.5) * axes.bin_size[:, :, None] / divisor  # [2, n, G]
    position = axes.edges[:, :, :, None] + inside_bin[:, :, None, :]  # [2, n, P, G]
    limit = tf.cast(axes.cells, dtype)[:, :, None, None]
    counted = (position >= -1) & (position <= limit) & (sample < axes.grid[:, :, None])[:, :, None, :]
    return tf.clip_by_value(position, 0, limit - 1), counted


def _contract(
    window: tf.Tensor, weights_y: tf.Tensor, weights_x: tf.Tensor, bins: int, channels: int
) -> tf.Tensor:
    """``A_y @ window @ A_x^T`` per region and channel: ``[n, Wh, Ww, C]`` -> ``[n, P, P, C]``."""
    n, height, width = tf.unstack(tf.shape(window)[:3])
    rows = matmul(weights_y, tf.reshape(window, [n, height, width * channels]))  # [n, P, Ww * C]
    rows = tf.reshape(rows, [n, bins, width, channels])
    return matmul(weights_x[:, None], rows)  # [n, 1, P, Ww] x [n, P, Ww, C]
