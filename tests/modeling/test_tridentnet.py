"""TridentNet at one branch and at all of them against what the real detectron2 answered on the same picture.

tests/data/deeplab_trident: models of reduced width with random weights, a picture, the answer and some stages.
Detections have margins: float32 noise does not flip them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.recordings import FACTOR, answer_and_trace, assert_near, eagerly, error, recording

from tf_d2.ops.resize import resize_uint8

# One branch; and what detectron2 answered with the same weights and TEST_BRANCH_IDX -1, for a picture and for two.
FAST, ALL = (recording(f"deeplab_trident/{name}.npz") for name in ("tridentnet_fast_r50", "trident_all"))


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Instances and trace of a float64 model, which are the truth for the float32 one."""
    predictor = FAST.predictor(tmp_path_factory.mktemp("exact"), dtype="float64")
    image = FAST.image
    with eagerly():
        return predictor(image)["instances"], predictor.trace(image)


def test_one_branch_is_that_of_detectron2(tmp_path: Path, exact: tuple[Any, Any]) -> None:
    result, trace = answer_and_trace(FAST.predictor(tmp_path), FAST.image)
    instances, expected = result["instances"], FAST.group("output/instances/")
    np.testing.assert_array_equal(instances.pred_classes, expected["pred_classes"])
    for field in ("pred_boxes", "scores"):
        true = getattr(exact[0], field)
        assert_near(getattr(instances, field), expected[field], true, field, factor=2.0)
    stages = FAST.group("steps/")
    assert len(stages) == 9
    for stage, theirs in stages.items():  # of regions only the first are recorded
        true = exact[1][stage][: len(theirs)]
        assert_near(trace[stage][: len(theirs)], theirs, true, stage, factor=2.0)


@pytest.mark.parametrize("branch", [0, 2])
def test_another_branch_computes_something_else_with_the_same_weights(tmp_path: Path, branch: int) -> None:
    predictor = FAST.predictor(tmp_path, ["MODEL.TRIDENT.TEST_BRANCH_IDX", branch])
    with eagerly():
        trace = predictor.trace(FAST.image)
    assert error(trace["backbone/res4"], FAST["steps/backbone/res4"]) > 0.01


def test_detections_of_all_branches_are_merged(tmp_path: Path, exact: tuple[Any, Any]) -> None:
    predictor = FAST.predictor(tmp_path, ["MODEL.TRIDENT.TEST_BRANCH_IDX", -1])
    result, trace = answer_and_trace(predictor, FAST.image)
    expected, instances = ALL.arrays, result["instances"]
    np.testing.assert_array_equal(instances.pred_classes, expected["one/pred_classes"])
    np.testing.assert_allclose(instances.pred_boxes, expected["one/pred_boxes"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(instances.scores, expected["one/scores"], rtol=0, atol=1e-5)
    got = trace["backbone/res4"][:, :16]
    # Branch after branch. Both sides are as far from float64 as one branch is.
    limit = (1 + FACTOR) * error(FAST["steps/backbone/res4"], exact[1]["backbone/res4"])
    assert error(got, expected["res4"]) < limit


def test_branches_of_a_batch_stay_with_their_images(tmp_path: Path) -> None:
    predictor = FAST.predictor(tmp_path, ["MODEL.TRIDENT.TEST_BRANCH_IDX", -1])
    image = FAST.image
    pictures = [image, np.ascontiguousarray(image[::-1, :-11])]
    sizes = [predictor.network_size(*p.shape[:2]) for p in pictures]
    canvas = np.zeros([2, *np.max(sizes, axis=0), 3], np.uint8)
    for i, (picture, (height, width)) in enumerate(zip(pictures, sizes, strict=True)):
        canvas[i, :height, :width] = resize_uint8(tf.constant(picture), height, width)
    found = predictor.model(canvas, tf.constant(sizes))
    start = 0
    for i, (picture, size) in enumerate(zip(pictures, sizes, strict=True)):
        rows = slice(start, start + int(found["counts"][i]))
        start = rows.stop
        expected = {k.rpartition("/")[2]: v for k, v in ALL.arrays.items() if k.startswith(f"batch/{i}/")}
        np.testing.assert_array_equal(found["classes"][rows], expected["pred_classes"])
        scale = np.array(picture.shape[1::-1] * 2) / np.array(size[::-1] * 2)
        np.testing.assert_allclose(found["boxes"][rows] * scale, expected["pred_boxes"], rtol=0, atol=1e-3)
        np.testing.assert_allclose(found["scores"][rows], expected["scores"], rtol=0, atol=1e-5)
