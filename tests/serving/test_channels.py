"""Exports of models whose pictures have 1, 2 or 4 channels answer what Predictor answers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support.recordings import eagerly

import tf_d2
import weights
from tf_d2.batch.model import Detector
from tf_d2.ops.image_io import read_image
from tf_d2.serving import ExportError, decode, export
from weights.writers import write_safetensors

from .conftest import DEMO, encoded, open_session, png16

OPTS = [
    "INPUT.MIN_SIZE_TEST",
    160,
    "TEST.DETECTIONS_PER_IMAGE",
    5,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    0.001,
]


def model_of(channels: int, folder: Path) -> tuple[Path, list[Any]]:
    """The embedded model with a first convolution for this many channels: a checkpoint, and options."""
    checkpoint = weights.read_checkpoint(DEMO / "shapes.pkl")
    state = {name: np.asarray(array) for name, array in checkpoint.state.items()}
    name = "backbone.bottom_up.stem.conv1.weight"
    state[name] = np.ascontiguousarray(np.concatenate([state[name]] * 2, axis=1)[:, :channels])
    path = folder / "model.safetensors"
    write_safetensors(path, state)
    mean = [110.0, 120.0, 90.0, 100.0][:channels]
    return path, [*OPTS, "MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", [1.0] * channels]


def picture_of(picture: np.ndarray, channels: int) -> np.ndarray:
    return np.ascontiguousarray(
        np.concatenate([picture, picture[:, :, :1] // 2 + 100], axis=2)[:, :, :channels]
    )


@pytest.mark.wide
@pytest.mark.parametrize(("channels", "order"), [(1, "L"), (4, "RGB")])
def test_arrays_give_what_predictor_gives(
    channels: int, order: str, picture: np.ndarray, tmp_path: Path
) -> None:
    path, opts = model_of(channels, tmp_path)
    opts += ["INPUT.FORMAT", order]
    image = picture_of(picture, channels)
    with eagerly():
        expected = tf_d2.Predictor(DEMO / "shapes.yaml", path, opts=opts)(image)["instances"]
    assert len(expected) == 5
    report = export(DEMO / "shapes.yaml", path, tmp_path / "out", opts=opts)
    run, close = open_session(report.path)
    try:
        answers = [run("serving_default", inputs=image[None])]
        if channels == 1:
            answers.append(run("serving_bytes", image_bytes=[encoded(image[:, :, 0])]))
    finally:
        close()
    for answer in answers:
        np.testing.assert_array_equal(answer["detection_classes"][0], expected.pred_classes)
        np.testing.assert_allclose(answer["detection_boxes"][0], expected.pred_boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(answer["detection_scores"][0], expected.scores, rtol=0, atol=1e-5)
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"| in | `inputs` | uint8 | [B, ?, ?, {channels}] | pixels, 0 to 255, with the channels" in text
    if channels == 1:
        assert "becomes grey as Pillow makes it" in text
        row = Detector(report.path).row("a.png", encoded(image[:, :, 0]))
        assert row["failure"] is None
    else:
        assert f"no `serving_bytes`: an image file does not hold the {channels} channels" in text
        assert "predict_file" not in text
        with pytest.raises(ValueError, match=f"takes {channels} channels, which no image file holds"):
            Detector(report.path)


def test_more_channels_than_pillow_resizes_are_refused(tmp_path: Path) -> None:
    opts = ["MODEL.PIXEL_MEAN", [1.0] * 5, "MODEL.PIXEL_STD", [1.0] * 5]
    with pytest.raises(
        ExportError, match=r"5 channels \(MODEL.PIXEL_MEAN\).*more than 4: set INPUT.MIN_SIZE_TEST 0"
    ):
        export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", tmp_path / "out", opts=opts)
    assert list(tmp_path.iterdir()) == []


def files() -> dict[str, bytes]:
    rng = np.random.default_rng(3)
    noise = Image.fromarray(rng.integers(0, 256, (23, 31, 4), np.uint8), "RGBA")

    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    grey16 = rng.integers(0, 65536, (23, 31, 1)).astype(np.uint16)
    return {
        "png L": saved(noise.convert("L"), "PNG"),
        "png LA": saved(noise.convert("LA"), "PNG"),
        "png RGB": saved(noise.convert("RGB"), "PNG"),
        "png RGBA": saved(noise, "PNG"),
        "png P": saved(noise.convert("RGB").convert("P"), "PNG"),
        "png 1": saved(noise.convert("1"), "PNG"),
        "png 16": png16(grey16, 0),
        "jpeg L": saved(noise.convert("L"), "JPEG"),
        "jpeg YCbCr": saved(noise.convert("RGB"), "JPEG"),
        "jpeg CMYK": saved(noise.convert("RGB").convert("CMYK"), "JPEG"),
        "bmp P": saved(noise.convert("RGB").convert("P"), "BMP"),
        "bmp RGB": saved(noise.convert("RGB"), "BMP"),
        "webp": saved(noise.convert("RGB"), "WEBP", lossless=True),
    }


@pytest.mark.parametrize("kind", list(files()))
def test_files_become_grey_as_detectron2_reads_format_l(kind: str) -> None:
    data = files()[kind]
    config = tf_d2.config.InputConfig("BGR", 0, 1, (0.0,), (1.0,))
    found = decode.picture_from_bytes(tf.constant(data), config, 10_000)
    assert found.status.numpy() == decode.OK
    np.testing.assert_array_equal(found.pixels.numpy(), read_image(data, "L"))
