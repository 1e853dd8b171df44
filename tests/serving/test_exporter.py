"""The exported demo: Predictor's detections, through the loader that TensorFlow Serving uses."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from support.recordings import eagerly
from tensorflow.core.framework.tensor_pb2 import TensorProto

import tf_d2
from tf_d2.client import to_result
from tf_d2.serving import ExportError, artifacts, export, exporter, saved_model, warmup
from tf_d2.serving.stock_ops import STOCK_OPS

from .conftest import DEMO, encoded, open_session, png16


@pytest.fixture(scope="module")
def expected(picture: np.ndarray, demo_predictor: tf_d2.Predictor) -> tf_d2.Instances:
    with eagerly():
        return demo_predictor(picture[:, :, ::-1])["instances"]


def assert_same(found: tf_d2.Instances, expected: tf_d2.Instances, pixels: float = 1e-4) -> None:
    assert len(found) == len(expected)
    np.testing.assert_array_equal(found.pred_classes, expected.pred_classes)
    np.testing.assert_allclose(found.pred_boxes, expected.pred_boxes, rtol=0, atol=pixels)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=3e-6)
    assert (found.pred_masks != expected.pred_masks).sum() <= 2


# === The same answers ===


def test_bytes_give_what_predictor_gives(demo_export: SimpleNamespace, expected: tf_d2.Instances) -> None:
    outputs = demo_export.run("serving_bytes", image_bytes=[(DEMO / "shapes.png").read_bytes()])
    assert_same(to_result(outputs, 0)["instances"], expected)


def test_pixels_give_what_predictor_gives(
    demo_export: SimpleNamespace, expected: tf_d2.Instances, picture: np.ndarray
) -> None:
    outputs = demo_export.run("serving_default", inputs=picture[None])
    assert_same(to_result(outputs, 0)["instances"], expected)


def test_every_output_is_batched_and_finite(demo_export: SimpleNamespace, picture: np.ndarray) -> None:
    outputs = demo_export.run("serving_default", inputs=np.stack([picture, picture[::-1]]))
    rows = demo_export.report.max_detections
    shapes = {name: (value.dtype.name, value.shape) for name, value in outputs.items()}
    assert shapes == {
        "detection_boxes": ("float32", (2, rows, 4)),
        "detection_scores": ("float32", (2, rows)),
        "detection_classes": ("int64", (2, rows)),
        "detection_masks": ("float32", (2, rows, 28, 28)),
        "num_detections": ("int32", (2,)),
        "image_size": ("int32", (2, 2)),
        "image_status": ("int32", (2,)),
    }
    assert all(np.isfinite(value).all() for value in outputs.values())
    for i, count in enumerate(outputs["num_detections"]):
        assert 0 < count <= rows
        assert not outputs["detection_scores"][i, count:].any()


def test_batch_of_different_sizes(demo_export: SimpleNamespace, picture: np.ndarray) -> None:
    """The image that sets the canvas gets the answer it gets alone; the other one is padded, as in detectron2."""
    images = [picture[:100, :200], picture[:300, :450]]  # network inputs 144x288 and 192x288
    files = [encoded(image) for image in images]
    together = demo_export.run("serving_bytes", image_bytes=files)
    np.testing.assert_array_equal(together["image_size"], [image.shape[:2] for image in images])
    alone = demo_export.run("serving_bytes", image_bytes=[files[1]])
    for name, value in alone.items():
        np.testing.assert_allclose(together[name][1], value[0], rtol=0, atol=1e-4, err_msg=name)
    # What detectron2 0.6 answers for the smaller image in this batch; alone it scores 0.936 and class 1 first.
    np.testing.assert_array_equal(together["detection_classes"][0, :4], [0, 1, 1, 2])
    scores = [0.93946135, 0.8594732, 0.5826135, 0.5488008]
    np.testing.assert_allclose(together["detection_scores"][0, :4], scores, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def other_export(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The demo with the options that change its answers."""
    root = tmp_path_factory.mktemp("export") / "other"
    options: dict[str, Any] = {
        "pad_independent": True,
        "box_format": "tf",
        "masks": "full",
        "max_detections": 9,
    }
    report = export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", root, **options)
    run, close = open_session(report.path)
    yield SimpleNamespace(root=root, run=run)
    close()


