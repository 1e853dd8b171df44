"""The windows that TensorMask's masks cover, and the probabilities in them: those of anchors, not of boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.core.units.table import DENSE_HEAD
from parity.judge.detections import Items
from parity.judge.pixels import sigmoid
from parity.judge.provenance import Place, dense_places

_LEVELS = ("p2", "p3", "p4", "p5", "p6", "p7")  # detectron2's defaults
_BBOX_REG_WEIGHTS = (1.5, 1.5, 0.75, 0.75)
_LARGEST_DELTA = float(np.log(1000.0 / 16))


def has_windows(trace: Mapping[str, np.ndarray]) -> bool:
    """Whether a trace holds masks of the windows around every cell."""
    return f"{DENSE_HEAD}/2/0/0" in trace


def mask_window(
    trace: Mapping[str, np.ndarray], config: Mapping[str, Any], items: Items, index: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Probabilities (S, S) of a result's mask and the window (4,), xyxy in pixels of the picture, that it covers.

    The anchor is the one with the result's score and, of equal scores, the one whose deltas give its box. None where
    no anchor has the score.
    """
    if items.classes is None:
        return None
    score, label = float(items.scores[index]), int(items.classes[index])
    image, network = (trace[f"input/{name}"].shape for name in ("image", "resized"))
    picture = _Picture(np.array([network[1], network[0]]), np.array([image[1], image[0]]))
    best, least = None, np.inf
    for place in dense_places(trace, DENSE_HEAD, score, label):
        level = int(place.scores.rpartition("/")[2])
        anchor = _anchor(config["MODEL"], level, place)
        y, x = place.score_at[2:]
        deltas = trace[place.deltas][0, 4 * place.anchor : 4 * place.anchor + 4, y, x]
        box = picture.of(_decoded(config["MODEL"], anchor, deltas), clip=True)
        miss = float(np.abs(box - items.boxes[index]).max())
        if best is None or miss < least:
            best, least = (level, place, anchor), miss
    if best is None:
        return None
    level, place, anchor = best
    y, x = place.score_at[2:]
    logits = trace[f"{DENSE_HEAD}/2/{level}/{place.anchor}"][0, :, y, x]
    side = round(len(logits) ** 0.5)
    return sigmoid(logits).reshape(side, side), picture.of(anchor)


@dataclass(frozen=True)
class _Picture:
    """Sizes (width, height) of the network's picture and of the user's."""

    network: np.ndarray
    image: np.ndarray

    def of(self, box: np.ndarray, clip: bool = False) -> np.ndarray:
        """A box (4,) of the network's picture in pixels of the user's; inside of it with ``clip``."""
        box = box * np.tile(self.image / self.network, 2)
        return np.clip(box, 0.0, np.tile(self.image, 2)) if clip else box


def _anchor(model: Mapping[str, Any], level: int, place: Place) -> np.ndarray:
    """The anchor (4,), xyxy in pixels of the network's picture: a square around the corner of its cell."""
    feature = model.get("TENSOR_MASK", {}).get("IN_FEATURES", _LEVELS)[level]
    stride, half = (
        2 ** int(feature.removeprefix("p")),
        model["ANCHOR_GENERATOR"]["SIZES"][level][place.anchor] / 2,
    )
    y, x = (stride * at for at in place.score_at[2:])
    return np.array([x - half, y - half, x + half, y + half])


def _decoded(model: Mapping[str, Any], anchor: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """The box (4,) that deltas (4,) make of a square anchor. Source: detectron2 modeling/box_regression.py."""
    weights = model.get("TENSOR_MASK", {}).get("BBOX_REG_WEIGHTS", _BBOX_REG_WEIGHTS)
    moved = deltas.astype(np.float64) / np.array(weights)
    side, centre = anchor[2] - anchor[0], (anchor[:2] + anchor[2:]) / 2
    centre, half = centre + moved[:2] * side, np.exp(np.minimum(moved[2:], _LARGEST_DELTA)) * side / 2
    return np.concatenate([centre - half, centre + half])
