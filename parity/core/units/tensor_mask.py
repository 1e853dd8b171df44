"""Units of TensorMask behind its backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity.core.units.backbones import feature_name
from parity.core.units.rcnn import SIZES, results
from parity.core.units.table import DENSE_HEAD, Unit

_LEVELS = ("p2", "p3", "p4", "p5", "p6", "p7")  # detectron2's default
_HEAD = DENSE_HEAD.removeprefix("steps/")
_BOXES = {
    "cls_score": "cls_subnet",
    "bbox_pred": "bbox_subnet",
}  # in the head's order, with the tower each reads


def tensor_mask_units(model: Mapping[str, Any]) -> list[Unit]:
    """Three towers of every level, logits and deltas, masks of all windows, results."""
    section = model.get("TENSOR_MASK", {})
    features = [feature_name(name) for name in section.get("IN_FEATURES", _LEVELS)]
    built, maps = _box_units(features)
    if model["MASK_ON"]:
        anchors = len(model["ANCHOR_GENERATOR"]["SIZES"][0])
        more, windows = _mask_units(features, anchors, section.get("BIPYRAMID_ON", False))
        built, maps = built + more, maps + windows
    fields = ("pred_boxes", "scores", "pred_classes", *(["pred_masks"] if model["MASK_ON"] else []))
    out = Unit("postprocess", "tensor_mask_out", (*maps, *SIZES), results(*fields), "discrete", fields)
    return [*built, out]


def _call(name: str, level: int) -> str:
    """The array of a module of the head in its call for a level."""
    return f"{DENSE_HEAD}.{name}" + (f"#{level}" if level else "")


def _tower(name: str, level: int, feature: str) -> Unit:
    args = (f"{_HEAD}.{name}",)
    return Unit(f"{name}#{level}", "module", (feature,), (_call(name, level),), "continuous", args)


def _box_units(features: list[str]) -> tuple[list[Unit], list[str]]:
    """Towers and outputs of classes and boxes, and the names of all logits, then all deltas."""
    built: list[Unit] = []
    outputs: list[list[str]] = [[], []]
    for level, feature in enumerate(features):
        built += [_tower(name, level, feature) for name in _BOXES.values()]
        for kind, (name, tower) in enumerate(_BOXES.items()):
            target, module = f"{DENSE_HEAD}/{kind}/{level}", f"{_HEAD}.{name}"
            source, unit = (_call(tower, level),), f"{name}#{level}"
            built.append(Unit(unit, "module", source, (target,), "continuous", (module,), module=module))
            outputs[kind].append(target)
    return built, [*outputs[0], *outputs[1]]


def _mask_units(features: list[str], anchors: int, bipyramid: bool) -> tuple[list[Unit], list[str]]:
    """Tower of every level, brought to the finest one's size, all windows; and the names of these."""
    built, windows = [_tower("mask_subnet", level, feature) for level, feature in enumerate(features)], []
    for level in range(len(features)):
        source = _call("mask_subnet", level)
        if bipyramid:
            inputs, source = (source, _call("mask_subnet", 0)), _call("mask_fuse", level)
            built.append(Unit(f"mask_fuse#{level}", "mask_fuse", inputs, (source,), "continuous", (level,)))
        for anchor in range(anchors):
            target, args = f"{DENSE_HEAD}/2/{level}/{anchor}", (level, anchor)
            name = f"windows.{level}.{anchor}"
            built.append(Unit(name, "mask_windows", (source,), (target,), "continuous", args, module=_HEAD))
            windows.append(target)
    return built, windows
