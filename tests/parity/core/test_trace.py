"""Trace files: what goes in comes out, what is not one of ours is refused."""

import json
import os

import h5py
import numpy as np
import pytest

from parity.core.trace import Trace, TraceError, TraceWriter
from parity.judge.context import Cached


@pytest.fixture
def recording(tmp_path):
    """A file as detectron2's recordings are: no manifest, ROI features cut to 2 rows, a float64 pass."""
    path = tmp_path / "recording.h5"
    with h5py.File(path, "w") as file:
        file.attrs["detectron2"], file.attrs["torch"], file.attrs["config"] = "0.6", "2.12", "MODEL: {}"
        file.attrs["output/segments_info"] = "[{'id': 1, 'isthing': True}]"
        file["weights/a.weight"] = np.ones((2, 3), np.float32)
        file["input/image"] = np.zeros((2, 3, 3), np.uint8)
        file["input/resized"] = np.zeros((4, 6, 3), np.uint8)
        file["steps/proposal_generator/0/0/proposal_boxes"] = np.zeros((5, 4), np.float32)
        file["steps/roi_heads.box_pooler"] = np.zeros((2, 1, 7, 7), np.float32)
        file["steps/roi_heads.mask_pooler"] = np.zeros((2, 1, 7, 7), np.float32)
        file["steps/backbone/p2"] = np.zeros((1, 1, 2, 2), np.float32)
        file["steps64/backbone/p2"] = np.ones((1, 1, 2, 2))
        file["steps64/roi_heads.box_pooler"] = np.ones((3, 1, 7, 7))
        file["steps64/sem_seg_head"] = np.ones((1, 1, 2, 2))
        file["output/instances/scores"] = np.zeros(4, np.float32)
    return path


def test_a_missing_array_is_an_error_and_none_for_get(recording):
    with Trace(recording) as trace:
        for image in (trace.images[0], Cached(trace.images[0])):
            assert image.get("output/proposals/pred_classes") is None
            np.testing.assert_array_equal(image.get("steps/backbone/p2"), image["steps/backbone/p2"])
            with pytest.raises(TraceError, match=r"^.*recording\.h5 has no array 'x'; it holds \d+ arrays$"):
                image["x"]


def write(path, arrays, images=1, **options):
    with TraceWriter(path, images, **options) as writer:
        for k in range(images):
            for name, array in arrays.items():
                writer.put(name, array, k)
        writer.finish({"backend": "test"}, "MODEL: {}")


@pytest.mark.parametrize("images", [1, 12])
def test_round_trip(tmp_path, images):
    arrays = {
        "input/image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
        "steps/backbone/p2": np.array([[1.5, np.nan]]),
        "steps/a#1": np.zeros((0, 4), np.float32),
        "output/instances/pred_masks": np.array([[True, False]]),
        "forced/backbone/p2": np.float32([1]),
    }
    path = tmp_path / "t.h5"
    write(path, arrays, images)
    with Trace(path) as trace:
        assert trace.manifest == {"backend": "test", "format": 1} and trace.config == "MODEL: {}"
        assert len(trace.images) == images and trace.weights() == {}
        for image in trace.images:
            assert set(image) == set(arrays) and len(image) == 5
            for name, array in arrays.items():
                assert image[name].dtype == array.dtype == image.dtype(name)
                assert image.shape(name) == array.shape
                np.testing.assert_array_equal(image[name], array)
                assert image.rows(name) == len(array)


def test_images_keep_their_order_and_their_segments(tmp_path):
    path = tmp_path / "t.h5"
    with TraceWriter(path, images=11) as writer:
        for k in range(11):
            writer.put("steps/a", np.array([k]), k)
            writer.put_segments_info([{"id": k, "isthing": True, "score": 0.5}], k)
        writer.finish({}, "")
    with Trace(path) as trace:
        assert [int(image["steps/a"][0]) for image in trace.images] == list(range(11))
        assert trace.images[10].segments_info() == [{"id": 10, "isthing": True, "score": 0.5}]


def test_shortened_rows_are_counted(tmp_path):
    path = tmp_path / "t.h5"
    with TraceWriter(path, roi_rows=2) as writer:
        writer.put("steps/short", np.arange(5), shorten=True)
        writer.put("steps/long", np.arange(5))
        writer.finish({}, "")
    with Trace(path) as trace:
        image = trace.images[0]
        assert image["steps/short"].tolist() == [0, 1] and image.rows("steps/short") == 5
        assert image.rows("steps/long") == 5
        assert set(image.complete()) == {"steps/long"}


def test_nothing_is_left_of_an_unfinished_trace(tmp_path):
    path = tmp_path / "t.h5"
    write(path, {"steps/a": np.array([1])})
    with pytest.raises(RuntimeError, match="stop"), TraceWriter(path) as writer:
        writer.put("steps/a", np.array([2]))
        raise RuntimeError("stop")
    assert os.listdir(tmp_path) == ["t.h5"]
    with Trace(path) as trace:
        assert trace.images[0]["steps/a"].tolist() == [1]


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("other/a", 0, "does not start with"),
        ("steps/a", 1, "image 1 is not among"),
        ("steps/a", -1, "image -1"),
    ],
)
def test_writer_refuses(tmp_path, name, image, message):
    with pytest.raises(TraceError, match=message), TraceWriter(tmp_path / "t.h5") as writer:
        writer.put(name, np.array([1]), image)


