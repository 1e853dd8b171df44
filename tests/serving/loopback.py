"""A stand-in for tensorflow_model_server, in Python, on this machine only: what a client and an export see of a server.

It answers Predict over gRPC and ``:predict`` over REST as TensorFlow Serving does, runs the warm-up records first, and
with ``batching`` merges requests with TensorFlow's own batch scheduler (the op BatchFunction) and the numbers in the
export's batching_params.pbtxt. It is not TensorFlow Serving and says nothing about its speed.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf

from tf_d2.client.wire import field, fields, parse_tensor, tensor_proto

Arrays = dict[str, np.ndarray]
BATCHED_SIGNATURE = "serving_bytes"  # the one whose requests may be merged whatever the sizes of their images
STATUS = {
    tf.errors.InvalidArgumentError: (400, grpc.StatusCode.INVALID_ARGUMENT),
    tf.errors.UnavailableError: (503, grpc.StatusCode.UNAVAILABLE),
}


class Model:
    """The newest version of an export; ``predict`` may be called from several threads."""

    def __init__(self, export: Path, batching: bool) -> None:
        self.name = export.resolve().name
        folder = max((p for p in export.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
        self._loaded: Any = tf.saved_model.load(str(folder))
        self._calls: dict[str, Callable[..., dict[str, tf.Tensor]]] = dict(self._loaded.signatures)
        if batching:
            parameters = batching_parameters((folder / "batching_params.pbtxt").read_text())
            self._calls[BATCHED_SIGNATURE] = batched(self._calls[BATCHED_SIGNATURE], parameters)
        for record in tf.data.TFRecordDataset(str(folder / "assets.extra" / "tf_serving_warmup_requests")):
            request = dict(fields(dict(fields(memoryview(record.numpy())))[6]))[1]
            _, signature, inputs = parse_request(request)
            self.predict(signature, inputs)

    def predict(self, signature: str, inputs: Arrays) -> Arrays:
        """Run a signature. Raises KeyError for another name, TypeError or tf.errors.OpError for other inputs."""
        call = self._calls[signature]
        outputs = call(**{name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}


def batching_parameters(text: str) -> dict[str, Any]:
    """``batching_params.pbtxt`` -> arguments of TensorFlow's batch function."""
    values: dict[str, Any] = {
        name: int(v) for name, v in re.findall(r"^(\w+) \{ value: (\d+) \}", text, re.M)
    }
    values["allowed_batch_sizes"] = [int(v) for v in re.findall(r"^allowed_batch_sizes: (\d+)", text, re.M)]
    return values


def batched(
    call: Callable[..., dict[str, tf.Tensor]], parameters: dict[str, Any]
) -> Callable[..., dict[str, tf.Tensor]]:
    """``call`` behind a queue that merges what several threads ask."""
    names = sorted(call.structured_outputs)

    @tf.nondifferentiable_batch_function(autograph=False, **parameters)
    def merged(image_bytes: tf.Tensor) -> list[tf.Tensor]:
        answer = call(image_bytes=image_bytes)
        return [answer[name] for name in names]

    # Concrete: a tf.function that is called with another dtype keeps its lock, and every later call waits.
    spec = tf.TensorSpec([None], tf.string)
    queue = tf.function(merged, autograph=False).get_concrete_function(spec)
    return lambda image_bytes: dict(zip(names, queue(image_bytes), strict=True))


def parse_request(message: memoryview) -> tuple[str, str, Arrays]:
    """Name of the model, of the signature, and inputs of a serialised ``PredictRequest``."""
    parts = [(number, value) for number, value in fields(message) if isinstance(value, memoryview)]
    spec = dict(fields(dict(parts)[1]))
    entries = [dict(fields(value)) for number, value in parts if number == 2]
    return (
        bytes(spec[1]).decode(),
        bytes(spec[3]).decode(),
        {bytes(e[1]).decode(): parse_tensor(e[2]) for e in entries},
    )


# === gRPC ===


