"""COCO results."""

import json

import numpy as np
import pytest
from pycocotools import mask as rle

from tf_d2.coco import decode_mask, encode_mask, to_coco
from tf_d2.instances import Instances


@pytest.fixture
def instances() -> Instances:
    masks = np.zeros((2, 4, 5), bool)
    masks[0, 1:3, 2] = True
    return Instances(
        (4, 5),
        pred_boxes=np.array([[1, 1, 3, 4], [0, 0.5, 5, 4]], np.float32),
        scores=np.array([0.75, 0.5], np.float32),
        pred_classes=np.array([2, 0]),
        pred_masks=masks,
        pred_keypoints=np.array([[[1.5, 2.5, 0.25]], [[0, 0, 1]]], np.float32),
    )


def test_values_by_hand(instances: Instances) -> None:
    first, second = to_coco(instances, 7, category_ids=[1, 3, 90])
    assert first["image_id"] == 7
    assert (first["category_id"], second["category_id"]) == (90, 1)
    assert first["bbox"] == [1.0, 1.0, 2.0, 3.0]
    assert second["bbox"] == [0.0, 0.5, 5.0, 3.5]
    assert first["score"] == 0.75
    assert first["keypoints"] == [1.0, 2.0, 0.25]
    assert second["keypoints"] == [-0.5, -0.5, 1.0]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools
def test_masks_survive_json(instances: Instances) -> None:
    results = json.loads(json.dumps(to_coco(instances, "a")))
    for i, result in enumerate(results):
        np.testing.assert_array_equal(rle.decode(result["segmentation"]), instances.pred_masks[i])
    # Column by column: 9 zeros, 2 ones, 9 zeros.
    assert results[0]["segmentation"]["size"] == [4, 5]


def test_classes_without_mapping_and_without_extras(instances: Instances) -> None:
    fields = {
        k: v for k, v in instances.get_fields().items() if k in ("pred_boxes", "scores", "pred_classes")
    }
    results = to_coco(Instances((4, 5), **fields), 0)
    assert [r["category_id"] for r in results] == [2, 0]
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}


def test_rotated_boxes_stay() -> None:
    rotated = Instances(
        (9, 9),
        pred_boxes=np.array([[4, 4, 2, 3, 30]], np.float32),
        scores=np.ones(1, np.float32),
        pred_classes=np.zeros(1, np.int64),
    )
    assert to_coco(rotated, 1)[0]["bbox"] == [4.0, 4.0, 2.0, 3.0, 30.0]


def test_missing_category_is_an_error(instances: Instances) -> None:
    with pytest.raises(ValueError, match="has only 2"):
        to_coco(instances, 1, category_ids=[1, 2])


def test_no_instances() -> None:
    empty = Instances(
        (4, 5),
        pred_boxes=np.zeros((0, 4), np.float32),
        scores=np.zeros(0),
        pred_classes=np.zeros(0, np.int64),
    )
    assert to_coco(empty, 1, category_ids=[1]) == []


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 211)])
def test_decode_mask_is_the_inverse(shape: tuple[int, int]) -> None:
    """Runs of one pixel and of thousands, of growing and of falling length, and none at all."""
    rng = np.random.default_rng(1)
    ramp = np.sqrt(np.arange(shape[0] * shape[1])).astype(int).reshape(shape[::-1]).T % 2
    for mask in (
        np.zeros(shape, bool),
        np.ones(shape, bool),
        rng.random(shape) < 0.3,
        ramp.astype(bool),
        ramp[::-1, ::-1] > 0,
    ):
        np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)
