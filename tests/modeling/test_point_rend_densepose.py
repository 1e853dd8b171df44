"""Whole PointRend and DensePose models against what the real detectron2 answered on the same picture.

tests/data/point_rend_densepose: models of reduced width with random weights, a picture, the answer and some stages.
Detections have margins: float32 noise does not flip them.
"""

from contextlib import nullcontext

import numpy as np
import pytest
from support.recordings import answer_and_trace, assert_near, eagerly, recording

import weights
from parity.judge.values import settled
from tf_d2.config import load_config_text
from tf_d2.densepose import closest_vertices


def model(name):
    return recording(f"point_rend_densepose/{name}.npz")


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """name -> answer and trace of the float64 model, which are the truth for the float32 one; made when asked for."""
    made = {}

    def get(name):
        if name not in made:
            predictor = model(name).predictor(tmp_path_factory.mktemp(name), dtype="float64")
            with eagerly():
                made[name] = predictor(model(name).image), predictor.trace(model(name).image)
        return made[name]

    return get


def check_boxes(name, instances, truth):
    expected = model(name).group("output/instances/")
    np.testing.assert_array_equal(instances.pred_classes, expected["pred_classes"])
    for field in ("pred_boxes", "scores"):
        assert_near(getattr(instances, field), expected[field], getattr(truth["instances"], field), field)
    return expected


def check_stages(name, trace, truth):
    for stage, array in model(name).group("steps/").items():
        rows = slice(len(array))  # of regions only the first are recorded
        assert_near(trace[stage][rows], array, truth[stage][rows], stage)


OLD_NAMES = {
    "roi_heads.mask_head.point_head.": "roi_heads.mask_point_head.",
    "roi_heads.mask_head.coarse_head.fc": "roi_heads.mask_coarse_head.coarse_mask_fc",
    "roi_heads.mask_head.coarse_head.": "roi_heads.mask_coarse_head.",
}


def test_point_rend_masks_are_equal_pixel_by_pixel(tmp_path, exact):
    name = "pointrend_r50"
    truth, true_trace = exact(name)
    predictor = model(name).predictor(tmp_path)
    with eagerly():  # in a graph: tests/serving/test_point_rend_densepose.py
        result, trace = answer_and_trace(predictor, model(name).image)
    instances = result["instances"]
    expected = check_boxes(name, instances, truth)["pred_masks"]
    assert np.count_nonzero(instances.pred_masks != expected) == 0 < np.count_nonzero(expected)
    check_stages(name, trace, true_trace)


def test_point_rend_under_its_old_names(tmp_path, exact):
    name, state = "pointrend_r50", {}
    for key, value in model(name).group("weights/").items():
        new = next((n for n in OLD_NAMES if key.startswith(n)), "")
        state[OLD_NAMES.get(new, "") + key.removeprefix(new)] = value
    assert "roi_heads.mask_coarse_head.coarse_mask_fc1.weight" in state
    opts = ["MODEL.ROI_HEADS.NAME", "PointRendROIHeads", "MODEL.ROI_MASK_HEAD.NAME", "CoarseMaskHead"]
    opts += ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlign"]  # which the old files have
    predictor = model(name).predictor(tmp_path, opts, state)
    with eagerly():
        instances = predictor(model(name).image)["instances"]
    expected = check_boxes(name, instances, exact(name)[0])["pred_masks"]
    np.testing.assert_array_equal(instances.pred_masks, expected)


def test_point_rend_semantic(tmp_path, exact):
    name = "pointrend_semantic"
    got, truth = model(name).predictor(tmp_path)(model(name).image)["sem_seg"], exact(name)[0]["sem_seg"]
    expected = model(name)["output/sem_seg"]
    # Which of two nearly equally uncertain cells is refined depends on rounding; such cells are not compared, nor what
    # later steps make of them.
    alike = (settled(truth, got)[0] == got) & (settled(truth, expected)[0] == expected)
    assert alike.mean() > 1 - 2 / 500
    refined_alike = alike.all(axis=0)
    assert refined_alike.mean() > 0.99
    classes = got.argmax(axis=0), expected.argmax(axis=0)
    np.testing.assert_array_equal(classes[0][refined_alike], classes[1][refined_alike])
    assert_near(got[alike], expected[alike], truth[alike])


@pytest.mark.parametrize("name", ["densepose_dl_wc1m", pytest.param("densepose_cse", marks=pytest.mark.wide)])
def test_densepose(name, tmp_path, exact):
    predictor, (truth, true_trace) = model(name).predictor(tmp_path), exact(name)
    image = model(name).image
    # The other one is in a graph in tests/serving/test_point_rend_densepose.py.
    with nullcontext() if name == "densepose_cse" else eagerly():
        result, trace = answer_and_trace(predictor, image)
    instances = result["instances"]
    check_boxes(name, instances, truth)
    expected = model(name).group("output/instances/pred_densepose/")
    got, true = instances.pred_densepose.arrays(), truth["instances"].pred_densepose.arrays()
    assert got.keys() == expected.keys() and len(got["coarse_segm"]) == len(instances) > 4
    for field, value in got.items():
        assert value.dtype == np.float32
        assert_near(value, expected[field], true[field], field)
    check_stages(name, trace, true_trace)
    if name == "densepose_cse":
        check_vertices(predictor, instances)
    assert len(instances[:0].pred_densepose) == 0


def check_vertices(predictor, instances):
    """The embedder's tensors are in the file; none of them is needed to detect."""
    prefix = "weights/roi_heads.embedder.embedder_smpl_27554."
    arrays = model("densepose_cse").arrays
    product = arrays[f"{prefix}features"] @ arrays[f"{prefix}embeddings"]
    expected = product / np.linalg.norm(product, axis=1, keepdims=True)
    np.testing.assert_allclose(predictor.vertex_embeddings["smpl_27554"], expected, rtol=1e-5, atol=1e-6)
    found = closest_vertices(instances, {0: "smpl_27554"}, predictor.vertex_embeddings)
    assert len(found) == len(instances)
    assert all(one.vertices[one.mask].max(initial=0) < len(expected) for one in found)


def test_an_embedder_of_another_size_is_refused(tmp_path):
    key = "roi_heads.embedder.embedder_smpl_27554.features"
    state = {**model("densepose_cse").group("weights/"), key: np.zeros((61, 8), np.float32)}
    with pytest.raises(weights.WeightsError, match=r"features has shape \(61, 8\).*\(60, 8\)"):
        model("densepose_cse").predictor(tmp_path, state=state)
    without = {k: v for k, v in model("densepose_cse").group("weights/").items() if "embedder" not in k}
    assert model("densepose_cse").predictor(tmp_path, state=without).vertex_embeddings == {}


def test_class_to_mesh_comes_from_the_configuration():
    config = load_config_text(model("densepose_cse").config)
    assert config.roi_heads.densepose.class_to_mesh == ((0, "smpl_27554"),)
