"""Instances as COCO results: the dictionaries that COCO's and detectron2's evaluation reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_d2.instances import Instances
from weights.errors import UsageError


def to_coco(
    instances: Instances, image_id: int | str, category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """One COCO result per instance, in the order of ``instances``, ready for ``json.dumps``.

    Args:
        instances: with ``pred_boxes``, ``scores``, ``pred_classes`` and, where the model has them,
            ``pred_masks``, ``pred_keypoints``.
        image_id: the image's number in the data set (a name does where none is known).
        category_ids: category number of class 0, 1, ... (see ``tf_d2.config.category_ids``); None writes
            the class.

    Returns:
        dicts with ``image_id``, ``category_id``, ``bbox`` ([x, y, width, height] in pixels; rotated boxes
        [cx, cy, w, h, degrees]), ``score``, and where the model has them ``segmentation`` (compressed RLE
        of the whole image, ``counts`` as text) and ``keypoints`` (x, y, score in a row). COCO counts
        keypoints from pixel centres, detectron2 from pixel corners: 0.5 is subtracted. Boxes stay.

    Raises:
        ValueError: a class without a category number.

    Source: detectron2/evaluation/coco_evaluation.py ``instances_to_coco_json``.
    """
    classes = [int(c) for c in instances.pred_classes]
    if category_ids is not None and classes and not 0 <= min(classes) <= max(classes) < len(category_ids):
        raise UsageError(f"classes up to {max(classes)}, but category_ids has only {len(category_ids)}")
    results = []
    for i, label in enumerate(classes):
        result: dict[str, Any] = {
            "image_id": image_id,
            "category_id": label if category_ids is None else int(category_ids[label]),
            "bbox": coco_box(instances.pred_boxes[i]),
            "score": float(instances.scores[i]),
        }
        if instances.has("pred_masks"):
            result["segmentation"] = encode_mask(instances.pred_masks[i])
        if instances.has("pred_keypoints"):
            shift = np.array([0.5, 0.5, 0.0], np.float32)
            result["keypoints"] = (instances.pred_keypoints[i] - shift).flatten().tolist()
        results.append(result)
    return results


def coco_box(box: np.ndarray) -> list[float]:
    """xyxy -> [x, y, width, height]; a rotated box (5 numbers) stays as it is."""
    if len(box) == 5:
        return box.tolist()
    x1, y1, x2, y2 = box
    return [float(v) for v in (x1, y1, x2 - x1, y2 - y1)]


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A bool ``(H, W)`` mask as COCO's compressed RLE: ``{"size": [H, W], "counts": text}``."""
    from pycocotools import mask as rle

    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    counts = encoded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(n) for n in encoded["size"]], "counts": text}


def decode_mask(encoded: Mapping[str, Any]) -> np.ndarray:
    """The inverse of :func:`encode_mask`: bool ``(H, W)``. (pycocotools' own ``decode`` warns under NumPy 2.)

    Source of the code: pycocotools, common/maskApi.c ``rleFrString``: numbers of 5 bits a character, the lowest first,
    bit 5 = more follow; from the fourth run on, the difference to the run before the last.
    """
    height, width = encoded["size"]
    runs: list[int] = []
    value = shift = 0
    for character in encoded["counts"]:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T
