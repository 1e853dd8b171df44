"""From network coordinates to the original image. Source: detectron2/modeling/postprocessing.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_d2.config.parts.conventions import DETECTRON2, Conventions
from tf_d2.modeling.batches import Detections
from tf_d2.ops import boxes as box_ops
from tf_d2.ops import rotated
from tf_d2.ops.interpolate import bilinear
from tf_d2.ops.mask_paste import paste_masks_at_once
from tf_d2.ops.mask_paste_numpy import copy_masks
from tf_d2.ops.mask_paste_numpy import paste_masks_numpy as paste_masks
from tf_d2.ops.mask_paste_padded_numpy import paste_padded_masks_numpy

PASTED = "pasted_masks"
"""Among a model's outputs: masks pasted in the graph, bool ``(N, h, w)``, or ``(0, 0, 0)`` where they are not."""
PASTE_BYTES = 512 * 2**20
"""Of masks pasted on a GPU at most: most of larger ones is empty and would only be copied to the host."""
DENSEPOSE = "pred_densepose/"
"""Before the name of each field of DensePose in a model's outputs."""


class _Rescaled(NamedTuple):
    """Rows that stay after clipping, with boxes in pixels of the original image, and which rows those were."""

    detections: Detections
    kept: tf.Tensor  # int32 [N'], rows of the input


def rescale(
    detections: Detections,
    image_sizes: tf.Tensor,
    output_sizes: tf.Tensor,
    conventions: Conventions = DETECTRON2,
) -> _Rescaled:
    """Scale boxes to the original images, clip them, drop those without extent.

    The scale is a float64 quotient, rounded to float32 before it meets the float32 boxes.

    Args:
        image_sizes: int32 ``[B, 2]``, unpadded (height, width) of the network inputs.
        output_sizes: int32 ``[B, 2]``, (height, width) of the original images.
        conventions: with ``keep_all`` nothing is clipped again or dropped; with ``boxes_in_picture`` boxes are in the
            pixels of the original image already.

    Source: ``detector_postprocess``; maskrcnn_benchmark/structures/bounding_box.py ``BoxList.resize``.
    """
    if conventions.keep_all:
        boxes = detections.boxes
        if not conventions.boxes_in_picture:
            per_row = tf.gather(scales(image_sizes, output_sizes), detections.image_index)
            boxes = boxes * tf.gather(per_row, [1, 0, 1, 0], axis=1)
        return _Rescaled(detections._replace(boxes=boxes), tf.range(tf.shape(boxes)[0]))
    boxes = rescale_boxes(detections.boxes, detections.image_index, image_sizes, output_sizes)
    visible = (rotated if boxes.shape[-1] == 5 else box_ops).nonempty(boxes)
    kept = tf.cast(tf.where(visible)[:, 0], tf.int32)
    boxes, scores, classes, index = (
        tf.gather(t, kept) for t in (boxes, detections.scores, detections.classes, detections.image_index)
    )
    batch = tf.shape(detections.counts)[0]
    counts = tf.math.unsorted_segment_sum(tf.ones_like(index), index, batch)
    return _Rescaled(Detections(boxes, scores, classes, index, counts), kept)


def rescale_boxes(
    boxes: tf.Tensor, image_index: tf.Tensor, image_sizes: tf.Tensor, output_sizes: tf.Tensor
) -> tf.Tensor:
    """Boxes ``[N, 4]`` (rotated ``[N, 5]``) in pixels of the network input -> of the original images, clipped."""
    per_row = tf.gather(scales(image_sizes, output_sizes), image_index)  # [N, 2] float32 (y, x)
    limits = tf.gather(output_sizes, image_index)
    scale_y, scale_x = per_row[:, 0], per_row[:, 1]
    if boxes.shape[-1] == 5:
        return rotated.clip(rotated.scale(boxes, scale_x, scale_y), limits[:, 0], limits[:, 1])
    stretched = boxes * tf.stack([scale_x, scale_y, scale_x, scale_y], axis=1)
    return box_ops.clip(stretched, limits[:, 0], limits[:, 1])


