"""Average precision of both sides: hand-made annotations whose AP is known."""

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import parity
from parity.cli import parity as cli
from parity.core.status import Status
from parity.core.trace import TraceWriter
from parity.judge.dataset import add_average_precision, average_precision, read_annotations

BOXES = np.array([[10, 10, 50, 40], [60, 20, 90, 70]], np.float32)
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]


def write_trace(path, boxes=BOXES, classes=(0, 1), masks=True):
    with TraceWriter(path) as writer:
        writer.put("input/image", np.zeros((80, 100, 3), np.uint8))
        writer.put("output/instances/pred_boxes", np.asarray(boxes, np.float32))
        writer.put("output/instances/scores", np.array([0.9, 0.8], np.float32))
        writer.put("output/instances/pred_classes", np.asarray(classes))
        if masks:
            drawn = np.zeros((2, 80, 100), bool)
            for mask, (x1, y1, x2, y2) in zip(drawn, np.asarray(boxes, int), strict=True):
                mask[y1:y2, x1:x2] = True
            writer.put("output/instances/pred_masks", drawn)
        writer.finish(
            {"backend": "tf", "job": {"images": ["folder/a.png"]}, "images": ["folder/a.png"]}, "{}"
        )
    return path


@pytest.fixture
def annotations(tmp_path):
    """The two boxes, as category 3 (the first in order of ids) and 18."""
    objects = []
    for number, ((x1, y1, x2, y2), category) in enumerate(zip(BOXES.tolist(), (3, 18), strict=True), 1):
        box = [x1, y1, x2 - x1, y2 - y1]
        outline = [x1, y1, x2, y1, x2, y2, x1, y2]
        common = {"image_id": 7, "iscrowd": 0, "area": box[2] * box[3]}
        objects.append(
            {"id": number, "category_id": category, "bbox": box, "segmentation": [outline], **common}
        )
    images = [{"id": 7, "file_name": "val/a.png", "height": 80, "width": 100}]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": objects, "categories": CATEGORIES}))
    return path


def judged(tmp_path, annotations, name="a.png", **candidate):
    paths = write_trace(tmp_path / "a.h5"), write_trace(tmp_path / "b.h5", **candidate)
    comparisons = parity.compare(*paths)
    comparisons[0].image = name
    add_average_precision(comparisons, read_annotations(annotations))
    return {s.name: s for s in comparisons[0].stages if s.rung == "dataset"}


def test_equal_sides_have_equal_average_precision(tmp_path, annotations):
    found = judged(tmp_path, annotations)
    assert {n: s.status for n, s in found.items()} == {
        "dataset/AP bbox": Status.PASS,
        "dataset/AP segm": Status.PASS,
    }
    assert found["dataset/AP bbox"].message == "AP 100.00 and 100.00 on 1 pictures"


def test_classes_in_another_order_are_seen(tmp_path, annotations):
    found = judged(tmp_path, annotations, classes=(1, 0), masks=False)
    assert list(found) == ["dataset/AP bbox"]
    assert found["dataset/AP bbox"].status is Status.FAIL
    assert found["dataset/AP bbox"].message == "AP 100.00 and 0.00 on 1 pictures"


def test_a_moved_box_costs_precision(tmp_path, annotations):
    moved = BOXES + np.float32([[12, 0, 12, 0], [0, 0, 0, 0]])  # IoU 28 / 52 = 0.54: found at 0.5 only
    found = judged(tmp_path, annotations, boxes=moved)["dataset/AP bbox"]
    assert found.status is Status.FAIL and found.message.startswith("AP 100.00 and 55.0")


def test_a_picture_without_annotations_is_not_a_pass(tmp_path, annotations):
    found = judged(tmp_path, annotations, name="b.png")["dataset/AP bbox"]
    assert found.status is Status.NOT_COMPARED and "b.png" in found.message


def test_nothing_annotated_is_not_a_pass(tmp_path, annotations):
    truth = json.loads(annotations.read_text())
    annotations.write_text(json.dumps(truth | {"annotations": []}))
    assert judged(tmp_path, annotations)["dataset/AP bbox"].status is Status.NOT_COMPARED
    assert average_precision(truth, [], "bbox", [7]) == 0


