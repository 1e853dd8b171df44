"""An ONNX file that detectron2's exporter wrote (`tools/deploy/export_model.py --export-method tracing --format onnx`):
what goes in, what comes out. The runtimes that run it are backends beside this file.

The network takes the resized picture, float32 (C, H, W) in the order of INPUT.FORMAT, and gives the fields of its
instances sorted by name, boxes and masks in pixels of the network input, and the input's size. Sizes of an export
may be fixed to those of the picture it was traced with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from parity.backends.driver import Arrays, Backend, Segments
from parity.backends.tf import read_image, versions
from parity.core.job import JobError
from parity.core.network_size import network_size
from parity.core.units.table import RESULTS


class OnnxFile(Backend):
    """A runtime with such a file loaded. A subclass says how arrays go through it (`infer`)."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.fields = _result_fields(config)

    def infer(self, image: np.ndarray) -> Sequence[np.ndarray]:
        """The file's outputs in order. image: float32 (C, H, W)."""
        raise NotImplementedError

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[Arrays, Segments]:
        """The results of one BGR image in pixels of that image."""
        if proposals is not None:
            raise JobError(f"backend {self.name} does not take proposals in network pixels")
        resized = network_input(image, self.config["INPUT"])
        outputs = self.infer(np.ascontiguousarray(resized.transpose(2, 0, 1), np.float32))
        expected = [*self.fields, "image_size"]
        if len(outputs) != len(expected):
            raise JobError(
                f"the ONNX file gives {len(outputs)} outputs; detectron2's tracing export of this model has "
                f"{len(expected)}: {', '.join(expected)}"
            )
        found = dict(zip(self.fields, outputs, strict=False))
        return {"input/image": image, **_to_picture(found, resized, image)}, []

    def read(self, path: str, channels: int) -> np.ndarray:
        """A picture as tf_d2 reads it."""
        return read_image(path, channels)

    def facts(self) -> dict[str, Any]:
        """Versions of what resizes and pastes."""
        return {"versions": versions()}


def _result_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields of the exported instances in the file's order. Raises JobError for a model that has other results."""
    model = config["MODEL"]
    if model["META_ARCHITECTURE"] not in ("GeneralizedRCNN", "RetinaNet"):
        raise JobError(
            f"MODEL.META_ARCHITECTURE {model['META_ARCHITECTURE']!r}: of ONNX files, GeneralizedRCNN and RetinaNet are "
            "understood"
        )
    fields = ["pred_boxes", "pred_classes", "scores"]
    if model["META_ARCHITECTURE"] == "GeneralizedRCNN":
        fields += ["pred_masks"] if model["MASK_ON"] else []
        fields += ["pred_keypoints", "pred_keypoint_heatmaps"] if model["KEYPOINT_ON"] else []
    return sorted(fields)


def network_input(image: np.ndarray, node: Mapping[str, Any]) -> np.ndarray:
    """The picture as the network takes it: uint8 (h, w, 3), resized by Pillow as detectron2 does. node: INPUT."""
    ordered = image[:, :, ::-1] if node["FORMAT"] == "RGB" else image
    height, width = network_size(image.shape[:2], node["MIN_SIZE_TEST"], node["MAX_SIZE_TEST"])
    picture = Image.fromarray(np.ascontiguousarray(ordered))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def _to_picture(found: Mapping[str, np.ndarray], resized: np.ndarray, image: np.ndarray) -> Arrays:
    """Instances in pixels of the network input -> results of a trace, rescaled and pasted by tf_d2."""
    from tf_d2.stages import OPS

    names = ["pred_boxes", "scores", "pred_classes"]
    names += [name for name in found if name not in names]
    results = OPS["postprocess"](None, tuple(names), [*(found[name] for name in names), resized, image])
    return {f"{RESULTS.name}/{name}": np.asarray(x) for name, x in zip(names, results, strict=True)}
