"""TensorMask against what the real detectron2 answered.

tests/data/tensor_mask: ``aligned.npz``, a model of reduced width with random weights, a picture, the answer and
stages in float32 and float64; ``variants.npz``, answers of the same weights on another picture without the bipyramid,
with natural masks, and without masks (the kernel that has no CPU form was replaced by one written from its text).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.recordings import (
    FACTOR,
    FLOAT64,
    answer_and_trace,
    assert_near,
    eagerly,
    error,
    recording,
    stage,
)

import tf_d2
from tf_d2.modeling.postprocess import paste

ALIGNED, OTHERS = (recording(f"tensor_mask/{name}.npz") for name in ("aligned", "variants"))
PREFIX = "MODEL.TENSOR_MASK."
VARIANTS: dict[str, list[Any]] = {
    "aligned": [PREFIX + "BIPYRAMID_ON", False],
    "natural": [PREFIX + "BIPYRAMID_ON", False, PREFIX + "ALIGNED_ON", False],
    "boxes": [PREFIX + "BIPYRAMID_ON", False, PREFIX + "ALIGNED_ON", False, "MODEL.MASK_ON", False],
}


def make_predictor(folder: Path, opts: list[Any] | None = None, **options: Any) -> tf_d2.Predictor:
    tensors = ALIGNED.group("weights/")
    opts = opts or []
    if PREFIX + "BIPYRAMID_ON" in opts:
        tensors = {k: v for k, v in tensors.items() if "mask_fuse" not in k}
    if "MODEL.MASK_ON" in opts:
        tensors = {k: v for k, v in tensors.items() if "head.mask" not in k}
    return ALIGNED.predictor(folder, opts, tensors, **options)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trace of a float64 model, which is the truth for float32 ones."""
    predictor = make_predictor(tmp_path_factory.mktemp("exact"), dtype="float64")
    with eagerly():
        return predictor.trace(ALIGNED.image)


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Instances and trace of the model."""
    result, trace = answer_and_trace(make_predictor(tmp_path_factory.mktemp("computed")), ALIGNED.image)
    return result["instances"], trace


def check(instances: Any, expected: dict[str, np.ndarray], pixels: float) -> None:
    np.testing.assert_array_equal(instances.pred_classes, expected["pred_classes"])
    np.testing.assert_allclose(instances.pred_boxes, expected["pred_boxes"], rtol=0, atol=pixels)
    np.testing.assert_allclose(instances.scores, expected["scores"], rtol=0, atol=1e-5)
    assert instances.has("pred_masks") == ("pred_masks" in expected)
    if "pred_masks" in expected:
        np.testing.assert_array_equal(instances.pred_masks, expected["pred_masks"])


def test_answers_are_those_of_detectron2(computed: tuple[Any, Any], exact: Any) -> None:
    instances = computed[0]
    deltas = "head/1/0"
    noise = error(ALIGNED[f"steps/{deltas}@3"], exact[deltas][:, :3])
    # Boxes of up to 900 pixels, whose sides are made of deltas with this error on both sides.
    check(instances, ALIGNED.group("output/instances/"), pixels=900 * (1 + FACTOR) * noise)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "boxes" else pytest.mark.wide) for name in VARIANTS]
)
def test_other_representations(name: str, tmp_path: Path) -> None:
    expected = OTHERS.group(f"{name}/")
    instances = make_predictor(tmp_path, VARIANTS[name])(expected.pop("image"))["instances"]
    check(instances, expected, pixels=1e-2)


def test_float32_stages_are_as_near_to_float64_as_those_of_detectron2(
    computed: tuple[Any, Any], exact: Any
) -> None:
    trace = computed[1]
    recordings = ALIGNED.group("steps/")
    assert len(recordings) == 20
    for key, theirs in recordings.items():
        assert_near(stage(trace, key), theirs, stage(exact, key), key)


def test_stages_in_float64(exact: Any) -> None:
    expected = ALIGNED.group("steps64/")
    assert len(expected) == 31
    for key, array in expected.items():
        assert error(stage(exact, key), array) < FLOAT64, key


def test_masks_of_detections_are_windows_of_the_maps(tmp_path: Path) -> None:
    """What is computed for detections alone is what the record of all windows holds."""
    predictor = make_predictor(tmp_path)
    model: Any = predictor.model
    image = ALIGNED["input/resized"]
    stages: dict[str, tf.Tensor] = {}
    raw = model.forward(model.prepare(image[None], None), tf.constant([image.shape[:2]]), None, stages)
    _, _, cells = model.decoder(*([stages[f"head/{kind}/{level}"] for level in range(6)] for kind in (0, 1)))
    for i, (level, y, x, anchor) in enumerate(zip(*(c.numpy() for c in cells), strict=True)):
        side = raw["mask_sides"][i]
        window = tf.sigmoid(tf.reshape(stages[f"head/2/{level}/{anchor}"][0, y, x], [side, side]))
        np.testing.assert_allclose(raw["pred_masks"][i, :side, :side], window, rtol=0, atol=1e-6)
        assert not np.any(raw["pred_masks"][i, side:]) and not np.any(raw["pred_masks"][i, :, side:])
    assert len(set(cells.level.numpy().tolist())) > 1


def test_masks_cover_the_window_not_the_box() -> None:
    masks = np.zeros([2, 4, 4], np.float32)
    masks[0], masks[1, :2, :2] = 1, 1
    fields = {
        "pred_boxes": np.zeros([2, 4], np.float32),
        "pred_masks": masks,
        "mask_sides": np.array([4, 2], np.int32),
        "mask_boxes": np.array([[1, 1, 5, 5], [-3, 2, 3, 4]], np.float32),
    }
    pasted = paste(fields, (7, 8))
    assert sorted(pasted) == ["pred_boxes", "pred_masks"]
    expected = np.zeros([2, 7, 8], bool)
    expected[0, 1:5, 1:5] = expected[1, 2:4, :3] = True
    np.testing.assert_array_equal(pasted["pred_masks"], expected)


@pytest.mark.slow
def test_no_detections(tmp_path: Path) -> None:
    predictor = make_predictor(tmp_path, [PREFIX + "SCORE_THRESH_TEST", 1.0])
    instances = predictor(ALIGNED.image)["instances"]
    assert len(instances) == 0 and instances.pred_masks.shape == (0, 139, 199)


@pytest.mark.slow
@pytest.mark.usefixtures("bfloat16")
def test_bfloat16(tmp_path: Path) -> None:
    instances = make_predictor(tmp_path, dtype="bfloat16")(ALIGNED.image)["instances"]
    assert len(instances) == 24 and np.isfinite(instances.scores).all()
