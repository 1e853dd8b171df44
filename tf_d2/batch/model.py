"""An exported model in this process, and its identity."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tf_d2 import kernels
from tf_d2.batch.maps import numbered, panoptic_parts, semantic_parts
from tf_d2.batch.rows import Row, detected, failed, usable
from tf_d2.client.result import decode_png, segments_of
from tf_d2.instances import Instances
from tf_d2.ops.image_io import read_image
from tf_d2.serving_contract import STATUS_TEXT, takes_files
from weights.errors import UsageError

# Pictures in the network at the same time: the second one fills the gaps in which the first does not use all cores.
_AT_ONCE = 2
# One of these is in the answer of every model that batch is for.
_ANSWERS = ("detection_boxes", "sem_seg_labels", "sem_seg", "panoptic_seg")


def _read_record(folder: Path) -> dict[str, Any]:
    """What the export in ``folder`` (that of one version) says of itself. Raises UsageError where it is damaged."""
    path = folder / "assets" / "export.json"
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path}: not readable ({error}); export the model again") from error


class Detector:
    """A SavedModel that ``tf-d2 export`` wrote. May be called from several threads."""

    def __init__(self, export: str | Path) -> None:
        """``export``: the folder of the model (its highest version is taken) or of one version.

        Raises ValueError where it is no export of tf-d2, or one without detections and maps.
        """
        import tensorflow as tf

        self.folder = version_folder(Path(export))
        self.record = _read_record(self.folder)
        kernels.keep_memory()
        self._model: Any = tf.saved_model.load(str(self.folder))
        self._call: Any = self._model.signatures["serving_default"]
        outputs = self._call.structured_outputs
        inputs = self._call.structured_input_signature[1]
        if not set(_ANSWERS) & set(outputs) or set(inputs) != {"inputs"}:
            raise UsageError(
                f"{export}: batch needs a model that answers a picture with detections or maps; this one takes "
                f"{', '.join(sorted(inputs))} and answers {', '.join(sorted(outputs))}"
            )
        channels = inputs["inputs"].shape[-1]
        if not takes_files(channels):
            raise UsageError(
                f"{export}: this model takes {channels} channels, which no image file holds; call its signature "
                "serving_default with arrays"
            )
        self._numbered = "panoptic_seg" in outputs and "num_panoptic_segments" not in outputs
        if self._numbered and "label_divisor" not in self.record:
            raise UsageError(
                f"{export}: export.json does not say what the numbers of panoptic_seg mean; export the model again "
                "with this version of tf-d2"
            )
        self._format = "L" if channels == 1 else "RGB"
        self._places = threading.Semaphore(_AT_ONCE)

    @property
    def category_ids(self) -> list[int]:
        """Category number of class 0, 1, ... in the data set; empty where it is not known."""
        return list(self.record.get("category_ids") or [])

    def row(self, path: str | None, data: bytes) -> Row:
        """Detect on one encoded picture; whatever is wrong with the picture is the row's ``failure``.

        The picture is read as ``Predictor`` and detectron2 read files, so that the row is, bit for bit, the answer of a
        ``Predictor(constant_weights=False)``, which computes as an export does.
        """
        import tensorflow as tf

        try:
            image = read_image(data, self._format)
        except ValueError as error:
            return failed(path, str(error).removeprefix("image: "))
        try:
            with self._places:
                answer = self._call(inputs=tf.constant(image[None]))
                arrays = {name: value.numpy()[0] for name, value in answer.items()}
        except tf.errors.OpError as error:  # no memory for this picture, for instance
            return failed(path, f"{type(error).__name__}: {error.message[:300]}")
        return self._answered(path, arrays)

    def _answered(self, path: str | None, arrays: dict[str, np.ndarray]) -> Row:
        status = int(arrays["image_status"])
        if status:
            return failed(path, STATUS_TEXT.get(status, f"unknown status {status}"))
        height, width = (int(n) for n in arrays["image_size"])
        row = usable(path, height, width)
        if "detection_boxes" in arrays:
            row = _instances(path, (height, width), arrays)
        if "sem_seg_labels" in arrays:
            row["sem_seg"] = semantic_parts(arrays["sem_seg_labels"])
        elif "sem_seg" in arrays:
            row["sem_seg"] = semantic_parts(arrays["sem_seg"].argmax(axis=0))
        if "panoptic_seg" in arrays:
            row["panoptic"] = panoptic_parts(arrays["panoptic_seg"], self._segments(arrays, row))
        return row

    def _segments(self, arrays: dict[str, np.ndarray], row: Row) -> list[dict[str, Any]]:
        """What is known of every segment of the panoptic map."""
        if self._numbered:
            scores = row["scores"] or []
            ids = arrays["detection_panoptic_ids"][: len(scores)].tolist() if scores else []
            divisor, things = self.record["label_divisor"], self.record["thing_classes"]
            return numbered(arrays["panoptic_seg"], divisor, things, ids, scores)
        return [
            segment | {"class": segment["category_id"], "instance": segment.get("instance_id")}
            for segment in segments_of(arrays)
        ]


def _instances(path: str | None, size: tuple[int, int], arrays: dict[str, np.ndarray]) -> Row:
    count = int(arrays["num_detections"])
    fields = {
        "pred_boxes": arrays.get("detection_boxes_xyxy", arrays["detection_boxes"])[:count],
        "scores": arrays["detection_scores"][:count],
        "pred_classes": arrays["detection_classes"][:count],
    }
    masks: Iterator[np.ndarray] | None = None  # full ones, of which there is one at a time
    if "detection_panoptic_ids" in arrays:
        ids, segments = arrays["detection_panoptic_ids"][:count], arrays["panoptic_seg"]
        masks = (segments == number for number in ids)
    elif "detection_masks" in arrays:
        fields["pred_masks"] = arrays["detection_masks"][:count]
    elif "detection_masks_full" in arrays:
        fields["pred_masks"] = arrays["detection_masks_full"][:count].astype(bool)
    elif "detection_masks_png_bytes" in arrays:
        masks = (decode_png(data) for data in arrays["detection_masks_png_bytes"][:count])
    if "detection_keypoints" in arrays:
        fields["pred_keypoints"] = arrays["detection_keypoints"][:count]
    return detected(path, Instances(size, **fields), "masks_in_whole_pixels" in arrays, masks)


def version_folder(export: Path) -> Path:
    """The folder with ``saved_model.pb``: ``export`` itself or its highest version. ValueError where there is none."""
    candidates = [export] if (export / "saved_model.pb").is_file() else []
    if not candidates and export.is_dir():
        numbered = [p for p in export.iterdir() if p.name.isdecimal() and (p / "saved_model.pb").is_file()]
        candidates = sorted(numbered, key=lambda p: int(p.name))
    if not candidates:
        raise UsageError(
            f"{export}: no exported model here (a folder that tf-d2 export wrote, or one of its versions)"
        )
    if not (candidates[-1] / "assets" / "export.json").is_file():
        raise UsageError(
            f"{candidates[-1]}: a SavedModel, but not one that tf-d2 export wrote (no assets/export.json)"
        )
    return candidates[-1]


def fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of graph, weights and assets of a version folder."""
    digest = hashlib.sha256()
    parts = [folder / "saved_model.pb", *(folder / "variables").glob("*"), *(folder / "assets").glob("*")]
    for path in sorted(p for p in parts if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
