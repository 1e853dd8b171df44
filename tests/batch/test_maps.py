"""Maps as lists of compressed masks, by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tf_d2.batch import formats
from tf_d2.batch.maps import map_of, numbered, panoptic_parts, semantic_parts
from tf_d2.batch.model import Detector
from tf_d2.batch.rows import COLUMNS, Row, usable
from tf_d2.coco import decode_mask

LABELS = np.array([[2, 2, 0], [2, 7, 7]])


def test_classes_that_occur_ascending() -> None:
    parts = semantic_parts(LABELS)
    assert [part["class"] for part in parts] == [0, 2, 7]
    assert all(part["size"] == [2, 3] for part in parts)
    # COCO counts runs of 0 and 1 down the columns: 0, then one run; "counts" is their code.
    assert parts[0]["counts"] == "411"  # 4 zeros, 1 one, 1 zero
    np.testing.assert_array_equal(map_of(parts, "class"), LABELS)
    np.testing.assert_array_equal(map_of(parts[1:], "class", empty=-1), np.where(LABELS == 0, -1, LABELS))
    with pytest.raises(ValueError, match="take height and width of the row"):
        map_of([], "class")


def test_segments_with_what_is_known_of_them() -> None:
    told = [
        {"id": 2, "isthing": True, "class": 17, "score": 0.5, "instance": 3},
        {"id": 7, "isthing": False, "class": 1},
    ]
    thing, stuff = panoptic_parts(LABELS, told)
    assert (thing["score"], thing["instance"], thing["area"]) == (0.5, 3, 3)
    assert (stuff["score"], stuff["instance"], stuff["area"]) == (None, None, 2)
    np.testing.assert_array_equal(map_of([thing, stuff], "id"), LABELS)


def test_numbers_of_panoptic_deeplab() -> None:
    segments = np.array([[-1, 3000], [11002, 11001]])
    told = numbered(segments, 1000, [11, 12], ids=[11002, 11001], scores=[0.75, 0.5])
    assert told == [
        {"id": 3000, "class": 3, "isthing": False},
        {"id": 11001, "class": 11, "isthing": True, "score": 0.5, "instance": 1},
        {"id": 11002, "class": 11, "isthing": True, "score": 0.75, "instance": 0},
    ]


@pytest.fixture
def rows() -> list[Row]:
    """A semantic model's row, and a panoptic one's without detections."""
    semantic = usable("a", 2, 3) | {"sem_seg": semantic_parts(LABELS)}
    told = [{"id": 2, "isthing": True, "class": 17, "score": 0.5, "instance": 3}, {"id": 7, "class": 1}]
    found = {"boxes": [], "scores": [], "classes": [], "masks": [], "panoptic": panoptic_parts(LABELS, told)}
    return [semantic, usable("b", 2, 3) | found]


@pytest.mark.parametrize("name", ["parquet", "jsonl", "tfrecord"])
def test_maps_come_back(name: str, rows: list[Row], tmp_path: Path) -> None:
    formats.write_shard(name, rows, tmp_path / "shard", [])
    read = formats.FORMATS[name].read
    assert read is not None
    found = list(read(tmp_path / "shard"))
    assert found == rows and all(tuple(row) == COLUMNS for row in found)
    np.testing.assert_array_equal(map_of(found[0]["sem_seg"], "class"), LABELS)


def test_cocos_results_of_a_map(rows: list[Row]) -> None:
    results = formats.coco_results(rows[0], 5, [])
    assert [r["category_id"] for r in results] == [0, 2, 7]
    assert results[0] == {"image_id": 5, "category_id": 0, "segmentation": {"size": [2, 3], "counts": "411"}}
    assert formats.coco_results(rows[1], 5, []) == []  # detections where the model has them


# === Answers of exports ===


def answered(arrays: dict[str, Any], **record: Any) -> Row:
    """The row of an export's answer for one picture of 2 x 3 pixels."""
    detector = Detector.__new__(Detector)
    detector.record, detector._numbered = record, "label_divisor" in record
    return detector._answered("a", {"image_status": np.int32(0), "image_size": np.array([2, 3]), **arrays})


BOXES = {
    "num_detections": np.int32(1),
    "detection_boxes": np.array([[0, 0, 2, 2], [0, 0, 0, 0]], np.float32),
    "detection_scores": np.array([0.5, 0], np.float32),
    "detection_classes": np.array([17, 0]),
}


def test_the_answer_of_a_panoptic_export() -> None:
    table = {
        "classes": np.array([17, 1, 0]),
        "is_thing": np.array([True, False, False]),
        "scores": np.array([0.5, 0, 0], np.float32),
        "instances": np.array([0, -1, 0], np.int32),
        "areas": np.array([3, 2, 0], np.int32),
    }
    segments = np.array([[1, 1, 0], [1, 2, 2]], np.int32)
    arrays = {f"panoptic_segment_{name}": value for name, value in table.items()}
    arrays |= {"panoptic_seg": segments, "num_panoptic_segments": np.int32(2), "sem_seg_labels": LABELS}
    row = answered({**BOXES, **arrays})
    kept = [{k: v for k, v in part.items() if k not in ("size", "counts")} for part in row["panoptic"]]
    assert kept == [
        {"id": 1, "class": 17, "isthing": True, "score": 0.5, "instance": 0, "area": 3},
        {"id": 2, "class": 1, "isthing": False, "score": None, "instance": None, "area": 2},
    ]
    np.testing.assert_array_equal(map_of(row["panoptic"], "id"), segments)
    np.testing.assert_array_equal(map_of(row["sem_seg"], "class"), LABELS)
    assert row["scores"] == [0.5] and row["masks"] is None


def test_the_answer_of_panoptic_deeplab() -> None:
    segments = np.array([[11001, 11001, -1], [11001, 3000, 3000]], np.int32)
    arrays = BOXES | {"panoptic_seg": segments, "detection_panoptic_ids": np.array([11001, 0], np.int32)}
    row = answered(arrays, label_divisor=1000, thing_classes=[11])
    assert [(p["id"], p["class"], p["isthing"], p["instance"]) for p in row["panoptic"]] == [
        (3000, 3, False, None),
        (11001, 11, True, 0),
    ]
    np.testing.assert_array_equal(decode_mask(row["masks"][0]), segments == 11001)


def test_the_answer_of_a_semantic_export_with_logits() -> None:
    row = answered({"sem_seg": np.eye(8, dtype=np.float32)[LABELS].transpose(2, 0, 1)})
    np.testing.assert_array_equal(map_of(row["sem_seg"], "class"), LABELS)
    assert row["boxes"] is None and row["failure"] is None and row["height"] == 2


def test_masks_that_are_files() -> None:
    buffer = io.BytesIO()
    Image.fromarray((LABELS == 2).astype(np.uint8) * np.uint8(255)).save(buffer, "PNG")
    row = answered({**BOXES, "detection_masks_png_bytes": np.array([buffer.getvalue(), b""], object)})
    (mask,) = row["masks"]
    np.testing.assert_array_equal(decode_mask(mask), LABELS == 2)
