"""Units of PointRend: masks and semantic logits that are refined at points.

Which of nearly equally uncertain cells is refined depends on rounding: these arrays are judged as "refined".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity.core.units.backbones import feature_name
from parity.core.units.table import DETECTIONS, Unit, arrays

MASK_HEADS = ("PointRendMaskHead", "ImplicitPointRendMaskHead", "CoarseMaskHead")
_HEAD = "steps/roi_heads.mask_head"
_COARSE = "steps/sem_seg_head.coarse_sem_seg_head.predictor"


def point_rend_mask_units(model: Mapping[str, Any]) -> list[Unit]:
    """A look at each box, the points of the first grid, and the refined mask."""
    implicit = model["ROI_MASK_HEAD"]["NAME"].startswith("Implicit")
    features = tuple(feature_name(name) for name in model["ROI_HEADS"]["IN_FEATURES"])
    seen = arrays(f"{_HEAD}.{'parameter' if implicit else 'coarse'}_head", rows="detections", cut=True)
    points = arrays(f"{_HEAD}.point_head", rows="detections", cut=True)
    masks = arrays(f"{DETECTIONS.name}/pred_masks", rows="detections", judge="refined")
    given = (*features, DETECTIONS.boxes)
    refined = (*given, str(DETECTIONS.classes), seen[0].name)
    return [
        Unit("mask_look", "mask_look", given, seen, "continuous"),
        Unit("mask_points", "mask_points", (*given, seen[0].name), points, "continuous"),
        Unit("mask_refine", "mask_refine", refined, masks, "continuous", optional=True),
    ]


def point_rend_semantic_units(model: Mapping[str, Any]) -> list[Unit]:
    """The coarse logits, and the refined ones from them."""
    features = tuple(feature_name(name) for name in model["SEM_SEG_HEAD"]["IN_FEATURES"])
    fine = tuple(feature_name(name) for name in model["POINT_HEAD"]["IN_FEATURES"])
    refined = arrays("steps/sem_seg_head/0", judge="refined")
    return [
        Unit("sem_seg_coarse", "sem_seg_coarse", features, arrays(_COARSE), "continuous"),
        Unit("sem_seg_refine", "sem_seg_refine", (*fine, _COARSE), refined, "continuous"),
    ]
