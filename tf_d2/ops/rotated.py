"""Rotated boxes: decoding, clipping, scaling, overlap, non-maximum suppression and ROIAlign.

A rotated box is (centre x, centre y, width, height, angle): pixels, and degrees counter-clockwise as seen
in an image (y points down). A point (u, v) of the box's own frame, relative to its centre, lies in the
image at x = centre x + u cos + v sin, y = centre y - u sin + v cos.

Source: detectron2/structures/rotated_boxes.py, modeling/box_regression.py, layers/nms.py and
layers/csrc/{box_iou_rotated,nms_rotated,ROIAlignRotated} at 02b5c4e2.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import tensorflow as tf

from tf_d2.ops.elementary import cos, exp, rank_key, sin
from tf_d2.ops.exact import exact_constant

DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)

_RADIANS = 0.01745329251  # the constant of detectron2's overlap code, 11 digits
_SLACK = 1e-5  # a point this far outside still counts as inside the other box
_MIN_AREA = 1e-14
# Sine of the angle below which two edges count as parallel. detectron2 asks for a cross product below 1e-14,
# which rounding defeats; the ends of such edges are found by the inside test anyway.
_PARALLEL = 1e-9


def apply_deltas(deltas: tf.Tensor, boxes: tf.Tensor, weights: Sequence[float]) -> tf.Tensor:
    """Decode (dx, dy, dw, dh, da) deltas [N,5k] against boxes [N,5]: [N,5k] in the dtype of `deltas`.

    Centre and size as for upright boxes (size factor at most 1000/16); da is in radians, is divided by its
    weight and added to the angle, which is then wrapped to [-180, 180).

    Source: Box2BoxTransformRotated.apply_deltas, detectron2/modeling/box_regression.py.
    """
    boxes = tf.cast(boxes, deltas.dtype)
    shape = tf.shape(deltas)
    grouped = tf.reshape(deltas, tf.stack([shape[0], shape[1] // 5, 5]))
    scaled = grouped / exact_constant(tf.constant(list(weights), deltas.dtype))
    dx, dy, dw, dh, da = tf.unstack(scaled, axis=-1)  # [N,k]
    centre_x, centre_y, width, height, angle = tf.unstack(boxes[:, tf.newaxis, :], axis=-1)  # [N,1]
    limit = tf.constant(DEFAULT_SCALE_CLAMP, deltas.dtype)
    degrees = da * 180.0 / exact_constant(math.pi, deltas.dtype)
    decoded = [
        dx * width + centre_x,
        dy * height + centre_y,
        exp(tf.where(dw > limit, limit, dw)) * width,  # a NaN stays one
        exp(tf.where(dh > limit, limit, dh)) * height,
        _wrap_angle(degrees + angle),
    ]
    return tf.ensure_shape(tf.reshape(tf.stack(decoded, axis=-1), shape), deltas.shape)


def _wrap_angle(degrees: tf.Tensor) -> tf.Tensor:
    """Degrees wrapped to [-180, 180); 180 becomes -180."""
    return tf.math.floormod(degrees + 180.0, 360.0) - 180.0


def clip(boxes: tf.Tensor, height: tf.Tensor, width: tf.Tensor, angle_threshold: float = 1.0) -> tf.Tensor:
    """Wrap all angles of [N,5] boxes, and cut boxes within `angle_threshold` degrees (inclusive) of upright.

    `height` and `width` are those of the image, scalars or [N], in the pixels of the boxes. A cut box keeps
    its angle and never grows; a more inclined one may reach out of the image.

    Source: RotatedBoxes.clip, detectron2/structures/rotated_boxes.py.
    """
    centre_x, centre_y, box_w, box_h, angle = tf.unstack(boxes, axis=-1)
    angle = _wrap_angle(angle)
    right, bottom = tf.cast(width, boxes.dtype), tf.cast(height, boxes.dtype)
    x1, x2 = (_limit(x, right) for x in (centre_x - box_w / 2, centre_x + box_w / 2))
    y1, y2 = (_limit(y, bottom) for y in (centre_y - box_h / 2, centre_y + box_h / 2))
    cut = [(x1 + x2) / 2, (y1 + y2) / 2, tf.minimum(box_w, x2 - x1), tf.minimum(box_h, y2 - y1), angle]
    kept = [centre_x, centre_y, box_w, box_h, angle]
    upright = tf.expand_dims(tf.abs(angle) <= angle_threshold, -1)
    return tf.where(upright, tf.stack(cut, axis=-1), tf.stack(kept, axis=-1))


def _limit(x: tf.Tensor, top: tf.Tensor) -> tf.Tensor:
    return tf.minimum(tf.maximum(x, tf.zeros([], x.dtype)), top)


def nonempty(boxes: tf.Tensor, threshold: float = 0.0) -> tf.Tensor:
    """[N,5] boxes -> bool [N]: width and height both strictly above `threshold` pixels.

    Source: RotatedBoxes.nonempty, detectron2/structures/rotated_boxes.py.
    """
    _, _, width, height, _ = tf.unstack(boxes, axis=-1)
    return (width > threshold) & (height > threshold)


def scale(boxes: tf.Tensor, scale_x: tf.Tensor | float, scale_y: tf.Tensor | float) -> tf.Tensor:
    """[N,5] boxes in an image stretched by `scale_x`, `scale_y` (scalars or [N]).

    The stretched box is a parallelogram; the result is the rectangle with its edge midpoints' distances and
    the angle of its stretched vertical axis.

    Source: RotatedBoxes.scale, detectron2/structures/rotated_boxes.py.
    """
    scale_x, scale_y = tf.cast(scale_x, boxes.dtype), tf.cast(scale_y, boxes.dtype)
    centre_x, centre_y, width, height, angle = tf.unstack(boxes, axis=-1)
    pi, half_turn = exact_constant(math.pi, boxes.dtype), exact_constant(180.0, boxes.dtype)
    theta = angle * pi / half_turn
    cosine, sine = cos(theta), sin(theta)
    scaled = [
        centre_x * scale_x,
        centre_y * scale_y,
        width * tf.sqrt(tf.square(scale_x * cosine) + tf.square(scale_y * sine)),
        height * tf.sqrt(tf.square(scale_x * sine) + tf.square(scale_y * cosine)),
        tf.atan2(scale_x * sine, scale_y * cosine) * half_turn / pi,
    ]
    return tf.stack(scaled, axis=-1)


def iou_rotated(boxes1: tf.Tensor, boxes2: tf.Tensor) -> tf.Tensor:
    """Intersection over union of rotated boxes, row by row: [M,5] and [M,5] (or [1,5]) -> float32 [M].

    The intersection is the hull of edge crossings and of corners inside the other box, with detectron2's
    slack of 1e-5 in these tests; computed in float64 from float32 boxes. detectron2 computes in float32: boxes
    of some pixels agree to about 1e-5, but of thin ones (a side below 1 pixel, angles half a turn or a full one
    apart) its own values are wrong, 0.55 or even 3.0 where 1.0 is right. Here they are right, and so
    `nms_rotated` may drop such a box where detectron2 keeps it. Boxes with an area below 1e-14 have no overlap.

    Source: single_box_iou_rotated, detectron2/layers/csrc/box_iou_rotated/box_iou_rotated_utils.h.
    """
    boxes1, boxes2 = tf.cast(boxes1, tf.float64), tf.cast(boxes2, tf.float64)
    rows = tf.broadcast_dynamic_shape(tf.shape(boxes1), tf.shape(boxes2))
    boxes1, boxes2 = tf.broadcast_to(boxes1, rows), tf.broadcast_to(boxes2, rows)
    corners1, corners2 = _corners(boxes1), _corners(boxes2)
    crossings, crossing = _crossings(corners1, corners2)
    x, y = (tf.concat([crossings[i], corners1[i], corners2[i]], axis=1) for i in (0, 1))  # [M,24]
    valid = tf.concat([crossing, _inside(corners1, corners2), _inside(corners2, corners1)], axis=1)
    intersection = _hull_area(x, y, valid)
    area1, area2 = boxes1[:, 2] * boxes1[:, 3], boxes2[:, 2] * boxes2[:, 3]
    overlap = intersection / (area1 + area2 - intersection)
    tiny = (area1 < _MIN_AREA) | (area2 < _MIN_AREA)
    return tf.cast(tf.where(tiny, tf.zeros_like(overlap), overlap), tf.float32)


_Points = tuple[tf.Tensor, tf.Tensor]  # x and y


def _corners(boxes: tf.Tensor) -> _Points:
    """Corners of [M,5] boxes in order around the box: x and y [M,4]."""
    centre_x, centre_y, width, height, angle = tf.unstack(boxes, axis=1)
    # detectron2 rounds the cosine and sine to float32 before it uses them.
    cosine, sine = (
        tf.cast(tf.cast(f(angle * _RADIANS), tf.float32), tf.float64) * 0.5 for f in (tf.cos, tf.sin)
    )
    x0, y0 = centre_x + sine * height + cosine * width, centre_y + cosine * height - sine * width
    x1, y1 = centre_x - sine * height + cosine * width, centre_y - cosine * height - sine * width
    x = tf.stack([x0, x1, 2 * centre_x - x0, 2 * centre_x - x1], axis=1)
    y = tf.stack([y0, y1, 2 * centre_y - y0, 2 * centre_y - y1], axis=1)
    return x, y


def _cross(a: _Points, b: _Points) -> tf.Tensor:
    return a[0] * b[1] - b[0] * a[1]


def _crossings(corners1: _Points, corners2: _Points) -> tuple[_Points, tf.Tensor]:
    """Crossing points of every edge of one box with every edge of the other [M,16], and whether they
    exist."""
    start1, edge1 = ([t[:, :, tf.newaxis] for t in part] for part in (corners1, _edges(corners1)))  # [M,4,1]
    start2, edge2 = ([t[:, tf.newaxis, :] for t in part] for part in (corners2, _edges(corners2)))  # [M,1,4]
    det = edge2[0] * edge1[1] - edge1[0] * edge2[1]  # [M,4,4]
    lengths = tf.sqrt((edge1[0] ** 2 + edge1[1] ** 2) * (edge2[0] ** 2 + edge2[1] ** 2))
    parallel = tf.abs(det) <= _PARALLEL * lengths
    det = tf.where(parallel, tf.ones_like(det), det)
    between = (start2[0] - start1[0], start2[1] - start1[1])
    t1, t2 = _cross((edge2[0], edge2[1]), between) / det, _cross((edge1[0], edge1[1]), between) / det
    exists = (
        tf.logical_not(parallel) & (t1 > -_SLACK) & (t1 < 1 + _SLACK) & (t2 > -_SLACK) & (t2 < 1 + _SLACK)
    )
    x, y = (tf.reshape(start1[i] + edge1[i] * t1, [-1, 16]) for i in (0, 1))
    return (x, y), tf.reshape(exists, [-1, 16])


def _edges(corners: _Points) -> _Points:
    return tf.roll(corners[0], -1, axis=1) - corners[0], tf.roll(corners[1], -1, axis=1) - corners[1]


def _inside(points: _Points, corners: _Points) -> tf.Tensor:
    """Which points [M,4] lie in the rectangle with these corners [M,4]: bool [M,4]."""
    px, py = points[0] - corners[0][:, :1], points[1] - corners[1][:, :1]
    inside = tf.ones_like(px, tf.bool)
    for corner in (1, 3):
        side_x = corners[0][:, corner : corner + 1] - corners[0][:, :1]
        side_y = corners[1][:, corner : corner + 1] - corners[1][:, :1]
        along = px * side_x + py * side_y
        inside &= (along > -_SLACK) & (along < side_x**2 + side_y**2 + _SLACK)
    return inside


def _hull_area(x: tf.Tensor, y: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Area of the convex polygon whose corners are the valid ones of [M,24] points, in any order: [M]."""
    weight = tf.cast(valid, x.dtype)
    number = tf.maximum(tf.reduce_sum(weight, axis=1, keepdims=True), 1)
    x, y = ((t - tf.reduce_sum(t * weight, axis=1, keepdims=True) / number) * weight for t in (x, y))
    angle = tf.where(valid, tf.atan2(y, x), 10.0)  # above pi: sorts last
    order = tf.argsort(angle, axis=1, stable=True)
    x, y, weight = (tf.gather(t, order, axis=1, batch_dims=1) for t in (x, y, weight))
    # Points that do not exist become the first one and add no area.
    x, y = (tf.where(weight > 0, t, t[:, :1]) for t in (x, y))
    return tf.abs(tf.reduce_sum(_cross((x, y), (tf.roll(x, -1, axis=1), tf.roll(y, -1, axis=1))), axis=1)) / 2


