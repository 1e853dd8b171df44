"""Resizing the input image exactly as detectron2's ResizeShortestEdge does (uint8: Pillow's bilinear filter).

Pillow's 8-bit resampling is a separable triangle filter with 22-bit fixed-point weights and a uint8 picture
between the two passes. Every product and sum below is an integer multiple of 2**-22 smaller than 2**8,
which float64 holds exactly, so the matrix products may be evaluated in any order, on any device, under any
fast-math setting for float32, and still give Pillow's bytes.

Source: detectron2/data/transforms/{augmentation_impl,transform}.py at 02b5c4e2; Pillow
src/libImaging/Resample.c.
"""

import math

import tensorflow as tf

from tf_d2.ops.elementary import reciprocal
from tf_d2.ops.exact import exact_constant
from tf_d2.ops.interpolate import bilinear
from weights.errors import UsageError

_WEIGHT_BITS = 22  # Pillow's PRECISION_BITS for 8-bit images: 32 - 8 - 2
_CHUNK_ELEMENTS = 1 << 19  # gathered float64 values per step: 4 MB; 2 MB to 8 MB are equally fast
_PARALLEL_CHUNKS = 2  # bounds the memory to two chunks
MAX_CHANNELS_UINT8 = 4

_Int = int | tf.Tensor


def shortest_edge_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Network input size (new_h, new_w): shorter side `min_size` pixels, longer side at most `max_size`.

    `min_size` 0 means no resizing (and `max_size` is then ignored). A very elongated image may get a side
    of 0 pixels (1x5000 at 800/1333 gives 0x1333), which `resize_uint8` refuses as Pillow does. The float64
    operations and their order are detectron2's: exact rational arithmetic gives other integers for about
    0.02 % of sizes.

    Raises ValueError for a side below 1 or a negative limit.
    Source: ResizeShortestEdge.get_output_shape, detectron2/data/transforms/augmentation_impl.py.
    """
    if height < 1 or width < 1 or min_size < 0 or max_size < 0:
        raise UsageError(
            f"cannot resize a {height}x{width} image to shortest side {min_size}, longest {max_size}: "
            "image sides must be at least 1 pixel and limits not negative"
        )
    if min_size == 0:
        return int(height), int(width)
    scale = float(min_size) / min(height, width)
    new_h, new_w = (float(min_size), scale * width) if height < width else (scale * height, float(min_size))
    if max(new_h, new_w) > max_size:
        shrink = float(max_size) / max(new_h, new_w)
        new_h, new_w = new_h * shrink, new_w * shrink
    return math.floor(new_h + 0.5), math.floor(new_w + 0.5)


def shortest_edge_size_tf(
    height: _Int, width: _Int, min_size: _Int, max_size: _Int
) -> tuple[tf.Tensor, tf.Tensor]:
    """`shortest_edge_size` as TensorFlow ops: int32 scalars in, int32 scalars out, the same integers.

    Source: ResizeShortestEdge.get_output_shape, detectron2/data/transforms/augmentation_impl.py.
    """
    h, w, short, longest = (exact_constant(v, tf.float64) for v in (height, width, min_size, max_size))
    scale = short / tf.minimum(h, w)
    new_h = tf.where(h < w, short, scale * h)
    new_w = tf.where(h < w, scale * w, short)
    larger = tf.maximum(new_h, new_w)
    # A factor of exactly 1 leaves both unchanged, as the branch that is not taken would.
    shrink = tf.where(larger > longest, longest / larger, tf.ones_like(larger))
    resized = tf.cast(tf.floor(tf.stack([new_h * shrink, new_w * shrink]) + 0.5), tf.int32)
    size = tf.where(short > 0, resized, tf.cast(tf.stack([height, width]), tf.int32))
    return size[0], size[1]


def resize_factor(height: _Int, width: _Int, scale: _Int, max_size: _Int) -> tf.Tensor:
    """The one factor by which Detectron resizes both sides: float64 scalar.

    ``s = scale / shorter side``; if ``round(s * longer side)`` (halves to even) is above ``max_size``, then
    ``max_size / longer side``. Source: detectron/utils/blob.py ``prep_im_for_blob``.
    """
    h, w, short, longest = (exact_constant(v, tf.float64) for v in (height, width, scale, max_size))
    smaller, larger = tf.minimum(h, w), tf.maximum(h, w)
    factor = short / smaller
    return tf.where(tf.round(factor * larger) > longest, longest / larger, factor)


def factor_size(height: _Int, width: _Int, factor: tf.Tensor) -> tf.Tensor:
    """int32 ``[2]`` (height, width) of an image resized by ``factor``: rounded, halves to even."""
    sides = tf.stack([exact_constant(height, tf.float64), exact_constant(width, tf.float64)])
    return tf.cast(tf.round(sides * factor), tf.int32)


def truncated_edge_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) as maskrcnn-benchmark resizes: the longer side is cut to a whole number, not rounded.

    Source: maskrcnn-benchmark demo/predictor.py ``Resize.get_size``, data/transforms/transforms.py.
    """
    short, longer = min(height, width), max(height, width)
    size = min_size
    if float(longer) / float(short) * size > max_size:
        size = round(max_size * float(short) / float(longer))
    if short == size:
        return height, width
    longer = int(size * longer / short)
    return (longer, size) if width < height else (size, longer)


