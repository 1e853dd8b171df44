"""Units of the models without regions: RetinaNet, semantic segmentation, and panoptic FPN on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity.core.units.backbones import feature_name
from parity.core.units.point_rend import point_rend_semantic_units
from parity.core.units.rcnn import SIZES, instance_units, paired, postprocess, results
from parity.core.units.table import DENSE_HEAD, PANOPTIC, RESULTS, Unit, arrays


def retinanet_units(model: Mapping[str, Any]) -> list[Unit]:
    """A `RetinaNet` behind its backbone."""
    features = tuple(feature_name(name) for name in model["RETINANET"]["IN_FEATURES"])
    head = paired(DENSE_HEAD, len(features))
    inputs = (*(a.name for a in head), *SIZES)
    outputs = results("pred_boxes", "scores", "pred_classes")
    return [
        Unit("head", "module_of_list", features, head, "continuous", ("head",)),
        Unit("postprocess", "retinanet_out", inputs, outputs, "discrete"),
    ]


def semantic_units(model: Mapping[str, Any]) -> list[Unit]:
    """A `SemanticSegmentor` behind its backbone."""
    features = tuple(feature_name(name) for name in model["SEM_SEG_HEAD"]["IN_FEATURES"])
    logits, target = "steps/sem_seg_head/0", arrays("output/sem_seg", judge="sem_seg")
    if model["SEM_SEG_HEAD"].get("NAME") == "PointRendSemSegHead":
        target = arrays("output/sem_seg", judge="refined")
        out = Unit("sem_seg_out", "sem_seg_out", (logits, *SIZES), target, "continuous")
        return [*point_rend_semantic_units(model), out]
    return [
        Unit("sem_seg_head", "sem_seg", features, (logits,), "continuous"),
        Unit("sem_seg_out", "sem_seg_out", (logits, *SIZES), target, "continuous"),
    ]


def panoptic_units(model: Mapping[str, Any]) -> list[Unit]:
    """A `PanopticFPN` behind its backbone."""
    fields = ("scores", "pred_classes", "pred_masks")
    inputs = ("output/sem_seg", *(f"{RESULTS.name}/{field}" for field in fields))
    combine = Unit("panoptic", "panoptic", inputs, arrays(PANOPTIC, judge="panoptic"), "discrete")
    return [*instance_units(model), postprocess(model), *semantic_units(model), combine]
