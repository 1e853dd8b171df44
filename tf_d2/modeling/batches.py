"""Rows of several images in one tensor: how proposals and detections travel through a model.

detectron2 keeps a list of per-image objects. A graph keeps one flat tensor of rows in image order, the index of each
row's image, and the number of rows per image, so that heads run once for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf


class Proposals(NamedTuple):
    """Regions to classify. ``boxes`` are float32 pixels of the network input."""

    boxes: tf.Tensor  # [R, 4] xyxy, or [R, 5] (cx, cy, w, h, degrees)
    logits: tf.Tensor  # [R] objectness, descending within an image
    image_index: tf.Tensor  # [R] int32
    counts: tf.Tensor  # [B] int32


class Detections(NamedTuple):
    """Detected instances, by descending score within an image. ``boxes`` are pixels of the network input."""

    boxes: tf.Tensor  # [N, 4] float32 xyxy, or [N, 5]
    scores: tf.Tensor  # [N] float32
    classes: tf.Tensor  # [N] int64
    image_index: tf.Tensor  # [N] int32
    counts: tf.Tensor  # [B] int32


def for_each_image(
    batch_size: int | tf.Tensor,
    compute: Callable[[tf.Tensor], Sequence[tf.Tensor]],
    specs: Sequence[tf.TensorSpec],
) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
    """Run ``compute(i)`` for each image and join the rows it returns.

    Args:
        batch_size: number of images; a Python 1 runs without a loop.
        compute: image index -> one tensor per spec, all with the same number of rows.
        specs: shape ``[None, ...]`` and dtype of each of those tensors.

    Returns:
        the joined tensors, the image index of each row (int32 ``[N]``), the rows per image (int32 ``[B]``).
    """
    if isinstance(batch_size, int) and batch_size == 1:
        rows = list(compute(tf.constant(0)))
        count = tf.shape(rows[0])[0]
        return rows, tf.zeros([count], tf.int32), count[None]
    number = tf.convert_to_tensor(batch_size)
    arrays = [tf.TensorArray(s.dtype, number, infer_shape=False, element_shape=s.shape) for s in specs]
    counts = tf.TensorArray(tf.int32, number, element_shape=[])

    def step(i: tf.Tensor, counts: tf.TensorArray, *arrays: tf.TensorArray) -> tuple[object, ...]:
        rows = compute(i)
        written = [array.write(i, row) for array, row in zip(arrays, rows, strict=True)]
        return i + 1, counts.write(i, tf.shape(rows[0])[0]), *written

    _, counts, *arrays = tf.while_loop(lambda i, *_: i < number, step, (0, counts, *arrays))
    joined = [array.concat() for array in arrays]
    per_image = counts.stack()
    return joined, tf.repeat(tf.range(number), per_image), per_image


def rows_of(counts: tf.Tensor, image: tf.Tensor) -> slice:
    """The rows of one image in a flat tensor."""
    ends = tf.cumsum(counts)
    return slice(ends[image] - counts[image], ends[image])


def static_batch(x: tf.Tensor) -> int | tf.Tensor:
    """The batch size of ``[B, ...]`` as a Python number where it is known."""
    known = x.shape[0]
    return tf.shape(x)[0] if known is None else known
