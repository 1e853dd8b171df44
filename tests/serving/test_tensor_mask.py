"""Exports of TensorMask: masks are pasted over their windows, in the graph as by Predictor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.recordings import eagerly

import tf_d2
import weights
from tf_d2.client import to_result
from tf_d2.serving import export

from .conftest import open_session

RECORDING = Path(__file__).parents[1] / "data" / "tensor_mask" / "aligned.npz"


@pytest.mark.wide
@pytest.mark.parametrize("masks", ["roi", "full"])
def test_answers_are_the_predictors(masks: str, tmp_path: Path, pixels_only: None) -> None:
    with np.load(RECORDING) as file:
        recorded = {key: file[key] for key in file.files}
    (tmp_path / "config.yaml").write_text(str(recorded["config"]))
    tensors = {k.removeprefix("weights/"): v for k, v in recorded.items() if k.startswith("weights/")}
    weights.write_detectron2_pkl(tmp_path / "model.pkl", tensors)
    files = tmp_path / "config.yaml", tmp_path / "model.pkl"
    image = recorded["input/image"]
    predictor = tf_d2.Predictor(*files)
    with eagerly():
        expected = predictor(image)["instances"]
    report = export(*files, tmp_path / "windows", masks=masks)
    run, close = open_session(report.path)
    answer = run("serving_default", inputs=np.stack([image[:, :, ::-1]] * 2))
    close()
    # Probabilities of up to 480 x 480 cells for each detection would be too much: PNG files instead.
    wanted = "detection_masks_png_bytes" if masks == "roi" else "detection_masks_full"
    assert wanted in answer and not {"detection_masks", "detection_mask_sides"} & answer.keys()
    got = to_result(answer, 1)["instances"]
    np.testing.assert_array_equal(got.pred_classes, expected.pred_classes)
    np.testing.assert_array_equal(got.pred_masks, expected.pred_masks)
    np.testing.assert_allclose(got.pred_boxes, expected.pred_boxes, rtol=0, atol=1e-3)
