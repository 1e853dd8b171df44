"""The exported model as a backend: loaded from its folder, or asked over the network. Outputs only.

Part of the TensorFlow worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity.core.job import read_served


class SavedModel:
    """``serving_default`` of an exported folder, called in this process as a server would call it."""

    scope = "served"
    dtype = "float32"
    predictor = None

    def __init__(self, request: Any) -> None:
        import tensorflow as tf

        import tf_d2

        folder = Path(request.target) if request.target else export_beside(request)
        self.tensors: dict[str, str] = {}
        self.version = tf_d2.__version__
        self._model: Any = tf.saved_model.load(str(version_folder(folder)))
        self._call = self._model.signatures["serving_default"]

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[dict[str, np.ndarray], list]:
        """The results of one BGR image, by trace name, and the panoptic segments."""
        import tensorflow as tf

        from parity.backends.tf_worker import named_outputs
        from tf_d2.client.result import to_result

        if proposals is not None:
            raise ValueError("backend savedmodel does not take proposals in network pixels")
        answer: Mapping[str, Any] = self._call(inputs=tf.constant(image[None, :, :, ::-1]))
        outputs, segments = named_outputs(to_result({k: v.numpy() for k, v in answer.items()}, 0))
        return {"input/image": image, **outputs}, segments


class Served:
    """A model behind a URL, in one of the forms of ``parity.core.job.read_served``."""

    scope = "served"
    dtype = "float32"
    predictor = None

    def __init__(self, request: Any) -> None:
        import tf_d2
        from tf_d2.client import Client

        told = read_served(request.target)
        self.tensors: dict[str, str] = {}
        self.version = tf_d2.__version__
        self._client = Client(told.server, told.model, version=told.version, label=told.label, timeout=600.0)

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[dict[str, np.ndarray], list]:
        """The results of one BGR image, by trace name, and the panoptic segments."""
        from parity.backends.tf_worker import named_outputs

        if proposals is not None:
            raise ValueError("backend serving does not take proposals in network pixels")
        outputs, segments = named_outputs(self._client.predict(image))
        return {"input/image": image, **outputs}, segments


def version_folder(folder: Path) -> Path:
    """The folder with ``saved_model.pb``: ``folder`` itself or its highest version."""
    if (folder / "saved_model.pb").is_file():
        return folder
    versions = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    if not versions:
        raise FileNotFoundError(f"{folder} holds no saved_model.pb, neither directly nor in a version folder")
    return max(versions, key=lambda p: int(p.name))


def export_beside(request: Any) -> Path:
    """Export the job's model next to the trace."""
    from tf_d2.serving.exporter import export

    folder = Path(request.job.output).with_suffix(".export")
    if not folder.exists():
        export(request.job.config_yaml, request.job.weights, folder, opts=request.opts, sem_seg="logits")
    return folder


def make_model(request: Any) -> SavedModel | Served:
    """The backend of the request."""
    if request.backend == "savedmodel":
        return SavedModel(request)
    if request.backend == "serving":
        return Served(request)
    raise ValueError(f"backend {request.backend!r} is not one of tf, tf-eager, savedmodel, serving")
