"""torch.nn.functional.interpolate on NHWC maps: bilinear, nearest x2 and bicubic, never antialiased.

Coordinates (align_corners=False): output pixel j reads input position s = (j+0.5)*in/out - 0.5, where input
pixel i sits at i; in/out is rounded to the tensor's own accuracy first. Each axis is a weighted sum of a
few input lines, columns first, taps summed from low to high index in torch's order. Between two lines that
is written low + fraction * (high - low): equal neighbours give exactly their value, as with torch's fused
multiply-add (on x86 always within a row; by two roundings a plateau would break up, and Panoptic-DeepLab's
centres at the edge of a picture, where values repeat, are plateaus).

torch's kernels are compiled with fused multiply-add, on x86 as on CUDA, so a float32 position is rounded
once, not twice: at column 600 that is worth 6e-5 of the step between neighbours. `_fused` does the same
through float64.

Source: torch aten/src/ATen/native/UpSample.h and cpu/UpSampleKernel.cpp; used by detectron2's FPN, semantic,
mask, keypoint and post-processing code.
"""

import tensorflow as tf

from tf_d2.ops.exact import exact_constant

_CUBIC_A = -0.75  # torch's (and OpenCV's) coefficient; tf.image.resize uses -0.5
_CHUNK_ELEMENTS = 1 << 19  # values per chunk: 2 MB of float32; more is no faster, less costs steps
_PARALLEL_CHUNKS = 2

_Int = int | tf.Tensor


def bilinear(x: tf.Tensor, out_h: _Int, out_w: _Int) -> tf.Tensor:
    """Bilinear resize of `x` [N,H,W,C] to [N,out_h,out_w,C], same dtype, no antialiasing.

    Positions below 0 are clamped to 0, the upper neighbour to the last pixel. Equal to
    `F.interpolate(mode="bilinear", align_corners=False)` for a target size and for integer scale factors.
    float32 maps that grow by 1, 2, 4, 8, 16 or 32 take TensorFlow's fused kernel, whose positions are then
    exact; all else a gather form in chunks of output rows, with bounded memory. 16-bit maps are computed in
    float32 and rounded at the end, as torch does.

    Raises TypeError for maps that are not of floating point (torch has no integer bilinear either).
    """
    x, dtype = _checked(x)
    out_h, out_w = tf.cast(out_h, tf.int32), tf.cast(out_w, tf.int32)
    if dtype == tf.float64:
        resized = _bilinear_gather(x, out_h, out_w)
    else:
        resized = tf.cond(
            _power_of_two(tf.shape(x)[1], out_h) & _power_of_two(tf.shape(x)[2], out_w),
            lambda: tf.raw_ops.ResizeBilinear(
                images=x, size=tf.stack([out_h, out_w]), half_pixel_centers=True
            ),
            lambda: _bilinear_gather(x, out_h, out_w),
        )
    return tf.cast(tf.ensure_shape(resized, [x.shape[0], None, None, x.shape[3]]), dtype)


def double_unclamped(x: tf.Tensor) -> tf.Tensor:
    """Bilinear doubling of `x` [N,H,W,C] to [N,2H,2W,C] with zeros beyond the edges instead of edge pixels repeated.

    What a transposed convolution with a 4 x 4 bilinear kernel, stride 2 and padding 1 computes: the outermost
    rows and columns carry 3/4 of their value, corners 9/16.

    Source: detectron/modeling/detector.py `BilinearInterpolation` (the stored blob kps_score_w).
    """
    size = tf.shape(x)[1:3]
    padded = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    doubled = bilinear(padded, 2 * size[0] + 4, 2 * size[1] + 4)
    return doubled[:, 2:-2, 2:-2]


def add_nearest2x(fine: tf.Tensor, coarse: tf.Tensor) -> tf.Tensor:
    """`fine` [N,2H,2W,C] plus `coarse` [N,H,W,C] with every pixel repeated 2x2, which is never held in memory.

    Equal to `fine + F.interpolate(coarse, scale_factor=2, mode="nearest")`.
    """
    n, h, w, c = tf.unstack(tf.shape(coarse))
    cells = tf.reshape(fine, tf.stack([n * h, 2, w, 2, c])) + tf.reshape(
        coarse, tf.stack([n * h, 1, w, 1, c])
    )
    return tf.ensure_shape(tf.reshape(cells, tf.stack([n, 2 * h, 2 * w, c])), fine.shape)