def nms_rotated(
    boxes: tf.Tensor, scores: tf.Tensor, iou_threshold: float, max_output_size: tf.Tensor | int | None = None
) -> tf.Tensor:
    """Greedy suppression: indices int32 of the kept boxes by descending score (ties: lower index first).

    `boxes` [N,5] float32, `scores` [N]. A box goes when its overlap with a kept one is >= `iou_threshold`
    (detectron2's CPU rule; its CUDA kernel, like upright NMS, asks for more than the threshold). At most
    `max_output_size` are kept.

    Source: nms_rotated_cpu, detectron2/layers/csrc/nms_rotated/nms_rotated_cpu.cpp.
    """
    count = tf.shape(boxes)[0]
    limit = count if max_output_size is None else tf.minimum(max_output_size, count)
    if tf.executing_eagerly():  # a hundred small operations per box, which are much faster as a graph
        limit = tf.shape(boxes)[0] if max_output_size is None else max_output_size
        return _as_graph(float(iou_threshold))(tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32), limit)
    return _nms_rotated(boxes, scores, iou_threshold, max_output_size)


@lru_cache(maxsize=16)
def _as_graph(iou_threshold: float) -> Callable[..., tf.Tensor]:
    specs = [tf.TensorSpec([None, 5]), tf.TensorSpec([None]), tf.TensorSpec([], tf.int32)]
    return tf.function(
        lambda boxes, scores, limit: _nms_rotated(boxes, scores, iou_threshold, limit),
        input_signature=specs,
        autograph=False,
    )