def truncated_edge_size_tf(
    height: _Int, width: _Int, min_size: _Int, max_size: _Int
) -> tuple[tf.Tensor, tf.Tensor]:
    """`truncated_edge_size` as TensorFlow ops: int32 scalars in, int32 scalars out, the same integers."""
    h, w, least, most = (exact_constant(v, tf.float64) for v in (height, width, min_size, max_size))
    short, longer = tf.minimum(h, w), tf.maximum(h, w)
    size = tf.where(longer / short * least > most, tf.round(most * short / longer), least)
    stretched = tf.where(short == size, longer, tf.floor(size * longer / short))
    new = tf.where(w < h, tf.stack([stretched, size]), tf.stack([size, stretched]))
    return tf.cast(new[0], tf.int32), tf.cast(new[1], tf.int32)


def resize_by_factor(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Resize `image` [H,W,C] bilinearly by one factor, as OpenCV does given ``fx`` and ``fy``: float32 [H',W',C].

    ``H' = round(H * factor)`` (halves to even). Output pixel i lies at ``(i + 0.5) / factor - 0.5`` of the
    input, with the exact factor and not the quotient of the sides; edges are repeated; nothing is
    antialiased, nothing rounded to whole levels. Computed in float64, which agrees with OpenCV's float32 to
    1e-5 levels. Detectron subtracts the mean before, which is the same to rounding, as the weights of a pixel
    sum to 1.

    Source: detectron/utils/blob.py ``prep_im_for_blob``; OpenCV ``resize``, INTER_LINEAR.
    """
    shape = tf.shape(image)
    size = factor_size(shape[0], shape[1], factor)
    wide = tf.cast(image, tf.float64)
    for axis in (0, 1):
        position = (tf.cast(tf.range(size[axis]), tf.float64) + 0.5) / factor - 0.5
        cell = tf.floor(position)
        index = tf.clip_by_value(tf.cast(cell, tf.int32) + tf.constant([[0], [1]]), 0, shape[axis] - 1)
        fraction = position - cell
        fraction = fraction[:, None, None] if axis == 0 else fraction[None, :, None]
        lower = tf.gather(wide, index[0], axis=axis)
        wide = lower * (1 - fraction) + tf.gather(wide, index[1], axis=axis) * fraction
    return tf.ensure_shape(tf.cast(wide, tf.float32), [None, None, image.shape[2]])


def resize_uint8(image: tf.Tensor, new_h: _Int, new_w: _Int) -> tf.Tensor:
    """Resize uint8 `image` [H,W,C] to uint8 [new_h,new_w,C], bit-equal to Pillow's `resize(..., BILINEAR)`.

    Coordinates: output pixel j is centred at (j+0.5)*in/out of the input, where pixel i covers [i,i+1]; the
    triangle has half-width max(in/out,1) (so it antialiases when shrinking) and is cut, and renormalised,
    at the border. C is 1 ("L"), 3 ("RGB"), 2 ("LA") or 4 ("RGBA"). To Pillow the last of 2 or 4 channels is an
    opacity, whatever it means to the model: the others are multiplied by it, resized, and divided again. The
    pass order, which shows in the rounding of single pixels by 1 level, is that of Pillow 13: horizontal
    first, unless the height shrinks by more than twice as many pixels as the width (portrait images of more
    than 2:1). Older Pillow always goes horizontally first. Sizes may be Python ints or int32 scalars; memory
    beyond input and output is bounded (about 50 MB; 2 and 4 channels: a few copies of both).

    Raises InvalidArgumentError when a side is empty, ValueError for another dtype or more channels.
    Source: ResizeTransform.apply_image, detectron2/data/transforms/transform.py; Pillow Resample.c.
    """
    image = tf.convert_to_tensor(image)
    if image.dtype != tf.uint8 or image.shape.rank != 3:
        raise UsageError(f"resize_uint8 takes a uint8 [H,W,C] image, got {image.dtype.name} {image.shape}")
    channels = image.shape[2]
    if channels is not None and channels > MAX_CHANNELS_UINT8:
        raise UsageError(
            f"resize_uint8 takes 1 to {MAX_CHANNELS_UINT8} channels, got {channels}: "
            "Pillow, and so detectron2, has no 8-bit picture of more; pass it as float32"
        )
    new_h, new_w = exact_constant(new_h, tf.int32), exact_constant(new_w, tf.int32)
    shape = tf.shape(image)
    sides = tf.stack([shape[0], shape[1], new_h, new_w])
    checks = [
        tf.debugging.Assert(tf.reduce_all(sides > 0), ["resize_uint8: a side is 0 (H,W,new_h,new_w)", sides]),
        tf.debugging.Assert(shape[2] <= MAX_CHANNELS_UINT8, ["resize_uint8: too many channels", shape[2]]),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        image = tf.identity(image)
    if channels in (1, 3):
        resized = _both_passes(image, new_h, new_w)
    else:
        changed = (shape[0] != new_h) | (shape[1] != new_w)
        resized = tf.cond(
            changed & (tf.math.floormod(shape[2], 2) == 0),
            lambda: _with_opacity(image, new_h, new_w),
            lambda: _both_passes(image, new_h, new_w),
        )
    return tf.ensure_shape(resized, [None, None, image.shape[2]])


def resize_float(image: tf.Tensor, new_h: _Int, new_w: _Int) -> tf.Tensor:
    """Resize a float16, float32 or float64 `image` [H,W,C] bilinearly, half-pixel centres, no antialiasing, dtype
    kept.

    What detectron2 does to arrays that are not uint8; it differs from `resize_uint8` when shrinking. float16 is
    computed in float32 and rounded once, as torch does for 3 channels and more (with 1 or 2 its kernel for large
    pictures rounds on the way: a fifth of the values differ by one step of float16). Integer types are refused
    as torch refuses them.
    Source: ResizeTransform.apply_image, detectron2/data/transforms/transform.py.
    """
    return bilinear(image[tf.newaxis], new_h, new_w)[0]


def _both_passes(image: tf.Tensor, new_h: tf.Tensor, new_w: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(image)
    return tf.cond(
        _vertical_first(shape[0], shape[1], new_h, new_w),
        lambda: _resize_columns(_resize_rows(image, new_h), new_w),
        lambda: _resize_rows(_resize_columns(image, new_w), new_h),
    )


def _with_opacity(image: tf.Tensor, new_h: tf.Tensor, new_w: tf.Tensor) -> tf.Tensor:
    """Pillow's resize of LA and RGBA: by way of La and RGBa, whose colours are multiplied by the last channel."""
    colours, opacity = tf.cast(image[:, :, :-1], tf.int32), image[:, :, -1:]
    product = colours * tf.cast(opacity, tf.int32) + 128
    product = (product + product // 256) // 256  # the nearest to product / 255
    image = _both_passes(tf.concat([tf.cast(product, tf.uint8), opacity], 2), new_h, new_w)
    colours, opacity = tf.cast(image[:, :, :-1], tf.int32), image[:, :, -1:]
    divisor = tf.cast(opacity, tf.int32)
    quotient = tf.minimum(255 * colours // tf.maximum(divisor, 1), 255)
    colours = tf.where((divisor == 0) | (divisor == 255), colours, quotient)
    return tf.concat([tf.cast(colours, tf.uint8), opacity], 2)


def _vertical_first(height: tf.Tensor, width: tf.Tensor, new_h: tf.Tensor, new_w: tf.Tensor) -> tf.Tensor:
    """Whether Pillow 13 runs the vertical pass first (its rule, tried on 24000 random shapes)."""
    return (new_h < height) & (height - new_h > 2 * (width - new_w))


def _resize_columns(image: tf.Tensor, new_w: tf.Tensor) -> tf.Tensor:
    """Horizontal pass, uint8 [H,W,C] -> [H,new_w,C]; an unchanged axis is passed through."""
    return tf.cond(tf.shape(image)[1] == new_w, lambda: image, lambda: _column_pass(image, new_w))


def _resize_rows(image: tf.Tensor, new_h: tf.Tensor) -> tf.Tensor:
    """Vertical pass, uint8 [H,W,C] -> [new_h,W,C]; an unchanged axis is passed through."""
    return tf.cond(tf.shape(image)[0] == new_h, lambda: image, lambda: _row_pass(image, new_h))


def _column_pass(image: tf.Tensor, new_w: tf.Tensor) -> tf.Tensor:
    """Rows in chunks, each turned so that its columns lead."""
    height, width, channels = tf.unstack(tf.shape(image))
    taps, weights = _taps(width, new_w)
    chunk = _chunk_length(tf.size(taps) * channels, height)

    def resize_chunk(start: tf.Tensor) -> tf.Tensor:
        rows = image[start : start + chunk]
        count = tf.shape(rows)[0]
        turned = tf.reshape(tf.transpose(rows, [1, 0, 2]), [width, count * channels])
        turned = tf.reshape(_weighted_sum(turned, taps, weights), [new_w, count, channels])
        return tf.transpose(turned, [1, 0, 2])  # [count,new_w,C]

    return _map_chunks(resize_chunk, height, chunk, [None, None, image.shape[2]])


def _row_pass(image: tf.Tensor, new_h: tf.Tensor) -> tf.Tensor:
    """Output rows in chunks."""
    height, width, channels = tf.unstack(tf.shape(image))
    flat = tf.reshape(image, [height, width * channels])
    taps, weights = _taps(height, new_h)
    chunk = _chunk_length(tf.shape(taps)[1] * width * channels, new_h)

    def resize_chunk(start: tf.Tensor) -> tf.Tensor:
        part = slice(start, start + chunk)
        return _weighted_sum(flat, taps[part], weights[part])

    resized = _map_chunks(resize_chunk, new_h, chunk, [None, None])
    return tf.reshape(resized, tf.stack([new_h, width, image.shape[2] or channels]))


def _taps(n_in: tf.Tensor, n_out: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Input indices [n_out,K] int32 and weights [n_out,1,K] float64 (multiples of 2**-22) of one axis.

    K is the largest number of taps of any output; shorter rows are filled with weight 0. Operations and
    their order are those of Pillow's precompute_coeffs and normalize_coeffs_8bpc.
    """
    scale = tf.cast(n_in, tf.float64) / tf.cast(n_out, tf.float64)
    support = tf.maximum(scale, 1.0)
    centre = (tf.cast(tf.range(n_out), tf.float64) + 0.5) * scale  # [n_out]
    first = tf.maximum(tf.cast(centre - support + 0.5, tf.int32), 0)
    stop = tf.minimum(tf.cast(centre + support + 0.5, tf.int32), n_in)
    index = first[:, tf.newaxis] + tf.range(tf.reduce_max(stop - first))  # [n_out,K]
    distance = (tf.cast(index, tf.float64) - centre[:, tf.newaxis] + 0.5) * reciprocal(support)
    weight = tf.maximum(1.0 - tf.abs(distance), 0.0)
    weight = tf.where(index < stop[:, tf.newaxis], weight, tf.zeros_like(weight))
    weight = weight * reciprocal(tf.reduce_sum(weight, axis=1, keepdims=True))
    quantised = tf.floor(weight * 2.0**_WEIGHT_BITS + 0.5) * 2.0**-_WEIGHT_BITS
    return tf.minimum(index, n_in - 1), quantised[:, tf.newaxis]


def _weighted_sum(rows: tf.Tensor, taps: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Rounded sum over K of weights [n,1,K] times uint8 rows[taps] [n,K,L]: uint8 [n,L]."""
    total = tf.matmul(weights, tf.cast(tf.gather(rows, taps), tf.float64))[:, 0]
    # Weights rounded up can sum to a little over 1, visibly so only with thousands of taps.
    return tf.cast(tf.minimum(total + 0.5, 255.0), tf.uint8)


def _chunk_length(elements_per_item: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    """How many items fit into one chunk, at least one."""
    return tf.clip_by_value(_CHUNK_ELEMENTS // elements_per_item, 1, items)


def _map_chunks(function, count: tf.Tensor, chunk: tf.Tensor, shape: list[int | None]) -> tf.Tensor:  # noqa: ANN001
    """Concatenation of function(0), function(chunk), ... below `count`, each a uint8 tensor of `shape`."""
    steps = (count + chunk - 1) // chunk
    parts = tf.TensorArray(tf.uint8, size=steps, infer_shape=False, element_shape=shape)
    _, parts = tf.while_loop(
        lambda step, _: step < steps,
        lambda step, parts: (step + 1, parts.write(step, function(step * chunk))),
        (0, parts),
        parallel_iterations=_PARALLEL_CHUNKS,
    )
    return parts.concat()
