"""Exports of PointRend and DensePose give what the real detectron2 answered (see tests/modeling)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import weights
from tf_d2.client import to_result
from tf_d2.serving import export

from .conftest import encoded, open_session

DATA = Path(__file__).parents[1] / "data" / "point_rend_densepose"


@pytest.mark.wide
@pytest.mark.parametrize("name", ["pointrend_r50", "densepose_dl_wc1m"])
def test_an_export_answers_as_detectron2(name: str, tmp_path: Path) -> None:
    with np.load(DATA / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    (tmp_path / "config.yaml").write_text(str(arrays["config"]))
    state = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    weights.write_detectron2_pkl(tmp_path / "model.pkl", state)
    opts = ["MODEL.WEIGHTS", ""]
    report = export(tmp_path / "config.yaml", tmp_path / "model.pkl", tmp_path / "out", opts=opts)
    run, close = open_session(report.path)
    picture = arrays["input/image"][:, :, ::-1]
    outputs = run("serving_bytes", image_bytes=[b"no image", encoded(picture)])
    close()
    for output, value in outputs.items():
        assert len(value) == 2 and (value.dtype == object or np.isfinite(value).all()), output
    instances = to_result(outputs, 1)["instances"]
    prefix = "output/instances/"
    expected = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    np.testing.assert_allclose(instances.pred_boxes, expected["pred_boxes"], rtol=0, atol=1e-3)
    np.testing.assert_array_equal(instances.pred_classes, expected["pred_classes"])
    rows = report.max_detections
    if name.startswith("pointrend"):
        assert outputs["detection_masks"].shape == (2, rows, 224, 224)
        np.testing.assert_array_equal(instances.pred_masks, expected["pred_masks"])
        return
    for field, value in instances.pred_densepose.arrays().items():
        wanted = expected[f"pred_densepose/{field}"]
        padded = outputs[f"detection_densepose_{field}"]
        assert padded.shape == (2, rows, *wanted.shape[1:])
        assert not padded[0].any() and not padded[1, len(wanted) :].any()
        assert np.linalg.norm(value - wanted) < 3e-5 * np.linalg.norm(wanted), field
    assert "detection_densepose_sigma_2" in (tmp_path / "out" / "README.md").read_text()
