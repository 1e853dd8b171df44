"""Talk to an exported model on TensorFlow Serving, and get what ``tf_d2.Predictor`` would give.

    from tf_d2.client import Client, to_coco
    with Client("http://localhost:8501", "shapes") as client:      # or "grpc://localhost:8500"
        result = client.predict_file("photo.jpg")
        print(to_coco(result["instances"], image_id=1))

Imports neither TensorFlow nor anything else that is large: NumPy, and ``grpcio`` for gRPC.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from tf_d2.client.images import encode_png
from tf_d2.client.result import BadImageError, ServingError, to_result
from tf_d2.client.transport import Grpc, Rest, Transport
from tf_d2.coco import to_coco
from tf_d2.tables import to_supervision
from weights.errors import UsageError

__all__ = ["BadImageError", "Client", "ServingError", "to_coco", "to_result", "to_supervision"]


def _scheme(url: str) -> str | None:
    """What stands before ``://``, where a server's address follows."""
    if not isinstance(url, str) or any(c.isspace() for c in url):
        return None
    scheme, _, rest = url.partition("://")
    if scheme == "grpc":
        return scheme if rest else None  # gRPC's names of targets are of many forms
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return scheme if usable else None


class Client:
    """Predicts with a model on a server. May be used from several threads."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        """
        Args:
            url: ``http://host:8501`` or ``https://...`` for REST, ``grpc://host:8500`` for gRPC.
            model: name on the server.
            version, label: one of them, if not the newest version is meant.
            timeout: seconds to wait for an answer.

        Raises:
            ValueError: another kind of URL, or both version and label.
            ServingError: gRPC without the package ``grpcio``.
        """
        if version is not None and label is not None:
            raise UsageError("version and label both choose a version; pass one of them")
        scheme = _scheme(url)
        self._transport: Transport
        if scheme in ("http", "https"):
            self._transport = Rest(url, model, version, label, timeout)
        elif scheme == "grpc":
            self._transport = Grpc(url.partition("://")[2], model, version, label, timeout)
        else:
            raise UsageError(f"{url!r}: expected http://HOST:PORT, https://HOST:PORT or grpc://HOST:PORT")

    def predict(self, image_bgr: np.ndarray, proposal_boxes: np.ndarray | None = None) -> dict[str, Any]:
        """Detect on one uint8 BGR image ``(H, W, 3)``; like ``Predictor.__call__``.

        Args:
            proposal_boxes: for Fast R-CNN models, ``(N, 4)`` xyxy in pixels of *this image*, best first.

        Raises:
            BadImageError: the model cannot use this image.
            ServingError: no answer, or not the expected one.
        """
        image = np.asarray(image_bgr)
        return self._predict_one(encode_png(image[..., ::-1]), proposal_boxes)

    def predict_file(self, path: str | Path, proposal_boxes: np.ndarray | None = None) -> dict[str, Any]:
        """Detect on an image file. It is sent as it is; the server turns it as its EXIF orientation says."""
        return self._predict_one(Path(path).read_bytes(), proposal_boxes)

    def _predict_one(self, data: bytes, proposal_boxes: np.ndarray | None) -> dict[str, Any]:
        if proposal_boxes is None:
            return self.predict_bytes([data])[0]
        boxes = np.asarray(proposal_boxes, np.float32)[None]
        return self.predict_bytes([data], proposal_boxes=boxes, num_proposals=np.array([boxes.shape[1]]))[0]

    def predict_bytes(
        self,
        files: Sequence[bytes],
        *,
        bad_images: Literal["raise", "return"] = "raise",
        proposal_boxes: np.ndarray | None = None,
        num_proposals: np.ndarray | None = None,
    ) -> list[Any]:
        """Detect on a batch of encoded images of any sizes, in one request (none: no request).

        Args:
            files: contents of JPEG, PNG, BMP or WebP files, turned as their EXIF orientation says.
            bad_images: "raise" raises for the first one that cannot be used, "return" puts the BadImageError
                in its place and keeps the other results.
            proposal_boxes: for Fast R-CNN models, ``(B, N, 4)``; ``num_proposals`` ``(B,)`` of them count.
        """
        if not files:
            return []  # a server that merges requests answers an empty one only when another one comes
        encoded = np.empty(len(files), object)
        encoded[:] = [bytes(data) for data in files]
        inputs = {"image_bytes": encoded}
        if proposal_boxes is not None and num_proposals is not None:
            inputs["proposal_boxes"] = np.asarray(proposal_boxes, np.float32)
            inputs["num_proposals"] = np.asarray(num_proposals, np.int32)
        outputs = self._transport.predict("serving_bytes", inputs)
        return _results(outputs, len(files), bad_images)

    def predict_batch(self, images_rgb: np.ndarray) -> list[dict[str, Any]]:
        """Detect on raw uint8 **RGB** images of one size, ``(B, H, W, 3)``. For gRPC: JSON is slow here."""
        if not len(images_rgb):
            return []
        outputs = self._transport.predict("serving_default", {"inputs": np.asarray(images_rgb)})
        return _results(outputs, len(images_rgb), "raise")

    def ready(self) -> bool:
        """Whether the server answers and has the model."""
        return self._transport.ready()

    def close(self) -> None:
        """Give up the connection."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _results(outputs: dict[str, np.ndarray], count: int, bad_images: str) -> list[Any]:
    short = [name for name, value in outputs.items() if len(value) != count]
    if short:
        raise ServingError(f"{count} images sent, but {short[0]} has {len(outputs[short[0]])} rows")
    results: list[Any] = []
    for i in range(count):
        try:
            results.append(to_result(outputs, i))
        except BadImageError as error:
            named = BadImageError(f"image {i}: {error}")
            if bad_images == "raise":
                raise named from None
            results.append(named)
    return results
