"""Axis-aligned boxes: decoding of regression deltas, clipping, sizes, levels.

Boxes are float32 ``[..., 4]`` in (x1, y1, x2, y2) order, in pixels of the network input, where the pixel
(i, j) covers ``[j, j + 1] x [i, i + 1]``; a width is ``x2 - x1`` without a ``+ 1``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from tf_d2.ops.elementary import exp
from tf_d2.ops.exact import exact_constant

# detectron2 limits the growth of a box to 1000 / 16 times its anchor, so that a wild delta cannot overflow
# exp(). The limit applies after the division by the weight, and only from above.
DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)


def apply_deltas(
    deltas: tf.Tensor, boxes: tf.Tensor, weights: Sequence[float], *, plus_one: bool = False
) -> tf.Tensor:
    """Decode (dx, dy, dw, dh) regression deltas against reference boxes.

    With size ``(w, h)`` and centre ``c`` of the reference: centre ``= d_xy / weight * (w, h) + c`` and size
    ``= exp(min(d_wh / weight, ln(1000/16))) * (w, h)``. Always float32, whatever the dtype of ``deltas``; NaN
    propagates; the result is not clipped.

    Args:
        deltas: ``[N, 4 k]``, class-major: class i has columns ``4 i .. 4 i + 3``.
        boxes: ``[N, 4]`` xyxy pixels.
        weights: the four divisors of (dx, dy, dw, dh).
        plus_one: x2 and y2 name the last pixel inside: a width is ``x2 - x1 + 1``, a centre ``x1 + w / 2``, and the
            decoded x2 is ``centre + w / 2 - 1`` (Detectron, maskrcnn-benchmark).

    Returns:
        ``[N, 4 k]`` float32 xyxy pixels.

    Source: detectron2/modeling/box_regression.py ``Box2BoxTransform.apply_deltas``; ``plus_one``:
    detectron/utils/boxes.py
    ``bbox_transform``, maskrcnn_benchmark/modeling/box_coder.py ``BoxCoder.decode``.
    """
    deltas = tf.cast(deltas, tf.float32)
    boxes = tf.cast(boxes, tf.float32)
    columns = deltas.shape[-1]
    shape = tf.shape(deltas)
    deltas = tf.reshape(deltas, [shape[0], columns // 4 if columns else -1, 4])  # [N, k, 4]
    x1, y1, x2, y2 = tf.unstack(boxes[:, None, :], axis=-1)  # [N, 1]
    width, height = x2 - x1, y2 - y1
    if plus_one:
        width, height = width + 1.0, height + 1.0
    centre_x, centre_y = x1 + 0.5 * width, y1 + 0.5 * height
    wx, wy, ww, wh = (exact_constant(float(w), tf.float32) for w in weights)
    dx, dy, dw, dh = tf.unstack(deltas, axis=-1)  # [N, k]
    dx, dy = dx / wx, dy / wy
    dw, dh = _clamp_above(dw / ww, DEFAULT_SCALE_CLAMP), _clamp_above(dh / wh, DEFAULT_SCALE_CLAMP)
    new_x, new_y = dx * width + centre_x, dy * height + centre_y
    half_w, half_h = 0.5 * (exp(dw) * width), 0.5 * (exp(dh) * height)
    right, bottom = new_x + half_w, new_y + half_h
    if plus_one:
        right, bottom = right - 1.0, bottom - 1.0
    decoded = tf.stack([new_x - half_w, new_y - half_h, right, bottom], axis=-1)
    return tf.reshape(decoded, shape)


def apply_linear_deltas(deltas: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Decode distances (l, t, r, b) from the centres of square reference boxes to the four edges.

    Distances are in units of the reference's size, and none is negative: ``max(d, 0)`` counts. Always float32.

    Args:
        deltas, boxes: ``[N, 4]``, boxes xyxy pixels.

    Source: detectron2/modeling/box_regression.py ``Box2BoxTransformLinear.apply_deltas``.
    """
    x1, y1, x2, y2 = tf.unstack(tf.cast(boxes, tf.float32), axis=1)
    size = tf.stack([x2 - x1, y2 - y1], axis=1)
    centre = tf.stack([0.5 * (x1 + x2), 0.5 * (y1 + y2)], axis=1)
    distances = tf.nn.relu(tf.cast(deltas, tf.float32))
    return tf.concat([centre - distances[:, :2] * size, centre + distances[:, 2:] * size], axis=1)


