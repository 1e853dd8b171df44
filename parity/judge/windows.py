"""The windows that TensorMask's masks cover, and the probabilities in them: those of anchors, not of boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from parity.core.units.table import DENSE_HEAD
from parity.judge.detections import Items
from parity.judge.pixels import sigmoid
from parity.judge.provenance import dense_place

_LEVELS = ("p2", "p3", "p4", "p5", "p6", "p7")  # detectron2's default


def has_windows(trace: Mapping[str, np.ndarray]) -> bool:
    """Whether a trace holds masks of the windows around every cell."""
    return f"{DENSE_HEAD}/2/0/0" in trace


def mask_window(
    trace: Mapping[str, np.ndarray], config: Mapping[str, Any], items: Items, index: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Probabilities (S, S) of a result's mask and the window (4,), xyxy in pixels of the picture, that it covers.

    None where the anchor is not found by the result's score.
    """
    if items.classes is None:
        return None
    score, label = float(items.scores[index]), int(items.classes[index])
    place = dense_place(trace, DENSE_HEAD, score, label, logistic=True)
    if place is None:
        return None
    level = int(place.scores.rpartition("/")[2])
    y, x = place.score_at[2:]
    logits = trace[f"{DENSE_HEAD}/2/{level}/{place.anchor}"][0, :, y, x]
    side = round(len(logits) ** 0.5)
    model = config["MODEL"]
    feature = model.get("TENSOR_MASK", {}).get("IN_FEATURES", _LEVELS)[level]
    stride, size = (
        2 ** int(feature.removeprefix("p")),
        model["ANCHOR_GENERATOR"]["SIZES"][level][place.anchor],
    )
    anchor = np.array(
        [x * stride - size / 2, y * stride - size / 2, x * stride + size / 2, y * stride + size / 2]
    )
    image, network = (trace[f"input/{name}"].shape for name in ("image", "resized"))
    scale = np.array([image[1] / network[1], image[0] / network[0]] * 2)
    return sigmoid(logits).reshape(side, side), anchor * scale
