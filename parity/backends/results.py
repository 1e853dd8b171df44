"""What a predictor of tf_d2, or a client of an exported model, answers, by the names of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def named_outputs(result: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """A predictor's result by trace names, and the panoptic segments."""
    arrays: dict[str, np.ndarray] = {}
    for key in ("instances", "proposals"):
        if key in result:
            fields = result[key].get_fields() if hasattr(result[key], "get_fields") else vars(result[key])
            parts = {name: getattr(value, "arrays", dict)() for name, value in fields.items()}
            for name, value in fields.items():  # DensePose's field is an object of arrays
                inside = {f"{name}/{part}": array for part, array in parts[name].items()} or {name: value}
                arrays |= {f"output/{key}/{place}": np.asarray(array) for place, array in inside.items()}
    if "sem_seg" in result:
        arrays["output/sem_seg"] = np.asarray(result["sem_seg"])
    segments: list[dict[str, Any]] = []
    if "panoptic_seg" in result:
        arrays["output/panoptic_seg"] = np.asarray(result["panoptic_seg"][0])
        segments = [{k: _plain(v) for k, v in s.items()} for s in result["panoptic_seg"][1] or ()]
    return arrays, segments


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
