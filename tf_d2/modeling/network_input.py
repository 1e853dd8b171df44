"""From a picture to the network's resolution, as its configuration says."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_d2.config import ModelConfig
from tf_d2.config.parts.input import InputConfig
from tf_d2.ops import resize


def network_size(height: int, width: int, config: InputConfig) -> tuple[int, int]:
    """(height, width) in pixels that a picture of this size has as network input, padding apart."""
    kind, limits = config.conventions.resize, (config.min_size_test, config.max_size_test)
    if config.min_size_test == 0 or kind == "pillow":
        return resize.shortest_edge_size(height, width, *limits)
    if kind == "truncated":
        return resize.truncated_edge_size(height, width, *limits)
    size = resize.factor_size(height, width, resize.resize_factor(height, width, *limits)).numpy()
    return int(size[0]), int(size[1])


def network_size_tf(height: tf.Tensor, width: tf.Tensor, config: InputConfig) -> tuple[tf.Tensor, tf.Tensor]:
    """:func:`network_size` as TensorFlow ops."""
    kind, limits = config.conventions.resize, (config.min_size_test, config.max_size_test)
    if config.min_size_test == 0 or kind == "pillow":
        return resize.shortest_edge_size_tf(height, width, *limits)
    if kind == "truncated":
        return resize.truncated_edge_size_tf(height, width, *limits)
    size = resize.factor_size(height, width, resize.resize_factor(height, width, *limits))
    return size[0], size[1]


def pixel_dtype(config: InputConfig) -> tf.DType:
    """The dtype of a uint8 picture at network size: with Detectron's conventions float32, for nothing is rounded."""
    is_float = config.conventions.resize == "factor" and config.min_size_test != 0
    return tf.float32 if is_float else tf.uint8


def to_network(image: tf.Tensor, size: tf.Tensor, config: InputConfig) -> tf.Tensor:
    """Resize ``image`` ``[H, W, C]`` to ``size`` int32 ``[2]``, which is :func:`network_size`.

    uint8 stays uint8, but for Detectron's conventions, whose pixels are float32 from here on.
    """
    if config.min_size_test == 0:  # no resizing
        return image
    if config.conventions.resize == "factor":
        shape = tf.shape(image)
        factor = resize.resize_factor(shape[0], shape[1], config.min_size_test, config.max_size_test)
        return resize.resize_by_factor(image, factor)
    function = resize.resize_uint8 if image.dtype == tf.uint8 else resize.resize_float
    return function(image, size[0], size[1])


def pooling_windows(config: ModelConfig) -> list[tuple[int, tuple[int, int]]]:
    """Stride of the map and cells (height, width) of the window, of every head of DeepLab that was trained on crops:
    its pooling divides the map by a fixed window."""
    heads: list[Any] = [getattr(config.model, name, None) for name in ("sem_seg_head", "ins_embed_head")]
    return [
        (config.backbone.strides[head.in_features[-1]], head.pool_kernel)
        for head in heads
        if getattr(head, "pool_kernel", None)
    ]


def fits(config: ModelConfig, height: Any, width: Any) -> Any:
    """Whether a network input of this size (ints, or int32 tensors of one shape) can be pooled: bool, alike."""
    divisibility = getattr(config.model, "size_divisibility", 0) or 1
    whole: Any = True
    for stride, window in pooling_windows(config):
        for pixels, cells in zip((height, width), window, strict=True):
            padded = (pixels + divisibility - 1) // divisibility * divisibility
            whole &= (padded + stride - 1) // stride % cells == 0
    return whole
