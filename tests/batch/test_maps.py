"""Maps as lists of compressed masks, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tf_d2.batch import formats
from tf_d2.batch.maps import map_of, numbered, panoptic_parts, semantic_parts
from tf_d2.batch.rows import COLUMNS, Row, usable

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
