"""What bottom-up networks share: a stem and stages in a row, each stage's output with a name, stride and width."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.layers.base import Module


class BottomUp(Module):
    """Stem and stages. ``call`` maps ``[N, H, W, 3]`` to a dict of the features asked for.

    Subclasses make ``stem`` and one attribute per stage (its blocks in order), and fill ``strides`` and
    ``channels`` by name ("stem", then the stages).
    """

    def __init__(self, name: str, stage_names: tuple[str, ...], out_features: tuple[str, ...]) -> None:
        super().__init__(name)
        self.stage_names, self.out_features = stage_names, out_features
        self.strides: dict[str, int] = {}
        self.channels: dict[str, int] = {}

    def run_stage(self, stage: str, x: tf.Tensor) -> tf.Tensor:
        """The output of one stage ("stem" or one of ``stage_names``) given its input."""
        if stage == "stem":
            return self.stem(x)
        for block in getattr(self, stage):
            x = block(x)
        return x

    def forward(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        """Every stage's output by name, "stem" first."""
        outputs = {}
        for stage in ("stem", *self.stage_names):
            x = outputs[stage] = self.run_stage(stage, x)
        return outputs

    def call(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = self.forward(x)
        return {name: outputs[name] for name in self.out_features}


def stages_up_to(stages: tuple[str, ...], out_features: tuple[str, ...]) -> tuple[str, ...]:
    """The stages up to the last one asked for; later ones are not built ("stem" alone needs none)."""
    last = max((stages.index(f) for f in out_features if f in stages), default=-1)
    return stages[: last + 1]
