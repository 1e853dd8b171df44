"""Where models put what they compute on the way, by the names of detectron2's modules."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

Stages = dict[str, tf.Tensor]


class Unrecorded(Stages):
    """Stages that nobody wants: what is put in is forgotten, so that its memory can be used again at once."""

    def __setitem__(self, name: str, value: tf.Tensor) -> None:
        del name, value

    def update(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs


def is_recorded(stages: Stages) -> bool:
    """Whether what is put in stays there."""
    return not isinstance(stages, Unrecorded)


def record_positions(stages: Stages, attention: str, positions: tuple[tf.Tensor, tf.Tensor] | None) -> None:
    """Record the relative positions ``[q, k, d]`` of rows and columns that an attention adds, if it does."""
    for name, value in zip(("rel_h", "rel_w"), positions or (), strict=False):
        stages[f"{attention}.{name}"] = value


def record_tokens(stages: Stages, name: str, tokens: tf.Tensor) -> None:
    """Record ``[N, H, W, C]`` of a module that hands on this layout in detectron2, too.

    Stages go from channels last to channels first when they are written, so these are turned the other way first.
    """
    if is_recorded(stages):
        stages[name] = tf.transpose(tokens, [0, 2, 3, 1])