def test_independent_images(other_export: SimpleNamespace, picture: np.ndarray) -> None:
    """A batch of different images answers what each image answers alone."""
    files = [encoded(picture[:100, :200]), b"broken", encoded(picture[:300, :450]), encoded(picture)]
    together = other_export.run("serving_bytes", image_bytes=files)
    assert together["image_status"].tolist() == [0, 1, 0, 0]
    for i in (0, 2, 3):
        alone = other_export.run("serving_bytes", image_bytes=[files[i]])
        height, width = alone["image_size"][0]
        for name, value in alone.items():
            row = together[name][i]
            if name == "detection_masks_full":
                assert not row[:, height:].any()
                assert not row[:, :, width:].any()
                row = row[:, :height, :width]
            np.testing.assert_array_equal(row, value[0], err_msg=f"{name} of image {i}")


def test_boxes_of_tensorflows_detectors(
    other_export: SimpleNamespace, expected: tf_d2.Instances, picture: np.ndarray
) -> None:
    outputs = other_export.run("serving_default", inputs=picture[None])
    best = expected[:9]
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = best.pred_boxes.T
    fractions = np.stack([y1 / height, x1 / width, y2 / height, x2 / width], axis=1)
    np.testing.assert_allclose(outputs["detection_boxes"][0], fractions, rtol=0, atol=1e-6)
    assert_same(to_result(outputs, 0)["instances"], best)
    text = (other_export.root / "README.md").read_text()
    assert "| out | `detection_boxes` | float32 | [B, 9, 4] | y1, x1, y2, x2 as fractions" in text
    assert "| out | `detection_boxes_xyxy` | float32 | [B, 9, 4] | x1, y1, x2, y2 in pixels" in text


