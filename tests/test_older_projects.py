"""Whole models of Detectron and maskrcnn-benchmark against what those projects' own Python computed.

Recordings: ``tests/data/detectron1`` (attr ``config`` is the project's YAML; the plain operators by torch).
"""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf

import tf_d2
from tf_d2.client.result import to_result
from tf_d2.config.parts.conventions import CONVENTIONS, DETECTRON2
from tf_d2.modeling.batches import Proposals
from tf_d2.ops.boxes import assign_levels
from tf_d2.serving import export

DATA = Path(__file__).parent / "data" / "detectron1"
MASK, RETINANET, KEYPOINT = "mask_rcnn_R_50_FPN", "retinanet_R_50_FPN", "keypoint_rcnn_R_50_FPN"
FAST = (MASK, RETINANET, f"mrb_{MASK}")
RECORDINGS = (*FAST, KEYPOINT, f"mrb_{RETINANET}", f"mrb_{KEYPOINT}")
PIXELS = 1e-3  # the recordings have margins: float32 noise moves boxes by less and flips nothing
SCORES = 2e-5


def tensors(file: h5py.File, group: str) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    file[group].visititems(visit)  # pyright: ignore[reportAttributeAccessIssue]
    return found


def files(name: str, folder: Path) -> tuple[Path, Path]:
    """The configuration and the checkpoint of a recording, as the project writes them."""
    config, weights = folder / "config.yaml", folder / "model.pkl"
    with h5py.File(DATA / f"{name}.h5") as file:
        config.write_text(str(file.attrs["config"]))
        if "blobs" in file:
            content: dict[str, Any] = {"blobs": tensors(file, "blobs")}
        else:
            content = {"model": {f"module.{key}": value for key, value in tensors(file, "weights").items()}}
    weights.write_bytes(pickle.dumps(content))
    return config, weights


def recorded(name: str, group: str) -> dict[str, np.ndarray]:
    with h5py.File(DATA / f"{name}.h5") as file:
        return tensors(file, group)


