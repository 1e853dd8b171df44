"""Merging instances and a semantic map into one panoptic map, on the host (NumPy only).

The same rule as graph ops, for exports, is in `tf_d2.serving.maps`.

Source: detectron2/modeling/meta_arch/panoptic_fpn.py at 02b5c4e2.
"""

from typing import Any, NamedTuple

import numpy as np


class Things(NamedTuple):
    """Instances of one image: ``scores`` ``[N]``, ``classes`` int ``[N]`` (contiguous thing class), ``masks`` bool
    ``[N,H,W]`` in the pixels of the semantic map."""

    scores: np.ndarray
    classes: np.ndarray
    masks: np.ndarray


def combine_semantic_and_instance_outputs(
    things: Things,
    sem_seg: np.ndarray,
    *,
    overlap_threshold: float,
    stuff_area_thresh: float,
    instances_score_thresh: float,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Things first, by descending score, then stuff on the pixels that are left.

    An instance is left out when it scores below `instances_score_thresh` (and so all after it), is empty,
    or has more than `overlap_threshold` of its pixels taken already (exactly that share is kept); it gets
    its free pixels. Then every semantic label but 0 ("things"), in ascending order, gets its free pixels if
    they are `stuff_area_thresh` or more. Equal scores: lower index first (torch leaves the order open).

    Args:
        sem_seg: int `[H,W]`, contiguous semantic class per pixel, the first maximum of the logits.

    Returns:
        int32 `[H,W]`, 0 where nothing is; and the segments in order of their id 1, 2, ...: for things id,
        isthing, score, category_id, instance_id (row of the instance), for stuff id, isthing, category_id,
        area (pixels).

    Raises:
        ValueError: masks that are not of the size of `sem_seg`, or of another number than the scores.

    Source: `combine_semantic_and_instance_outputs`, detectron2/modeling/meta_arch/panoptic_fpn.py.
    """
    scores, classes, masks = things
    if masks.shape != (len(scores), *sem_seg.shape) or len(classes) != len(scores):
        raise ValueError(
            f"panoptic merge: {len(scores)} scores, {len(classes)} classes and a {list(sem_seg.shape)} "
            f"semantic map need masks [N,H,W] of that size, got {list(masks.shape)}"
        )
    panoptic_seg = np.zeros(sem_seg.shape, np.int32)
    things = things._replace(masks=masks.astype(bool, copy=False))
    segments = _paint_things(panoptic_seg, things, overlap_threshold, instances_score_thresh)
    segments += _paint_stuff(panoptic_seg, sem_seg, stuff_area_thresh, first_id=len(segments) + 1)
    return panoptic_seg, segments


def _paint_things(
    panoptic_seg: np.ndarray, things: Things, overlap_threshold: float, score_thresh: float
) -> list[dict[str, Any]]:
    scores, classes, masks = things
    segments: list[dict[str, Any]] = []
    for i in np.argsort(-scores, kind="stable"):
        score = float(scores[i])
        if score < score_thresh:
            break
        window = _window(masks[i])
        if window is None:
            continue
        mask, painted = masks[i][window], panoptic_seg[window]
        free = mask & (painted == 0)
        area = np.count_nonzero(mask)
        if (area - np.count_nonzero(free)) / area > overlap_threshold:
            continue
        painted[free] = len(segments) + 1
        segments.append(
            {
                "id": len(segments) + 1,
                "isthing": True,
                "score": score,
                "category_id": int(classes[i]),
                "instance_id": int(i),
            }
        )
    return segments


def _paint_stuff(
    panoptic_seg: np.ndarray, sem_seg: np.ndarray, area_thresh: float, first_id: int
) -> list[dict[str, Any]]:
    segments: list[dict[str, Any]] = []
    free = panoptic_seg == 0
    labels, position = np.unique(sem_seg, return_inverse=True)
    areas = np.bincount(position.reshape(-1)[free.reshape(-1)], minlength=len(labels))
    for label, area in zip(labels.tolist(), areas.tolist(), strict=True):
        if label == 0 or area < area_thresh:  # with a limit of 0, hidden stuff is a segment without pixels
            continue
        segment_id = first_id + len(segments)
        panoptic_seg[free & (sem_seg == label)] = segment_id
        segments.append({"id": segment_id, "isthing": False, "category_id": label, "area": area})
    return segments


def _window(mask: np.ndarray) -> tuple[slice, slice] | None:
    """The rows and columns between which a mask [H,W] has pixels; None for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
