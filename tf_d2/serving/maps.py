"""Answers with one value per pixel, one image at a time: full masks, semantic maps, panoptic maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tf_d2.config import ModelConfig, PanopticConfig
from tf_d2.modeling.postprocess import resize_sem_seg
from tf_d2.ops.mask_paste import paste_mask
from tf_d2.ops.mask_paste_padded import paste_padded_mask

Outputs = dict[str, tf.Tensor]


_Paste = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""(mask, box, height, width) -> bool ``[height, width]``"""


def paste_of(config: ModelConfig) -> _Paste:
    """How a model's masks are pasted into the image."""
    if not config.conventions.padded_mask_paste:
        return paste_mask
    threshold = config.mask_threshold
    return lambda mask, box, height, width: paste_padded_mask(mask, box, height, width, threshold)


class BoxMasks(NamedTuple):
    """Masks of one image, each in its box; ``into_image`` pastes one."""

    masks: tf.Tensor  # [M, S, S] probabilities
    boxes: tf.Tensor  # [M, 4] xyxy pixels of the image
    count: tf.Tensor  # int32, how many of them there are; the others are filling
    sides: tf.Tensor | None = None  # int32 [M], how many rows and columns of each are its mask; None = all
    into_image: _Paste = paste_mask

    def pasted(self, i: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        """Mask ``i`` in an image of ``size`` int32 ``[2]`` (height, width): uint8 0 or 1 ``[h, w]``."""
        mask = self.masks[i]
        if self.sides is not None:
            mask = self.masks[i, : self.sides[i], : self.sides[i]]
        return tf.cast(self.into_image(mask, self.boxes[i], size[0], size[1]), tf.uint8)


def pasted_masks(found: BoxMasks, size: tf.Tensor) -> tf.Tensor:
    """uint8 0 or 1 ``[M, h, w]`` in an image of ``size``; filling is 0."""
    spec = tf.TensorSpec([None, None], tf.uint8)
    return _rows(lambda i: found.pasted(i, size), found.count, spec, tf.shape(found.masks)[0], size)


def png_masks(found: BoxMasks, size: tf.Tensor) -> tf.Tensor:
    """The same as grey PNG files (0 and 255) of the image's size: string ``[M]``; those of filling are empty."""

    def encode(i: tf.Tensor) -> tf.Tensor:
        return tf.io.encode_png(found.pasted(i, size)[:, :, None] * 255)

    files = tf.map_fn(encode, tf.range(found.count), fn_output_signature=tf.TensorSpec([], tf.string))
    return tf.concat([files, tf.fill([tf.shape(found.masks)[0] - found.count], "")], axis=0)


def _rows(
    function: Callable[[tf.Tensor], tf.Tensor],
    count: tf.Tensor,
    spec: tf.TensorSpec,
    rows: tf.Tensor,
    size: tf.Tensor,
) -> tf.Tensor:
    """``function(i)`` for every i < count, then zeros, without a second copy of all rows."""
    empty = tf.zeros(size, spec.dtype)
    return tf.map_fn(
        lambda i: tf.cond(i < count, lambda: function(i), lambda: empty),
        tf.range(rows),
        fn_output_signature=spec,
        parallel_iterations=2,
    )


def semantic_logits(logits: tf.Tensor, network_size: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Logits of one image at its own size: ``[H, W, C]`` of the padded input -> float32 ``[h, w, C]``."""
    return resize_sem_seg(logits[None], network_size, size)[0]


def panoptic(
    config: PanopticConfig,
    rows: Outputs,
    labels: tf.Tensor,
    num_labels: int,
) -> Outputs:
    """Things by descending score on free pixels, then stuff in label order.

    A thing is left out when more than ``overlap_thresh`` of it is taken, stuff when fewer than
    ``stuff_area_limit`` pixels are free. Label 0 stands for all things. Segment k + 1 of the map is row k of
    the table.

    Args:
        rows: of one image, by descending score: ``detection_scores`` ``[M]``, ``detection_classes`` ``[M]``,
            ``detection_masks`` probabilities ``[M, S, S]``, ``detection_boxes`` ``[M, 4]`` xyxy pixels of
            the image, and ``num_detections``, how many of them count.
        labels: int32 ``[h, w]``, semantic class per pixel.

    Returns:
        ``panoptic_seg`` int32 ``[h, w]`` (0 = nothing) and, with one row per possible segment (M + labels -
        1), ``panoptic_segment_classes`` int64, ``_is_thing`` bool, ``_scores`` float32 (things),
        ``_instances`` int32 (row of the thing among the detections, -1 for stuff), ``_areas`` int32 (pixels),
        and ``num_panoptic_segments``.

    Source: detectron2/modeling/meta_arch/panoptic_fpn.py ``combine_semantic_and_instance_outputs``.
    """
    scores, masks, boxes = (rows[f"detection_{name}"] for name in ("scores", "masks", "boxes"))
    count, limit, size = rows["num_detections"], _rows_of(masks), tf.shape(labels)

    def confident(i: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        # detectron2 stops at the first weak instance; the comparison is in double precision there.
        score = scores[tf.minimum(i, limit - 1)]
        return (i < count) & (tf.cast(score, tf.float64) >= config.instances_confidence_thresh)

    def paint(
        i: tf.Tensor, segments: tf.Tensor, found: tf.Tensor, instances: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        mask = paste_mask(masks[i], boxes[i], size[0], size[1])
        free = mask & (segments == 0)
        area, visible = _area(mask), _area(free)
        taken = tf.cast(area - visible, tf.float64) / tf.cast(tf.maximum(area, 1), tf.float64)
        kept = (area > 0) & (taken <= config.overlap_thresh)
        next_id = found + tf.cast(kept, tf.int32)
        segments = tf.where(free & kept, next_id, segments)
        position = tf.where(kept, found, limit)  # the extra place at the end swallows what is left out
        return i + 1, segments, next_id, tf.tensor_scatter_nd_update(instances, [[position]], [i])

    start = (0, tf.zeros(size, tf.int32), 0, tf.fill([limit + 1], -1))
    shapes = (
        tf.TensorShape([]),
        tf.TensorShape([None, None]),
        tf.TensorShape([]),
        tf.TensorShape([limit + 1]),
    )
    _, segments, things, instances = tf.while_loop(confident, paint, start, shape_invariants=shapes)

    free_areas = _bincount(tf.where(segments == 0, labels, num_labels), num_labels + 1)[:num_labels]
    present = _bincount(labels, num_labels) > 0
    stuff = (
        present & (tf.range(num_labels) > 0) & (tf.cast(free_areas, tf.float64) >= config.stuff_area_limit)
    )
    stuff_ids = tf.where(stuff, things + tf.cumsum(tf.cast(stuff, tf.int32)), 0)
    segments = tf.where(segments == 0, tf.gather(stuff_ids, labels), segments)
    painted = _Painted(segments, things, instances[:limit], stuff)
    return {"panoptic_seg": segments} | _table(rows, painted, num_labels)


class _Painted(NamedTuple):
    segments: tf.Tensor  # int32 [h, w]
    things: tf.Tensor  # int32, how many
    instances: tf.Tensor  # int32 [M], the row of each thing among the detections
    stuff: tf.Tensor  # bool [labels], whether there is a segment of it


def _table(rows: Outputs, painted: _Painted, num_labels: int) -> Outputs:
    segments, things, instances, stuff = painted
    scores, classes = rows["detection_scores"], rows["detection_classes"]
    total = _rows_of(instances) + num_labels - 1
    kept = instances[:things]
    stuff_labels = tf.cast(tf.where(stuff)[:, 0], tf.int64)
    number = things + tf.shape(stuff_labels)[0]
    areas = _bincount(segments, total + 1)[1:]

    def padded(thing_part: tf.Tensor, stuff_part: tf.Tensor) -> tf.Tensor:
        joined = tf.concat([thing_part, stuff_part], axis=0)
        return tf.ensure_shape(tf.pad(joined, tf.stack([[0, total - number]])), [total])

    is_thing = padded(tf.ones_like(kept), tf.zeros_like(stuff_labels, tf.int32)) > 0
    # Rows beyond the last segment are zero everywhere.
    return {
        "panoptic_segment_classes": padded(tf.gather(classes, kept), stuff_labels),
        "panoptic_segment_is_thing": is_thing,
        "panoptic_segment_scores": padded(tf.gather(scores, kept), tf.zeros_like(stuff_labels, tf.float32)),
        "panoptic_segment_instances": padded(kept, tf.fill(tf.shape(stuff_labels), -1)),
        "panoptic_segment_areas": areas,
        "num_panoptic_segments": number,
    }


def numbered_segments(fields: Outputs, map_size: tf.Tensor, limit: int, sem_seg: str) -> Outputs:
    """What Panoptic-DeepLab finds in one image (`PanopticDeepLab.to_image`), padded.

    ``panoptic_seg`` int32 with -1 for nothing, and rows padded with zeros to ``limit``: there are never more.
    """
    outputs = {"panoptic_seg": pad_map(tf.cast(fields["panoptic_seg"], tf.int32) + 1, map_size) - 1}
    if sem_seg == "labels":
        labels = tf.argmax(fields["sem_seg"], axis=-1, output_type=tf.int32)
        outputs["sem_seg_labels"] = pad_map(labels, map_size)
    elif sem_seg == "logits":
        outputs["sem_seg"] = pad_map(tf.transpose(fields["sem_seg"], [2, 0, 1]), map_size, axis=1)
    if "panoptic_ids" not in fields:
        return outputs
    count = tf.shape(fields["scores"])[0]
    rows = {
        "detection_boxes": fields["pred_boxes"],
        "detection_scores": fields["scores"],
        "detection_classes": fields["pred_classes"],
        "detection_panoptic_ids": tf.cast(fields["panoptic_ids"], tf.int32),
    }
    for name, values in rows.items():
        paddings = [[0, limit - count], *([0, 0] for _ in values.shape[1:])]
        outputs[name] = tf.ensure_shape(tf.pad(values, tf.stack(paddings)), [limit, *values.shape[1:]])
    return outputs | {"num_detections": count}


def _rows_of(x: tf.Tensor) -> int:
    rows = x.shape[0]
    assert rows is not None
    return rows


def _area(mask: tf.Tensor) -> tf.Tensor:
    return tf.math.count_nonzero(mask, dtype=tf.int32)


def _bincount(values: tf.Tensor, length: int) -> tf.Tensor:
    """Occurrences of 0 .. length - 1: int32 ``[length]``."""
    # On a GPU this operation has no deterministic kernel: TensorFlow refuses it where determinism is on.
    with tf.device("/CPU:0"):
        counts = tf.math.bincount(tf.reshape(values, [-1]), minlength=length, maxlength=length)
    return tf.ensure_shape(counts, [length])


def pad_map(values: tf.Tensor, size: tf.Tensor, axis: int = 0) -> tf.Tensor:
    """Zeros to the bottom and right so that axes ``axis`` and ``axis + 1`` have ``size``."""
    shape = tf.shape(values)
    paddings: list[list[int | tf.Tensor]] = [[0, 0] for _ in range(values.shape.rank or 0)]
    paddings[axis] = [0, size[0] - shape[axis]]
    paddings[axis + 1] = [0, size[1] - shape[axis + 1]]
    return tf.pad(values, tf.stack(paddings))
