"""Regions that come with an image (Fast R-CNN). Source: detectron2/data/detection_utils.py ``transform_proposals``."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_d2.modeling.batches import Proposals
from tf_d2.ops import boxes as box_ops


def given_proposals(
    boxes: tf.Tensor,
    counts: tf.Tensor,
    network_sizes: tf.Tensor,
    sizes: tf.Tensor,
    topk: int,
) -> Proposals:
    """Proposals in original pixels -> what Fast R-CNN pools.

    Scaled to the network input, clipped, those without extent dropped, the first ``topk`` of each image kept.

    Args:
        boxes: ``[n, P, 4]`` xyxy pixels of the original images, best first, of which ``counts`` int32 ``[n]`` are
            proposals and the others filling.
        network_sizes, sizes: int32 ``[n, 2]``, (height, width) of the network inputs and the original images.
    """
    factor = tf.cast(network_sizes, tf.float64) / tf.cast(sizes, tf.float64)  # [n, 2] (y, x)
    factor = tf.gather(factor, [1, 0, 1, 0], axis=1)[:, None, :]
    scaled = tf.cast(tf.cast(boxes, tf.float64) * factor, tf.float32)
    clipped = box_ops.clip(scaled, network_sizes[:, 0, None], network_sizes[:, 1, None])
    usable = tf.sequence_mask(counts, tf.shape(boxes)[1]) & box_ops.nonempty(clipped)
    usable &= tf.cumsum(tf.cast(usable, tf.int32), axis=1) <= topk
    return _flat(clipped, usable)


def given_proposals_times(boxes: tf.Tensor, counts: tf.Tensor, factors: tf.Tensor, topk: int) -> Proposals:
    """:func:`given_proposals` with Detectron's conventions: ``boxes`` times ``factors``, float32 ``[n]``.

    They are neither clipped nor dropped (nor merged where they fall into one cell, as there with DEDUP_BOXES).
    """
    usable = tf.sequence_mask(tf.minimum(counts, topk), tf.shape(boxes)[1])
    return _flat(tf.cast(boxes, tf.float32) * factors[:, None, None], usable)


def _flat(boxes: tf.Tensor, usable: tf.Tensor) -> Proposals:
    """The ``usable`` ones, bool ``[n, P]``, image by image."""
    rows = tf.cast(tf.where(usable), tf.int32)  # [R, 2]
    kept = tf.gather_nd(boxes, rows)
    per_image = tf.math.count_nonzero(usable, axis=1, dtype=tf.int32)
    return Proposals(kept, tf.zeros_like(kept[:, 0]), rows[:, 0], per_image)


def transform_proposals(
    boxes: np.ndarray, image_size: tuple[int, int], network_size: tuple[int, int], topk: int
) -> np.ndarray:
    """Proposals of an original image -> what a Fast R-CNN model takes.

    Scale to the network input, clip, drop boxes without extent, keep the first ``topk`` in the order given.

    Args:
        boxes: ``(N, 4)`` xyxy pixels of the original image, best first.
        image_size, network_size: (height, width) in pixels.

    Returns:
        float32 ``(N', 4)`` xyxy pixels of the network input.
    """
    given = tf.constant(np.asarray(boxes, np.float64).reshape(1, -1, 4))
    count = tf.shape(given)[1:2]
    return given_proposals(
        given, count, tf.constant([network_size]), tf.constant([image_size]), topk
    ).boxes.numpy()
