"""Whole PointRend and DensePose models against what the real detectron2 answered on the same picture.

tests/data/point_rend_densepose: models of reduced width with random weights, a picture, the answer and some stages.
Detections have margins: float32 noise does not flip them.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

import tf_d2
import weights
from tf_d2.config import load_config_text
from tf_d2.densepose import closest_vertices

DATA = Path(__file__).parents[1] / "data" / "point_rend_densepose"
END_TO_END = 3e-5  # relative L2 after all float32 layers; random models amplify rounding


@cache
def recorded(name):
    """(configuration, arrays by name)."""
    with np.load(DATA / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return str(arrays.pop("config")), arrays


def group(name, prefix):
    return {k.removeprefix(prefix): v for k, v in recorded(name)[1].items() if k.startswith(prefix)}


def make_predictor(name, folder, state=None, opts=()):
    config, _ = recorded(name)
    (folder / "config.yaml").write_text(config)
    weights.write_detectron2_pkl(folder / "model.pkl", state or group(name, "weights/"))
    return tf_d2.Predictor(folder / "config.yaml", folder / "model.pkl", opts=["MODEL.WEIGHTS", "", *opts])


def error(got, expected):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def check_boxes(name, instances):
    expected = group(name, "output/instances/")
    np.testing.assert_allclose(instances.pred_boxes, expected["pred_boxes"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(instances.scores, expected["scores"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(instances.pred_classes, expected["pred_classes"])
    return expected


OLD_NAMES = {
    "roi_heads.mask_head.point_head.": "roi_heads.mask_point_head.",
    "roi_heads.mask_head.coarse_head.fc": "roi_heads.mask_coarse_head.coarse_mask_fc",
    "roi_heads.mask_head.coarse_head.": "roi_heads.mask_coarse_head.",
}


def test_point_rend_masks_are_equal_pixel_by_pixel(tmp_path):
    predictor = make_predictor("pointrend_r50", tmp_path)
    image = recorded("pointrend_r50")[1]["input/image"]
    instances = predictor(image)["instances"]
    expected = check_boxes("pointrend_r50", instances)["pred_masks"]
    assert np.count_nonzero(instances.pred_masks != expected) == 0 < np.count_nonzero(expected)
    trace = predictor.trace(image)
    for stage, array in group("pointrend_r50", "steps/").items():
        assert error(trace[stage][: len(array)], array) < END_TO_END, stage


def test_point_rend_under_its_old_names(tmp_path):
    state = {}
    for key, value in group("pointrend_r50", "weights/").items():
        new = next((n for n in OLD_NAMES if key.startswith(n)), "")
        state[OLD_NAMES.get(new, "") + key.removeprefix(new)] = value
    assert "roi_heads.mask_coarse_head.coarse_mask_fc1.weight" in state
    opts = ["MODEL.ROI_HEADS.NAME", "PointRendROIHeads", "MODEL.ROI_MASK_HEAD.NAME", "CoarseMaskHead"]
    opts += ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign"]  # which the old files have
    predictor = make_predictor("pointrend_r50", tmp_path, state, opts)
    instances = predictor(recorded("pointrend_r50")[1]["input/image"])["instances"]
    expected = check_boxes("pointrend_r50", instances)["pred_masks"]
    np.testing.assert_array_equal(instances.pred_masks, expected)


def test_point_rend_semantic(tmp_path):
    predictor = make_predictor("pointrend_semantic", tmp_path)
    _, arrays = recorded("pointrend_semantic")
    got = predictor(arrays["input/image"])["sem_seg"]
    assert error(got, arrays["output/sem_seg"]) < END_TO_END
    np.testing.assert_array_equal(got.argmax(axis=0), arrays["output/sem_seg"].argmax(axis=0))


@pytest.mark.parametrize("name", ["densepose_dl_wc1m", "densepose_cse"])
def test_densepose(name, tmp_path):
    predictor = make_predictor(name, tmp_path)
    image = recorded(name)[1]["input/image"]
    instances = predictor(image)["instances"]
    check_boxes(name, instances)
    expected = group(name, "output/instances/pred_densepose/")
    got = instances.pred_densepose.arrays()
    assert got.keys() == expected.keys() and len(got["coarse_segm"]) == len(instances) > 4
    for field, value in got.items():
        assert value.dtype == np.float32
        assert error(value, expected[field]) < END_TO_END, field
    trace = predictor.trace(image)
    for stage, array in group(name, "steps/").items():
        assert error(trace[stage][: len(array)], array) < END_TO_END, stage
    if name == "densepose_cse":
        check_vertices(predictor, instances)
    none = predictor(image)["instances"][:0]
    assert len(none.pred_densepose) == 0


def check_vertices(predictor, instances):
    """The embedder's tensors are in the file; none of them is needed to detect."""
    prefix = "weights/roi_heads.embedder.embedder_smpl_27554."
    _, arrays = recorded("densepose_cse")
    product = arrays[f"{prefix}features"] @ arrays[f"{prefix}embeddings"]
    expected = product / np.linalg.norm(product, axis=1, keepdims=True)
    np.testing.assert_allclose(predictor.vertex_embeddings["smpl_27554"], expected, rtol=1e-5, atol=1e-6)
    found = closest_vertices(instances, {0: "smpl_27554"}, predictor.vertex_embeddings)
    assert len(found) == len(instances)
    assert all(one.vertices[one.mask].max(initial=0) < len(expected) for one in found)


def test_an_embedder_of_another_size_is_refused(tmp_path):
    key = "roi_heads.embedder.embedder_smpl_27554.features"
    state = {**group("densepose_cse", "weights/"), key: np.zeros((61, 8), np.float32)}
    with pytest.raises(weights.WeightsError, match=r"features has shape \(61, 8\).*\(60, 8\)"):
        make_predictor("densepose_cse", tmp_path, state)
    without = {k: v for k, v in group("densepose_cse", "weights/").items() if "embedder" not in k}
    assert make_predictor("densepose_cse", tmp_path, without).vertex_embeddings == {}


def test_class_to_mesh_comes_from_the_configuration():
    config = load_config_text(recorded("densepose_cse")[0])
    assert config.roi_heads.densepose.class_to_mesh == ((0, "smpl_27554"),)
