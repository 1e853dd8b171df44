"""Which pictures a model takes: DeepLab's pooling, trained on crops, divides its feature map by a fixed window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tensorflow as tf

from tf_d2.config import ModelConfig
from tf_d2.modeling.network_input import fits, network_size, pooling_windows

# Side of the blank picture that goes through a model without such a window when no image of a request is usable.
_BLANK = 64
_SIDE = 96  # shorter side of a sample picture


def blank_size(config: ModelConfig) -> tuple[int, int]:
    """(height, width) in pixels of the smallest network input that any model takes, or of the window."""
    for stride, (height, width) in pooling_windows(config):
        if not fits(config, _BLANK, _BLANK):
            return height * stride, width * stride
    return _BLANK, _BLANK


def checked(config: ModelConfig, status: tf.Tensor, sizes: tf.Tensor, ok: int, unfit: int) -> tf.Tensor:
    """``status`` int32 ``[n]`` with ``unfit`` where it was ``ok`` and network sizes ``[n, 2]`` do not fit."""
    if not pooling_windows(config):
        return status
    return tf.where((status == ok) & ~fits(config, sizes[:, 0], sizes[:, 1]), unfit, status)


def sample_sizes(config: ModelConfig, wanted: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of the ``wanted`` sizes (height, width) of pictures those that the model takes once they are resized, or others.

    Empty if no picture of a usual shape can be: INPUT.MIN_SIZE_TEST and INPUT.CROP.SIZE then do not go together.
    """

    def usable(size: tuple[int, int]) -> bool:
        return fits(config, *network_size(*size, config.input))

    return [s for s in wanted if usable(s)] or [s for s in _of_windows(config) if usable(s)][: len(wanted)]


def _of_windows(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """Sizes of pictures with the proportions of a few windows, small ones first."""
    for stride, (rows, columns) in pooling_windows(config)[:1]:
        for i, j in ((1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (3, 4), (4, 3), (1, 3), (3, 1), (1, 4), (4, 1)):
            height, width = i * rows * stride, j * columns * stride
            scale = _SIDE / min(height, width)
            yield round(height * scale), round(width * scale)
            yield height, width