def linear(x: tf.Tensor, out: _Int) -> tf.Tensor:
    """Linear resize of `x` [L,C] to [out,C] along its first axis, same dtype; of the same length it is unchanged.

    Equal to `F.interpolate(mode="linear", align_corners=False)` of the transposed table. 16-bit values are
    computed in float32.

    Raises TypeError for tables that are not of floating point.
    """
    x, dtype = _checked(x)
    neighbours, fractions = _linear_taps(tf.shape(x)[0], tf.cast(out, tf.int32), x.dtype)
    low, high = (tf.gather(x, neighbours[i]) for i in (0, 1))
    return tf.cast(low + (high - low) * fractions[:, tf.newaxis], dtype)


def bicubic(x: tf.Tensor, out_h: _Int, out_w: _Int) -> tf.Tensor:
    """Bicubic resize (a = -0.75, edges clamped) of `x` [N,H,W,C] to [N,out_h,out_w,C], same dtype.

    Equal to `F.interpolate(mode="bicubic", align_corners=False)`; not to tf.image.resize, whose a is -0.5.
    16-bit maps are computed in float32.

    Raises TypeError for maps that are not of floating point.
    """
    x, dtype = _checked(x)
    wide = _weighted_lines(x, *cubic_taps(tf.shape(x)[2], tf.cast(out_w, tf.int32), x.dtype), axis=2)
    tall = _weighted_lines(wide, *cubic_taps(tf.shape(x)[1], tf.cast(out_h, tf.int32), x.dtype), axis=1)
    return tf.cast(tall, dtype)


def _checked(x: tf.Tensor) -> tuple[tf.Tensor, tf.DType]:
    """The map in the dtype of the computation, and its own dtype."""
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating:
        raise TypeError(f"interpolation needs maps of floating point, got {x.dtype.name}; cast first")
    return (x if x.dtype == tf.float64 else tf.cast(x, tf.float32)), x.dtype


def _power_of_two(n_in: tf.Tensor, n_out: tf.Tensor) -> tf.Tensor:
    """Whether n_out is n_in times 1, 2, 4, 8, 16 or 32."""
    return tf.reduce_any(n_out == n_in * tf.constant([1, 2, 4, 8, 16, 32]))


