"""The client, against small servers that speak TensorFlow Serving's two protocols."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from tf_d2.client import BadImageError, Client, ServingError, to_coco, to_result, to_supervision
from tf_d2.client.images import encode_png
from tf_d2.client.wire import field, fields, parse_tensor, tensor_proto
from tf_d2.instances import Instances
from tf_d2.ops.mask_paste_numpy import paste_masks_numpy

Arrays = dict[str, np.ndarray]


def fake_model(signature: str, inputs: Arrays) -> Arrays:
    """Two rows per image that depend on its size; files called b"bad" cannot be used."""
    if signature == "serving_bytes":
        images = [None if d == b"bad" else np.asarray(Image.open(BytesIO(d))) for d in inputs["image_bytes"]]
    else:
        images = list(inputs["inputs"])
    count = len(images)
    rng = np.random.default_rng(0)
    sizes = np.array([i.shape[:2] if i is not None else (0, 0) for i in images], np.int32).reshape(-1, 2)
    boxes = rng.random((count, 3, 4), dtype=np.float32) * np.tile(sizes[:, None, ::-1], (1, 1, 2)) / 2
    boxes[..., 2:] += boxes[..., :2]
    return {
        "detection_boxes": boxes.astype(np.float32),
        "detection_scores": rng.random((count, 3), dtype=np.float32),
        "detection_classes": np.tile(np.array([1, 0, 0]), (count, 1)),
        "detection_masks": rng.random((count, 3, 28, 28), dtype=np.float32),
        "detection_keypoints": rng.random((count, 3, 5, 3), dtype=np.float32),
        "num_detections": np.array([-1 if i is None else 2 for i in images], np.int32),
        "image_size": sizes,
        "image_status": np.array([1 if i is None else 0 for i in images], np.int32),
    }


class RestHandler(BaseHTTPRequestHandler):
    """POST /v1/models/m[/versions/N]:predict in columns, GET of the state."""

    def do_GET(self) -> None:
        state = {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}
        path = self.path.replace("/labels/stable", "").replace("/metadata", "")
        # The real server tells the state for every label, but the metadata only for those it has.
        if path != "/v1/models/m":
            path = path.replace("/labels/unknown", "") if "/metadata" not in self.path else path
        self.answer(200 if path == "/v1/models/m" else 404, state if path == "/v1/models/m" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.startswith("/v1/models/m"):
            return self.answer(404, {"error": f"Servable not found for request: {self.path}"})
        inputs = {}
        for name, value in body["inputs"].items():
            if name.endswith("_bytes"):
                value = np.array([base64.b64decode(v["b64"]) for v in value] + [None], object)[:-1]
            inputs[name] = np.asarray(value)
        if "inputs" in inputs:
            inputs["inputs"] = inputs["inputs"].astype(np.uint8)
        outputs = fake_model(body["signature_name"], inputs)
        self.answer(200, {"outputs": {k: v.tolist() for k, v in outputs.items()}})

    def answer(self, status: int, document: Any) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@pytest.fixture(scope="module")
def rest_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), RestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def predict_call(request: bytes, context: grpc.ServicerContext) -> bytes:
    message = [(n, v) for n, v in fields(memoryview(request)) if isinstance(v, memoryview)]
    spec = dict(fields(message[0][1]))
    if bytes(spec[1]) != b"m":
        context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found")
    entries = [dict(fields(value)) for number, value in message if number == 2]
    inputs = {bytes(e[1]).decode(): parse_tensor(e[2]) for e in entries}
    outputs = fake_model(bytes(spec[3]).decode(), inputs)
    return b"".join(field(1, field(1, k.encode()) + field(2, tensor_proto(v))) for k, v in outputs.items())


@pytest.fixture(scope="module")
def grpc_url() -> Iterator[str]:
    def handlers(**calls: Callable[..., bytes]) -> dict[str, grpc.RpcMethodHandler]:
        return {name: grpc.unary_unary_rpc_method_handler(call) for name, call in calls.items()}

    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    pool = ThreadPoolExecutor(2)
    server = grpc.server(pool, options=unlimited)

    def metadata(request: bytes, context: grpc.ServicerContext) -> bytes:
        spec = dict(fields(dict(fields(memoryview(request)))[1]))
        if bytes(spec.get(4, b"stable")) != b"stable":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label")
        return b""

    status = bytes.fromhex("0a040801101e")  # version 1, AVAILABLE
    service = "tensorflow.serving."
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                service + "PredictionService", handlers(Predict=predict_call, GetModelMetadata=metadata)
            ),
            grpc.method_handlers_generic_handler(
                service + "ModelService", handlers(GetModelStatus=lambda *_: status)
            ),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None).wait()
    pool.shutdown()


@pytest.fixture(params=["rest_url", "grpc_url"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(request.getfixturevalue(request.param), "m", timeout=20) as client:
        yield client


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)


def test_one_image(client: Client, image: np.ndarray) -> None:
    instances = client.predict(image)["instances"]
    expected = fake_model("serving_default", {"inputs": image[None]})
    assert instances.image_size == (40, 60)
    assert len(instances) == 2
    np.testing.assert_array_equal(instances.pred_boxes, expected["detection_boxes"][0, :2])
    np.testing.assert_array_equal(instances.scores, expected["detection_scores"][0, :2])
    np.testing.assert_array_equal(instances.pred_keypoints, expected["detection_keypoints"][0, :2])
    pasted = paste_masks_numpy(expected["detection_masks"][0, :2], instances.pred_boxes, 40, 60)
    np.testing.assert_array_equal(instances.pred_masks, pasted)
    assert pasted.any()
    types = {name: value.dtype.name for name, value in instances.get_fields().items()}
    assert types == {
        "pred_boxes": "float32",
        "scores": "float32",
        "pred_classes": "int64",
        "pred_masks": "bool",
        "pred_keypoints": "float32",
    }
    assert len(to_coco(instances, 1)) == 2


def test_batches(client: Client, image: np.ndarray) -> None:
    results = client.predict_batch(np.stack([image] * 3))
    assert [r["instances"].image_size for r in results] == [(40, 60)] * 3
    files = [encode_png(image), b"bad", encode_png(image[:20])]
    first, bad, last = client.predict_bytes(files, bad_images="return")
    assert (first["instances"].image_size, last["instances"].image_size) == ((40, 60), (20, 60))
    assert isinstance(bad, BadImageError)
    with pytest.raises(BadImageError, match="image 1: not a readable"):
        client.predict_bytes(files)


def test_more_than_four_megabytes(client: Client) -> None:
    images = np.zeros((500, 2, 2, 3), np.uint8)  # 500 x 3 masks of 28 x 28: 4.7 MB
    assert len(client.predict_batch(images)) == 500


def test_ready(client: Client, rest_url: str) -> None:
    assert client.ready()
    assert not Client(rest_url, "other").ready()
    assert not Client("http://127.0.0.1:9", "m", timeout=2).ready()
    with Client("grpc://127.0.0.1:9", "m", timeout=2) as nobody:
        assert not nobody.ready()


def test_ready_knows_labels(rest_url: str, grpc_url: str) -> None:
    for url in (rest_url, grpc_url):
        for label, ready in (("stable", True), ("unknown", False)):
            with Client(url, "m", label=label) as client:
                assert client.ready() is ready


def test_no_images_are_no_request(client: Client) -> None:
    """A server that merges requests lets an empty one wait for the next."""
    client._transport.close()  # a call over gRPC would fail now
    assert client.predict_bytes([]) == []
    assert client.predict_batch(np.zeros((0, 4, 4, 3), np.uint8)) == []


def test_errors_name_the_server(rest_url: str, grpc_url: str, image: np.ndarray) -> None:
    with pytest.raises(
        ServingError, match=r"HTTP 404: Servable not found .*/v1/models/other/versions/3:predict"
    ):
        Client(rest_url, "other", version=3).predict(image)
    with (
        Client(grpc_url, "other") as client,
        pytest.raises(ServingError, match="NOT_FOUND: Servable not found"),
    ):
        client.predict(image)
    with pytest.raises(ServingError, match=r"127\.0\.0\.1:9"):
        Client("http://127.0.0.1:9", "m", timeout=2).predict(image)
    wrong = (
        "localhost:8501",
        "ftp://host",
        "grpc://",
        "http://",
        "http://a b",
        "http://[::1",
        "http://h:x",
        None,
    )
    for url in wrong:
        with pytest.raises(ValueError, match="expected http://HOST:PORT"):
            Client(url, "m")  # type: ignore[arg-type]
    with pytest.raises(ServingError, match="control characters"):
        Client(rest_url, "my model").predict(image)
    with pytest.raises(ValueError, match="one of them"):
        Client(rest_url, "m", version=1, label="stable")


def test_proposals_are_sent(rest_url: str, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(rest_url, "m")
    seen: Arrays = {}

    def predict(signature: str, inputs: Arrays) -> Arrays:
        seen.update(inputs)
        return fake_model(signature, inputs)

    monkeypatch.setattr(client._transport, "predict", predict)
    client.predict(image, proposal_boxes=np.zeros((7, 4)))
    assert seen["proposal_boxes"].shape == (1, 7, 4)
    assert seen["num_proposals"].tolist() == [7]


# === Answers ===


def panoptic_outputs() -> Arrays:
    return {
        "image_size": np.array([[2, 3]], np.int32),
        "image_status": np.zeros(1, np.int32),
        "sem_seg_labels": np.arange(16, dtype=np.int32).reshape(1, 4, 4),
        "panoptic_seg": np.array([[[1, 1, 2, 0], [0, 2, 2, 0]]], np.int32),
        "num_panoptic_segments": np.array([2], np.int32),
        "panoptic_segment_classes": np.array([[5, 9, 0]]),
        "panoptic_segment_is_thing": np.array([[True, False, False]]),
        "panoptic_segment_scores": np.array([[0.75, 0, 0]], np.float32),
        "panoptic_segment_instances": np.array([[3, -1, 0]], np.int32),
        "panoptic_segment_areas": np.array([[2, 3, 0]], np.int32),
    }


def test_panoptic_answer() -> None:
    result = to_result(panoptic_outputs(), 0)
    np.testing.assert_array_equal(result["sem_seg_labels"], [[0, 1, 2], [4, 5, 6]])
    segments, info = result["panoptic_seg"]
    np.testing.assert_array_equal(segments, [[1, 1, 2], [0, 2, 2]])
    assert info == [
        {"id": 1, "isthing": True, "score": 0.75, "category_id": 5, "instance_id": 3},
        {"id": 2, "isthing": False, "category_id": 9, "area": 3},
    ]


def test_proposals_and_other_masks() -> None:
    base = {"image_size": np.array([[2, 3]], np.int32), "image_status": np.zeros(1, np.int32)}
    boxes = np.arange(8, dtype=np.float32).reshape(1, 2, 4)
    found = {"proposal_boxes": boxes, "objectness_logits": np.ones((1, 2)), "num_proposals": np.array([1])}
    assert to_result(base | found, 0)["proposals"].proposal_boxes.tolist() == [[0, 1, 2, 3]]
    rows = {
        "detection_boxes": boxes,
        "detection_scores": np.ones((1, 2)),
        "detection_classes": np.ones((1, 2)),
        "num_detections": np.array([1]),
    }
    mask = np.array([[1, 0, 0], [0, 1, 1]], np.uint8)
    full = np.zeros((1, 2, 5, 5), np.uint8)
    full[0, 0, :2, :3] = mask
    buffer = BytesIO()
    Image.fromarray(mask * 255).save(buffer, "PNG")
    files = np.array([[buffer.getvalue(), b""]], object)
    for extra in ({"detection_masks_full": full}, {"detection_masks_png_bytes": files}):
        masks = to_result(base | rows | extra, 0)["instances"].pred_masks
        np.testing.assert_array_equal(masks, [mask.astype(bool)])


def test_foreign_model_is_an_error() -> None:
    with pytest.raises(ServingError, match="image_size, image_status"):
        to_result({"detection_boxes": np.zeros((1, 1, 4))}, 0)


# === Images ===


def test_png_is_lossless(image: np.ndarray) -> None:
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(encode_png(image)))), image)
    for wrong in (image[0], image.astype(float), image[:0]):
        with pytest.raises(ValueError, match="expected a uint8 image"):
            encode_png(wrong)


def test_no_tensorflow_is_imported() -> None:
    code = "import sys, tf_d2.client; print(*(m in sys.modules for m in ('tensorflow', 'keras', 'grpc')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"] * 3


# === supervision ===


def test_to_supervision() -> None:
    """Against the package itself, where it is installed."""
    supervision = pytest.importorskip("supervision", reason="needs the package supervision (extra viz)")
    boxes = np.array([[1, 2, 11, 22], [3, 4, 23, 34]], np.float32)
    masks = np.zeros((2, 40, 30), bool)
    masks[0, 2:22, 1:11] = masks[1, 4:34, 3:23] = True
    rows = {"pred_boxes": boxes, "scores": np.array([0.9, 0.4], np.float32), "pred_classes": np.array([2, 0])}
    with_masks = Instances((40, 30), **rows, pred_masks=masks)
    for instances in (with_masks, Instances((40, 30), **rows), with_masks[:0]):
        found = to_supervision(instances)
        assert isinstance(found, supervision.Detections)
        assert len(found) == len(instances)
        np.testing.assert_array_equal(found.xyxy, instances.pred_boxes)
        np.testing.assert_array_equal(found.confidence, instances.scores)
        np.testing.assert_array_equal(found.class_id, instances.pred_classes)
        assert (found.mask is not None) == instances.has("pred_masks")
        assert found[found.confidence > 0.5].class_id.tolist() == [2] * bool(len(instances))
    np.testing.assert_array_equal(to_supervision(with_masks).area, masks.sum(axis=(1, 2)))


def test_supervision_reads_boxes_of_tensorflows_detectors() -> None:
    """What `tf-d2 export --box-format tf` answers goes into supervision's own reader unchanged."""
    supervision = pytest.importorskip("supervision", reason="needs the package supervision (extra viz)")
    tf = pytest.importorskip("tensorflow")
    from tf_d2.serving.graph import normalised

    pixels = np.array([[[10, 20, 110, 70], [0, 0, 200, 100]]], np.float32)
    outputs = {
        "detection_boxes": normalised(tf.constant(pixels), tf.constant([[100, 200]])),
        "detection_scores": tf.constant([[0.9, 0.4]]),
        "detection_classes": tf.constant([[2, 0]], tf.int64),
    }
    found = supervision.Detections.from_tensorflow(outputs, (200, 100))
    np.testing.assert_allclose(found.xyxy, pixels[0], rtol=0, atol=1e-4)
    assert found.class_id.tolist() == [2, 0]