# === Bad requests ===


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_bad_images_do_not_touch_their_neighbours(demo_export: SimpleNamespace, picture: np.ndarray) -> None:
    good = encoded(picture)
    jpeg = encoded(picture, "JPEG")
    bad = {
        b"": 1,
        b"no image": 1,
        jpeg[: len(jpeg) // 2]: 1,
        good[: len(good) // 2]: 1,
        png_header(20000, 20000): 2,
        png_header(0, 5): 1,
        encoded(np.zeros((1, 5000, 3), np.uint8)): 3,
        encoded(picture, "GIF"): 1,
    }
    alone = demo_export.run("serving_bytes", image_bytes=[good])
    files = [*[*bad][:4], good, *[*bad][4:]]
    outputs = demo_export.run("serving_bytes", image_bytes=files)
    assert outputs["image_status"].tolist() == [bad.get(data, 0) for data in files]
    assert outputs["num_detections"].tolist() == [-1] * 4 + [alone["num_detections"][0]] + [-1] * 4
    for name, value in outputs.items():
        np.testing.assert_array_equal(value[4], alone[name][0], err_msg=name)
        assert name in ("num_detections", "image_status") or not np.delete(value, 4, axis=0).any()


def test_requests_without_a_usable_image(demo_export: SimpleNamespace) -> None:
    outputs = demo_export.run("serving_bytes", image_bytes=[b"", b"x"])
    assert outputs["num_detections"].tolist() == [-1, -1]
    assert {len(v) for v in demo_export.run("serving_bytes", image_bytes=np.zeros(0, object)).values()} == {0}
    outputs = demo_export.run("serving_default", inputs=np.zeros((2, 0, 7, 3), np.uint8))
    assert outputs["image_status"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="Cannot feed value"):
        demo_export.run("serving_default", inputs=np.zeros((1, 8, 8, 4), np.uint8))


def unusual(picture: np.ndarray, kind: str) -> tuple[bytes, np.ndarray]:
    """The picture as a file that is not 8-bit RGB, and what Pillow's convert("RGB"), which detectron2 calls, gives."""
    if kind.startswith("16"):
        wide = (
            picture.astype(np.uint16) * 257
            if kind == "16-bit RGB"
            else picture[:, :, :1].astype(np.uint16) * 2
        )
        data = png16(wide, 2 if kind == "16-bit RGB" else 0)
    else:
        converted = Image.fromarray(picture).convert(kind)
        if kind == "RGBA":
            converted.putalpha(100)
        buffer = io.BytesIO()
        converted.save(buffer, "JPEG" if kind == "CMYK" else "PNG")
        data = buffer.getvalue()
    return data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("kind", ["L", "RGBA", "P", "1", "CMYK", "16-bit RGB", "16-bit grey"])
def test_pictures_that_are_not_rgb(demo_export: SimpleNamespace, picture: np.ndarray, kind: str) -> None:
    """detectron2's answer, and the neighbour in the batch gets its own."""
    data, rgb = unusual(picture, kind)
    outputs = demo_export.run("serving_bytes", image_bytes=[data, encoded(picture)])
    expected = demo_export.run("serving_default", inputs=np.stack([rgb, picture]))
    assert outputs["image_status"].tolist() == [0, 0]
    assert outputs["num_detections"].all()
    for name, value in outputs.items():
        first = 1 if kind == "CMYK" else 0  # CMYK pixels differ from Pillow's by one level, see test_decode
        np.testing.assert_allclose(value[first:], expected[name][first:], rtol=0, atol=1e-4, err_msg=name)


# === The folder ===


def test_folder_is_complete(demo_export: SimpleNamespace) -> None:
    root, folder = demo_export.root, demo_export.folder
    assert {p.name for p in root.iterdir()} == {
        "1",
        "README.md",
        "models.config",
        "batching_parameters.txt",
        "monitoring.config",
    }
    assert (folder / "assets" / "class_names.txt").read_text().splitlines()[0]
    record = json.loads((folder / "assets" / "export.json").read_text())
    assert len(record["weights"]["sha256"]) == 64
    assert tf_d2.load_config(folder / "assets" / "config.yaml").roi_heads.num_classes == 3
    text = (root / "README.md").read_text()
    assert "{" not in text.replace('-d "{', "").replace("[{", "").split("## Signatures")[1]
    for name in ("detection_boxes", "image_bytes", "num_detections"):
        assert f"`{name}`" in text
    assert demo_export.report.size > 1e6
    assert (folder / "batching_params.pbtxt").read_text() == (root / "batching_parameters.txt").read_text()
    assert oct(root.stat().st_mode & 0o777) == "0o755"  # a server in a container runs as another user


def test_only_stock_ops(demo_export: SimpleNamespace) -> None:
    ops = saved_model.ops_of(demo_export.folder / "saved_model.pb")
    assert {"Conv2D", "IgnoreErrorsDataset", "NonMaxSuppressionV3"} <= ops <= STOCK_OPS
    assert not ops & {"EagerPyFunc", "PyFunc", "XlaLaunch"}


def test_weights_are_variables_stored_once(demo_export: SimpleNamespace) -> None:
    """As constants, a server would copy them with every copy of the graph; folded norms are not stored unfolded."""
    assert (demo_export.folder / "saved_model.pb").stat().st_size < 4e6
    stored = tf.train.list_variables(str(demo_export.folder / "variables" / "variables"))
    shapes = [tuple(shape) for name, shape in stored if name.startswith("weights/")]
    assert sum(int(np.prod(shape)) for shape in shapes) == weights_in_use()


def weights_in_use() -> int:
    """Numbers that the folded demo computes with: a kernel and a bias of every convolution and linear layer."""
    model = tf_d2.load_model(DEMO / "shapes.yaml", DEMO / "shapes.pkl")
    paths = {v.path: int(np.prod(v.shape)) for v in model.variables}
    return sum(n for path, n in paths.items() if path.endswith(("kernel", "bias", "beta")))


def test_constants_are_refused() -> None:
    weight = tf.constant(np.zeros(1000, np.float32))
    with pytest.raises(ExportError, match=r"1 weights are not variables \(shapes \(1000,\)\)"):
        saved_model.traced(lambda x: {"y": x + weight}, [tf.TensorSpec([], tf.float32)])


def test_op_check_refuses(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(
        lambda x: {"y": tf.numpy_function(lambda v: v, [x], tf.float32)},
        input_signature=[tf.TensorSpec([None], tf.float32)],
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.f})
    with pytest.raises(ExportError, match="PyFunc"):
        saved_model.check_ops(tmp_path / "saved_model.pb")


def test_xla_is_refused(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(
        lambda x: {"y": x + 1},
        input_signature=[tf.TensorSpec([None], tf.float32)],
        jit_compile=True,
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.f})
    with pytest.raises(ExportError, match="XLA"):
        saved_model.check_ops(tmp_path / "saved_model.pb")


def test_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(exporter, "_save", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=r"cannot write .*/file/m: .*; choose another output"):
        export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", tmp_path / "file" / "m")
    (tmp_path / "m").mkdir()
    monkeypatch.setattr(
        exporter.os, "access", lambda *_: False
    )  # the tests may run as root, who may do anything
    with pytest.raises(ExportError, match=r"cannot write .*/m: Permission denied"):
        export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "m"]


def test_second_version_is_published_last(tmp_path: Path) -> None:
    output, scratch = tmp_path / "m", tmp_path / "scratch"
    (output / "1").mkdir(parents=True)
    (output / "README.md").write_text("old")
    (scratch / "2").mkdir(parents=True)
    (scratch / "README.md").write_text("new")
    exporter._publish(scratch, output, 2)
    assert sorted(p.name for p in output.iterdir()) == ["1", "2", "README.md"]
    assert (output / "README.md").read_text() == "new"


def test_a_version_is_replaced_whole(tmp_path: Path) -> None:
    output, scratch = tmp_path / "m", tmp_path / "scratch"
    (output / "1").mkdir(parents=True)
    (output / "1" / "old").write_text("")
    (output / "mine.txt").write_text("")
    (scratch / "1").mkdir(parents=True)
    (scratch / "1" / "new").write_text("")
    exporter._publish(scratch, output, 1)
    assert sorted(p.relative_to(output).as_posix() for p in output.rglob("*")) == ["1", "1/new", "mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"version": 0}, "version must be"),
        ({"version": 2**63}, "version must be .*below 2.63"),
        ({"name": "a/b"}, "name="),
        ({"max_detections": 0}, "max_detections"),
        ({"masks": "polygons"}, "choose one of roi"),
        ({"max_image_pixels": -1}, "max_image_pixels"),
        ({"max_image_pixels": 0}, "max_image_pixels"),
        ({"box_format": "yxyx"}, "choose one of xyxy, tf"),
        ({"step_pixels": 0}, "step_pixels must be"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", tmp_path / "m", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"masks": "full"}, "masks='full': the model has no masks; leave"),
        ({"sem_seg": "logits"}, "sem_seg='logits': the model has no semantic segmentation"),
        ({"box_format": "tf"}, "box_format='tf': the model has no detections"),
    ],
)
def test_options_for_what_a_model_does_not_have(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "w.pkl").touch()
    with pytest.raises(ExportError, match=message):
        export("COCO-Detection/rpn_R_50_FPN_1x", tmp_path / "w.pkl", tmp_path / "m", **arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pkl"]


def test_a_full_disk_is_an_error_of_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise tf.errors.ResourceExhaustedError(None, None, "x; No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", full)
    with pytest.raises(ExportError, match=r"cannot write .*/m: x; No space left on device"):
        export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_existing_version_is_kept(demo_export: SimpleNamespace) -> None:
    with pytest.raises(ExportError, match="exists"):
        export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", demo_export.root)


# === Server files ===


def test_server_configuration_by_hand() -> None:
    text = artifacts.batching_parameters()
    sizes = [int(line.split(":")[1]) for line in text.splitlines() if line.startswith("allowed_batch_sizes")]
    assert sizes == list(range(1, 9))
    assert "max_batch_size { value: 8 }" in text  # the server wants it equal to the last allowed size
    assert "pad_variable_length_inputs:" not in text
    config = artifacts.models_config("m", 3)
    assert 'base_path: "/models/m"' in config
    assert "versions: 3" in config
    for braces in (config, artifacts.MONITORING, text):
        assert braces.count("{") == braces.count("}")


def test_warmup_records_run(demo_export: SimpleNamespace) -> None:
    """Read back with TensorFlow's own TensorProto; every record is a request the export answers."""
    from tf_d2.client.wire import fields

    path = demo_export.folder / warmup.WARMUP_FILE
    records = [r.numpy() for r in tf.data.TFRecordDataset(str(path))]
    assert len(records) == 2 * len(warmup.BUCKETS)
    seen = []
    for record in records[:2]:
        request = dict(fields(dict(fields(dict(fields(memoryview(record)))[6]))[1]))
        spec, entry = dict(fields(request[1])), dict(fields(request[2]))
        tensor = tf.make_ndarray(TensorProto.FromString(bytes(entry[2])))
        signature, name = bytes(spec[3]).decode(), bytes(entry[1]).decode()
        outputs = demo_export.run(signature, **{name: tensor})
        assert outputs["image_status"].tolist() == [0]
        seen.append((bytes(spec[1]).decode(), signature))
    assert seen == [("shapes", "serving_default"), ("shapes", "serving_bytes")]


# === C++ ===


@pytest.fixture(scope="module")
def cpp_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """load_and_run.cc, compiled against the installed TensorFlow."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++: the C++ loader check needs a compiler")
    binary = tmp_path_factory.mktemp("cpp") / "load_and_run"
    library = Path(tf.__file__).parent
    command = [compiler, "-w", "-O0", "-std=c++17", *tf.sysconfig.get_compile_flags()]
    command += [
        "-DEIGEN_MAX_ALIGN_BYTES=64",
        str(Path(__file__).with_name("load_and_run.cc")),
        "-o",
        str(binary),
    ]
    command += [f"-L{library}", "-Wl,--no-as-needed", "-l:libtensorflow_cc.so.2"]
    command += ["-l:libtensorflow_framework.so.2", f"-Wl,-rpath,{library}"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return binary


@pytest.mark.wide
def test_cpp_server_path(demo_export: SimpleNamespace, cpp_program: Path, tmp_path: Path) -> None:
    """LoadSavedModel and Session::Run, one good and one broken file in a batch."""
    files = [(DEMO / "shapes.png").read_bytes(), b"broken"]
    paths = [tmp_path / str(i) for i in range(2)]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    names = ["num_detections", "image_status", "image_size", "detection_boxes", "detection_scores"]
    names += ["detection_classes"]
    command = [str(cpp_program), str(demo_export.folder), *names, "--", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = demo_export.run("serving_bytes", image_bytes=files)
    lines = [line for line in done.stdout.splitlines() if line.split(" ")[0] in names]
    assert len(lines) == len(names)
    for line in lines:
        head, values = line.split(":")
        name, *shape = head.split(" ")
        parse = float.fromhex if "0x" in values else float
        found = np.array([parse(v) for v in values.split()]).reshape([int(n) for n in shape])
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-4, err_msg=name)
