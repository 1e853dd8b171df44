"""Panoptic-DeepLab against what the real detectron2 answered on the same pictures.

tests/data/panoptic_deeplab: models of reduced width with random weights, a picture, the answer and some stages, of
one also in float64. Continuous stages are held against the float64 run: how far off may a float32 run be that is
neither better nor worse than detectron2's own.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.recordings import (
    FACTOR,
    FLOAT64,
    Recording,
    answer_and_trace,
    assert_near,
    eagerly,
    error,
    recording,
    stage,
)

MODELS = ("cityscapes", "coco")


def model(name: str) -> Recording:
    return recording(f"panoptic_deeplab/{name}.npz")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results and traces of float64 models, which are the truth for float32 ones."""
    found = {}
    for name in MODELS:
        predictor = model(name).predictor(tmp_path_factory.mktemp(name), dtype="float64")
        image = model(name).image
        with eagerly():
            found[name] = predictor(image), predictor.trace(image)
    return found


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results and traces of the models, of one in a graph (of the other: tests/serving/test_panoptic_deeplab.py)."""
    found = {}
    for name in MODELS:
        predictor = model(name).predictor(tmp_path_factory.mktemp(name))
        with eagerly() if name == "cityscapes" else nullcontext():
            found[name] = answer_and_trace(predictor, model(name).image)
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_answers_are_those_of_detectron2(
    name: str, dtype: str, computed: dict[str, Any], exact: dict[str, Any]
) -> None:
    result = (exact if dtype == "float64" else computed)[name][0]
    expected = model(name).group("output/")
    segments, info = result["panoptic_seg"]
    assert info is None and segments.dtype == np.int64
    np.testing.assert_array_equal(segments, expected["panoptic_seg"])
    instances = result["instances"]
    for field in ("pred_boxes", "pred_classes", "pred_masks"):
        np.testing.assert_array_equal(getattr(instances, field), expected[f"instances/{field}"])
    assert error(instances.scores, expected["instances/scores"]) < FACTOR * noise(name, exact)
    labels = expected.get("sem_seg_argmax")
    labels = expected["sem_seg"].argmax(axis=0) if labels is None else labels
    np.testing.assert_array_equal(result["sem_seg"].argmax(axis=0), labels)


def noise(name: str, exact: dict[str, Any]) -> float:
    """Error of detectron2's float32 logits."""
    expected, logits = model(name).group("output/"), exact[name][0]["sem_seg"]
    if "sem_seg" in expected:
        return error(expected["sem_seg"], logits)
    return error(expected["sem_seg_strided"], logits[:, ::3, ::3])


@pytest.mark.parametrize("name", MODELS)
def test_float32_stages_are_as_near_to_float64_as_those_of_detectron2(
    name: str, computed: dict[str, Any], exact: dict[str, Any]
) -> None:
    trace, truth = computed[name][1], exact[name][1]
    stages = model(name).group("steps/")
    recordings = {k: v for k, v in stages.items() if not k.startswith("post_processing")}
    assert len(recordings) == 8
    for key, theirs in recordings.items():
        assert_near(stage(trace, key), theirs, stage(truth, key), key)


def test_stages_in_float64(exact: dict[str, Any]) -> None:
    expected = model("cityscapes").group("steps64/")
    assert len(expected) == 9
    for key, array in expected.items():
        assert error(stage(exact["cityscapes"][1], key), array) < FLOAT64, key


def test_without_instances(tmp_path: Path) -> None:
    predictor = model("coco").predictor(tmp_path, ["MODEL.PANOPTIC_DEEPLAB.PREDICT_INSTANCES", False])
    with eagerly():
        result = predictor(model("coco").image)
    assert sorted(result) == ["panoptic_seg", "sem_seg"]


def test_no_center_no_instances(tmp_path: Path) -> None:
    predictor = model("coco").predictor(tmp_path, ["MODEL.PANOPTIC_DEEPLAB.CENTER_THRESHOLD", 1e6])
    result = predictor(model("coco").image)
    assert sorted(result) == ["panoptic_seg", "sem_seg"]  # detectron2 leaves the key out
    segments, labels = result["panoptic_seg"][0], result["sem_seg"].argmax(axis=0)
    assert np.all(segments[labels < 80] == -1)


@pytest.mark.wide
@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_is_as_far_off_as_its_rounding(tmp_path: Path, exact: dict[str, Any]) -> None:
    city = model("cityscapes")
    result = city.predictor(tmp_path, dtype="bfloat16")(city.image)
    # Sixteen bits fewer than float32, enlarged by the same network.
    limit = FACTOR * 2**16 * noise("cityscapes", exact)
    assert error(result["sem_seg"], exact["cityscapes"][0]["sem_seg"]) < min(limit, 1)
