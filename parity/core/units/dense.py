"""Units of the models without regions: RetinaNet, semantic segmentation, and panoptic FPN on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity.core.units.backbones import feature_name
from parity.core.units.deeplab import DEEPLAB_HEADS, deeplab_units
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


def fcos_units(model: Mapping[str, Any]) -> list[Unit]:
    """An `FCOS` behind its backbone: both towers of every level, and the three outputs made of them."""
    built, head = [], DENSE_HEAD.removeprefix("steps/")
    outputs: list[list[str]] = [[], [], []]
    for level, feature in enumerate(model["RETINANET"]["IN_FEATURES"]):
        towers = [f"steps/{head}.{name}" + (f"#{level}" if level else "") for name in _TOWERS]
        for name, tower in zip(_TOWERS, towers, strict=True):
            inputs, args = (feature_name(feature),), (f"{head}.{name}", level)
            built.append(Unit(f"{name}#{level}", "tower", inputs, (tower,), "continuous", args))
        for kind, (name, tower) in enumerate(_FCOS_OUTPUTS.items()):
            target, module = f"{DENSE_HEAD}/{kind}/{level}", f"{head}.{name}"
            source, unit = (towers[tower],), f"{name}#{level}"
            built.append(Unit(unit, "module", source, (target,), "continuous", (module,), module=module))
            outputs[kind].append(target)
    inputs = (*(name for kind in outputs for name in kind), *SIZES)
    made = results("pred_boxes", "scores", "pred_classes")
    return [*built, Unit("postprocess", "fcos_out", inputs, made, "discrete")]


_TOWERS = ("cls_subnet", "bbox_subnet")
_FCOS_OUTPUTS = {
    "cls_score": 0,
    "bbox_pred": 1,
    "ctrness": 1,
}  # in the head's order, with the tower each reads


def semantic_units(model: Mapping[str, Any]) -> list[Unit]:
    """A `SemanticSegmentor` behind its backbone."""
    features = tuple(feature_name(name) for name in model["SEM_SEG_HEAD"]["IN_FEATURES"])
    logits, target = "steps/sem_seg_head/0", arrays("output/sem_seg", judge="sem_seg")
    if model["SEM_SEG_HEAD"].get("NAME") == "PointRendSemSegHead":
        target = arrays("output/sem_seg", judge="refined")
        out = Unit("sem_seg_out", "sem_seg_out", (logits, *SIZES), target, "continuous")
        return [*point_rend_semantic_units(model), out]
    head = [Unit("sem_seg_head", "sem_seg", features, (logits,), "continuous")]
    if model["SEM_SEG_HEAD"].get("NAME") in DEEPLAB_HEADS:
        head = deeplab_units(model)
    return [*head, Unit("sem_seg_out", "sem_seg_out", (logits, *SIZES), target, "continuous")]


def panoptic_units(model: Mapping[str, Any]) -> list[Unit]:
    """A `PanopticFPN` behind its backbone."""
    fields = ("scores", "pred_classes", "pred_masks")
    inputs = ("output/sem_seg", *(f"{RESULTS.name}/{field}" for field in fields))
    combine = Unit("panoptic", "panoptic", inputs, arrays(PANOPTIC, judge="panoptic"), "discrete")
    return [*instance_units(model), postprocess(model), *semantic_units(model), combine]
