"""One row per picture: what every format of ``tf-d2 batch`` holds, and what ``tf_d2.beam`` returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tf_d2.coco import encode_mask
from tf_d2.instances import Instances
from tf_d2.ops.mask_paste_numpy import paste_masks_numpy
from tf_d2.ops.mask_paste_padded_numpy import paste_padded_masks_numpy

Row = dict[str, Any]

COLUMNS = (
    *("path", "height", "width", "boxes", "scores", "classes", "masks", "keypoints"),
    *("sem_seg", "panoptic", "failure"),
)


def failed(path: str | None, reason: str) -> Row:
    """The row of a picture that could not be used: no detections at all (null), which is not the same as none found."""
    return dict.fromkeys(COLUMNS) | {"path": path, "failure": reason}


def usable(path: str | None, height: int, width: int) -> Row:
    """The row of a picture of which nothing is known but its size: null in every column of an answer."""
    return dict.fromkeys(COLUMNS) | {"path": path, "height": height, "width": width}


def detected(
    path: str | None,
    found: Instances,
    whole_pixels: bool = False,
    masks: Iterable[np.ndarray] | None = None,
) -> Row:
    """The row of a picture.

    Args:
        path: its name.
        found: boxes in pixels of the picture; ``pred_masks`` are full masks ``(N, H, W)`` or, as an export answers
            them, probabilities in the box ``(N, M, M)``, which are pasted one by one, so that the memory for one
            full mask is enough.
        whole_pixels: these are pasted as Detectron and maskrcnn-benchmark do.
        masks: full masks, bool ``(H, W)``, one by one, in the place of ``pred_masks``.

    Returns:
        ``boxes`` lists of x1, y1, x2, y2 in pixels (5 numbers where boxes are rotated), ``scores``, ``classes``
        (0-based), ``masks`` COCO's compressed RLE or None, ``keypoints`` lists of (x, y, score) or None, ``failure``
        None. Numbers are float32 values as Python floats: nothing is rounded.
    """
    if masks is None and found.has("pred_masks"):
        masks = _full_masks(found, whole_pixels)
    return usable(path, *found.image_size) | {
        "boxes": found.pred_boxes.tolist(),
        "scores": found.scores.tolist(),
        "classes": [int(label) for label in found.pred_classes],
        "masks": None if masks is None else [encode_mask(mask) for mask in masks],
        "keypoints": found.pred_keypoints.tolist() if found.has("pred_keypoints") else None,
    }


def _full_masks(found: Instances, whole_pixels: bool) -> Iterator[np.ndarray]:
    height, width = found.image_size
    masks = found.pred_masks
    if masks.dtype == bool:
        yield from masks
        return
    paste = paste_padded_masks_numpy if whole_pixels else paste_masks_numpy
    for i in range(len(masks)):
        yield paste(masks[i : i + 1], found.pred_boxes[i : i + 1], height, width)[0]
