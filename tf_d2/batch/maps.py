"""Maps of a picture as lists of compressed masks, one per class or segment: the columns ``sem_seg``, ``panoptic``.

Every part has ``size`` and ``counts``, COCO's compressed RLE of the whole picture, beside what it is the mask of, so
that pycocotools, a SQL query and JSON all read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tf_d2.coco import decode_mask, encode_mask

Part = dict[str, Any]


def semantic_parts(labels: np.ndarray) -> list[Part]:
    """Classes that occur in a map of semantic classes, ascending.

    Args:
        labels: integers ``(H, W)``, 0-based class of every pixel.

    Returns:
        dicts with ``class``, ``size``, ``counts``. No pixel is in two of them, and none is left out.

    Source: detectron2/evaluation/sem_seg_evaluation.py ``encode_json_sem_seg``.
    """
    return [{"class": int(label)} | encode_mask(labels == label) for label in np.unique(labels)]


def panoptic_parts(segments: np.ndarray, told: Iterable[Mapping[str, Any]]) -> list[Part]:
    """Segments of a panoptic map, in the order of ``told``.

    Args:
        segments: integers ``(H, W)``, number of every pixel's segment.
        told: what is known of each: ``id``, ``class``, ``isthing`` and, of things, ``score`` and ``instance`` (row
            among the detections).

    Returns:
        dicts with ``id``, ``class`` (a thing's class, or the semantic class of stuff), ``isthing``, ``score`` and
        ``instance`` (None for stuff), ``area`` in pixels, ``size``, ``counts``.
    """
    parts = []
    for segment in told:
        mask = segments == segment["id"]
        known = {name: segment.get(name) for name in ("id", "class", "isthing", "score", "instance")}
        parts.append(known | {"area": int(mask.sum())} | encode_mask(mask))
    return parts


def numbered(
    segments: np.ndarray, divisor: int, things: Sequence[int], ids: Sequence[int], scores: Sequence[float]
) -> list[dict[str, Any]]:
    """What :func:`panoptic_parts` is told of a map whose numbers are class * ``divisor`` + instance (Panoptic-DeepLab).

    Args:
        segments: integers ``(H, W)``; -1 is nothing.
        divisor: LABEL_DIVISOR of the configuration.
        things: classes that have instances.
        ids, scores: number in the map and score of each detection.
    """
    rows = {number: row for row, number in enumerate(ids)}
    told = []
    for number in np.unique(segments[segments >= 0]).tolist():
        segment = {"id": number, "class": number // divisor, "isthing": number // divisor in things}
        if number in rows:
            segment |= {"score": scores[rows[number]], "instance": rows[number]}
        told.append(segment)
    return told


def map_of(parts: Iterable[Mapping[str, Any]], key: str, empty: int = 0) -> np.ndarray:
    """The map again: int64 ``(H, W)`` with ``key`` (``"class"`` or ``"id"``) of the part that each pixel is in,
    ``empty`` where there is none. ValueError without any part, since the size is theirs."""
    found: np.ndarray | None = None
    for part in parts:
        if found is None:
            found = np.full(tuple(part["size"]), empty, np.int64)
        found[decode_mask(part)] = part[key]
    if found is None:
        raise ValueError("a map without parts has no size; take height and width of the row")
    return found
