"""Answers of a served model -> what ``tf_d2.Predictor`` returns."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_d2.densepose import predictor_output
from tf_d2.instances import Instances
from tf_d2.ops.mask_paste_numpy import paste_masks_numpy
from tf_d2.ops.mask_paste_padded_numpy import paste_padded_masks_numpy
from tf_d2.serving_contract import STATUS_TEXT
from weights.errors import UserError


class ServingError(UserError, RuntimeError):
    """The server could not be reached, refused the request, or answered something else than detections."""


class BadImageError(ServingError):
    """The server answered that it cannot use this image."""


def to_result(outputs: Mapping[str, np.ndarray], index: int) -> dict[str, Any]:
    """The answer for one image of a batch, as ``tf_d2.Predictor`` gives it.

    ROI masks are pasted into the image. A map of semantic classes is ``"sem_seg_labels"``, int32 ``(H, W)``.

    Args:
        outputs: every output of the signature, ``[B, ...]``.
        index: which image.

    Raises:
        BadImageError: the server could not use this image.
        ServingError: outputs are missing; the model was not exported by tf_d2.
    """
    missing = sorted({"image_size", "image_status"} - set(outputs))
    if missing:
        raise ServingError(f"the answer lacks {', '.join(missing)}: was this model exported by tf-d2 export?")
    status = int(outputs["image_status"][index])
    if status:
        raise BadImageError(STATUS_TEXT.get(status, f"unknown status {status}"))
    row = {name: value[index] for name, value in outputs.items()}
    height, width = (int(n) for n in row["image_size"])
    result: dict[str, Any] = {}
    if "num_proposals" in row:
        count = int(row["num_proposals"])
        fields = {name: row[name][:count] for name in ("proposal_boxes", "objectness_logits")}
        result["proposals"] = Instances((height, width), **fields)
    if "num_detections" in row:
        result["instances"] = _instances(row, height, width)
    if "sem_seg" in row:
        result["sem_seg"] = row["sem_seg"][:, :height, :width]
    if "sem_seg_labels" in row:
        result["sem_seg_labels"] = row["sem_seg_labels"][:height, :width]
    if "panoptic_seg" in row:
        segments = row["panoptic_seg"][:height, :width]
        if "num_panoptic_segments" in row:
            result["panoptic_seg"] = segments, segments_of(row)
        else:  # Panoptic-DeepLab: the numbers say the classes, and instances are segments
            result["panoptic_seg"] = segments.astype(np.int64), None
            if "instances" in result and not len(result["instances"]):
                del result["instances"]  # as detectron2 has it
    return result


def _instances(row: Mapping[str, np.ndarray], height: int, width: int) -> Instances:
    count = int(row["num_detections"])
    fields: dict[str, Any] = {
        # With `--box-format tf`, detection_boxes are fractions and the pixels have a name of their own.
        "pred_boxes": row.get("detection_boxes_xyxy", row["detection_boxes"])[:count],
        "scores": row["detection_scores"][:count],
        "pred_classes": row["detection_classes"][:count],
    }
    if "detection_panoptic_ids" in row:
        ids = row["detection_panoptic_ids"][:count]
        fields["pred_masks"] = row["panoptic_seg"][:height, :width] == ids[:, None, None]
    elif "detection_masks" in row:
        masks = row["detection_masks"][:count]
        paste = paste_padded_masks_numpy if "masks_in_whole_pixels" in row else paste_masks_numpy
        fields["pred_masks"] = paste(masks, fields["pred_boxes"], height, width)
    elif "detection_masks_full" in row:
        fields["pred_masks"] = row["detection_masks_full"][:count, :height, :width].astype(bool)
    elif "detection_masks_png_bytes" in row:
        files = row["detection_masks_png_bytes"][:count]
        decoded = [decode_png(data) for data in files]
        fields["pred_masks"] = np.stack(decoded) if decoded else np.zeros((0, height, width), bool)
    if "detection_keypoints" in row:
        fields["pred_keypoints"] = row["detection_keypoints"][:count]
    prefix = "detection_densepose_"
    maps = {k.removeprefix(prefix): v[:count] for k, v in row.items() if k.startswith(prefix)}
    if maps:
        fields["pred_densepose"] = predictor_output(maps)
    return Instances((height, width), **fields)


def decode_png(data: bytes) -> np.ndarray:
    """A mask of an export with ``masks="png"``: bool ``(H, W)``."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data))) > 127


def segments_of(row: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """detectron2's list of segments, of one image's ``panoptic_segment_*``."""
    segments: list[dict[str, Any]] = []
    for k in range(int(row["num_panoptic_segments"])):
        segment: dict[str, Any] = {"id": k + 1, "isthing": bool(row["panoptic_segment_is_thing"][k])}
        if segment["isthing"]:
            segment["score"] = float(row["panoptic_segment_scores"][k])
            segment["category_id"] = int(row["panoptic_segment_classes"][k])
            segment["instance_id"] = int(row["panoptic_segment_instances"][k])
        else:
            segment["category_id"] = int(row["panoptic_segment_classes"][k])
            segment["area"] = int(row["panoptic_segment_areas"][k])
        segments.append(segment)
    return segments
