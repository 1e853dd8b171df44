"""Exports of Panoptic-DeepLab and DeepLab: answers, and pictures that the pooling does not take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.recordings import eagerly

import tf_d2
import weights
from tf_d2.client.result import BadImageError, to_result
from tf_d2.config import load_config
from tf_d2.serving import ExportError, export, fitting, warmup
from tf_d2.serving.exporter import detections_per_image

from .conftest import encoded, open_session

DATA = Path(__file__).parents[1] / "data"


def model_files(path: Path, folder: Path) -> dict[str, np.ndarray]:
    """``config.yaml`` and ``model.pkl`` of a recording, and the recording."""
    with np.load(path) as file:
        recorded = {key: file[key] for key in file.files}
    (folder / "config.yaml").write_text(str(recorded["config"]))
    tensors = {k.removeprefix("weights/"): v for k, v in recorded.items() if k.startswith("weights/")}
    weights.write_detectron2_pkl(folder / "model.pkl", tensors)
    return recorded


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("city")
    recorded = model_files(DATA / "panoptic_deeplab" / "cityscapes.npz", folder)
    config, checkpoint = folder / "config.yaml", folder / "model.pkl"
    report = export(config, checkpoint, folder / "streets", sem_seg="logits")
    run, close = open_session(report.path)
    yield {"recorded": recorded, "run": run, "report": report, "files": (config, checkpoint)}
    close()


@pytest.mark.wide
def test_answers_are_the_predictors(city: dict[str, Any]) -> None:
    image = city["recorded"]["input/image"]
    with eagerly():
        expected = tf_d2.Predictor(*city["files"])(image)
    other = np.zeros([118, 242, 3], np.uint8)  # another size in the same request, the same after resizing
    answer = city["run"]("serving_bytes", image_bytes=[encoded(image[:, :, ::-1]), encoded(other)])
    got = to_result(answer, 0)
    assert got["panoptic_seg"][1] is None and got["panoptic_seg"][0].dtype == np.int64
    np.testing.assert_array_equal(got["panoptic_seg"][0], expected["panoptic_seg"][0])
    np.testing.assert_array_equal(got["panoptic_seg"][0], city["recorded"]["output/panoptic_seg"])
    np.testing.assert_array_equal(got["sem_seg"].argmax(axis=0), expected["sem_seg"].argmax(axis=0))
    for field in ("pred_boxes", "pred_classes", "pred_masks"):
        np.testing.assert_array_equal(getattr(got["instances"], field), getattr(expected["instances"], field))
    np.testing.assert_allclose(got["instances"].scores, expected["instances"].scores, rtol=1e-5, atol=1e-6)
    assert to_result(answer, 1)["panoptic_seg"][0].shape == (118, 242)
    assert answer["detection_boxes"].shape[1] == city["report"].max_detections == 199


@pytest.mark.wide
def test_a_picture_that_does_not_fit_has_a_status(city: dict[str, Any]) -> None:
    tall = np.full([100, 90, 3], 90, np.uint8)  # 142 x 128 cells of 16: 9 rows are no multiple of 4
    fine = np.full([50, 100, 3], 90, np.uint8)
    answer = city["run"]("serving_bytes", image_bytes=[encoded(tall), encoded(fine)])
    assert answer["image_status"].tolist() == [5, 0] and answer["num_detections"][0] == -1
    with pytest.raises(BadImageError, match=r"multiple of the window .*INPUT\.CROP\.SIZE"):
        to_result(answer, 0)
    nothing = city["run"](
        "serving_bytes", image_bytes=[encoded(tall)]
    )  # a blank picture goes through instead
    assert nothing["image_status"].tolist() == [5]


@pytest.mark.wide
def test_the_warm_up_is_taken(city: dict[str, Any]) -> None:
    sizes = fitting.sample_sizes(load_config(city["files"][0]), warmup.BUCKETS)
    for size in sizes:
        answer = city["run"]("serving_default", inputs=warmup.sample_image(*size)[None])
        assert answer["image_status"].tolist() == [0]
    records = tf.data.TFRecordDataset(str(city["report"].path / warmup.WARMUP_FILE))
    assert len(list(records)) == 2 * len(sizes)


@pytest.mark.wide
def test_what_the_readme_says(city: dict[str, Any]) -> None:
    text = (city["report"].path.parent / "README.md").read_text()
    assert "class * LABEL_DIVISOR + instance" in text and "detection_panoptic_ids" in text
    assert "5 = the image, once resized" in text


@pytest.mark.wide
def test_fewer_rows_are_refused(city: dict[str, Any], tmp_path: Path) -> None:
    config, checkpoint = city["files"]
    assert detections_per_image(load_config(city["files"][0])) == 199
    with pytest.raises(ExportError, match="TOP_K_INSTANCE"):
        export(config, checkpoint, tmp_path / "m", max_detections=50)
    with pytest.raises(ExportError, match="no masks"):
        export(config, checkpoint, tmp_path / "m", masks="png")


@pytest.mark.wide
def test_deeplab_trained_on_crops_is_exported(tmp_path: Path) -> None:
    recorded = model_files(DATA / "deeplab_trident" / "deeplab_v3.npz", tmp_path)
    files = tmp_path / "config.yaml", tmp_path / "model.pkl"
    report = export(*files, tmp_path / "streets")
    run, close = open_session(report.path)
    answer = run("serving_bytes", image_bytes=[encoded(recorded["input/image"][:, :, ::-1])])
    close()
    np.testing.assert_array_equal(answer["sem_seg_labels"][0], recorded["output/sem_seg"].argmax(axis=0))


def published(name: str, *opts: Any) -> Any:
    folder = "projects/Panoptic-DeepLab/configs/"
    return load_config(next(folder + n for n in NAMES if name in n), opts=list(opts))


NAMES = (
    "Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024",
    "COCO-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_200k_bs64_crop_640_640_coco_dsconv",
)


def test_sizes() -> None:
    city, coco = published("City"), published("COCO")
    assert fitting.fits(city, 1024, 2048) and not fitting.fits(city, 1024, 1365)
    assert fitting.fits(city, 1017, 2048)  # 64 x 128 cells; the picture need not be a multiple of 16
    assert fitting.fits(coco, 480, 640) and fitting.fits(coco, 64, 64)  # all are padded to 640
    assert fitting.blank_size(city) == (512, 1024) and fitting.blank_size(coco) == (64, 64)
    assert fitting.sample_sizes(coco, warmup.BUCKETS) == list(warmup.BUCKETS)
    assert fitting.sample_sizes(city, warmup.BUCKETS) == [(96, 96)]  # resized to 1024 x 1024
    wide = published("City", "INPUT.CROP.SIZE", [512, 2048])
    assert fitting.sample_sizes(wide, warmup.BUCKETS)[0] == (96, 384)
    sizes = tf.constant([[1024, 2048], [1024, 1365], [0, 0]])
    status = fitting.checked(city, tf.constant([0, 0, 1]), sizes, 0, 5)
    assert status.numpy().tolist() == [0, 5, 1]


def test_no_picture_fits(tmp_path: Path) -> None:
    recorded = model_files(DATA / "deeplab_trident" / "deeplab_v3.npz", tmp_path)
    assert recorded
    files = tmp_path / "config.yaml", tmp_path / "model.pkl"
    with pytest.raises(ExportError, match=r"INPUT\.MIN_SIZE_TEST.*INPUT\.CROP\.ENABLED False"):
        export(*files, tmp_path / "m", opts=["INPUT.MIN_SIZE_TEST", 150, "INPUT.MAX_SIZE_TEST", 150])