def _bilinear_gather(x: tf.Tensor, out_h: tf.Tensor, out_w: tf.Tensor) -> tf.Tensor:
    """Bilinear in chunks of output rows: the input rows of a chunk are first resized along the columns."""
    batch, height, width, channels = tf.unstack(tf.shape(x))
    neighbours, fractions = _linear_taps(height, out_h, x.dtype)
    low, high = neighbours[0], neighbours[1]
    columns = _linear_taps(width, out_w, x.dtype)
    row_size = batch * tf.maximum(width, out_w) * channels * (1 + (height - 1) // out_h)
    chunk = tf.clip_by_value(_CHUNK_ELEMENTS // tf.maximum(row_size, 1), 1, out_h)

    def resize_chunk(start: tf.Tensor) -> tf.Tensor:
        part = slice(start, start + chunk)
        first = low[start]
        wide = _between_lines(x[:, first : high[part][-1] + 1], *columns, axis=2)
        rows = _between_lines(wide, tf.stack([low[part], high[part]]) - first, fractions[part], axis=1)
        return tf.transpose(rows, [1, 0, 2, 3])  # [rows,N,out_w,C]

    parts = tf.TensorArray(
        x.dtype, size=(out_h + chunk - 1) // chunk, infer_shape=False, element_shape=[None] * 4
    )
    _, parts = tf.while_loop(
        lambda step, _: step * chunk < out_h,
        lambda step, parts: (step + 1, parts.write(step, resize_chunk(step * chunk))),
        (0, parts),
        parallel_iterations=_PARALLEL_CHUNKS,
    )
    return tf.transpose(parts.concat(), [1, 0, 2, 3])


def _fused(a: tf.Tensor | float, b: tf.Tensor, c: tf.Tensor | float) -> tf.Tensor:
    """a*b + c of b's dtype, rounded once for float32 (a product of two float32 is exact in float64)."""
    if b.dtype == tf.float64:
        return a * b + c
    return tf.cast(tf.cast(a, tf.float64) * tf.cast(b, tf.float64) + tf.cast(c, tf.float64), b.dtype)


def _source_positions(n_in: tf.Tensor, n_out: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """(j+0.5)*in/out - 0.5 for every output pixel j, in `dtype`: [n_out]."""
    scale = tf.cast(n_in, dtype) / exact_constant(n_out, dtype)
    return _fused(scale, tf.cast(tf.range(n_out), dtype) + 0.5, -0.5)


def _linear_taps(n_in: tf.Tensor, n_out: tf.Tensor, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """Indices [2,n_out] int32 of the two neighbours, and the way [n_out] from the first to the second."""
    source = tf.maximum(_source_positions(n_in, n_out, dtype), 0)
    lower = tf.minimum(tf.cast(tf.floor(source), tf.int32), n_in - 1)
    fraction = tf.clip_by_value(source - tf.cast(lower, dtype), 0, 1)
    return tf.stack([lower, tf.minimum(lower + 1, n_in - 1)]), fraction


def cubic_taps(n_in: tf.Tensor, n_out: tf.Tensor, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """Indices [4,n_out] int32, clamped to the edge, and weights [4,n_out] of the four neighbours."""
    source = _source_positions(n_in, n_out, dtype)  # not clamped: torch clamps indices only
    lower = tf.floor(source)
    t = source - lower
    # A plain (1 - t) + 1 would be folded to 2 - t by the graph optimiser, which rounds differently.
    far = _fused(1.0, 1 - t, 1.0)
    weights = tf.stack([_cubic_outer(t + 1), _cubic_inner(t), _cubic_inner(1 - t), _cubic_outer(far)])
    index = tf.cast(lower, tf.int32) + tf.range(-1, 3)[:, tf.newaxis]
    return tf.clip_by_value(index, 0, n_in - 1), weights


def _cubic_inner(d: tf.Tensor) -> tf.Tensor:
    """Weight at distance d <= 1: (a+2)d^3 - (a+3)d^2 + 1."""
    return _fused(_fused(_CUBIC_A + 2, d, -(_CUBIC_A + 3)) * d, d, 1.0)


def _cubic_outer(d: tf.Tensor) -> tf.Tensor:
    """Weight at distance 1 < d <= 2: a(d^3 - 5d^2 + 8d - 4)."""
    return _fused(_fused(_fused(_CUBIC_A, d, -5 * _CUBIC_A), d, 8 * _CUBIC_A), d, -4 * _CUBIC_A)


def _between_lines(x: tf.Tensor, index: tf.Tensor, fraction: tf.Tensor, axis: int) -> tf.Tensor:
    """Lines of `x` along `axis` (1 or 2), each between the two of index[:, line], `fraction` on the way."""
    fraction = fraction[:, tf.newaxis] if axis == 2 else fraction[:, tf.newaxis, tf.newaxis]
    low = tf.gather(x, index[0], axis=axis)
    return low + (tf.gather(x, index[1], axis=axis) - low) * fraction


def _weighted_lines(x: tf.Tensor, index: tf.Tensor, weights: tf.Tensor, axis: int) -> tf.Tensor:
    """Sum over taps of weights[tap] * x taken at index[tap] along `axis` (1 or 2), in tap order."""
    weights = weights[:, :, tf.newaxis] if axis == 2 else weights[:, :, tf.newaxis, tf.newaxis]
    total = tf.gather(x, index[0], axis=axis) * weights[0]
    for line, weight in zip(tf.unstack(index)[1:], tf.unstack(weights)[1:], strict=True):
        total = total + tf.gather(x, line, axis=axis) * weight
    return total