def test_unknown_array_is_named(tmp_path):
    write(tmp_path / "t.h5", {"steps/a": np.array([1])})
    with Trace(tmp_path / "t.h5") as trace, pytest.raises(TraceError, match=r"steps/b.*holds 1 arrays"):
        trace.images[0]["steps/b"]


def test_recording_reads_as_a_trace(recording):
    with Trace(recording) as trace:
        image = trace.images[0]
        assert trace.manifest["backend"] == "recorded"
        assert trace.manifest["versions"] == {"detectron2": "0.6", "torch": "2.12"}
        assert list(trace.weights()) == ["a.weight"] and "weights/a.weight" not in image
        assert image.segments_info() == [{"id": 1, "isthing": True}]
        assert image.rows("steps/roi_heads.box_pooler") == 5  # one per proposal
        assert image.rows("steps/roi_heads.mask_pooler") == 4  # one per detection
        assert "steps/roi_heads.box_pooler" not in image.complete()


def test_float64_pass_of_a_recording(recording):
    with Trace(recording) as trace:
        view = trace.images[0].float64()
    boxes = view.pop("steps/proposal_generator/0/0/proposal_boxes")
    assert boxes.shape == (3, 4)  # as many as the float64 pass pooled
    assert set(view) == {"steps/backbone/p2", "steps/roi_heads.box_pooler", "input/resized"}
    assert view["steps/backbone/p2"].dtype == np.float64 and view["steps/backbone/p2"].all()


@pytest.mark.parametrize("rescaled", [True, False])
def test_proposals_rescaled_in_place_are_no_stage_of_a_recording(tmp_path, rescaled):
    stage, final = "steps/proposal_generator/0/0/", "output/proposals/"
    boxes, logits = np.array([[0.0, 0, 4, 4], [2, 1, 9, 5]], np.float32), np.array([2.0, 1], np.float32)
    with h5py.File(tmp_path / "rpn.h5", "w") as file:
        file.attrs.update({"config": "VERSION: 2\n", "detectron2": "0.6", "torch": "2.12"})
        file[stage + "proposal_boxes"], file[stage + "objectness_logits"] = boxes, logits
        file[final + "proposal_boxes"] = boxes if rescaled else boxes * 2
        file[final + "objectness_logits"] = logits
    with Trace(tmp_path / "rpn.h5") as trace:
        image = trace.images[0]
        assert (stage + "proposal_boxes" in image) == (stage + "objectness_logits" in image) == (not rescaled)
        assert final + "proposal_boxes" in image


def _no_manifest(file):
    file["steps/a"] = [1]


def _bad_manifest(file):
    file.attrs["manifest"] = "{"


def _list_manifest(file):
    file.attrs["manifest"] = "[1]"


def _new_format(file):
    file.attrs["manifest"] = json.dumps({"format": 2})


def _gap(file):
    file.attrs["manifest"] = json.dumps({"format": 1})
    file["image0/steps/a"] = [1]
    file["image2/steps/a"] = [1]


def _linked_image(file):
    file.attrs["manifest"] = json.dumps({"format": 1})
    file["image0"] = h5py.ExternalLink("other.h5", "/")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_manifest, "neither a manifest"),
        (_bad_manifest, "not JSON"),
        (_list_manifest, "a list, not an object"),
        (_new_format, "trace format 2"),
        (_gap, "not numbered"),
        (_linked_image, "image0 is not a group of this file"),
    ],
)
def test_reader_refuses(tmp_path, damage, message):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["steps/a"] = [1]
    path = tmp_path / "t.h5"
    with h5py.File(path, "w") as file:
        damage(file)
    with pytest.raises(TraceError, match=message):
        Trace(path)


def test_reader_refuses_what_is_not_hdf5(tmp_path):
    path = tmp_path / "t.h5"
    path.write_bytes(b"not a trace")
    with pytest.raises(TraceError, match="cannot open"):
        Trace(path)


def test_links_out_of_the_file_are_not_followed(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"12345678")
    path = tmp_path / "t.h5"
    with h5py.File(path, "w") as file:
        file.attrs["manifest"] = json.dumps({"format": 1})
        file["steps/external"] = h5py.ExternalLink("other.h5", "/a")
        file["steps/soft"] = h5py.SoftLink("/elsewhere")
        file.create_dataset("steps/raw", (8,), "u1", external=[(str(secret), 0, 8)])
    with Trace(path) as trace:
        assert set(trace.images[0]) == {"steps/raw"}
        with pytest.raises(TraceError, match="in another file"):
            trace.images[0]["steps/raw"]


def test_reader_refuses_damage_inside_the_file(tmp_path):
    """The signature is right, and what it points to is not."""
    path = tmp_path / "t.h5"
    write(path, {f"steps/{k}": np.arange(50) for k in range(40)})
    whole = bytearray(path.read_bytes())
    whole[200::7] = bytes(len(whole[200::7]))
    path.write_bytes(whole)
    with pytest.raises(TraceError, match=r"t\.h5 is damaged: .*; a trace is a file that tf-d2 parity wrote"):
        Trace(path)