def _nms_rotated(
    boxes: tf.Tensor, scores: tf.Tensor, iou_threshold: float, max_output_size: tf.Tensor | int | None
) -> tf.Tensor:
    count = tf.shape(boxes)[0]
    limit = count if max_output_size is None else tf.minimum(max_output_size, count)
    order = tf.argsort(rank_key(scores), direction="DESCENDING", stable=True)
    boxes = tf.gather(tf.cast(boxes, tf.float32), order)
    centre = boxes[:, :2]
    reach = tf.norm(boxes[:, 2:4], axis=1) / 2 * 1.0001 + 1e-3  # half diagonal: farther boxes cannot overlap

    def keep_best(
        alive: tf.Tensor, kept: tf.TensorArray, number: tf.Tensor
    ) -> tuple[tf.Tensor, tf.TensorArray, tf.Tensor]:
        best = tf.argmax(tf.cast(alive, tf.int32), output_type=tf.int32)  # the first alive
        alive = tf.tensor_scatter_nd_update(alive, [[best]], [False])
        near = tf.norm(centre - centre[best], axis=1) <= reach + reach[best]
        rivals = tf.where(alive & near if iou_threshold > 0 else alive)
        overlap = iou_rotated(boxes[best][tf.newaxis], tf.gather(boxes, rivals[:, 0]))
        survives = tf.cast(overlap, tf.float64) < tf.constant(iou_threshold, tf.float64)
        alive = tf.tensor_scatter_nd_update(alive, rivals, survives)
        return alive, kept.write(number, best), number + 1

    kept = tf.TensorArray(tf.int32, size=0, dynamic_size=True, element_shape=[])
    _, kept, _ = tf.while_loop(
        lambda alive, _, number: tf.reduce_any(alive) & (number < limit),
        keep_best,
        (tf.fill([count], True), kept, 0),
    )
    return tf.gather(order, kept.stack())


