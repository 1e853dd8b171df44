"""The demo's export in this process: rows are what Predictor gives."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import tf_d2
from tf_d2.batch.model import Detector, fingerprint, version_folder
from tf_d2.batch.rows import detected

DEMO = Path(str(files("tf_d2"))) / "data" / "demo"


@pytest.fixture(scope="module")
def export(exported_demo: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(exported_demo.root, tmp_path_factory.mktemp("batch") / "shapes")


def test_rows_are_predictors_answers_bit_for_bit(export: Path, tmp_path: Path) -> None:
    """Of a Predictor that computes as an export does: what keeps its weights in oneDNN's layout has another kernel,
    which on AVX2 adds up in another order."""
    predictor = tf_d2.Predictor(DEMO / "shapes.yaml", DEMO / "shapes.pkl", constant_weights=False)
    detector = Detector(export)
    whole = Image.open(DEMO / "shapes.png").convert("RGB")
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    whole.crop((10, 20, 211, 170)).save(tmp_path / "a.jpg", exif=exif)
    whole.resize((240, 180)).convert("P").save(tmp_path / "b.gif")  # no served decoder reads a GIF
    for name in ("a.jpg", "b.gif"):
        row = detector.row(name, (tmp_path / name).read_bytes())
        image = tf_d2.read_image(tmp_path / name)
        found = predictor(image)["instances"]
        expected = detected(name, found)
        assert row == expected
        assert row["failure"] is None and len(row["scores"]) > 0
        assert (row["height"], row["width"]) == image.shape[:2]
        assert np.array_equal(np.float32(row["boxes"]), found.pred_boxes)


def test_a_broken_picture_is_a_reason(export: Path) -> None:
    row = Detector(export).row("x", b"nonsense")
    assert row["failure"] == "cannot be read as an image (no format that Pillow knows)"
    assert row["boxes"] is None and row["height"] is None


def test_version_folder(tmp_path: Path, export: Path) -> None:
    assert version_folder(export) == export / "1" == version_folder(export / "1")
    with pytest.raises(ValueError, match="no exported model"):
        version_folder(tmp_path)


def test_the_fingerprint_is_of_the_contents(export: Path) -> None:
    before = fingerprint(export / "1")
    assert before == fingerprint(export / "1")
    names = export / "1" / "assets" / "class_names.txt"
    text = names.read_text() if names.exists() else ""
    names.write_text(text + "more\n")
    assert fingerprint(export / "1") != before