def _clamp_above(x: tf.Tensor, limit: float) -> tf.Tensor:
    """min(x, limit) that keeps NaN, as torch.clamp does (tf.minimum's NaN handling differs by device)."""
    return tf.where(x > limit, tf.constant(limit, x.dtype), x)


def clip(boxes: tf.Tensor, height: tf.Tensor, width: tf.Tensor, *, last_pixel: bool = False) -> tf.Tensor:
    """Clip ``[..., 4]`` boxes to an image: x to [0, width], y to [0, height].

    ``height`` and ``width`` are in the pixels of the boxes and broadcast against ``boxes[..., 0]``.
    ``last_pixel``: to
    [0, width - 1] and [0, height - 1].
    Source: detectron2/structures/boxes.py ``Boxes.clip``; ``last_pixel``: detectron/utils/boxes.py
    ``clip_tiled_boxes``.
    """
    h, w = tf.cast(height, boxes.dtype), tf.cast(width, boxes.dtype)
    if last_pixel:
        h, w = h - 1, w - 1
    limit = tf.stack([w, h, w, h], axis=-1)
    return tf.minimum(tf.maximum(boxes, 0), limit)


def nonempty(boxes: tf.Tensor, threshold: float = 0.0) -> tf.Tensor:
    """``[N, 4]`` boxes -> bool ``[N]``: width and height both strictly above ``threshold`` pixels.

    Source: detectron2/structures/boxes.py ``Boxes.nonempty``.
    """
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    width, height = x2 - x1, y2 - y1
    return (width > threshold) & (height > threshold)


def at_least(boxes: tf.Tensor, min_size: float, factor: tf.Tensor | None = None) -> tf.Tensor:
    """``[N, 4]`` boxes whose x2, y2 name the last pixel -> bool ``[N]``: both sides of ``min_size`` pixels or more.

    A side is ``(x2 - x1) / factor + 1``: ``factor`` (float32 scalar, pixels of the boxes per pixel of the picture)
    brings it to the picture's pixels, where Detectron counts and takes 1 for any smaller minimum.

    Source: detectron/ops/generate_proposals.py ``_filter_boxes`` (its second test, of centres, holds for clipped
    boxes); without ``factor`` maskrcnn_benchmark/structures/boxlist_ops.py ``remove_small_boxes``.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    if factor is not None:
        size, min_size = size / factor, max(min_size, 1.0)
    return tf.reduce_all(size + 1.0 >= min_size, axis=1)


def assign_levels(
    boxes: tf.Tensor,
    min_level: int,
    max_level: int,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    *,
    plus_one: bool = False,
    epsilon: float = 1e-8,
) -> tf.Tensor:
    """The pyramid level each box is pooled from, as an index into the levels ``min_level .. max_level``.

    ``floor(canonical_level + log2(sqrt(area) / canonical_size + 1e-8))`` in float32, clamped. The epsilon
    stands inside the logarithm: it vanishes next to 1 but sends empty boxes to the lowest level. A box with
    a negative area has no level: -1 (its pooled features are zero in detectron2).

    Args:
        boxes: ``[N, 4]`` xyxy, pixels of the network input.
        plus_one: sides are ``x2 - x1 + 1``.
        epsilon: 1e-6 in Detectron and maskrcnn-benchmark.

    Returns:
        int32 ``[N]``.

    Source: detectron2/modeling/poolers.py ``assign_boxes_to_levels``; the older ones: detectron/modeling/FPN.py
    ``map_rois_to_fpn_levels``, maskrcnn_benchmark/modeling/poolers.py ``LevelMapper``.
    """
    boxes = tf.cast(boxes, tf.float32)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = (width + 1.0) * (height + 1.0) if plus_one else width * height
    ratio = tf.sqrt(area) / exact_constant(canonical_size, tf.float32) + epsilon
    level = tf.floor(canonical_level + log2(ratio))
    level = tf.clip_by_value(level, float(min_level), float(max_level)) - min_level
    return tf.where(area >= 0, tf.cast(tf.where(area >= 0, level, 0.0), tf.int32), -1)


def log2(x: tf.Tensor) -> tf.Tensor:
    """Base-2 logarithm, correctly rounded at powers of two (where a level boundary lies)."""
    wide = tf.cast(x, tf.float64)
    return tf.cast(tf.math.log(wide) / tf.cast(math.log(2.0), tf.float64), x.dtype)
