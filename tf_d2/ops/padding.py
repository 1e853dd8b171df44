"""From a resized image to the network input: normalisation, then padding."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_d2.ops.exact import exact_constant


def normalize(
    image: tf.Tensor, mean: Sequence[float], std: Sequence[float], dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """``(image - mean) / std`` per channel, a subtraction and a true division.

    Args:
        image: ``[..., C]`` uint8 or float, channels in ``INPUT.FORMAT`` order.
        mean, std: C numbers, rounded to ``float32`` first because detectron2 keeps them so.

    Source: detectron2/modeling/meta_arch/rcnn.py ``preprocess_image``.
    """
    mean32 = tf.cast(tf.constant(mean, tf.float32), dtype)
    std32 = tf.cast(tf.constant(std, tf.float32), dtype)
    return (tf.cast(image, dtype) - mean32) / exact_constant(std32)


def padded_size(
    height: tf.Tensor, width: tf.Tensor, divisibility: int, square: int = 0
) -> tuple[tf.Tensor, tf.Tensor]:
    """The canvas for the largest image of a batch: int32 ``(height, width)`` in pixels.

    ``square`` > 0 replaces both; then both are rounded up to a multiple of ``divisibility`` if that is above 1.
    Source: detectron2/structures/image_list.py ``ImageList.from_tensors``.
    """
    if square > 0:
        height, width = tf.constant(square, tf.int32), tf.constant(square, tf.int32)
    if divisibility > 1:
        height = (height + divisibility - 1) // divisibility * divisibility
        width = (width + divisibility - 1) // divisibility * divisibility
    return height, width
