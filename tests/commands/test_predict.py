"""tf-d2 predict: files in, COCO results and pictures out, clear errors for everything else."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from support.recordings import eagerly

import weights
from tf_d2 import cli
from tf_d2.commands.predict import _in_dataset_numbers, files, unique_stems
from tf_d2.instances import Instances


@pytest.fixture(autouse=True)
def one_predictor(demo_predictor, monkeypatch, request):
    """Commands use the model that is loaded already, unless a test is about loading."""
    # The command may let oneDNN assume weights that never change, which is not so in the process of the tests.
    monkeypatch.setenv("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "0")
    if "loaded" not in request.node.name:
        monkeypatch.setattr("tf_d2.predictor.Predictor", lambda *args, **kwargs: demo_predictor)


@pytest.fixture
def predict(demo_files, tmp_path, capsys):
    def call(*images, config=demo_files / "shapes.yaml", weights=demo_files / "shapes.pkl", extra=()):
        output = tmp_path / "out"
        words = [
            "predict",
            "--config-file",
            config,
            "--weights",
            weights,
            "--output",
            output,
            "--input",
            *images,
        ]
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in (*words, *extra)])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return stop.value.code, printed.out, printed.err, output

    return call


# pycocotools' own, in decode().
@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
def test_results_are_coco_results(predict, demo_files, demo_reference):
    status, out, err, output = predict(demo_files / "shapes.png")
    assert (status or 0, err) == (0, "")
    assert "30 instances" in out
    assert sorted(p.name for p in output.iterdir()) == ["shapes.detections.png", "shapes.json"]
    rows = json.loads((output / "shapes.json").read_text())
    boxes = demo_reference.arrays["output/instances/pred_boxes"]
    masks = demo_reference.arrays["output/instances/pred_masks"]
    assert len(rows) == 30
    for row, box, mask in zip(rows, boxes, masks, strict=True):
        assert row["image_id"] == "shapes"
        x, y, w, h = row["bbox"]
        np.testing.assert_allclose((x, y, x + w, y + h), box, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(coco_mask.decode(row["segmentation"]).astype(bool), mask)
    with Image.open(output / "shapes.detections.png") as drawn:
        assert drawn.size == (480, 360)


@pytest.mark.wide
def test_a_model_of_one_channel_reads_pictures_as_grey_and_is_loaded(predict, demo_files, tmp_path):
    state = dict(weights.read_checkpoint(demo_files / "shapes.pkl").state)
    first = "backbone.bottom_up.stem.conv1.weight"
    state[first] = np.asarray(state[first]).sum(axis=1, keepdims=True)
    weights.write_pth(tmp_path / "grey.pth", {name: np.asarray(array) for name, array in state.items()})
    with Image.open(demo_files / "shapes.png") as picture:
        picture.convert("L").save(tmp_path / "grey.png")
    means = ["MODEL.PIXEL_MEAN", "[115.0]", "MODEL.PIXEL_STD", "[1.0]", "INPUT.FORMAT", "L"]
    extra = ["--opts", *means, "TEST.DETECTIONS_PER_IMAGE", "5"]
    pictures = (tmp_path / "grey.png", demo_files / "shapes.png")
    status, out, err, output = predict(*pictures, weights=tmp_path / "grey.pth", extra=extra)
    assert (status or 0, out.count("5 instances")) == (0, 2), err
    found = [json.loads((output / f"{path.stem}.json").read_text()) for path in pictures]
    for one, other in zip(*found, strict=True):
        assert one["bbox"] == other["bbox"] and one["score"] == other["score"]
    with Image.open(output / "grey.detections.png") as drawn:
        assert drawn.mode == "RGB"


def test_threshold_and_no_drawing(predict, demo_files, demo_reference):
    _, _, _, output = predict(demo_files / "shapes.png", extra=("--confidence-threshold", "0.9", "--no-draw"))
    rows = json.loads((output / "shapes.json").read_text())
    assert len(rows) == (demo_reference.arrays["output/instances/scores"] >= 0.9).sum() < 30
    assert [p.name for p in output.iterdir()] == ["shapes.json"]


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_every_kind_of_image_gives_results_or_one_clear_error(predict, demo_files, tmp_path):
    """Unusable files do not keep the others from being done, and leave nothing behind."""
    rng = np.random.default_rng(0)
    good = [
        save(tmp_path / "grey.png", rng.integers(0, 256, (40, 50), np.uint8)),
        save(tmp_path / "rgba.png", rng.integers(0, 256, (40, 50, 4), np.uint8)),
        save(tmp_path / "deep.png", rng.integers(0, 65536, (40, 50), np.uint16)),
        save(tmp_path / "dot.png", np.zeros((1, 1, 3), np.uint8)),
        save(tmp_path / "photo.jpg", rng.integers(0, 256, (40, 50, 3), np.uint8)),
    ]
    long = save(tmp_path / "long.png", np.zeros((1, 5000, 3), np.uint8))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    whole = (demo_files / "shapes.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    bad = [long, *(tmp_path / name for name in ("empty.png", "text.png", "cut.png", "absent.png"))]
    status, _, err, output = predict(*good, *bad, extra=("--no-draw",))
    assert status == 2
    assert err.count("\n") == 1
    for path in bad:
        assert str(path) in err
    assert "1x5000 image would become 0x288" in err and "the file is empty" in err
    assert sorted(p.name for p in output.iterdir()) == sorted(f"{path.stem}.json" for path in good)


def test_paths_are_printed_as_they_are(predict, demo_files, tmp_path):
    folder = tmp_path / "w["
    folder.mkdir()
    path = save(folder / "b] [bold].png", np.zeros((40, 50, 3), np.uint8))
    status, out, err, output = predict(path, extra=("--no-draw",))
    assert (status or 0, err) == (0, "") and str(path) in out
    assert (output / "b] [bold].json").is_file()


def test_class_names_that_are_no_text(predict, demo_files, tmp_path):
    (tmp_path / "names.txt").write_bytes(b"circle\n\xff")
    status, _, err, _ = predict(demo_files / "shapes.png", extra=("--class-names", tmp_path / "names.txt"))
    assert status == 2 and f"{tmp_path / 'names.txt'}: class names must be UTF-8 text" in err


def test_a_full_disk_is_said_with_the_file(predict, demo_files, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tf_d2.commands.options.os.replace", full)
    status, _, err, output = predict(demo_files / "shapes.png", extra=("--no-draw",))
    assert status == 2 and f"{output / 'shapes.json'}: No space left on device" in err
    assert list(output.iterdir()) == []


def test_nonfinite_weights_are_loaded_when_asked_for(predict, demo_files, tmp_path):
    checkpoint = weights.read_checkpoint(demo_files / "shapes.pkl")
    state = {key: np.array(value) for key, value in checkpoint.state.items()}
    state["roi_heads.box_predictor.cls_score.bias"][0] = np.nan
    weights.write_detectron2_pkl(tmp_path / "nan.pkl", state)
    status, _, err, _ = predict(demo_files / "shapes.png", weights=tmp_path / "nan.pkl")
    assert status == 2 and "--allow-nonfinite" in err
    with pytest.warns(UserWarning, match="NaN"), eagerly():
        status, _, err, _ = predict(
            demo_files / "shapes.png", weights=tmp_path / "nan.pkl", extra=("--allow-nonfinite",)
        )
    assert (status or 0, err) == (0, "")


def picture(data):
    return np.asarray(Image.open(io.BytesIO(data)))


IMAGE = np.full((6, 8, 3), 90, np.uint8)


def test_panoptic_results(demo_predictor):
    segments, info = np.zeros((6, 8), np.int32), [{"id": 300, "isthing": False, "category_id": 2, "area": 24}]
    segments[:3] = 300  # more than a byte holds
    result = {"panoptic_seg": (segments, info), "sem_seg": np.zeros((3, 6, 8), np.float32)}
    written = files(result, IMAGE, demo_predictor, "x", None)
    assert written.keys() == {"panoptic.png", "panoptic.json"}
    np.testing.assert_array_equal(picture(written["panoptic.png"]), segments)
    assert json.loads(written["panoptic.json"]) == info
    drawn = files(result, IMAGE, demo_predictor, "x", [])["detections.png"]
    assert (picture(drawn)[5] == 90).all() and not (picture(drawn)[0] == 90).all()


def test_semantic_results(demo_predictor):
    logits = np.zeros((3, 6, 8), np.float32)
    logits[2, :, :4] = 1
    written = files({"sem_seg": logits}, IMAGE, demo_predictor, "x", [])
    assert written.keys() == {"sem_seg.png", "detections.png"}
    np.testing.assert_array_equal(picture(written["sem_seg.png"]), logits.argmax(axis=0))


def test_proposals_and_numbered_images(demo_predictor):
    boxes, logits = np.array([(1, 2, 4, 6)], np.float32), np.array([0.5], np.float32)
    result = {"proposals": Instances((6, 8), proposal_boxes=boxes, objectness_logits=logits)}
    written = files(result, IMAGE, demo_predictor, "000139", [])
    assert json.loads(written["json"]) == [{"image_id": 139, "bbox": [1, 2, 3, 4], "score": 0.5}]
    assert picture(written["detections.png"]).shape == (6, 8, 3)


def test_files_of_one_stem_do_not_overwrite_one_another():
    names = [Path(p) for p in ("a/x.png", "b/x.png", "x.jpg", "y.png")]
    assert unique_stems(names) == ["x.png", "x.png.1", "x.jpg", "y"]


def fails(call, *parts):
    status, _, err, output = call
    assert status == 2
    assert err.startswith("tf-d2: error: ")
    for part in parts:
        assert part in err
    assert not output.exists()


def test_what_cannot_be_loaded_is_one_error_and_writes_nothing(predict, demo_files, tmp_path):
    picture = demo_files / "shapes.png"
    fails(predict(picture, config=tmp_path / "absent.yaml"), "absent.yaml")
    fails(predict(picture, config="COCO-Detection/faster_rcnn_R_50"), "COCO-Detection/faster_rcnn_R_50")
    fails(predict(picture, weights=tmp_path / "absent.pkl"), "absent.pkl: no such file")
    (tmp_path / "tag.yaml").write_text("MODEL: !!python/object/apply:os.system ['true']\n")
    fails(predict(picture, config=tmp_path / "tag.yaml"), "tag.yaml", "os.system")
    (tmp_path / "cut.pkl").write_bytes((demo_files / "shapes.pkl").read_bytes()[:1000])
    fails(predict(picture, weights=tmp_path / "cut.pkl"), "cut.pkl")
    fails(predict(picture, config="COCO-Detection/retinanet_R_50_FPN_1x"), "does not match the model")
    fails(predict(picture, extra=("--opts", "MODEL.ROI_HEADS.NUM_CLASSES", "5")), "trained with 3")
    fails(predict(picture, extra=("--opts", "MODEL.ROI_HEADS.NUM_CLASSES")), "pairs KEY VALUE")
    fails(predict(picture, extra=("--opts", "MODEL.NO_SUCH_KEY", "1")), "NO_SUCH_KEY")


def test_missing_pictures_are_named_before_a_model_is_made(predict, demo_files, tmp_path, monkeypatch):
    gone, other = tmp_path / "gone.png", tmp_path / "other.jpg"
    status, out, err, _ = predict(demo_files / "shapes.png", "--input", gone)
    assert "shapes.png: 30 instances" in out
    assert (status, err) == (2, f"tf-d2: error: {gone}: no such file or directory\n")
    monkeypatch.setattr("tf_d2.predictor.Predictor", lambda *_, **__: pytest.fail("a model was loaded"))
    status, _, err, _ = predict(gone, "--input", other)
    assert (status, err) == (2, f"tf-d2: error: {gone}: no such file; {other}: no such file\n")


def test_panoptic_segments_have_the_category_numbers_of_the_data_set(demo_predictor):
    from tf_d2.config import load_config

    coco = load_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x")
    info = [
        {"id": 1, "isthing": True, "category_id": 11, "score": 0.5, "instance_id": 0},
        {"id": 2, "isthing": False, "category_id": 1, "area": 9},
        {"id": 3, "isthing": False, "category_id": 53, "area": 9},
    ]
    numbers = [s["category_id"] for s in _in_dataset_numbers(info, coco)]
    assert numbers == [13, 92, 200]  # stop sign, banner, rug
    assert _in_dataset_numbers(info, demo_predictor.config) == info  # an unknown data set