def start_grpc(model: Model, threads: int) -> tuple[grpc.Server, int]:
    """PredictionService.Predict and ModelService.GetModelStatus on the loopback device; the port it got."""

    def predict(request: bytes, context: grpc.ServicerContext) -> bytes:
        name, signature, inputs = parse_request(memoryview(request))
        if name != model.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})")
        try:
            outputs = model.predict(signature, inputs)
        except (KeyError, TypeError, ValueError, tf.errors.OpError) as error:
            context.abort(
                STATUS.get(type(error), (400, grpc.StatusCode.INVALID_ARGUMENT))[1], message_of(error)
            )
        entries = (field(1, k.encode()) + field(2, tensor_proto(v)) for k, v in outputs.items())
        return b"".join(field(1, entry) for entry in entries)

    available = bytes.fromhex("0a040801101e")  # version 1, AVAILABLE
    server = grpc.server(
        ThreadPoolExecutor(threads),
        options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)],
    )
    for service, method, call in (
        ("PredictionService", "Predict", predict),
        ("ModelService", "GetModelStatus", lambda *_: available),
    ):
        handler = {method: grpc.unary_unary_rpc_method_handler(call)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("tensorflow.serving." + service, handler),)
        )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def message_of(error: Exception) -> str:
    """The first line of what went wrong; an op's message ends with the graph's structure."""
    return str(getattr(error, "message", error)).split("\n")[0][:500]


# === REST ===


def rest_handler(model: Model) -> type[BaseHTTPRequestHandler]:
    """``/v1/models/NAME`` and ``/v1/models/NAME:predict``, in columns or in rows."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != f"/v1/models/{model.name}":
                return self.answer(404, {"error": f"Could not find any versions of {self.path}"})
            self.answer(200, {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]})

        def do_POST(self) -> None:
            # Read first: an answer while the picture is still being sent breaks the client's connection.
            text = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != f"/v1/models/{model.name}:predict":
                return self.answer(404, {"error": f"Servable not found for request: {self.path}"})
            try:
                body = json.loads(text)
                by_row = "instances" in body
                signature = body.get("signature_name", "serving_default")
                key = "image_bytes" if signature == BATCHED_SIGNATURE else "inputs"
                inputs = {key: body["instances"]} if by_row else body["inputs"]
                outputs = model.predict(signature, {k: from_json(k, v) for k, v in inputs.items()})
            except (KeyError, TypeError, ValueError, tf.errors.OpError) as error:
                return self.answer(STATUS.get(type(error), (400, None))[0], {"error": message_of(error)})
            columns = {k: to_json(v) for k, v in outputs.items()}
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            self.answer(200, {"predictions": rows} if by_row else {"outputs": columns})

        def answer(self, status: int, document: Any) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    return Handler


def from_json(name: str, value: Any) -> np.ndarray:
    """Numbers, or ``{"b64": ...}`` for strings, as an array of the dtype that the input of this name has."""
    if name == "image_bytes":
        array = np.empty(len(value), object)
        array[:] = [base64.b64decode(item["b64"], validate=True) for item in value]
        return array
    return np.array(value, {"inputs": np.uint8, "num_proposals": np.int32}.get(name, np.float32))


def to_json(value: np.ndarray) -> list[Any]:
    if value.dtype != object:
        return value.tolist()
    return [[{"b64": base64.b64encode(item).decode()} for item in row] for row in value]


# === Both ===


@contextmanager
def serving(export: Path, batching: bool = False, threads: int = 8) -> Iterator[tuple[str, str, str]]:
    """Serve as long as the block runs, on free ports: REST address, gRPC address and name of the model."""
    model = Model(export, batching)
    http = ThreadingHTTPServer(("127.0.0.1", 0), rest_handler(model))
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    server, port = start_grpc(model, threads)
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}", f"grpc://127.0.0.1:{port}", model.name
    finally:
        server.stop(None).wait()
        http.shutdown()
        http.server_close()
        thread.join()