class Predictors(dict[str, tf_d2.Predictor]):
    """Made when they are first asked for."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        super().__init__()
        self.factory = factory

    def __missing__(self, name: str) -> tf_d2.Predictor:
        self[name] = tf_d2.Predictor(*files(name, self.factory.mktemp(name)))
        return self[name]


@pytest.fixture(scope="module")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> Predictors:
    return Predictors(tmp_path_factory)


def differences(predictor: tf_d2.Predictor, name: str) -> list[str]:
    """What of a recording's result the predictor's is not."""
    found = predictor(recorded(name, "input")["image"])["instances"]
    wanted = recorded(name, "output/instances")
    if len(found) != len(wanted["scores"]):
        return [f"{len(found)} detections, not {len(wanted['scores'])}"]
    limits = {"pred_boxes": PIXELS, "scores": SCORES, "pred_keypoints": PIXELS, "keypoint_logits": 1e-3}
    problems = []
    for field, value in wanted.items():
        if not found.has(field):
            problems.append(f"no {field}")
            continue
        difference = np.abs(getattr(found, field).astype(np.float64) - value).max()
        if difference > limits.get(field, 0):
            problems.append(f"{field} differs by {difference:.2g}")
    return problems


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.wide if name == f"mrb_{MASK}" else ()) for name in FAST),
        *(pytest.param(name, marks=pytest.mark.slow) for name in RECORDINGS if name not in FAST),
    ],
)
def test_detections_are_those_of_the_project(predictors: Predictors, name: str) -> None:
    assert differences(predictors[name], name) == []


def test_a_loaded_configuration_comes_back_from_its_yaml(predictors: Predictors) -> None:
    for name in FAST:
        predictor = predictors[name]
        again = tf_d2.config.load_config_text(predictor.config_yaml)
        assert again == predictor.config
        assert again.conventions.name == ("maskrcnn-benchmark" if name.startswith("mrb") else "detectron")


# === Step by step, on the recorded inputs ===


def nhwc(array: np.ndarray) -> tf.Tensor:
    return tf.constant(np.moveaxis(array, 1, -1))


def test_proposals_of_recorded_maps(predictors: Predictors) -> None:
    steps, model = recorded(MASK, "steps"), predictors[MASK].model
    logits = [nhwc(steps[f"rpn_cls_logits_fpn{level}"]) for level in range(2, 7)]
    deltas = [nhwc(steps[f"rpn_bbox_pred_fpn{level}"]) for level in range(2, 7)]
    padded, factor = steps["im_info"][:, :2].astype(np.int32), tf.constant(steps["im_info"][:, 2])
    found = model.proposal_generator.predict_proposals(logits, deltas, tf.constant(padded), factor)
    np.testing.assert_allclose(found.boxes, steps["rois"][:, 1:], rtol=0, atol=256 * 8 * 2**-23)


def test_anchors_and_levels(predictors: Predictors) -> None:
    steps, model = recorded(MASK, "steps"), predictors[MASK].model
    for level, cells in zip(range(2, 7), model.proposal_generator.cells, strict=True):
        np.testing.assert_array_equal(cells, steps[f"anchors/fpn{level}"].astype(np.float32))
    levels = (
        assign_levels(tf.constant(steps["rois"][:, 1:]), 2, 5, 36, plus_one=True, epsilon=1e-6).numpy() + 2
    )
    for level in range(2, 6):
        assert np.count_nonzero(levels == level) == len(steps[f"rois_fpn{level}"])
    cells = predictors[RETINANET].model.decoder.cells
    wanted = recorded(RETINANET, "steps")
    for level in range(3, 8):
        one = np.concatenate(
            [wanted[k] for k in sorted(wanted) if k.startswith(f"anchors/{level}")] or [cells[level - 3]]
        )
        np.testing.assert_array_equal(cells[level - 3], one.reshape(-1, 4).astype(np.float32))


def test_detections_of_recorded_predictions(predictors: Predictors) -> None:
    steps, predictor = recorded(MASK, "steps"), predictors[MASK]
    image = recorded(MASK, "input")["image"]
    rois = tf.constant(steps["rois"][:, 1:] / np.float32(steps["im_scale"]))
    count = len(steps["rois"])
    regions = Proposals(rois, tf.zeros(count), tf.zeros(count, tf.int32), tf.constant([count]))
    scores = tf.constant(np.concatenate([steps["cls_score"][:, 1:], steps["cls_score"][:, :1]], axis=1))
    deltas, size = tf.constant(steps["bbox_pred"][:, 4:]), tf.constant([image.shape[:2]])
    found = predictor.model.roi_heads.select([scores], deltas, regions, size, 1)
    wanted = recorded(MASK, "output/instances")
    np.testing.assert_array_equal(found.classes, wanted["pred_classes"])
    np.testing.assert_allclose(found.boxes, wanted["pred_boxes"], rtol=0, atol=256 * 8 * 2**-23)
    np.testing.assert_allclose(found.scores, wanted["scores"], rtol=0, atol=8 * 2**-23)


@pytest.mark.slow
@pytest.mark.parametrize("name", [MASK, f"mrb_{MASK}"])
@pytest.mark.parametrize("masks", ["roi", "full"])
def test_an_export_answers_the_same(name: str, masks: str, tmp_path: Path) -> None:
    image = recorded(name, "input")["image"]
    arguments = files(name, tmp_path)
    wanted = tf_d2.Predictor(*arguments)(image)["instances"]
    export(*arguments, tmp_path / "export", masks=masks)
    model: Any = tf.saved_model.load(str(tmp_path / "export" / "1"))
    answer = model.signatures["serving_default"](inputs=tf.constant(image[None, :, :, ::-1].copy()))
    found = to_result({key: value.numpy() for key, value in answer.items()}, 0)["instances"]
    np.testing.assert_array_equal(found.pred_classes, wanted.pred_classes)
    np.testing.assert_allclose(found.pred_boxes, wanted.pred_boxes, rtol=0, atol=PIXELS)
    np.testing.assert_array_equal(found.pred_masks, wanted.pred_masks)


# === The other conventions, and each difference left out ===


def test_other_conventions_give_other_boxes(tmp_path: Path) -> None:
    predictor = tf_d2.Predictor(*files(MASK, tmp_path), conventions="detectron2")
    assert predictor.config.conventions == DETECTRON2
    assert differences(predictor, MASK)


# Which recording shows a difference that is left out. Ties, NMS and the levels' epsilon are seen by the recorded
# functions (tests/ops/test_detectron_functions.py).
SEEN_IN = {
    "resize": MASK,
    "frozen_norm_without_epsilon": MASK,
    "window_anchors": MASK,
    "octaves_first": RETINANET,
    "decode_plus_one": MASK,
    "clip_last_pixel": MASK,
    "level_plus_one": MASK,
    "boxes_in_picture": MASK,
    "keep_all": MASK,
    "padded_mask_paste": MASK,
    "doubling_without_edges": KEYPOINT,
    "keypoint_scores": KEYPOINT,
    "coarsest_without_threshold": RETINANET,
    "clip_before_nms": RETINANET,
}


@pytest.mark.slow
@pytest.mark.parametrize("difference", SEEN_IN)
def test_each_difference_left_out_is_found(
    difference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {difference: getattr(DETECTRON2, difference)}
    if difference == "boxes_in_picture":
        value["resize"] = "factor"
    wrong = dataclasses.replace(CONVENTIONS["detectron"], **value)
    monkeypatch.setitem(CONVENTIONS, "detectron", wrong)
    name = SEEN_IN[difference]
    assert differences(tf_d2.Predictor(*files(name, tmp_path)), name)