def batched_nms_rotated(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    groups: tf.Tensor,
    iou_threshold: float,
    max_output_size: tf.Tensor | int | None = None,
) -> tf.Tensor:
    """`nms_rotated` within each group (class or level): groups are moved apart in float32, whatever their
    number.

    Source: batched_nms_rotated, detectron2/layers/nms.py.
    """
    boxes = tf.cast(boxes, tf.float32)
    half = tf.maximum(boxes[:, 2], boxes[:, 3]) / 2
    # Of no boxes these are infinite; nothing is then moved.
    highest = tf.reduce_max(tf.maximum(boxes[:, 0], boxes[:, 1]) + half)
    lowest = tf.reduce_min(tf.minimum(boxes[:, 0], boxes[:, 1]) - half)
    offset = tf.cast(groups, tf.float32) * (highest - lowest + 1.0)
    moved = tf.concat([boxes[:, :2] + offset[:, tf.newaxis], boxes[:, 2:]], axis=1)
    return nms_rotated(moved, scores, iou_threshold, max_output_size)


def roi_align_rotated(
    features: tf.Tensor,
    boxes: tf.Tensor,
    image_index: tf.Tensor,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int = 0,
) -> tf.Tensor:
    """Average of bilinear samples on a rotated grid: `[N,P,P,C]`.

    The grid is that of ROIAlignV2 in the box's own frame: g samples per bin and axis (g = `sampling_ratio`,
    or ceil(size / P) for 0), turned counter-clockwise about the centre `centre * spatial_scale - 0.5`. A
    sample beyond [-1, H] x [-1, W] is zero (but counts), others are clamped to the map.

    Args:
        features: `[B,H,W,C]`, any floating dtype.
        boxes: `[N,5]`, pixels of the network input, sides not negative; computed in float64 where `features`
            are float64, else in float32.
        image_index: int `[N]`, the image of the batch each box lies in.
        output_size: bins per side, P.
        spatial_scale: cells per pixel, 1 / stride.
        sampling_ratio: samples per bin and axis; 0 = as many as the bin has cells, rounded up (none for no
            size: zeros).

    Source: detectron2/layers/roi_align_rotated.py, layers/csrc/ROIAlignRotated/ROIAlignRotated_cpu.cpp.
    """
    features, image_index = tf.convert_to_tensor(features), tf.cast(image_index, tf.int32)
    boxes = tf.cast(boxes, tf.float64 if features.dtype == tf.float64 else tf.float32)
    count = tf.shape(boxes)[0]
    batch, height, width, channels = tf.unstack(tf.shape(features))
    cells = _Cells(tf.reshape(features, [batch * height * width, channels]), height, width)

    def pool(i: tf.Tensor) -> tf.Tensor:
        y, x, samples = _rotated_grid(boxes[i], output_size, spatial_scale, sampling_ratio)  # [P*gh,P*gw]
        values = _clamped_samples(cells, image_index[i], y, x)
        bins = tf.stack([output_size, samples[0], output_size, samples[1], channels])
        total = tf.reduce_sum(tf.reshape(values, bins), axis=[1, 3])
        return total / tf.cast(tf.maximum(samples[0] * samples[1], 1), features.dtype)

    shape = [output_size, output_size, features.shape[3]]
    pooled = tf.TensorArray(features.dtype, size=count, infer_shape=False, element_shape=shape)
    _, pooled = tf.while_loop(
        lambda i, _: i < count, lambda i, pooled: (i + 1, pooled.write(i, pool(i))), (0, pooled)
    )
    nothing = tf.stack([0, output_size, output_size, channels])
    return tf.cond(count > 0, pooled.stack, lambda: tf.zeros(nothing, features.dtype))


