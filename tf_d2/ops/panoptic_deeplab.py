"""From semantic logits, a heat map of centres and offsets to a map of segments: Panoptic-DeepLab, as graph ops.

One picture at a time, ``[H, W, ...]`` in pixels of the picture. Everything is decided as detectron2 decides it:
strict thresholds, plateaus of the heat, equal distances (the first centre), equal votes (the smallest class).

Source: projects/Panoptic-DeepLab/panoptic_deeplab/post_processing.py, panoptic_seg.py.
"""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

_VOID = -1
"""Number of the pixels that belong to no segment."""


class Rules(Protocol):
    """The settings, as `PanopticDeepLabConfig` has them."""

    @property
    def center_threshold(self) -> float: ...
    @property
    def nms_kernel(self) -> int: ...
    @property
    def top_k_instance(self) -> int: ...
    @property
    def stuff_area(self) -> int: ...
    @property
    def thing_ids(self) -> tuple[int, ...]: ...
    @property
    def label_divisor(self) -> int: ...
    @property
    def num_classes(self) -> int: ...


def find_segments(
    rules: Rules, labels: tf.Tensor, heat: tf.Tensor, offset: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The panoptic map of a picture.

    Args:
        labels: int32 ``[H, W]``, semantic class of every pixel.
        heat: ``[H, W]``, raw heat of centres.
        offset: ``[H, W, 2]``, (y, x) from every pixel to its centre, of the dtype of ``heat``.

    Returns:
        int64 ``[H, W]``: class * label_divisor + instance (1, 2, ... in every class; stuff 0), or -1; and int64
        ``[N]``, the numbers of the things in it, ascending.

    Source: ``get_panoptic_segmentation``.
    """
    centers = find_centers(heat, rules.center_threshold, rules.nms_kernel, rules.top_k_instance)
    is_thing = _is_thing(rules)
    where = tf.where(tf.gather(is_thing, labels))  # [P, 2]; only things are grouped
    pixels = tf.cast(where, tf.int32)
    ids = nearest_center(tf.gather_nd(offset, where), pixels, centers)
    values = _thing_numbers(rules, tf.gather_nd(labels, where), ids, tf.shape(centers)[0])
    stuff = tf.gather(_stuff_numbers(rules, labels, is_thing), labels)
    segments = tf.tensor_scatter_nd_update(stuff, where, tf.gather(values, ids))
    return tf.ensure_shape(segments, labels.shape), tf.sort(tf.boolean_mask(values, values > _VOID))


def find_centers(heat: tf.Tensor, threshold: float, kernel: int, top_k: int) -> tf.Tensor:
    """Peaks of the heat ``[H, W]``: int32 ``[K, 2]`` (y, x) in row order, K < ``top_k``.

    Peaks are above the threshold and the largest within ``kernel`` x ``kernel`` pixels (every pixel of a plateau is).
    Of those that are positive, the ones above the ``top_k``-th largest stay. A picture of fewer pixels than
    ``top_k``, which detectron2 cannot process, keeps those above its smallest value.

    Source: ``find_instance_center``.
    """
    lowest = tf.constant(-1, heat.dtype)
    hot = tf.where(heat > tf.constant(threshold, heat.dtype), heat, lowest)
    peaks = tf.where(hot == _largest_around(hot, kernel), hot, lowest)
    flat = tf.reshape(peaks, [-1])
    limit = tf.nn.top_k(flat, tf.minimum(top_k, tf.size(flat))).values[-1]
    return tf.cast(tf.where(peaks > tf.maximum(limit, tf.zeros([], heat.dtype))), tf.int32)


def _largest_around(x: tf.Tensor, kernel: int) -> tf.Tensor:
    """Maximum within a square window, rows and columns one after the other."""
    before = (kernel - 1) // 2
    padded = tf.pad(x, [[before, before]] * 2, constant_values=x.dtype.min)[None, :, :, None]
    rows = tf.nn.max_pool2d(padded, [kernel, 1], 1, "VALID")
    return tf.nn.max_pool2d(rows, [1, kernel], 1, "VALID")[0, :, :, 0]


def nearest_center(offset: tf.Tensor, pixels: tf.Tensor, centers: tf.Tensor) -> tf.Tensor:
    """Number (from 1) of the centre that is nearest to where each pixel points: int32 ``[P]``; 0 without centres.

    Args:
        offset: ``[P, 2]`` (y, x), float.
        pixels: int32 ``[P, 2]`` (y, x).
        centers: int32 ``[K, 2]`` (y, x). Equal distances, in the dtype of ``offset``: the first.

    Source: ``group_pixels``.
    """
    target = tf.cast(pixels, offset.dtype) + offset
    y, x = target[:, 0], target[:, 1]
    points = tf.cast(centers, offset.dtype)
    nearest, shortest = tf.zeros_like(pixels[:, 0]), tf.fill(tf.shape(y), offset.dtype.max)

    # One centre after the other: detectron2's matrix of all distances takes gigabytes for a large picture.
    def step(i: tf.Tensor, nearest: tf.Tensor, shortest: tf.Tensor) -> tuple[tf.Tensor, ...]:
        distance = tf.sqrt(tf.square(points[i, 0] - y) + tf.square(points[i, 1] - x))
        closer = distance < shortest
        return i + 1, tf.where(closer, i + 1, nearest), tf.where(closer, distance, shortest)

    count = tf.shape(centers)[0]
    _, nearest, _ = tf.while_loop(lambda i, *_: i < count, step, (0, nearest, shortest))
    return nearest


def _is_thing(rules: Rules) -> tf.Tensor:
    return tf.constant([label in rules.thing_ids for label in range(rules.num_classes)])


def _thing_numbers(rules: Rules, labels: tf.Tensor, ids: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Number in the map of centre 0 (none), 1, ...: int64 ``[count + 1]``, -1 where it has no pixels.

    The class is that of most of its pixels (of several the smallest); instances are counted for each class.
    """
    classes, rows = rules.num_classes, tf.cast(count, tf.int64) + 1
    places = tf.cast(ids, tf.int64) * classes + tf.cast(labels, tf.int64)
    votes = tf.math.unsorted_segment_sum(tf.ones_like(labels), places, rows * classes)
    votes = tf.reshape(votes, [-1, classes])
    winner = tf.argmax(votes, axis=1)
    present = (tf.reduce_sum(votes, axis=1) > 0) & (tf.range(rows) > 0)
    chosen = tf.one_hot(tf.where(present, winner, -1), classes, dtype=tf.int64)
    number = tf.gather(tf.cumsum(chosen, axis=0), winner, axis=1, batch_dims=1)
    return tf.where(present, winner * rules.label_divisor + number, _VOID)


def _stuff_numbers(rules: Rules, labels: tf.Tensor, is_thing: tf.Tensor) -> tf.Tensor:
    """Number in the map of every class as stuff: int64 ``[num_classes]``, -1 for things and small areas."""
    flat = tf.reshape(labels, [-1])
    areas = tf.math.unsorted_segment_sum(tf.ones_like(flat), flat, rules.num_classes)
    numbers = tf.range(rules.num_classes, dtype=tf.int64) * rules.label_divisor
    return tf.where(tf.logical_not(is_thing) & (areas >= rules.stuff_area), numbers, _VOID)


def segment_instances(
    label_divisor: int, segments: tf.Tensor, ids: tf.Tensor, logits: tf.Tensor, heat: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Things as instances, in the order of their numbers in the map.

    Args:
        segments, ids: what :func:`find_segments` returned.
        logits: ``[H, W, C]``.
        heat: ``[H, W]``.

    Returns:
        ``panoptic_ids`` int64 ``[N]``; ``pred_boxes`` float32 ``[N, 4]`` xyxy in pixels, around all pixels;
        ``pred_classes`` int64 ``[N]``; ``scores`` float32 ``[N]``: mean probability of the class over the segment,
        times the raw heat at the pixel of its mean position, and so possibly negative.

    Source: ``PanopticDeepLab.forward``.
    """
    count = tf.shape(ids)[0]
    flat = tf.reshape(segments, [-1])
    row = tf.searchsorted(ids, flat)  # the row of each pixel's number, where it is a thing's
    found = tf.concat([ids, tf.constant([_VOID], tf.int64)], axis=0)
    inside = tf.where((tf.gather(found, row) == flat) & (row < count))[:, 0]
    row = tf.gather(row, inside)
    width = tf.cast(tf.shape(segments)[1], tf.int64)
    y, x = inside // width, tf.math.floormod(inside, width)
    classes = ids // label_divisor
    probability = tf.nn.softmax(tf.gather(tf.reshape(logits, [-1, tf.shape(logits)[-1]]), inside))
    probability = tf.gather(probability, tf.gather(classes, row), axis=1, batch_dims=1)

    def total(values: tf.Tensor) -> tf.Tensor:
        return tf.math.unsorted_segment_sum(values, row, count)

    area = total(tf.ones_like(y))
    center = tf.stack([_mean(total(y), area), _mean(total(x), area)], axis=1)
    certainty = total(tf.cast(probability, tf.float64)) / tf.cast(area, tf.float64)
    scores = tf.cast(certainty, tf.float32) * tf.cast(tf.gather_nd(heat, center), tf.float32)
    low = [tf.math.unsorted_segment_min(v, row, count) for v in (x, y)]
    high = [tf.math.unsorted_segment_max(v, row, count) + 1 for v in (x, y)]
    return {
        "panoptic_ids": ids,
        "pred_boxes": tf.cast(tf.stack([*low, *high], axis=1), tf.float32),
        "scores": scores,
        "pred_classes": classes,
    }


def _mean(total: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """The whole part of a mean that is rounded to float32 first, as detectron2 has it."""
    mean = tf.cast(total, tf.float64) / tf.cast(count, tf.float64)
    return tf.cast(tf.cast(mean, tf.float32), tf.int32)
