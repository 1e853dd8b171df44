"""Units of DeepLab's heads and of Panoptic-DeepLab behind their backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parity.core.units.backbones import feature_name
from parity.core.units.rcnn import SIZES
from parity.core.units.table import PANOPTIC, RESULTS, Array, Unit, arrays

DEEPLAB_HEADS = ("DeepLabV3Head", "DeepLabV3PlusHead")
_FEATURES = ("res2", "res3", "res5")  # detectron2's default of Panoptic-DeepLab's heads
_FIELDS = ("pred_boxes", "scores", "pred_classes", "pred_masks")


def deeplab_units(model: Mapping[str, Any]) -> list[Unit]:
    """DeepLab's head: what the predictor reads, its logits, and these at the size of the network input."""
    head, plus = model["SEM_SEG_HEAD"], model["SEM_SEG_HEAD"]["NAME"] == DEEPLAB_HEADS[1]
    built, y = _decoder_units("sem_seg_head", head["IN_FEATURES"], plus)
    return [*built, *_output_units("sem_seg_head", [("", "predictor", 0)], y)]


def _decoder_units(head: str, features: Sequence[str], plus: bool = True) -> tuple[list[Unit], str]:
    """ASPP and, in a decoder, what joins it with every finer feature; and the name of the last array.

    head: path of the head's module. features: finest first.
    """
    *fine, coarse = features
    y = f"steps/{head}.decoder.{coarse}.project_conv" if plus else f"steps/{head}.aspp"
    built = [_module("aspp", feature_name(coarse), y)]
    for feature in reversed(fine):
        projected, fused = (f"steps/{head}.decoder.{feature}.{n}" for n in ("project_conv", "fuse_conv"))
        args = (fused.removeprefix("steps/"),)
        built.append(_module(f"{feature}.project_conv", feature_name(feature), projected))
        built.append(Unit(f"{feature}.fuse_conv", "decode", (projected, y), (fused,), "continuous", args))
        y = fused
    return built, y


def panoptic_deeplab_units(model: Mapping[str, Any]) -> list[Unit]:
    """Both heads of a `PanopticDeepLab`, and what is made of their maps: segments and instances."""
    semantic, y = _decoder_units("sem_seg_head", model["SEM_SEG_HEAD"].get("IN_FEATURES", _FEATURES))
    embed, z = _decoder_units("ins_embed_head", model.get("INS_EMBED_HEAD", {}).get("IN_FEATURES", _FEATURES))
    # Heads in detectron2's words: convolutions, predictor, number of the result.
    both = [("center_head", "center_predictor", 0), ("offset_head", "offset_predictor", 1)]
    built = [
        *semantic,
        *_output_units("sem_seg_head", [("head", "predictor", 0)], y),
        *(_renamed(unit, "instances.") for unit in embed),
        *_output_units("ins_embed_head", both, z),
    ]
    maps = ("steps/sem_seg_head/0", "steps/ins_embed_head/0", "steps/ins_embed_head/1")
    logits = arrays("output/sem_seg", judge="sem_seg")
    fields = _FIELDS if model.get("PANOPTIC_DEEPLAB", {}).get("PREDICT_INSTANCES", True) else ()
    found = (
        Array(f"{RESULTS.name}/{f}", "results", "numbered" if f == "pred_masks" else "values") for f in fields
    )
    made = (*arrays(PANOPTIC, judge="numbered"), *found)
    return [
        *built,
        Unit("sem_seg_out", "sem_seg_out", (maps[0], *SIZES), logits, "continuous"),
        Unit("segments", "panoptic_deeplab", (*maps, *SIZES), made, "discrete", fields),
    ]


def _output_units(head: str, branches: Sequence[tuple[str, str, int]], y: str) -> list[Unit]:
    """Convolutions ("": none) and predictor of each branch, and what the head returns."""
    built: list[Unit] = []
    for convs, predictor, number in branches:
        source = y
        for name in filter(None, (convs, predictor)):
            built.append(_module(f"{head}.{name}", source, f"steps/{head}.{name}"))
            source = f"steps/{head}.{name}"
        # Offsets are lengths, which grow with the map.
        args = (head, predictor == "offset_predictor")
        out = (f"steps/{head}/{number}",)
        built.append(Unit(f"{head}/{number}", "enlarge", (source,), out, "continuous", args, module=head))
    return built


def _module(name: str, source: str, target: str) -> Unit:
    return Unit(name, "module", (source,), (target,), "continuous", (target.removeprefix("steps/"),))


def _renamed(unit: Unit, prefix: str) -> Unit:
    return Unit(prefix + unit.name, unit.op, unit.inputs, unit.arrays, unit.kind, unit.args)
