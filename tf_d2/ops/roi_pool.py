"""ROIPool: the maximum of the feature cells in each bin of a region of interest.

Corners are scaled and rounded half away from zero to whole cells, both ends inclusive: width = end - start
+ 1, at least 1. Bin p covers the cells floor(p * width / P) .. ceil((p + 1) * width / P) - 1 from the
start, cut to the map; an empty bin is 0.

A maximum is separable: first over the rows of every bin, then over its columns.

Source: torchvision/csrc/ops/cpu/roi_pool_kernel.cpp; detectron2/modeling/poolers.py at 02b5c4e2.
"""

from collections.abc import Callable

import tensorflow as tf

from tf_d2.ops.exact import exact_constant


def roi_pool(
    features: tf.Tensor, boxes: tf.Tensor, image_index: tf.Tensor, output_size: int, spatial_scale: float
) -> tf.Tensor:
    """Max-pool every box from a feature map.

    Args:
        features: `[B,H,W,C]`, any floating dtype.
        boxes: `[N,4]` xyxy in pixels of the network input, finite; computed in the dtype of
            `features`, at least float32.
        image_index: int `[N]`, the image of the batch each box lies in.
        output_size: bins per side, P.
        spatial_scale: cells per pixel, 1 / stride.

    Returns:
        `[N,P,P,C]`, dtype of `features`.

    Source: torchvision `RoIPool`, used by detectron2's ROIPooler for POOLER_TYPE "ROIPool".
    """
    features, image_index = tf.convert_to_tensor(features), tf.cast(image_index, tf.int32)
    accurate = tf.float64 if features.dtype == tf.float64 else tf.float32
    corners = _round_half_away(tf.cast(boxes, accurate) * tf.cast(spatial_scale, accurate))
    rows, empty_rows = _bins(corners[:, 1], corners[:, 3], tf.shape(features)[1], output_size)
    columns, empty_columns = _bins(corners[:, 0], corners[:, 2], tf.shape(features)[2], output_size)
    empty = empty_rows[:, :, tf.newaxis] | empty_columns[:, tf.newaxis, :]  # [N,P,P]
    count = tf.shape(boxes)[0]
    shape = [output_size, output_size, features.shape[3]]

    def pool(i: tf.Tensor) -> tf.Tensor:
        y, x = rows(i), columns(i)  # [P,K]: the cells of each bin, the last one repeated
        left = tf.reduce_min(x)
        cells = features[image_index[i], :, left : tf.reduce_max(x) + 1]
        bands = tf.reduce_max(tf.gather(cells, y), axis=1)  # [P,w,C]
        pooled = tf.reduce_max(tf.gather(bands, x - left, axis=1), axis=2)  # [P,P,C]
        return tf.where(empty[i][:, :, tf.newaxis], tf.zeros([], features.dtype), pooled)

    pooled = tf.TensorArray(features.dtype, size=count, infer_shape=False, element_shape=shape)
    _, pooled = tf.while_loop(
        lambda i, _: i < count, lambda i, pooled: (i + 1, pooled.write(i, pool(i))), (0, pooled)
    )
    nothing = tf.stack([0, output_size, output_size, tf.shape(features)[3]])
    return tf.cond(count > 0, pooled.stack, lambda: tf.zeros(nothing, features.dtype))


def _round_half_away(x: tf.Tensor) -> tf.Tensor:
    """C's round(): 0.5 -> 1, -0.5 -> -1 (tf.round goes to the even neighbour)."""
    whole = tf.floor(tf.abs(x))
    return tf.sign(x) * tf.where(tf.abs(x) - whole >= 0.5, whole + 1, whole)


def _bins(
    start: tf.Tensor, end: tf.Tensor, limit: tf.Tensor, bins: int
) -> tuple[Callable[[tf.Tensor], tf.Tensor], tf.Tensor]:
    """One axis of all regions: box number -> cells [P,K] of its bins (valid also for empty bins); emptiness
    [N,P]."""
    size = tf.maximum(end - start + 1, 1) / exact_constant(bins, start.dtype)  # [N] cells per bin
    bin_number = tf.cast(tf.range(bins), start.dtype)
    top = tf.cast(limit, start.dtype)
    first = tf.floor(bin_number * size[:, tf.newaxis]) + start[:, tf.newaxis]  # [N,P]
    stop = tf.math.ceil((bin_number + 1) * size[:, tf.newaxis]) + start[:, tf.newaxis]
    first = tf.cast(tf.clip_by_value(first, 0, top), tf.int32)
    stop = tf.cast(tf.clip_by_value(stop, 0, top), tf.int32)

    def cells(i: tf.Tensor) -> tf.Tensor:
        longest = tf.maximum(tf.reduce_max(stop[i] - first[i]), 1)
        index = tf.minimum(first[i][:, tf.newaxis] + tf.range(longest), stop[i][:, tf.newaxis] - 1)
        return tf.clip_by_value(index, 0, limit - 1)

    return cells, stop <= first
