"""How arrays travel: what REST sends, reads and says of answers that are none. gRPC is in test_client and test_wire."""

import base64
import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from tf_d2.client.result import ServingError
from tf_d2.client.transport import Grpc, Rest


@pytest.fixture
def server():
    """A server that answers with what ``server.answers`` has for a path, and keeps the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply()

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.requests.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.reply()

        def reply(self):
            status, body = made.answers.get(self.path, (404, b'{"error": "no such model"}'))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    made = HTTPServer(("127.0.0.1", 0), Handler)
    made.requests, made.answers = [], {}
    made.url = f"http://127.0.0.1:{made.server_address[1]}"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def rest(server, version=None, label=None):
    return Rest(server.url + "/", "m", version, label, 5.0)


def answer(**outputs):
    return 200, json.dumps({"outputs": outputs}).encode()


@pytest.mark.parametrize(
    "version, label, path",
    [
        (None, None, "/v1/models/m"),
        (3, None, "/v1/models/m/versions/3"),
        (None, "stable", "/v1/models/m/labels/stable"),
    ],
)
def test_where_a_request_goes_and_what_it_holds(server, version, label, path):
    server.answers[path + ":predict"] = answer(num_detections=[1])
    files = np.array([b"\x00\xff", b"png"], object)
    boxes = np.array([[[1.5, 2, 3, 4]]], np.float32)
    rest(server, version, label).predict("serving_bytes", {"image_bytes": files, "proposal_boxes": boxes})
    ((sent, kind, body),) = server.requests
    assert (sent, kind) == (path + ":predict", "application/json")
    assert body["signature_name"] == "serving_bytes"
    assert [base64.b64decode(item["b64"]) for item in body["inputs"]["image_bytes"]] == [b"\x00\xff", b"png"]
    assert body["inputs"]["proposal_boxes"] == [[[1.5, 2, 3, 4]]]


def test_numbers_get_their_types_back(server):
    png = {"b64": base64.b64encode(b"\x89PNG").decode()}
    server.answers["/v1/models/m:predict"] = answer(
        detection_boxes=[[[1, 2, 3, 4]]],
        detection_classes=[[7]],
        num_detections=[1],
        something=[0.5],
        mask_bytes=[[png, png]],
    )
    got = rest(server).predict("serving_default", {"inputs": np.zeros((1, 2, 2, 3), np.uint8)})
    types = {name: array.dtype for name, array in got.items()}
    assert types["detection_boxes"] == types["something"] == np.float32
    assert types["num_detections"] == np.int32 and types["detection_classes"].kind == "i"
    assert got["mask_bytes"].shape == (1, 2) and got["mask_bytes"][0, 1] == b"\x89PNG"


@pytest.mark.parametrize(
    "status, body, message",
    [
        (400, b'{"error": "image 1: broken"}', r"m:predict: HTTP 400: image 1: broken$"),
        (503, b"<html>busy</html>", "HTTP 503: <html>busy</html>"),
        (500, b"[1]", r"HTTP 500: \[1\]"),
        (200, b"no JSON", "m:predict: "),
        (200, b"[]", "an answer without outputs"),
        (200, b'{"outputs": [1]}', "an answer without outputs"),
        (200, b'{"outputs": {"num_detections": ["many"]}}', "an output that is not an array"),
        (200, b'{"outputs": {"mask_bytes": [[{"png": "x"}]]}}', "an output that is not an array"),
    ],
)
def test_answers_that_are_none(server, status, body, message):
    server.answers["/v1/models/m:predict"] = status, body
    with pytest.raises(ServingError, match=message):
        rest(server).predict("serving_default", {"inputs": np.zeros((1, 2, 2, 3), np.uint8)})


def test_no_server():
    with pytest.raises(ServingError, match=r"^http://127\.0\.0\.1:9/v1/models/m:predict: "):
        Rest("http://127.0.0.1:9", "m", None, None, 2.0).predict("s", {"inputs": np.zeros(1)})
    assert not Rest("http://127.0.0.1:9", "m", None, None, 2.0).ready()


@pytest.fixture
def another_protocol():
    """The address of a server that answers with something else than HTTP, as gRPC's port does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed
                    return
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(b"\x00\x00\x0c\x04\x00\x00\x00\x00\x00\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_server_of_another_protocol(another_protocol):
    rest = Rest(f"http://{another_protocol}", "m", None, None, 2.0)
    with pytest.raises(ServingError, match=r"no HTTP answer .*is that the port of gRPC"):
        rest.predict("s", {"inputs": np.zeros(1)})
    assert not rest.ready()


@pytest.mark.parametrize(
    "body", [b"[]", b"3", b'{"model_version_status": ["x"]}', b'{"model_version_status": null}']
)
def test_a_status_of_another_kind_is_not_ready(server, body):
    server.answers["/v1/models/m"] = 200, body
    assert not rest(server).ready()


def state(*names):
    return 200, json.dumps({"model_version_status": [{"state": name} for name in names]}).encode()


@pytest.mark.parametrize(
    "states, ready", [(("AVAILABLE",), True), (("END", "AVAILABLE"), True), (("LOADING",), False)]
)
def test_ready_is_a_version_that_is_available(server, states, ready):
    server.answers["/v1/models/m"] = state(*states)
    assert rest(server).ready() is ready


def test_a_label_is_ready_where_its_metadata_are(server):
    server.answers["/v1/models/m/labels/stable"] = state("AVAILABLE")
    assert not rest(server, label="stable").ready()
    server.answers["/v1/models/m/labels/stable/metadata"] = 200, b"{}"
    assert rest(server, label="stable").ready()


def test_grpc_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(ServingError, match=r"pip install 'tf-d2\[serving\]'"):
        Grpc("localhost:8500", "m", None, None, 1.0)