def _rotated_grid(
    box: tf.Tensor, bins: int, spatial_scale: float, sampling_ratio: int
) -> tuple[tf.Tensor, tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """Map positions y, x [P*gh,P*gw] of the samples of one box [5], and (gh, gw)."""
    centre, size = box[:2] * spatial_scale - 0.5, box[2:4] * spatial_scale  # (x, y)
    theta = tf.cast(tf.cast(box[4], tf.float64) * (math.pi / 180), box.dtype)
    cosine, sine = cos(theta), sin(theta)
    bin_size = size / exact_constant(bins, box.dtype)
    grid = tf.cast(tf.math.ceil(bin_size), tf.int32)
    if sampling_ratio > 0:
        grid = tf.fill([2], sampling_ratio)
    u, v = (_bin_positions(size[a], bin_size[a], grid[a], bins) for a in (0, 1))  # along width and height
    u, v = u[tf.newaxis, :], v[:, tf.newaxis]
    return v * cosine - u * sine + centre[1], v * sine + u * cosine + centre[0], (grid[1], grid[0])


def _bin_positions(size: tf.Tensor, bin_size: tf.Tensor, grid: tf.Tensor, bins: int) -> tf.Tensor:
    """Sample positions along one side, relative to the centre: [P*g]."""
    start = -size / 2.0
    bin_start = start + tf.cast(tf.range(bins), size.dtype) * bin_size  # [P]
    within = (tf.cast(tf.range(grid), size.dtype) + 0.5) * bin_size / tf.cast(grid, size.dtype)  # [g]
    return tf.reshape(bin_start[:, tf.newaxis] + within, [-1])


class _Cells(NamedTuple):
    """Feature maps of a batch as one table."""

    table: tf.Tensor  # [B*H*W,C]
    height: tf.Tensor  # int32, H
    width: tf.Tensor


def _clamped_samples(cells: _Cells, image: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Bilinear samples [a,b,C] at y, x [a,b] of one image of the batch."""
    table, height, width = cells
    first = image * height * width
    bottom, right = tf.cast(height, y.dtype), tf.cast(width, x.dtype)
    counted = (y >= -1) & (y <= bottom) & (x >= -1) & (x <= right)
    y = tf.clip_by_value(tf.where(counted, y, tf.zeros_like(y)), 0, bottom - 1)
    x = tf.clip_by_value(tf.where(counted, x, tf.zeros_like(x)), 0, right - 1)
    top, left = tf.cast(tf.floor(y), tf.int32), tf.cast(tf.floor(x), tf.int32)
    low_y, low_x = y - tf.cast(top, y.dtype), x - tf.cast(left, x.dtype)
    total = tf.zeros([], table.dtype)
    for row, weight_y in ((top, 1 - low_y), (tf.minimum(top + 1, height - 1), low_y)):
        for column, weight_x in ((left, 1 - low_x), (tf.minimum(left + 1, width - 1), low_x)):
            weight = tf.where(counted, weight_y * weight_x, tf.zeros_like(y))
            weight = tf.cast(tf.expand_dims(weight, -1), table.dtype)
            total += weight * tf.gather(table, first + row * width + column)
    return total