@pytest.mark.parametrize("text", ["", "[1]", '{"images": []}', "\x00"])
def test_annotations_of_another_kind_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: not"):
        read_annotations(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("where", "changed", "told"),
    [
        ("images", {"file_name": 3}, "1 of 1 images have no usable file_name (the first is number 0)"),
        ("annotations", {"bbox": [1, 2, 3]}, "2 of 2 annotations have no usable bbox"),
        ("annotations", {"image_id": None}, "2 of 2 annotations have no usable image_id"),
        ("categories", {"id": "dog"}, "2 of 2 categories have no usable id"),
    ],
)
def test_entries_of_another_kind_are_refused_before_anything_runs(
    tmp_path, annotations, where, changed, told
):
    truth = json.loads(annotations.read_text())
    truth[where] = [entry | changed for entry in truth[where]]
    annotations.write_text(json.dumps(truth))
    with pytest.raises(ValueError) as error:
        read_annotations(annotations)
    assert told in str(error.value)


@pytest.mark.parametrize("left_out", ["id", "iscrowd", "area"])
def test_what_some_tools_leave_out_is_made_up(tmp_path, annotations, left_out):
    truth = json.loads(annotations.read_text())
    for entry in truth["annotations"]:
        del entry[left_out]
    annotations.write_text(json.dumps(truth))
    found = judged(tmp_path, annotations)
    assert {s.message for s in found.values()} == {"AP 100.00 and 100.00 on 1 pictures"} and len(found) == 2


def test_pictures_of_lvis_are_found_by_their_address(tmp_path, annotations):
    truth = json.loads(annotations.read_text())
    truth["images"][0].pop("file_name")
    truth["images"][0]["coco_url"] = "http://images.example/train2017/a.png"
    annotations.write_text(json.dumps(truth))
    assert {s.status for s in judged(tmp_path, annotations).values()} == {Status.PASS}


def test_annotations_without_outlines_judge_boxes(tmp_path, annotations):
    truth = json.loads(annotations.read_text())
    for entry in truth["annotations"]:
        del entry["segmentation"]
    annotations.write_text(json.dumps(truth))
    found = judged(tmp_path, annotations)
    assert list(found) == ["dataset/AP bbox"] and found["dataset/AP bbox"].status is Status.PASS
    assert found["dataset/AP bbox"].message.endswith(
        "masks not judged: 2 of 2 annotations have no segmentation"
    )


def test_made_up_numbers_are_not_those_of_others(annotations):
    truth = json.loads(annotations.read_text())
    del truth["annotations"][0]["id"]
    truth["annotations"][1]["id"] = 1
    annotations.write_text(json.dumps(truth))
    assert [entry["id"] for entry in read_annotations(annotations)["annotations"]] == [2, 1]


def test_outlines_that_pycocotools_cannot_read_leave_the_other_rungs(tmp_path, annotations):
    truth = json.loads(annotations.read_text())
    for entry in truth["annotations"]:
        entry["segmentation"] = "round"
    annotations.write_text(json.dumps(truth))
    found = judged(tmp_path, annotations)
    assert found["dataset/AP bbox"].status is Status.PASS
    assert (
        found["dataset/AP segm"].status is Status.ERROR and "pycocotools" in found["dataset/AP segm"].message
    )


def test_more_classes_than_categories_are_an_error(tmp_path, annotations):
    found = judged(tmp_path, annotations, classes=(0, 5))["dataset/AP bbox"]
    assert found.status is Status.ERROR and "class 5, but the annotations have 2" in found.message


def test_unreadable_annotations_end_the_command_before_it_runs(tmp_path):
    trace = str(write_trace(tmp_path / "a.h5"))
    app = typer.Typer()
    cli.register(app)
    result = CliRunner().invoke(
        app, ["parity", "rejudge", trace, trace, "--annotations", str(tmp_path / "no.json")]
    )
    assert result.exit_code == 2 and "not readable as COCO" in " ".join(result.output.split())


def test_the_command_line_judges_average_precision(tmp_path, annotations):
    paths = [str(write_trace(tmp_path / "a.h5")), str(write_trace(tmp_path / "b.h5"))]
    words = [
        "parity",
        "rejudge",
        *paths,
        "--annotations",
        str(annotations),
        "--output",
        str(tmp_path / "out"),
    ]
    app = typer.Typer()
    cli.register(app)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert "dataset/AP" in (tmp_path / "out" / "parity.json").read_text(), result.output
