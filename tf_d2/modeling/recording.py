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
