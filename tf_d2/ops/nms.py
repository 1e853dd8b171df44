"""Non-maximum suppression with torchvision's comparisons and detectron2's per-class rule.

TensorFlow's yxyx boxes exist in this file only (and do not matter: an IoU is symmetric in x and y).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_d2.ops.elementary import rank_key

# torchvision's batched_nms on CPU loops over classes above this many boxes (4000 coordinates) and shifts the
# boxes of each class apart below it. The two differ by rounding and, for negative coordinates, by more.
_COORDINATE_TRICK_MAX_BOXES = 1000


def float32_threshold(threshold: float) -> float:
    """The largest float32 that is not above ``threshold``.

    torchvision's CPU kernel compares a float32 IoU with the threshold in double precision; TensorFlow compares
    two float32. ``iou > threshold`` in double holds exactly when ``iou > float32_threshold(threshold)``.
    """
    rounded = np.float32(threshold)
    if float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.float32(-np.inf))
    return float(rounded)


def nms(
    boxes: tf.Tensor, scores: tf.Tensor, iou_threshold: float, max_output_size: tf.Tensor | int | None = None
) -> tf.Tensor:
    """Greedy non-maximum suppression.

    Boxes are visited by descending score (ties: lower index first); a box is dropped when its IoU with a kept one
    is above the threshold (strictly, in double precision). Areas have no ``+ 1``; two empty boxes have IoU 0/0 and
    do not suppress one another.

    Args:
        boxes: float32 ``[N, 4]`` xyxy pixels. One with x2 < x1 or y2 < y1, a NaN or an infinite coordinate overlaps
            with nothing: it is kept, and drops none.
        scores: float32 ``[N]``, finite.
        iou_threshold: not negative; above 1 all boxes are kept.
        max_output_size: stop after this many kept boxes; None = all.

    Returns:
        int32 ``[kept]``, indices by descending score.

    Source: torchvision/csrc/ops/cpu/nms_kernel.cpp.
    """
    limit = tf.shape(boxes)[0] if max_output_size is None else max_output_size
    boxes = _comparable(tf.cast(boxes, tf.float32))
    return _suppress(boxes, _by_rank(scores), iou_threshold, limit)


def _comparable(boxes: tf.Tensor) -> tf.Tensor:
    """Boxes that have no overlap by torchvision's arithmetic become empty ones: TensorFlow would turn them around,
    and lose the order of scores over a NaN."""
    size = boxes[:, 2:] - boxes[:, :2]
    usable = tf.reduce_all(size >= 0, axis=1) & tf.math.is_finite(size[:, 0] * size[:, 1])
    return tf.where(usable[:, None], boxes, tf.zeros_like(boxes))


def _suppress(boxes: tf.Tensor, ranks: tf.Tensor, iou_threshold: float, limit: tf.Tensor | int) -> tf.Tensor:
    if iou_threshold > 1:  # tf.image refuses it
        return tf.argsort(ranks, direction="DESCENDING", stable=True)[:limit]
    return tf.image.non_max_suppression(boxes, ranks, limit, float32_threshold(iou_threshold))


def _by_rank(scores: tf.Tensor) -> tf.Tensor:
    """Float32 ``[N]`` in the order of ``scores`` (equal ones: first is highest) that no kernel takes for 0."""
    order = tf.argsort(rank_key(tf.cast(scores, tf.float32)), direction="DESCENDING", stable=True)
    return -tf.cast(tf.math.invert_permutation(order), tf.float32)


def batched_nms(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    groups: tf.Tensor,
    iou_threshold: float,
    max_output_size: tf.Tensor | int | None = None,
) -> tf.Tensor:
    """NMS within each group (class or pyramid level), as detectron2 runs it on a CPU.

    Up to 1000 boxes: one NMS over boxes that are moved apart by ``group * (largest coordinate + 1)`` in float32, side
    effects included (rounding; boxes with negative coordinates can meet other groups). Above: one exact NMS per
    group. Ties of the final order: lower index first (torch leaves them open).

    Args:
        boxes: ``[N, 4]`` xyxy pixels; odd ones as in :func:`nms`. A NaN among up to 1000 boxes moves all of them
            out of comparison, as in torchvision: all are kept, by score.
        scores: ``[N]``.
        groups: int ``[N]``.
        max_output_size: keep at most this many over all groups; None = all.

    Returns:
        int32 ``[kept]``, indices by descending score.

    Source: detectron2/layers/nms.py, torchvision/ops/boxes.py ``batched_nms``.
    """
    boxes, ranks = tf.cast(boxes, tf.float32), _by_rank(scores)
    count = tf.shape(boxes)[0]
    limit = count if max_output_size is None else tf.minimum(max_output_size, count)
    return tf.cond(
        count > _COORDINATE_TRICK_MAX_BOXES,
        lambda: _nms_per_group(boxes, ranks, groups, iou_threshold, limit),
        lambda: _nms_moved_apart(boxes, ranks, groups, iou_threshold, limit),
    )


def batched_nms_inclusive(
    boxes: tf.Tensor, scores: tf.Tensor, groups: tf.Tensor, iou_threshold: float, *, plus_one: bool = True
) -> tf.Tensor:
    """NMS within each group as Detectron and maskrcnn-benchmark (on a CPU) run it.

    x2 and y2 name the last pixel inside: sides of boxes and overlaps have ``+ 1``. A box is dropped when its
    IoU with a kept one is **at least** the threshold (both float32). Every group is on its own, whatever
    their number.

    Args:
        boxes: ``[N, 4]`` xyxy pixels.
        scores: ``[N]``.
        groups: int ``[N]``, class or pyramid level.
        iou_threshold: not negative.
        plus_one: False: sides without ``+ 1``.

    Returns:
        int32 ``[kept]``, indices by descending score (ties: lower group, then lower index, first). Those
        projects list the rows in the order they came in.

    Source: detectron/utils/cython_nms.pyx ``nms``, maskrcnn_benchmark/csrc/cpu/nms_cpu.cpp (its CUDA kernel drops
    above the threshold only).
    """
    boxes = tf.cast(boxes, tf.float32)
    if plus_one:
        boxes = boxes + tf.constant([0.0, 0.0, 1.0, 1.0])
    count = tf.shape(boxes)[0]
    # `iou >= t` is `iou > the float32 below t`
    below = max(float(np.nextafter(np.float32(iou_threshold), np.float32(-np.inf))), 0.0)
    by_group = tf.argsort(groups, stable=True)
    ranks = _by_rank(tf.gather(scores, by_group))
    kept = _nms_per_group(tf.gather(boxes, by_group), ranks, tf.gather(groups, by_group), below, count)
    return tf.gather(by_group, kept)


def best_with_ties(scores: tf.Tensor, limit: int) -> tf.Tensor:
    """int32 ``[n]``: rows of ``scores`` ``[N]``, which descend, with at least the score of the ``limit``-th.

    Rows of equal score at the limit all stay, so that n may exceed it. A limit of 0 or less: all rows.

    Source: detectron/core/test.py ``box_results_with_nms_and_limit``, maskrcnn_benchmark box_head/inference.py
    ``filter_results``.
    """
    count = tf.shape(scores)[0]
    if limit <= 0:
        return tf.range(count)
    last = tf.gather(tf.concat([scores, [-np.inf]], axis=0), tf.minimum(limit - 1, count))
    return tf.cast(tf.where(scores >= last)[:, 0], tf.int32)


def within_each(groups: tf.Tensor, limit: int, number: int) -> tf.Tensor:
    """int32 ``[n]``: the first ``limit`` rows of each of ``number`` groups (int ``[N]``), in order."""
    seen = tf.cumsum(tf.one_hot(groups, number, dtype=tf.int32), axis=0)  # [N, number]
    place = tf.gather(seen, groups, batch_dims=1)
    return tf.cast(tf.where(place <= limit)[:, 0], tf.int32)


def _nms_moved_apart(
    boxes: tf.Tensor, ranks: tf.Tensor, groups: tf.Tensor, iou_threshold: float, limit: tf.Tensor
) -> tf.Tensor:
    # reduce_max of nothing is -inf; with no boxes the value is never used.
    largest = tf.where(tf.reduce_any(tf.math.is_nan(boxes)), np.float32(np.nan), tf.reduce_max(boxes))
    offsets = tf.cast(groups, tf.float32) * (largest + 1.0)
    return _suppress(_comparable(boxes + offsets[:, None]), ranks, iou_threshold, limit)


def _nms_per_group(
    boxes: tf.Tensor, ranks: tf.Tensor, groups: tf.Tensor, iou_threshold: float, limit: tf.Tensor
) -> tf.Tensor:
    boxes = _comparable(boxes)
    # int64, as TensorFlow computes int32 on the host, also where it has a GPU.
    groups = tf.cast(groups, tf.int64)
    order = tf.cast(tf.argsort(groups, stable=True), tf.int64)  # [N] group-major, file order inside
    # Not tf.math.bincount: on a GPU it has no deterministic kernel, and TensorFlow refuses it where determinism is on.
    by_group = tf.gather(groups, order)
    number_of_boxes = tf.shape(order)[0]
    begins = tf.concat([[True], by_group[1:] != by_group[:-1]], axis=0)[:number_of_boxes]
    starts = tf.cast(tf.where(begins)[:, 0], tf.int32)  # [G]
    counts = tf.concat([starts[1:], [number_of_boxes]], axis=0)[: tf.shape(starts)[0]] - starts

    def one_group(i: tf.Tensor, kept: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        members = order[starts[i] : starts[i] + counts[i]]
        # A group cannot contribute more than `limit` boxes to the best `limit` of all groups.
        chosen = _suppress(tf.gather(boxes, members), tf.gather(ranks, members), iou_threshold, limit)
        return i + 1, kept.write(i, tf.gather(members, chosen))

    number = tf.shape(counts)[0]
    array = tf.TensorArray(tf.int64, number, infer_shape=False, element_shape=[None])
    _, array = tf.while_loop(lambda i, _: i < number, one_group, (0, array))
    # Eagerly, nothing can be concatenated.
    kept = tf.cond(number > 0, array.concat, lambda: tf.zeros([0], tf.int64))
    best = tf.argsort(tf.gather(ranks, kept), direction="DESCENDING")
    return tf.cast(tf.gather(kept, best[:limit]), tf.int32)
