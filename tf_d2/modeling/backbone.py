"""What every backbone is: named feature maps with strides and widths, and the names its stages are recorded by."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_d2.layers.base import Module
from tf_d2.modeling.recording import Stages, Unrecorded

Features = dict[str, tf.Tensor]


class Backbone(Module):
    """From ``[N, H, W, 3]`` to the features asked for, by name.

    A subclass fills ``out_features``, ``strides`` (pixels per cell) and ``channels`` by name, and defines
    :meth:`forward`. ``strides`` and ``channels`` may hold more than ``out_features``.
    """

    size_divisibility: int = 0
    """Both sides of the padded input are a multiple of this; 0 = no padding."""
    square_pad: int = 0
    """Side in pixels to which the input is padded; 0 = as ``size_divisibility`` says."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.out_features: tuple[str, ...] = ()
        self.strides: dict[str, int] = {}
        self.channels: dict[str, int] = {}

    def forward(self, x: tf.Tensor, stages: Stages, path: str) -> Features:
        """The features asked for, and what was computed on the way put into ``stages``.

        ``path``: the module's path in detectron2 ("backbone", "backbone.bottom_up"). The output of a child is
        ``f"{path}.{child}"``, a feature of the returned dict ``f"{path}/{name}"``.
        """
        raise NotImplementedError

    def call(self, x: tf.Tensor) -> Features:
        return self.forward(x, Unrecorded(), "")

    # Asked for shapes alone, Keras would not trace.
    def compute_output_spec(self, x: keras.KerasTensor) -> Any:
        return keras.Operation.compute_output_spec(self, x)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> dict[str, tuple[int | None, ...]]:
        """``(N, H, W, 3)``, None where unknown -> the shapes of the features by name; nothing is computed.

        Raises NotImplementedError, for which ``summary()`` shows "?", where a shape is not enough or does not fit.
        """
        try:
            specs = self.compute_output_spec(keras.KerasTensor(input_shape, self.compute_dtype))
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise NotImplementedError(f"no features of shape {input_shape}: {error}") from error
        return {name: tuple(spec.shape) for name, spec in specs.items()}


class BottomUp(Backbone):
    """A stem and stages in a row.

    Subclasses make ``stem`` and one attribute per stage (its blocks in order), and fill ``strides`` and
    ``channels`` by name ("stem", then the stages).
    """

    def __init__(self, name: str, stage_names: tuple[str, ...], out_features: tuple[str, ...]) -> None:
        super().__init__(name)
        self.stage_names, self.out_features = stage_names, out_features

    def run_stage(self, stage: str, x: tf.Tensor) -> tf.Tensor:
        """The output of one stage ("stem" or one of ``stage_names``) given its input."""
        if stage == "stem":
            return self.stem(x)
        for block in getattr(self, stage):
            x = block(x)
        return x

    def forward(self, x: tf.Tensor, stages: Stages, path: str) -> Features:
        outputs = {}
        for stage in ("stem", *self.stage_names):
            x = outputs[stage] = self.run_stage(stage, x)
        stages[f"{path}.stem"] = outputs["stem"]
        features = {name: outputs[name] for name in self.out_features}
        stages.update({f"{path}/{name}": feature for name, feature in features.items()})
        return features


def stages_up_to(stages: tuple[str, ...], out_features: tuple[str, ...]) -> tuple[str, ...]:
    """The stages up to the last one asked for; later ones are not built ("stem" alone needs none)."""
    last = max((stages.index(f) for f in out_features if f in stages), default=-1)
    return stages[: last + 1]
