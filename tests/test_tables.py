"""Instances as tables: values by hand, and the packages themselves where they are installed."""

import sys
from typing import Any

import numpy as np
import pytest

from tf_d2.instances import Instances
from tf_d2.tables import columns


@pytest.fixture
def two() -> Instances:
    masks = np.zeros((2, 40, 30), bool)
    masks[0, 2:22, 1:11] = True
    return Instances(
        (40, 30),
        pred_boxes=np.array([[1, 2, 11, 22], [3, 4, 23, 34.5]], np.float32),
        scores=np.array([0.9, 0.4], np.float32),
        pred_classes=np.array([2, 0]),
        pred_masks=masks,
        pred_keypoints=np.arange(12, dtype=np.float32).reshape(2, 2, 3),
    )


def test_columns_by_hand(two: Instances) -> None:
    table = columns(two, ["a", "b", "c"])
    assert list(table)[:8] == ["class", "name", "score", "x1", "y1", "x2", "y2", "mask_area"]
    assert table["name"] == ["c", "a"]
    assert [float(table[n][1]) for n in ("x1", "y1", "x2", "y2")] == [3, 4, 23, 34.5]
    assert table["mask_area"].tolist() == [200, 0]
    assert table["keypoint_1_y"].tolist() == [4, 10]


def test_rotated_boxes_and_proposals() -> None:
    rotated = Instances((9, 9), proposal_boxes=np.ones((1, 5)), objectness_logits=np.ones(1))
    assert list(columns(rotated)) == ["center_x", "center_y", "width", "height", "angle", "objectness_logits"]


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_a_class_without_a_name(two: Instances, names: list[str]) -> None:
    with pytest.raises(ValueError, match=f"classes from 0 to 2, but there are {len(names)} names"):
        columns(two, names)


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_without_the_package(two: Instances, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        getattr(two, f"to_{package}")()


def test_pandas(two: Instances) -> None:
    pytest.importorskip("pandas", reason="needs the package pandas")
    frame: Any = two.to_pandas(["a", "b", "c"])
    assert frame["name"].tolist() == ["c", "a"] and len(two[:0].to_pandas()) == 0
    assert frame[frame.score > 0.5]["class"].tolist() == [2]
    assert frame.dtypes["x1"] == np.float32


def test_supervision(two: Instances) -> None:
    supervision = pytest.importorskip("supervision", reason="needs the package supervision (extra viz)")
    found = two.to_supervision(["a", "b", "c"])
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.xyxy, two.pred_boxes)
    assert found.data["class_name"].tolist() == ["c", "a"] and found.area.tolist() == [200, 0]
    assert found[found.confidence > 0.5].data["class_name"].tolist() == ["c"]
    assert len(two[:0].to_supervision()) == 0


def test_notebooks_show_a_table(two: Instances) -> None:
    text = two._repr_html_()
    assert text.count("<tr>") == 3 and "<td>34.5</td>" in text and "<th>mask_area</th>" in text
    assert "more" not in text
    many = Instances((4, 4), scores=np.linspace(1, 0, 25))
    assert "... and 5 more" in many._repr_html_() and many._repr_html_().count("<tr>") == 21
    assert "0 in 4x4" in many[:0]._repr_html_()
