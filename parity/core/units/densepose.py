"""Units of DensePose behind the final boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity.core.units.backbones import feature_name
from parity.core.units.table import DETECTIONS, Unit, arrays

_PREDICTOR = "steps/roi_heads.densepose_predictor"
_UV = {"iid_iso": ("sigma_2",), "indep_aniso": ("sigma_2", "kappa_u", "kappa_v")}


def densepose_on(model: Mapping[str, Any]) -> bool:
    return model["ROI_HEADS"]["NAME"] == "DensePoseROIHeads" and model.get("DENSEPOSE_ON", True)


def densepose_fields(model: Mapping[str, Any]) -> list[str]:
    """Fields of the answer in the order of detectron2's class."""
    head = model["ROI_DENSEPOSE_HEAD"]
    name = head["PREDICTOR_NAME"]
    sure, segm = "Confidence" in name, head["SEGM_CONFIDENCE"]["ENABLED"]
    if "Embedding" in name:
        return ["embedding", "coarse_segm", *(["coarse_segm_confidence"] if sure and segm else [])]
    uv = _UV[head["UV_CONFIDENCE"]["TYPE"]] if sure and head["UV_CONFIDENCE"]["ENABLED"] else ()
    more = ["fine_segm_confidence", "coarse_segm_confidence"] if sure and segm else []
    return ["coarse_segm", "fine_segm", "u", "v", *uv, *more]


def densepose_names(model: Mapping[str, Any]) -> list[str]:
    """The predictor's arrays."""
    return [f"{_PREDICTOR}/{field}" for field in densepose_fields(model)]


def densepose_units(model: Mapping[str, Any]) -> list[Unit]:
    """Decoder (where there is one), pooler, head, predictor."""
    if not densepose_on(model):
        return []
    maps = tuple(feature_name(name) for name in model["ROI_HEADS"]["IN_FEATURES"])
    built: list[Unit] = []
    if model["ROI_DENSEPOSE_HEAD"]["DECODER_ON"]:
        decoded, module = "steps/roi_heads.decoder", ("roi_heads.decoder",)
        built.append(Unit("decoder", "module_of_list", maps, (decoded,), "continuous", module))
        maps = (decoded,)
    pooled = arrays("steps/roi_heads.densepose_pooler", rows="detections", cut=True)
    head = arrays("steps/roi_heads.densepose_head", rows="detections", cut=True)
    fields = arrays(*densepose_names(model), rows="detections")
    pooler, inputs = ("densepose_pooler",), (*maps, DETECTIONS.boxes)
    head_module, predictor = ("roi_heads.densepose_head",), ("roi_heads.densepose_predictor",)
    return [
        *built,
        Unit("densepose_pooler", "roi_pool", inputs, pooled, "continuous", pooler),
        Unit("densepose_head", "module", (pooled[0].name,), head, "continuous", head_module),
        Unit("densepose_predictor", "module", (head[0].name,), fields, "continuous", predictor, True),
    ]
