"""Features at points, and the points a mask is least sure of: what PointRend samples and refines.

Points are (x, y) in [0, 1] of the box or map they belong to; cell j of a map of n cells has its centre at
``(j + 0.5) / n``. Coordinates are float32, also of 16-bit maps, and float64 in float64 models (but those of
:func:`uncertain_points`, which detectron2 rounds to float32 in any case).

Source: projects/PointRend/point_rend/point_features.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_d2.ops.exact import exact_constant


def regular_grid(side: int, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Centres of ``side * side`` cells, x fastest: ``[side * side, 2]``.

    torch's ``affine_grid`` is within one bit of this; which bit depends on the processor it runs on.
    """
    centres = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(centres, centres)
    return tf.constant(np.stack([x.ravel(), y.ravel()], axis=1), dtype)


def points_in_image(points: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """``[R, P, 2]`` in [0, 1] of boxes ``[R, 4]`` xyxy -> ``[R, P, 2]`` in pixels.

    Width and height are rounded as the boxes are, which are float32 in float64 models, too.
    """
    extent = tf.cast(boxes[:, None, 2:] - boxes[:, None, :2], points.dtype)
    return points * extent + tf.cast(boxes[:, None, :2], points.dtype)


def sample_points(maps: tf.Tensor, points: tf.Tensor, map_index: tf.Tensor) -> tf.Tensor:
    """Bilinear samples of maps ``[B, H, W, C]`` at ``points`` ``[R, P, 2]``: ``[R, P, C]`` in the dtype of the maps.

    Row r looks at map ``map_index[r]``. A point lies at pixel ``p * size - 0.5``; what is outside of the map is zero.
    Equal to ``F.grid_sample(map, 2 * points - 1, align_corners=False)``, whose rounding of the position is kept.
    """
    accurate = tf.float64 if maps.dtype == tf.float64 else tf.float32
    n, height, width, _ = tf.unstack(tf.shape(maps))
    size = tf.stack([width, height])
    position = _positions(tf.cast(points, accurate), size)
    low = tf.floor(position)
    high_part = position - low  # what the neighbour at the right or below weighs
    low_part = 1 - high_part
    corner = tf.cast(low, tf.int32)
    flat = tf.reshape(maps, tf.stack([n * height * width, tf.shape(maps)[3]]))
    first = map_index[:, None] * height
    total: tf.Tensor | None = None
    for down in (0, 1):
        for right in (0, 1):
            x, y = corner[:, :, 0] + right, corner[:, :, 1] + down
            weight = (high_part if right else low_part)[:, :, 0] * (high_part if down else low_part)[:, :, 1]
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            weight = tf.where(inside, weight, tf.zeros([], accurate))
            row = first + tf.clip_by_value(y, 0, height - 1)
            value = tf.gather(flat, row * width + tf.clip_by_value(x, 0, width - 1))
            part = tf.cast(value, accurate) * weight[:, :, None]
            total = part if total is None else total + part
    assert total is not None
    return tf.cast(tf.ensure_shape(total, [None, None, maps.shape[3]]), maps.dtype)


def _positions(points: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """``((2 p - 1) + 1) * size / 2 - 0.5``, the last product and difference rounded once, a pixel beyond at most."""
    shifted = (2 * points - 1) + exact_constant(1.0, points.dtype)
    wide = tf.cast(shifted, tf.float64) * (tf.cast(size, tf.float64) / 2) - 0.5
    return tf.cast(tf.clip_by_value(wide, -2, tf.cast(size, tf.float64) + 1), points.dtype)


def sample_in_boxes(
    features: Sequence[tf.Tensor],
    strides: Sequence[int],
    boxes: tf.Tensor,
    image_index: tf.Tensor,
    points: tf.Tensor,
) -> tf.Tensor:
    """Features of several levels at points of boxes, levels side by side: ``[R, P, sum of C]``.

    Args:
        features: maps ``[B, H, W, C]`` of the padded images.
        strides: pixels of the network input per cell of each map.
        boxes: ``[R, 4]`` xyxy, pixels of the network input; ``image_index`` ``[R]`` tells the image.
        points: ``[R, P, 2]`` in [0, 1] of each box.

    Source: ``point_sample_fine_grained_features``.
    """
    in_image = points_in_image(points, boxes)
    sampled = []
    for feature, stride in zip(features, strides, strict=True):
        extent = tf.cast(tf.shape(feature)[2:0:-1] * stride, in_image.dtype)
        sampled.append(sample_points(feature, in_image / extent, image_index))
    return tf.concat(sampled, axis=-1)


def uncertain_points(uncertainty: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The most uncertain cells of maps ``[R, H, W]``, or all if there are fewer than ``count``.

    Returns int32 ``[R, n]``, indices of the flattened maps by descending uncertainty (of equals the lower index
    first; torch leaves their order open), and float32 ``[R, n, 2]``, the cells' centres (x, y) in [0, 1].

    Source: ``get_uncertain_point_coords_on_grid``.
    """
    n, height, width = tf.unstack(tf.shape(uncertainty))
    flat = tf.reshape(uncertainty, tf.stack([n, height * width]))
    index = tf.math.top_k(flat, tf.minimum(height * width, count)).indices
    cell = tf.stack([index % width, index // width], axis=-1)
    step = tf.cast(1 / tf.cast(tf.stack([width, height]), tf.float64), tf.float32)
    return index, step / 2 + tf.cast(cell, tf.float32) * step


def replace_at(maps: tf.Tensor, index: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Maps ``[R, H, W, C]`` with ``values`` ``[R, n, C]`` in the cells ``index`` (``[R, n]``, of the flattened map)."""
    n, height, width, channels = tf.unstack(tf.shape(maps))
    cells = index + tf.range(n)[:, None] * (height * width)
    flat = tf.reshape(maps, tf.stack([n * height * width, channels]))
    replaced = tf.tensor_scatter_nd_update(flat, cells[:, :, None], values)
    return tf.ensure_shape(tf.reshape(replaced, tf.shape(maps)), maps.shape)
