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


def apply_deltas(deltas: tf.Tensor, boxes: tf.Tensor, weights: Sequence[float]) -> tf.Tensor:
    """Decode (dx, dy, dw, dh) regression deltas against reference boxes.

    With size ``(w, h)`` and centre ``c`` of the reference: centre ``= d_xy / weight * (w, h) + c`` and size
    ``= exp(min(d_wh / weight, ln(1000/16))) * (w, h)``. Always float32, whatever the dtype of ``deltas``; NaN
    propagates; the result is not clipped.

    Args:
        deltas: ``[N, 4 k]``, class-major: class i has columns ``4 i .. 4 i + 3``.
        boxes: ``[N, 4]`` xyxy pixels.
        weights: the four divisors of (dx, dy, dw, dh).

    Returns:
        ``[N, 4 k]`` float32 xyxy pixels.

    Source: detectron2/modeling/box_regression.py ``Box2BoxTransform.apply_deltas``.
    """
    deltas = tf.cast(deltas, tf.float32)
    boxes = tf.cast(boxes, tf.float32)
    columns = deltas.shape[-1]
    shape = tf.shape(deltas)
    deltas = tf.reshape(deltas, [shape[0], columns // 4 if columns else -1, 4])  # [N, k, 4]
    x1, y1, x2, y2 = tf.unstack(boxes[:, None, :], axis=-1)  # [N, 1]
    width, height = x2 - x1, y2 - y1
    centre_x, centre_y = x1 + 0.5 * width, y1 + 0.5 * height
    wx, wy, ww, wh = (exact_constant(float(w), tf.float32) for w in weights)
    dx, dy, dw, dh = tf.unstack(deltas, axis=-1)  # [N, k]
    dx, dy = dx / wx, dy / wy
    dw, dh = _clamp_above(dw / ww, DEFAULT_SCALE_CLAMP), _clamp_above(dh / wh, DEFAULT_SCALE_CLAMP)
    new_x, new_y = dx * width + centre_x, dy * height + centre_y
    half_w, half_h = 0.5 * (exp(dw) * width), 0.5 * (exp(dh) * height)
    decoded = tf.stack([new_x - half_w, new_y - half_h, new_x + half_w, new_y + half_h], axis=-1)
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


def clip(boxes: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """Clip ``[..., 4]`` boxes to an image: x to [0, width], y to [0, height].

    ``height`` and ``width`` are in the pixels of the boxes and broadcast against ``boxes[..., 0]``.
    Source: detectron2/structures/boxes.py ``Boxes.clip``.
    """
    h, w = tf.cast(height, boxes.dtype), tf.cast(width, boxes.dtype)
    limit = tf.stack([w, h, w, h], axis=-1)
    return tf.minimum(tf.maximum(boxes, 0), limit)


def nonempty(boxes: tf.Tensor, threshold: float = 0.0) -> tf.Tensor:
    """``[N, 4]`` boxes -> bool ``[N]``: width and height both strictly above ``threshold`` pixels.

    Source: detectron2/structures/boxes.py ``Boxes.nonempty``.
    """
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    width, height = x2 - x1, y2 - y1
    return (width > threshold) & (height > threshold)


def assign_levels(
    boxes: tf.Tensor,
    min_level: int,
    max_level: int,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> tf.Tensor:
    """The pyramid level each box is pooled from, as an index into the levels ``min_level .. max_level``.

    ``floor(canonical_level + log2(sqrt(area) / canonical_size + 1e-8))`` in float32, clamped. The epsilon
    stands inside the logarithm: it vanishes next to 1 but sends empty boxes to the lowest level. A box with
    a negative area has no level: -1 (its pooled features are zero in detectron2).

    Args:
        boxes: ``[N, 4]`` xyxy, pixels of the network input.

    Returns:
        int32 ``[N]``.

    Source: detectron2/modeling/poolers.py ``assign_boxes_to_levels``.
    """
    boxes = tf.cast(boxes, tf.float32)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    ratio = tf.sqrt(area) / exact_constant(canonical_size, tf.float32) + 1e-8
    level = tf.floor(canonical_level + log2(ratio))
    level = tf.clip_by_value(level, float(min_level), float(max_level)) - min_level
    return tf.where(area >= 0, tf.cast(tf.where(area >= 0, level, 0.0), tf.int32), -1)


def log2(x: tf.Tensor) -> tf.Tensor:
    """Base-2 logarithm, correctly rounded at powers of two (where a level boundary lies)."""
    wide = tf.cast(x, tf.float64)
    return tf.cast(tf.math.log(wide) / tf.cast(math.log(2.0), tf.float64), x.dtype)
