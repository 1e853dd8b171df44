"""Instances for other packages' eyes: supervision's detections, a pandas table, a table in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from weights.errors import UsageError

if TYPE_CHECKING:
    from tf_d2.instances import Instances

_SHOWN_ROWS = 20
_BOXES = {4: ("x1", "y1", "x2", "y2"), 5: ("center_x", "center_y", "width", "height", "angle")}


def columns(instances: Instances, names: Sequence[str] = ()) -> dict[str, Any]:
    """One value per instance and column: ``class``, ``name`` (if ``names`` are given), ``score``, the box in pixels.

    The box is ``x1 y1 x2 y2``, a rotated one ``center_x center_y width height angle`` (degrees). A mask gives its
    ``mask_area`` in pixels, keypoint K ``keypoint_K_x``, ``_y`` and ``_score``. Of other fields those with one number
    per instance stand under their own names.

    Raises:
        ValueError: a class without a name.
    """
    table: dict[str, Any] = {}
    for field, value in instances.get_fields().items():
        if field == "pred_classes":
            table["class"] = value
            if names:
                table["name"] = _class_labels(value, names)
        elif field == "scores":
            table["score"] = value
        elif field in ("pred_boxes", "proposal_boxes"):
            table.update(zip(_BOXES[value.shape[1]], value.T, strict=True))
        elif field == "pred_masks":
            table["mask_area"] = value.sum(axis=(1, 2), dtype=np.int64)
        elif field == "pred_keypoints":
            for k in range(value.shape[1]):
                table |= {
                    f"keypoint_{k}_{part}": value[:, k, i] for i, part in enumerate(("x", "y", "score"))
                }
        elif isinstance(value, np.ndarray) and value.ndim == 1:
            table[field] = value
    first = [name for name in ("class", "name", "score") if name in table]
    return {name: table[name] for name in [*first, *(n for n in table if n not in first)]}


def _class_labels(classes: np.ndarray, names: Sequence[str]) -> list[str]:
    """Names of classes; ValueError for a class that ``names`` does not reach."""
    if len(classes) and not 0 <= classes.min() <= classes.max() < len(names):
        raise UsageError(f"classes from {classes.min()} to {classes.max()}, but there are {len(names)} names")
    return [names[int(c)] for c in classes]


def to_pandas(instances: Instances, names: Sequence[str] = ()) -> Any:
    """A ``pandas.DataFrame`` of :func:`columns`.

    Raises:
        ImportError: pandas is not installed.
        ValueError: a class without a name.
    """
    return _package("pandas").DataFrame(columns(instances, names))


def to_supervision(instances: Instances, names: Sequence[str] = ()) -> Any:
    """``supervision.Detections`` with boxes, masks, scores, classes and, given ``names``, ``data["class_name"]``.

    Raises:
        ImportError: supervision is not installed.
        ValueError: boxes that are rotated, a class without a name.
    """
    supervision = _package("supervision")
    if instances.pred_boxes.shape[1] != 4:
        raise UsageError("supervision's xyxy has no place for rotated boxes")
    return supervision.Detections(
        xyxy=instances.pred_boxes,
        mask=instances.pred_masks if instances.has("pred_masks") else None,
        confidence=instances.scores,
        class_id=instances.pred_classes,
        data={"class_name": np.array(_class_labels(instances.pred_classes, names), str)} if names else {},
    )


def html_table(instances: Instances) -> str:
    """:func:`columns` of the first instances as an HTML table under what the fields are."""
    table = columns(instances)
    head = "".join(f"<th>{escape(name)}</th>" for name in table)
    shown = min(len(instances), _SHOWN_ROWS)
    rows = ["".join(f"<td>{_cell(column[i])}</td>" for column in table.values()) for i in range(shown)]
    body = "".join(f"<tr><th>{i}</th>{row}</tr>" for i, row in enumerate(rows))
    more = f"<p>... and {len(instances) - shown} more</p>" if len(instances) > shown else ""
    return f"<p>{escape(repr(instances))}</p><table><tr><th></th>{head}</tr>{body}</table>{more}"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, np.floating) else escape(str(value))


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"this needs the package {name}: pip install {name} ({error})") from error
