"""Exports of models with maps: their rows are what Predictor answers. Recorded models of reduced width."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import tf_d2
import weights
from tf_d2.batch.maps import map_of
from tf_d2.batch.model import Detector
from tf_d2.batch.rows import Row
from tf_d2.coco import decode_mask
from tf_d2.serving import export

DATA = Path(__file__).parents[1] / "data"
OPTS = ["MODEL.WEIGHTS", ""]
pytestmark = pytest.mark.slow  # an export of each takes half a minute; what is made of answers: test_maps.py


def write_model(folder: Path, config: str, tensors: dict[str, np.ndarray]) -> tuple[Path, Path]:
    (folder / "config.yaml").write_text(config)
    weights.write_detectron2_pkl(folder / "model.pkl", tensors)
    return folder / "config.yaml", folder / "model.pkl"


def from_npz(name: str, folder: Path) -> tuple[tuple[Path, Path], np.ndarray]:
    """Configuration and weights of a recording, and its picture (BGR)."""
    with np.load(DATA / f"{name}.npz") as file:
        recorded = {key: file[key] for key in file.files}
    tensors = {k.removeprefix("weights/"): v for k, v in recorded.items() if k.startswith("weights/")}
    return write_model(folder, str(recorded["config"]), tensors), recorded["input/image"]


def row_of(files: tuple[Path, Path], image: np.ndarray, folder: Path, **options: Any) -> Row:
    """The row of the exported model."""
    export(*files, folder / "model", opts=OPTS, **options)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image[:, :, ::-1])).save(buffer, "PNG")
    row = Detector(folder / "model").row("a.png", buffer.getvalue())
    assert row["failure"] is None and (row["height"], row["width"]) == image.shape[:2]
    return row


def masks_of(parts: list[dict[str, Any]]) -> np.ndarray:
    return np.stack([decode_mask(part) for part in parts])


def test_panoptic_fpn(tmp_path: Path) -> None:
    with h5py.File(DATA / "modeling" / "panoptic.h5") as file:
        tensors = {k: np.asarray(v[()], np.float32) for k, v in file["weights"].items()}
        files = write_model(tmp_path, str(file.attrs["config"]), tensors)
    with h5py.File(DATA / "modeling" / "images.h5") as file:
        image = file["0"][()]
    expected = tf_d2.Predictor(*files, opts=OPTS, constant_weights=False)(image)  # as an export computes
    row = row_of(files, image, tmp_path)
    segments, told = expected["panoptic_seg"]
    np.testing.assert_array_equal(map_of(row["panoptic"], "id"), segments)
    np.testing.assert_array_equal(map_of(row["sem_seg"], "class"), expected["sem_seg"].argmax(axis=0))
    assert len(told) > 2 and len(row["panoptic"]) == len(told)
    for part, segment in zip(row["panoptic"], told, strict=True):
        assert (part["id"], part["class"], part["isthing"]) == (
            segment["id"],
            segment["category_id"],
            segment["isthing"],
        )
        assert (
            part["instance"] == segment.get("instance_id") and part["area"] == (segments == part["id"]).sum()
        )
        assert part["score"] == segment.get("score") or part["score"] == pytest.approx(segment["score"], 1e-6)
    np.testing.assert_array_equal(masks_of(row["masks"]), expected["instances"].pred_masks)


def test_panoptic_deeplab(tmp_path: Path) -> None:
    files, image = from_npz("panoptic_deeplab/cityscapes", tmp_path)
    row = row_of(files, image, tmp_path, sem_seg="logits")
    expected = tf_d2.Predictor(*files, opts=OPTS)(image)
    segments, instances = expected["panoptic_seg"][0], expected["instances"]
    np.testing.assert_array_equal(map_of(row["panoptic"], "id", empty=-1), segments)
    np.testing.assert_array_equal(map_of(row["sem_seg"], "class"), expected["sem_seg"].argmax(axis=0))
    np.testing.assert_array_equal(masks_of(row["masks"]), instances.pred_masks)
    things = [part for part in row["panoptic"] if part["instance"] is not None]
    assert len(things) == len(instances) > 0
    for part in things:
        assert part["isthing"] and part["class"] == row["classes"][part["instance"]] == part["id"] // 1000
        assert part["score"] == row["scores"][part["instance"]]
        np.testing.assert_array_equal(decode_mask(part), instances.pred_masks[part["instance"]])


def test_a_semantic_model(tmp_path: Path) -> None:
    files, image = from_npz("deeplab_trident/deeplab_v3_plus", tmp_path)
    expected = tf_d2.Predictor(*files, opts=OPTS, constant_weights=False)(image)  # as an export computes
    row = row_of(files, image, tmp_path)
    np.testing.assert_array_equal(map_of(row["sem_seg"], "class"), expected["sem_seg"].argmax(axis=0))
    assert row["boxes"] is row["scores"] is row["masks"] is row["panoptic"] is None


@pytest.mark.parametrize("masks", ["roi", "full"])
def test_masks_as_files_or_full(masks: str, tmp_path: Path) -> None:
    """TensorMask's export answers with PNG files in the place of probabilities in the box."""
    files, image = from_npz("tensor_mask/aligned", tmp_path)
    row = row_of(files, image, tmp_path, masks=masks)
    expected = tf_d2.Predictor(*files, opts=OPTS)(image)["instances"]
    np.testing.assert_array_equal(masks_of(row["masks"]), expected.pred_masks)
    assert row["classes"] == expected.pred_classes.tolist() and row["sem_seg"] is None
