"""Parts, coordinates and vertices of pixels against detectron2's own converters on made-up maps.

tests/data/densepose_results.h5: four boxes, smooth random maps (float16, widened by both sides), and what
``ToChartResultConverterWithConfidences`` and ``get_closest_vertices_mask_from_ES`` returned for them.
"""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from tf_d2 import densepose
from tf_d2.densepose import (
    DensePoseChartPredictorOutput,
    DensePoseEmbeddingPredictorOutput,
    chart_results,
    closest_vertices,
    draw_densepose,
    from_file,
    int_boxes,
    quantized,
    to_file,
    vertex_embeddings,
)
from tf_d2.instances import Instances

FILE = Path(__file__).parent / "data" / "densepose_results.h5"
PREFIX = "roi_heads.embedder.embedder_"


def arrays(group):
    with h5py.File(FILE) as file:
        found = {name: item[()] for name, item in file[group].items()}
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in found.items()}


def instances(output):
    with h5py.File(FILE) as file:
        boxes = file["boxes"][()]
    scores, classes = np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([0, 1, 0, 1])
    return Instances((100, 60), pred_boxes=boxes, scores=scores, pred_classes=classes, pred_densepose=output)


@pytest.fixture
def charts():
    return instances(DensePoseChartPredictorOutput(**arrays("chart")))


@pytest.fixture
def embedded():
    found = arrays("cse")
    return instances(DensePoseEmbeddingPredictorOutput(found["coarse_segm"], found["embedding"]))


@pytest.fixture
def meshes():
    found = arrays("cse")
    return vertex_embeddings(
        {
            f"{PREFIX}person.features": found["features"],
            f"{PREFIX}person.embeddings": found["embeddings"],
            f"{PREFIX}bear.embeddings": found["direct"],
            "roi_heads.box_head.fc1.weight": np.ones(3),
        }
    )


def test_chart_results_are_those_of_detectron2(charts):
    for i, result in enumerate(chart_results(charts)):
        expected = arrays(f"result/{i}")
        assert result.labels.dtype == np.int64 and result.labels.any()
        np.testing.assert_array_equal(result.labels, expected["labels"])
        np.testing.assert_allclose(result.uv, expected["uv"], rtol=0, atol=1e-6)
        assert result.sigma_1 is None and result.u is not None
        for name in ("sigma_2", "kappa_v", "fine_segm_confidence", "coarse_segm_confidence"):
            np.testing.assert_allclose(getattr(result, name), expected[name], rtol=0, atol=1e-6)
        difference = quantized(result).astype(int) - expected["quantized"]
        assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 1e-3


def test_large_boxes_are_resampled_in_blocks(charts, monkeypatch):
    whole = chart_results(charts)
    monkeypatch.setattr(densepose, "BLOCK_ELEMENTS", 300)
    for one, other in zip(whole, chart_results(charts), strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)


def test_boxes_are_truncated_side_by_side():
    boxes = np.array([[3.7, 2.2, 40.1, 33.9], [10.9, 5.5, 11.2, 20.0]], np.float32)
    np.testing.assert_array_equal(int_boxes(boxes), [[3, 2, 36, 31], [10, 5, 1, 14]])


def test_closest_vertices_are_those_of_detectron2(embedded, meshes, monkeypatch):
    np.testing.assert_allclose(meshes["person"], arrays("cse")["vertex_embeddings"], atol=1e-6)
    assert not meshes["person"][3].any()  # a vertex without features: its norm counts as 1e-6
    monkeypatch.setattr(densepose, "BLOCK_ELEMENTS", 1000)
    found = closest_vertices(embedded, {0: "person", 1: "bear"}, meshes)
    assert [one.mesh for one in found] == ["person", "bear", "person", "bear"]
    for i, one in enumerate(found):
        expected = arrays(f"vertices/{i}")
        np.testing.assert_array_equal(one.mask, expected["mask"])
        np.testing.assert_array_equal(one.vertices, expected["closest"])


def test_a_class_without_a_mesh_is_named(embedded, meshes):
    with pytest.raises(ValueError, match="class 1: no vertex embeddings of its mesh 'cow'"):
        closest_vertices(embedded, {0: "person", 1: "cow"}, meshes)
    with pytest.raises(ValueError, match=r"class 0.*no mesh"):
        closest_vertices(embedded, {}, {})


def test_each_kind_says_what_to_use_instead(charts, embedded):
    with pytest.raises(ValueError, match="use closest_vertices"):
        chart_results(embedded)
    with pytest.raises(ValueError, match="use chart_results"):
        closest_vertices(charts, {}, {})
    with pytest.raises(ValueError, match="no DensePose output"):
        chart_results(Instances((4, 4), pred_boxes=np.zeros((0, 4))))


def test_rows_are_chosen_with_the_instances(charts):
    chosen = charts[np.array([False, True, False, True])]
    np.testing.assert_array_equal(chosen.pred_densepose.u, charts.pred_densepose.u[[1, 3]])
    assert charts.pred_densepose.sigma_1 is None and len(charts[1].pred_densepose) == 1
    assert len(charts[:0].pred_densepose) == 0 and chart_results(charts[:0]) == []
    assert "pred_densepose" in repr(charts)


def test_a_small_file_and_back(charts, embedded, meshes):
    kept = json.loads(json.dumps(to_file(charts, file_name="a.jpg")))
    assert kept["file_name"] == "a.jpg" and len(kept["pred_boxes_XYXY"]) == 4
    for row, result in zip(kept["pred_densepose"], chart_results(charts), strict=True):
        assert row["shape_chw"] == [3, *result.labels.shape]
        np.testing.assert_array_equal(from_file(row), quantized(result))
    found = closest_vertices(embedded, {0: "person", 1: "bear"}, meshes)
    for row, one in zip(to_file(embedded, found)["pred_densepose"], found, strict=True):
        np.testing.assert_array_equal(from_file(row), np.where(one.mask, one.vertices, -1))
    assert to_file(embedded)["pred_densepose"] == []


@pytest.mark.parametrize("kind", ["charts", "embedded"])
def test_the_drawing_covers_bodies_only(kind, request):
    found = request.getfixturevalue(kind)
    image = np.full((80, 50, 3), 100, np.uint8)  # the largest box leaves the picture
    drawn = draw_densepose(image, found)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    x, y, w, h = int_boxes(found.pred_boxes)[0]
    changed = (drawn != image).any(axis=2)
    assert changed[y : y + h, x : x + w].any() and not changed[:, 41:].any()
    np.testing.assert_array_equal(draw_densepose(image, found[:0]), image)
