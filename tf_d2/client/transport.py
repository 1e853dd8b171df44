"""How arrays travel to a server and back: REST (standard library) and gRPC (package ``grpcio``)."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from tf_d2.client import wire
from tf_d2.client.result import ServingError
from tf_d2.serving_contract import TENSORS

Arrays = dict[str, np.ndarray]

# JSON does not say which type a number had.
_DTYPES = {name: np.dtype(tensor.dtype) for name, tensor in TENSORS.items() if tensor.dtype}


class Transport(Protocol):
    """One way to a server."""

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Call a signature with a batch. Raises ServingError."""
        ...

    def ready(self) -> bool:
        """Whether the server has the model available."""
        ...

    def close(self) -> None:
        """Give up the connection."""
        ...


class Rest:
    """TensorFlow Serving's REST interface, columns ("inputs"), images as base64."""

    def __init__(self, url: str, model: str, version: int | None, label: str | None, timeout: float) -> None:
        part = "" if version is None else f"/versions/{version}"
        part = part if label is None else f"/labels/{label}"
        self.url = f"{url.rstrip('/')}/v1/models/{model}{part}"
        self.label = label
        self.timeout = timeout

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        body = {"signature_name": signature, "inputs": {k: _to_json(v) for k, v in inputs.items()}}
        answer = self._call(self.url + ":predict", json.dumps(body).encode())
        outputs = answer.get("outputs") if isinstance(answer, dict) else None
        if not isinstance(outputs, dict):
            raise ServingError(f"{self.url}: an answer without outputs")
        try:
            return {name: _from_json(name, value) for name, value in outputs.items()}
        except (ValueError, TypeError, KeyError) as error:
            raise ServingError(f"{self.url}: an output that is not an array: {error}") from error

    def ready(self) -> bool:
        try:
            answer = self._call(self.url, None)
            if self.label is not None:  # the status call answers for every label, known or not
                self._call(self.url + "/metadata", None)
        except ServingError:
            return False
        states = answer.get("model_version_status") if isinstance(answer, dict) else None
        return any(isinstance(s, dict) and s.get("state") == "AVAILABLE" for s in states or [])

    def close(self) -> None:
        """Nothing to give up: every call is a connection of its own."""

    def _call(self, url: str, body: bytes | None) -> Any:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise ServingError(f"{url}: HTTP {error.code}: {_message(error.read())}") from error
        except http.client.InvalidURL as error:
            raise ServingError(f"{url}: {error}") from error
        except http.client.HTTPException as error:
            raise ServingError(
                f"{url}: no HTTP answer ({error!r}); is that the port of gRPC? REST has one of its own (8501)"
            ) from error
        except (OSError, ValueError) as error:
            raise ServingError(f"{url}: {error}") from error


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:500].decode(errors="replace")


def _to_json(value: np.ndarray) -> Any:
    if value.dtype == object:
        return [{"b64": base64.b64encode(item).decode("ascii")} for item in value]
    return value.tolist()


def _from_json(name: str, value: Any) -> np.ndarray:
    if name.endswith("_bytes"):
        rows = [[base64.b64decode(item["b64"]) for item in row] for row in value]
        array = np.empty((len(rows), len(rows[0]) if rows else 0), object)
        for i, row in enumerate(rows):
            array[i, :] = row
        return array
    return np.array(value, _DTYPES.get(name, np.float32))


class Grpc:
    """TensorFlow Serving's gRPC interface. Needs ``grpcio``; no limit on the size of messages."""

    def __init__(
        self, target: str, model: str, version: int | None, label: str | None, timeout: float
    ) -> None:
        try:
            import grpc
        except ImportError as error:
            raise ServingError("gRPC needs the package grpcio: pip install 'tf-d2[serving]'") from error
        self._grpc = grpc
        self.target, self.model, self.version, self.label = target, model, version, label
        self.timeout = timeout
        # Answers with masks exceed gRPC's default limit of 4 MB.
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(target, options=options)
        self._predict = self._channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        self._status = self._channel.unary_unary("/tensorflow.serving.ModelService/GetModelStatus")
        self._metadata = self._channel.unary_unary("/tensorflow.serving.PredictionService/GetModelMetadata")

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        request = wire.predict_request(self.model, signature, inputs, self.version, self.label)
        try:
            return wire.predict_response(self._predict(request, timeout=self.timeout))
        except self._grpc.RpcError as error:
            raise ServingError(f"{self.target}: {error.code().name}: {error.details()}") from error
        except wire.WireError as error:
            raise ServingError(f"{self.target}: {error}") from error

    def ready(self) -> bool:
        # Both requests have the ModelSpec where PredictRequest has it; AVAILABLE is state 30.
        spec = wire.field(1, wire.model_spec(self.model, self.version, self.label))
        try:
            answer = self._status(spec, timeout=self.timeout)
            if self.label is not None:  # the status call answers for every label, known or not
                self._metadata(spec + wire.field(2, b"signature_def"), timeout=self.timeout)
            versions = [value for number, value in wire.fields(memoryview(answer)) if number == 1]
            return any(dict(wire.fields(v)).get(2) == 30 for v in versions if isinstance(v, memoryview))
        except (self._grpc.RpcError, wire.WireError):
            return False

    def close(self) -> None:
        self._channel.close()
