"""The last rung: COCO average precision of both sides on annotated pictures.

Detections that agree one to one have the same average precision but for near-ties; so the two numbers say little that
the rungs before did not, but they are the ones people quote. Judged from the traces, without any framework.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np

from parity.core.results import Comparison, StageResult
from parity.core.status import Status
from parity.core.trace import Trace
from weights.errors import UsageError

_MAX_DIFFERENCE = 1e-3  # a tenth of a point of AP
_INSTANCES = "output/instances/"

Kind = Literal["bbox", "segm"]


def add_average_precision(comparisons: Sequence[Comparison], truth: Mapping[str, Any]) -> None:
    """Append the stages ``dataset/AP bbox`` (and ``segm``) to the last comparison of every pair of traces.

    ``truth``: parsed COCO annotations (:func:`read_annotations`); their ``file_name`` (without folder) says which
    picture is which, its categories in order of their ids are the classes. Comparisons without trace files are left
    alone. Annotations of another model give a stage with status ERROR.
    """
    last = {c.traces: c for c in comparisons if len(c.traces) == 2}
    for traces, comparison in last.items():
        names = {c.index: c.image for c in comparisons if c.traces == traces}
        comparison.stages += _stages(traces, names, truth)


def read_annotations(path: Path) -> dict[str, Any]:
    """The parsed COCO file, with what pycocotools asks for and some tools leave out: an object's ``id``, ``iscrowd``
    (0) and ``area`` (its box's); an image without ``file_name`` has its ``coco_url`` there (LVIS).

    Raises:
        UsageError: what it lacks, all at once.
    """
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as COCO annotations: {error}") from error
    missing = [k for k in _ENTRIES if not isinstance(truth, dict) or k not in truth]
    if missing:
        raise UsageError(f"{path}: not COCO annotations, there is no {', '.join(missing)}")
    for image in truth["images"] if isinstance(truth["images"], list) else []:
        if isinstance(image, dict) and "coco_url" in image:  # LVIS names its pictures by this alone
            image.setdefault("file_name", image["coco_url"])
    problems = [text for k, checks in _ENTRIES.items() for text in _problems(k, truth[k], checks)]
    if problems:
        raise UsageError(f"{path}: not COCO annotations: " + "; ".join(problems))
    given = [entry["id"] for entry in truth["annotations"] if type(entry.get("id")) is int]
    for number, entry in enumerate(truth["annotations"], 1 + max(given, default=0)):
        width, height = entry["bbox"][2:]
        entry |= {"id": number, "iscrowd": 0, "area": width * height} | entry
    return truth


def _is_name(value: Any) -> bool:
    return type(value) in (int, str)


def _is_box(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 4 and all(type(v) in (int, float) for v in value)
    return numbers and all(map(isfinite, value))


# The lists of a COCO file: what each of their objects must have.
_ENTRIES: dict[str, dict[str, Callable[[Any], bool]]] = {
    "images": {"file_name": lambda value: isinstance(value, str), "id": _is_name},
    "annotations": {"image_id": _is_name, "category_id": lambda value: type(value) is int, "bbox": _is_box},
    "categories": {"id": lambda value: type(value) is int},
}


def _problems(name: str, entries: Any, checks: Mapping[str, Callable[[Any], bool]]) -> list[str]:
    if not isinstance(entries, list):
        return [f"{name} is no list"]
    if not all(isinstance(entry, dict) for entry in entries):
        return [f"{name} has something else than objects"]
    wrong = {
        k: [i for i, e in enumerate(entries) if k not in e or not holds(e[k])] for k, holds in checks.items()
    }
    return [
        f"{len(found)} of {len(entries)} {name} have no usable {k} (the first is number {found[0]})"
        for k, found in wrong.items()
        if found
    ]


def _stages(traces: tuple[str, ...], names: Mapping[int, str], truth: Mapping[str, Any]) -> list[StageResult]:
    identities = {Path(i["file_name"]).name: i["id"] for i in truth["images"]}
    chosen = {k: identities[Path(n).name] for k, n in names.items() if Path(n).name in identities}
    if len(chosen) < len(names):
        without = sorted(Path(n).name for k, n in names.items() if k not in chosen)
        return [_stage("bbox", Status.NOT_COMPARED, f"no annotations for {', '.join(without)}")]
    with ExitStack() as stack:
        sides = [stack.enter_context(Trace(t)) for t in traces]
        if any(_INSTANCES + "pred_boxes" not in t.images[k] for t in sides for k in chosen):
            return [_stage("bbox", Status.NOT_COMPARED, "the model has no detections")]
        masks = all(_INSTANCES + "pred_masks" in t.images[k] for t in sides for k in chosen)
        try:
            found = [_results(t, chosen, truth, masks) for t in sides]
        except ValueError as error:
            return [_stage("bbox", Status.ERROR, str(error))]
    boxes = _judge("bbox", found, chosen, truth)
    if not masks:
        return [boxes]
    bare = sum(not entry.get("segmentation") for entry in truth["annotations"])
    if bare:
        boxes.message += (
            f"; masks not judged: {bare} of {len(truth['annotations'])} annotations have no segmentation"
        )
        return [boxes]
    return [boxes, _judge("segm", found, chosen, truth)]


def _judge(
    kind: Kind, found: Sequence[list[dict[str, Any]]], chosen: Mapping[int, int], truth: Mapping[str, Any]
) -> StageResult:
    try:
        reference, candidate = (average_precision(truth, f, kind, list(chosen.values())) for f in found)
    except Exception as error:  # pycocotools raises bare ones; the rungs before are kept
        return _stage(kind, Status.ERROR, f"pycocotools: {type(error).__name__}: {error}")
    if min(reference, candidate) < 0:
        return _stage(kind, Status.NOT_COMPARED, "the pictures have no annotated objects")
    difference = abs(reference - candidate)
    text = f"AP {100 * reference:.2f} and {100 * candidate:.2f} on {len(chosen)} pictures"
    return _stage(kind, Status.PASS if difference <= _MAX_DIFFERENCE else Status.FAIL, text)


def _stage(kind: str, status: Status, message: str) -> StageResult:
    return StageResult(f"dataset/AP {kind}", "dataset", "set", status, message)


def average_precision(
    truth: Mapping[str, Any], results: list[dict[str, Any]], kind: Kind, images: Sequence[int]
) -> float:
    """COCO's AP (IoU 0.50 to 0.95) of results on some images, 0 to 1; -1 where nothing is annotated."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        expected = COCO()
        # A copy: the evaluation writes into what it is given.
        expected.dataset = json.loads(json.dumps(dict(truth)))
        expected.createIndex()
        if not results:
            annotated = any(a["image_id"] in set(images) for a in truth["annotations"])
            return 0.0 if annotated else -1.0
        listed: Any = results  # typed as a file name, but a list is taken as well
        evaluation = COCOeval(expected, expected.loadRes(listed), kind)
        evaluation.params.imgIds = list(images)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def _results(
    trace: Trace, chosen: Mapping[int, int], truth: Mapping[str, Any], masks: bool
) -> list[dict[str, Any]]:
    """Detections of a trace in COCO's result format."""
    categories = sorted(c["id"] for c in truth["categories"])
    results = []
    for k, identity in chosen.items():
        arrays = trace.images[k]
        boxes, scores, classes = (
            np.asarray(arrays[_INSTANCES + n], np.float64) for n in ("pred_boxes", "scores", "pred_classes")
        )
        if len(classes) and classes.max() >= len(categories):
            raise UsageError(
                f"the model found class {int(classes.max())}, but the annotations have {len(categories)} categories"
            )
        encoded = _encoded(arrays[_INSTANCES + "pred_masks"]) if masks else [{}] * len(boxes)
        for box, score, label, mask in zip(boxes, scores, classes, encoded, strict=True):
            x1, y1, x2, y2 = box.tolist()
            result = {
                "image_id": identity,
                "category_id": categories[int(label)],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(score),
            }
            results.append(result | mask)
    return results


def _encoded(masks: np.ndarray) -> list[dict[str, Any]]:
    from pycocotools import mask as coco_masks

    columns = (np.asfortranarray(m.astype(np.uint8)) for m in masks)
    return [{"segmentation": coco_masks.encode(m)} for m in columns]
