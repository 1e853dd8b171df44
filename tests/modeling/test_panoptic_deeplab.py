"""Panoptic-DeepLab against what the real detectron2 answered on the same pictures.

tests/data/panoptic_deeplab: models of reduced width with random weights, a picture, the answer and some stages, of
one also in float64. Continuous stages are held against the float64 run: how far off may a float32 run be that is
neither better nor worse than detectron2's own.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tf_d2
import weights

DATA = Path(__file__).parents[1] / "data" / "panoptic_deeplab"
MODELS = ("cityscapes", "coco")
FLOAT64 = 1e-12
# How many times as far from float64 as detectron2's float32 run another order of summation may be.
FACTOR = 3.0


@cache
def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def group(name: str, prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in recorded(name).items() if k.startswith(prefix)}


def make_predictor(name: str, folder: Path, *opts: Any, **options: Any) -> tf_d2.Predictor:
    (folder / "config.yaml").write_text(str(recorded(name)["config"]))
    weights.write_detectron2_pkl(folder / "model.pkl", group(name, "weights/"))
    return tf_d2.Predictor(folder / "config.yaml", folder / "model.pkl", opts=list(opts), **options)


def error(got: Any, expected: Any) -> float:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def stage(trace: Any, name: str) -> np.ndarray:
    name, _, channels = name.partition("@")  # only the first channels are recorded
    return trace[name][:, : int(channels)] if channels else trace[name]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results and traces of float64 models, which are the truth for float32 ones."""
    found = {}
    for name in MODELS:
        predictor = make_predictor(name, tmp_path_factory.mktemp(name), dtype="float64")
        image = recorded(name)["input/image"]
        found[name] = predictor(image), predictor.trace(image)
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_answers_are_those_of_detectron2(
    name: str, dtype: str, tmp_path: Path, exact: dict[str, Any]
) -> None:
    if dtype == "float64":
        result = exact[name][0]
    else:
        result = make_predictor(name, tmp_path)(recorded(name)["input/image"])
    expected = group(name, "output/")
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
    expected, logits = group(name, "output/"), exact[name][0]["sem_seg"]
    if "sem_seg" in expected:
        return error(expected["sem_seg"], logits)
    return error(expected["sem_seg_strided"], logits[:, ::3, ::3])


@pytest.mark.parametrize("name", MODELS)
def test_float32_stages_are_as_near_to_float64_as_those_of_detectron2(
    name: str, tmp_path: Path, exact: dict[str, Any]
) -> None:
    predictor, truth = make_predictor(name, tmp_path), exact[name][1]
    trace = predictor.trace(recorded(name)["input/image"])
    recordings = {k: v for k, v in group(name, "steps/").items() if not k.startswith("post_processing")}
    assert len(recordings) == 8
    for key, theirs in recordings.items():
        exactly = stage(truth, key)
        assert error(stage(trace, key), exactly) < FACTOR * error(theirs, exactly), key


def test_stages_in_float64(exact: dict[str, Any]) -> None:
    expected = group("cityscapes", "steps64/")
    assert len(expected) == 9
    for key, array in expected.items():
        assert error(stage(exact["cityscapes"][1], key), array) < FLOAT64, key


def test_without_instances(tmp_path: Path) -> None:
    predictor = make_predictor("coco", tmp_path, "MODEL.PANOPTIC_DEEPLAB.PREDICT_INSTANCES", False)
    result = predictor(recorded("coco")["input/image"])
    assert sorted(result) == ["panoptic_seg", "sem_seg"]


def test_no_center_no_instances(tmp_path: Path) -> None:
    predictor = make_predictor("coco", tmp_path, "MODEL.PANOPTIC_DEEPLAB.CENTER_THRESHOLD", 1e6)
    result = predictor(recorded("coco")["input/image"])
    assert sorted(result) == ["panoptic_seg", "sem_seg"]  # detectron2 leaves the key out
    segments, labels = result["panoptic_seg"][0], result["sem_seg"].argmax(axis=0)
    assert np.all(segments[labels < 80] == -1)


def test_bfloat16_is_as_far_off_as_its_rounding(tmp_path: Path, exact: dict[str, Any]) -> None:
    result = make_predictor("cityscapes", tmp_path, dtype="bfloat16")(recorded("cityscapes")["input/image"])
    # Sixteen bits fewer than float32, enlarged by the same network.
    limit = FACTOR * 2**16 * noise("cityscapes", exact)
    assert error(result["sem_seg"], exact["cityscapes"][0]["sem_seg"]) < min(limit, 1)