def rescale_keypoints(keypoints: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """``[N, K, 3]`` (x, y, score) times ``scale`` float32 ``[N, 2]`` (y, x); never clipped."""
    factor = tf.stack([scale[:, 1], scale[:, 0], tf.ones_like(scale[:, 0])], axis=1)
    return keypoints * factor[:, None, :]


def scales(image_sizes: tf.Tensor, output_sizes: tf.Tensor) -> tf.Tensor:
    """Original pixels per network pixel, float32 ``[B, 2]`` (y, x)."""
    quotient = tf.cast(output_sizes, tf.float64) / tf.cast(image_sizes, tf.float64)
    return tf.cast(quotient, tf.float32)


def resize_sem_seg(logits: tf.Tensor, network_size: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Cut the padding off ``[1, H, W, C]`` logits and interpolate to the original size: ``[1, h, w, C]``.

    Source: ``sem_seg_postprocess``.
    """
    cut = logits[:, : network_size[0], : network_size[1]]
    # Logits are the largest tensor of such a model: not copied where they have the size already.
    return tf.cond(tf.reduce_all(network_size == size), lambda: cut, lambda: bilinear(cut, size[0], size[1]))


def to_image(
    raw: dict[str, tf.Tensor],
    network_size: tf.Tensor,
    size: tf.Tensor,
    conventions: Conventions = DETECTRON2,
) -> dict[str, tf.Tensor]:
    """A model's flat outputs for one image -> detectron2's fields in pixels of the original image.

    Args:
        raw: what ``D2Model.forward`` returned for a batch of one.
        network_size: int32 ``[2]``, unpadded (height, width) of the network input.
        size: int32 ``[2]``, (height, width) of the original image.

    Returns:
        ``pred_boxes``, ``scores``, ``pred_classes``, ``pred_masks`` (still probabilities ``[N, M, M]``, see
        :func:`paste`), ``pred_keypoints``, ``pred_keypoint_heatmaps``, ``pred_densepose/<field>`` (``[N, S, S, C]``,
        relative to the boxes), ``sem_seg`` ``[h, w, C]``
        (with instances also ``sem_seg_labels`` int32 ``[h, w]``, its best class), or ``proposal_boxes`` and
        ``objectness_logits``.
    """
    fields: dict[str, tf.Tensor] = {}
    if "sem_seg" in raw:
        logits = resize_sem_seg(raw["sem_seg"], network_size, size)
        fields["sem_seg"] = logits[0]
        if "boxes" in raw:  # a panoptic model
            fields["sem_seg_labels"] = tf.argmax(logits[0], axis=-1, output_type=tf.int32)
    if "boxes" not in raw:
        return fields
    is_proposals = "objectness_logits" in raw
    scores = raw["objectness_logits"] if is_proposals else raw["scores"]
    classes = tf.zeros_like(scores, tf.int64) if is_proposals else raw["classes"]
    detections = Detections(raw["boxes"], scores, classes, raw["image_index"], raw["counts"])
    done, kept = rescale(detections, network_size[None], size[None], conventions)
    if is_proposals:
        return {"proposal_boxes": done.boxes, "objectness_logits": done.scores}
    fields |= {"pred_boxes": done.boxes, "scores": done.scores, "pred_classes": done.classes}
    if "pred_masks" in raw:
        fields["pred_masks"] = tf.cast(tf.gather(raw["pred_masks"], kept), tf.float32)
    for name in [n for n in raw if n.startswith(DENSEPOSE)]:
        fields[name] = tf.cast(tf.gather(raw[name], kept), tf.float32)
    if "pred_keypoints" in raw:
        fields["pred_keypoints"] = tf.gather(raw["pred_keypoints"], kept)
        if not conventions.boxes_in_picture:
            factor = tf.gather(scales(network_size[None], size[None]), done.image_index)
            fields["pred_keypoints"] = rescale_keypoints(fields["pred_keypoints"], factor)
        if "keypoint_logits" in raw:
            fields["keypoint_logits"] = tf.gather(raw["keypoint_logits"], kept)
        fields["pred_keypoint_heatmaps"] = tf.cast(tf.gather(raw["pred_keypoint_heatmaps"], kept), tf.float32)
    return fields


def paste_on_gpu(
    fields: dict[str, tf.Tensor], size: tf.Tensor, conventions: Conventions = DETECTRON2
) -> dict[str, tf.Tensor]:
    """The same fields with ``pasted_masks``, in the graph, if there are masks that a few operations can paste.

    For a GPU; :func:`paste` takes them from there. ``size``: int32 ``[2]``, (height, width) of the original image in
    pixels.
    """
    if "pred_masks" not in fields or "mask_boxes" in fields or conventions.padded_mask_paste:
        return fields
    masks, boxes = fields["pred_masks"], fields["pred_boxes"]
    elements = tf.reduce_prod(tf.cast(size, tf.int64)) * tf.shape(masks, tf.int64)[0]
    pasted = tf.cond(
        elements <= PASTE_BYTES,
        lambda: paste_masks_at_once(masks, boxes, size[0], size[1]),
        lambda: tf.zeros([0, 0, 0], tf.bool),
    )
    return {**fields, PASTED: pasted}


def paste(
    fields: dict[str, np.ndarray],
    size: tuple[int, int],
    conventions: Conventions = DETECTRON2,
    threshold: float = 0.5,
) -> dict[str, np.ndarray]:
    """The same fields with ``pred_masks`` pasted into the image: bool ``(N, h, w)``. ``size`` is (height, width).

    Done by numpy outside the graph: only the window of each box is touched, which the graph form cannot match; or by
    :func:`paste_on_gpu` already.
    """
    if "pred_masks" not in fields:
        return fields
    fields = dict(fields)
    pasted = fields.pop(PASTED, None)
    if pasted is not None and len(pasted) == len(fields["pred_masks"]):
        return {**fields, "pred_masks": copy_masks(pasted, fields["pred_boxes"])}
    if "mask_boxes" in fields:
        return _paste_windows(fields, size)
    masks, boxes = fields["pred_masks"], fields["pred_boxes"]
    if conventions.padded_mask_paste:
        return {**fields, "pred_masks": paste_padded_masks_numpy(masks, boxes, *size, threshold)}
    return {**fields, "pred_masks": paste_masks(masks, boxes, *size)}


def _paste_windows(fields: dict[str, np.ndarray], size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Masks of several sides (``mask_sides``) pasted over windows of their own (``mask_boxes``), as TensorMask has."""
    fields = dict(fields)
    masks, boxes, sides = (fields.pop(name) for name in ("pred_masks", "mask_boxes", "mask_sides"))
    pasted = np.zeros((len(masks), *size), bool)
    for side in np.unique(sides):
        rows = sides == side
        pasted[rows] = paste_masks(masks[rows, :side, :side], boxes[rows], *size)
    return {**fields, "pred_masks": pasted}


def masks_of_segments(fields: dict[str, np.ndarray], segments: np.ndarray) -> dict[str, np.ndarray]:
    """Instances that are segments of a map ``[h, w]`` (``panoptic_ids``), with their masks.

    Nothing where there is none, as detectron2 has it.
    """
    ids = fields.pop("panoptic_ids", np.zeros(0, np.int64))
    return {**fields, "pred_masks": segments == ids[:, None, None]} if len(ids) else {}
