"""Boxes whose size lies on an edge of ROI pooling, where rounding decides what is pooled.

ROIAlign takes as many samples of a bin as its size in cells, rounded up, and the level of a pyramid is a logarithm,
rounded down. A box 224 pixels wide has bins of 2 cells at stride 16: 2 samples; one that is a rounding wider has 3, and
its features differ by per cents, in detectron2 between two processors, too. A thousand boxes have two thousand sides,
so some picture of a hundred shows it. Only boxes with an edge between the two sides' own sizes are meant here; what a
side makes of the other side's boxes is judged with all of them (on the same input).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.core.units import row_owners
from parity.core.units.table import Stage
from parity.judge.context import Context

_SECTIONS = {  # unit -> whose settings it pools with
    "box_pooler": "ROI_BOX_HEAD",
    "pooler": "ROI_BOX_HEAD",
    "mask_pooler": "ROI_MASK_HEAD",
    "keypoint_pooler": "ROI_KEYPOINT_HEAD",
}
_CANONICAL_SIZE, _CANONICAL_LEVEL = 224.0, 4  # of FPN's rule for the level
_ROUNDINGS = 4 * np.finfo(np.float32).eps  # of coordinates, until a size in cells is made of them
_INPUT = "input/resized"


def on_an_edge(context: Context, owner: str) -> frozenset[int]:
    """Rows of the reference's set ``owner`` that its boxes and the candidate's may pool otherwise."""
    if owner not in context.edges:
        rows: set[int] = set()
        for stage in context.table.values():
            if stage.unit.partition("#")[0] in _SECTIONS and _follows(context, stage, owner):
                rows |= _of_stage(context, stage, owner)
        context.edges[owner] = frozenset(rows)
    return context.edges[owner]


def _follows(context: Context, stage: Stage, owner: str) -> bool:
    owners = row_owners(stage.name, context.table)
    return next((o.name for o in owners if o.name in context.matches), "") == owner


def _of_stage(context: Context, stage: Stage, owner: str) -> set[int]:
    *features, boxes = stage.inputs
    model: Mapping[str, Any] = (context.config or {}).get("MODEL", {})
    pooler = model.get(_SECTIONS[stage.unit.partition("#")[0]], {})
    held = (context.reference, context.candidate)
    if any(boxes not in arrays for arrays in held) or not all(
        n in context.reference for n in (*features, _INPUT)
    ):
        return set()
    both = [arrays[boxes] for arrays in held]
    pairs = [(i, j) for i, j in context.matches[owner].pairs if i < len(both[0]) and j < len(both[1])]
    if not pairs or both[0].shape[1] != 4:  # rotated boxes: not looked at
        return set()
    sides = [b[[p[k] for p in pairs]].astype(np.float64) for k, b in enumerate(both)]
    size = np.array(context.reference[_INPUT].shape[:2])
    # Feature maps are (1, C, H, W); along one axis at least the input is padded by no more than a cell of the coarsest.
    levels = [round(np.log2((size / context.reference[n].shape[2:]).max())) for n in features]
    edge = _edges(
        sides, levels, int(pooler.get("POOLER_RESOLUTION", 0)), int(pooler.get("POOLER_SAMPLING_RATIO", 0))
    )
    return {pairs[k][0] for k in np.flatnonzero(edge)}


def _edges(sides: list[np.ndarray], levels: list[int], resolution: int, sampling_ratio: int) -> np.ndarray:
    """Which boxes (N, 4) of two sides have an edge between them. ``levels``: log2 of the strides, finest first."""
    sizes = [boxes[:, 2:] - boxes[:, :2] for boxes in sides]
    rounding = _ROUNDINGS * np.maximum(*(np.abs(boxes).max(axis=1, initial=0.0) for boxes in sides))[:, None]
    low, high = (
        np.maximum(f(*sizes) + r, 1e-9) for f, r in ((np.minimum, -rounding), (np.maximum, rounding))
    )
    first, last = (
        np.clip(
            np.floor(_CANONICAL_LEVEL + np.log2(np.sqrt(s.prod(axis=1)) / _CANONICAL_SIZE)),
            levels[0],
            levels[-1],
        )
        for s in (low, high)
    )
    edge = first != last
    if sampling_ratio <= 0 and resolution > 0:
        cells = 2.0 ** first[:, None] * resolution
        edge |= (np.ceil(low / cells) != np.ceil(high / cells)).any(axis=1)
    return edge
