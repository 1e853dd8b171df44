"""What models return, and what they record of it."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.modeling.batches import Detections
from tf_d2.modeling.recording import Stages

Outputs = dict[str, tf.Tensor]


def detection_outputs(detections: Detections) -> Outputs:
    """The flat dict a model returns for its detections."""
    return dict(detections._asdict())


def record_detections(stages: Stages, name: str, detections: Detections, extra: Outputs) -> None:
    """Store detections as detectron2's ``Instances`` in network coordinates."""
    stages[f"{name}/pred_boxes"], stages[f"{name}/scores"] = detections.boxes, detections.scores
    stages[f"{name}/pred_classes"] = detections.classes
    for field, value in extra.items():
        stages[f"{name}/{field}"] = value[:, None] if field == "pred_masks" else value


def record_levels(stages: Stages, name: str, *outputs: list[tf.Tensor]) -> None:
    """Store the outputs of a head on every feature level: ``name/<output>/<level>``."""
    for kind, per_level in enumerate(outputs):
        stages.update({f"{name}/{kind}/{level}": x for level, x in enumerate(per_level)})
