"""Exports of MViTv2, Swin, ViTDet and FCOS: served, in batches of mixed sizes, each picture answered as alone."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

import tf_d2
import weights
from tf_d2.client import Client, to_result
from tf_d2.serving import export

from . import loopback
from .conftest import encoded, open_session

DATA = Path(__file__).parents[1] / "data" / "new_baselines"


def written(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Configuration and checkpoint of a recording as files, and its other arrays."""
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(DATA / f"{name}.h5") as file:
        file.visititems(
            lambda key, item: arrays.update({key: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
        (folder / "config.yaml").write_text(str(file.attrs["config"]))
    state = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    weights.write_detectron2_pkl(folder / "model.pkl", state)
    return arrays


def assert_same(found: tf_d2.Instances, classes: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> None:
    np.testing.assert_array_equal(found.pred_classes, classes)
    np.testing.assert_allclose(found.pred_boxes, boxes, rtol=0, atol=2e-3)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=5e-5)


# An export of each, three pictures and two servers: nothing that the short run of the tests has time for.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcos", "mvitv2_t", "swin_b_cascade", "vitdet_b"])
def test_a_served_batch_of_mixed_sizes(name: str, tmp_path: Path) -> None:
    arrays = written(name, tmp_path)
    files = tmp_path / "config.yaml", tmp_path / "model.pkl"
    report = export(*files, tmp_path / "out", pad_independent=True)
    picture = arrays["input/image"]
    small = np.ascontiguousarray(picture[11:, : picture.shape[1] - 37])
    turned = np.ascontiguousarray(picture.transpose(1, 0, 2))
    run, close = open_session(report.path)
    pictures = [encoded(x[:, :, ::-1]) for x in (small, picture, turned)]
    outputs = run("serving_bytes", image_bytes=[pictures[0], b"no image", *pictures[1:]])
    close()
    prefix = "output/instances/"
    recorded = [arrays[prefix + field] for field in ("pred_classes", "pred_boxes", "scores")]
    assert_same(to_result(outputs, 2)["instances"], *recorded)
    predictor = tf_d2.Predictor(*files)
    for row, image in ((0, small), (3, turned)):
        expected = predictor(image)["instances"]
        got = to_result(outputs, row)["instances"]
        assert len(expected) > 0 and got.image_size == image.shape[:2]
        assert_same(got, expected.pred_classes, expected.pred_boxes, expected.scores)
        if expected.has("pred_masks"):
            assert (got.pred_masks != expected.pred_masks).sum() <= 4
    with loopback.serving(tmp_path / "out", batching=True) as addresses:
        for address in addresses[:2]:  # REST and gRPC
            with Client(address, addresses[2]) as client:
                assert_same(client.predict(picture)["instances"], *recorded)
