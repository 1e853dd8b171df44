"""Time and memory over pixels, batch, proposals and classes."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from parity.bench.bench import Subject
from parity.bench.suite.measuring import Suite, interleave, pair
from parity.bench.suite.models import MASK_RCNN, picture_file, prepare

BATCHES = (1, 2, 4, 8)
_SQUARES = (320, 480, 640, 800, 1024, 1440, 2048)  # pixels on a side
PROPOSALS = (100, 300, 1000, 2000, 5000)
_CLASSES = (1, 20, 80, 300, 1200)
PASTED = {"count": 100, "height": 3000, "width": 4000}


def curves_part(suite: Suite) -> dict[str, Any]:
    """Seconds against pixels, proposals and classes."""
    return {
        "pixels": _pixels_curve(suite),
        **{name: _model_curve(suite, name) for name in ("proposals", "classes")},
    }


def _pixels_curve(suite: Suite) -> dict[str, Any]:
    model = pixels_model(suite)
    sides = [int(Path(path).stem.split("x")[-1]) for path in model.images]
    options = suite.fewer(0.3, 0)
    out = _curve("pixels")
    with contextlib.ExitStack() as stack:
        workers = pair(stack, model, options, suite)
        for k, side in enumerate(sides):
            suite.say(f"pixels: {side} x {side}")
            interleave(suite, workers, replace(options, rounds=1), lambda w, k=k: w.ask("run", image=k))
            answers = interleave(suite, workers, options, lambda w, k=k: w.ask("run", image=k))
            _add_point(out, side * side, answers)
    return out


def pixels_model(suite: Suite) -> Subject:
    """The model of the main table, which takes pictures as large as they are, and square pictures."""
    unresized = ["INPUT.MIN_SIZE_TEST", 0]
    usual = ["INPUT.MIN_SIZE_TEST", min(suite.size)]
    (model,) = prepare([(MASK_RCNN, unresized)], suite.size, suite.work, suite.options, usual)
    sides = [max(64, int(n * suite.scale) // 32 * 32) for n in _SQUARES]
    images = [str(picture_file(suite.work, (n, n))) for n in dict.fromkeys(sides)]
    return replace(model, images=images)


def _model_curve(suite: Suite, name: str) -> dict[str, Any]:
    """A curve whose points are different models, on a smaller picture so that what varies shows."""
    values, models = curve_models(suite, name)
    options = suite.fewer(0.3, 0)
    out = _curve(name)
    with contextlib.ExitStack() as stack:
        workers = pair(stack, models[0], options, suite)
        for k, (value, model) in enumerate(zip(values, models, strict=True)):
            suite.say(f"{name}: {value}")
            for worker in workers.values():
                if k:
                    worker.ask("load", config_yaml=model.config, weights=model.weights)
            interleave(suite, workers, replace(options, rounds=2), lambda w: w.ask("run"))
            answers = interleave(suite, workers, options, lambda w: w.ask("run"))
            _add_point(out, value, answers)
    return out


def curve_models(suite: Suite, name: str) -> tuple[list[int], list[Subject]]:
    """The points of a curve and their models, for a picture of 3/5 of the usual sides."""
    size = (max(64, suite.size[0] * 3 // 160 * 32), max(64, suite.size[1] * 3 // 160 * 32))
    given = PROPOSALS if name == "proposals" else _CLASSES
    values = sorted({max(1, int(v * suite.scale)) for v in given})
    overrides = _limit_proposals if name == "proposals" else _number_of_classes
    shared = _limit_proposals(1000) if name == "proposals" else ()  # limits change no weights
    models = prepare([(MASK_RCNN, overrides(v)) for v in values], size, suite.work, suite.options, shared)
    return values, models


def _limit_proposals(count: int) -> list[Any]:
    """``count`` proposals, of which hardly any is suppressed."""
    return [
        "MODEL.RPN.POST_NMS_TOPK_TEST",
        count,
        "MODEL.RPN.PRE_NMS_TOPK_TEST",
        max(1000, count),
        "MODEL.RPN.NMS_THRESH",
        0.9,
    ]


def _number_of_classes(count: int) -> list[Any]:
    return ["MODEL.ROI_HEADS.NUM_CLASSES", count]


def _curve(name: str) -> dict[str, Any]:
    return {"name": name, "x": [], "sides": {}}


def _add_point(curve: dict[str, Any], x: int, answers: dict[str, list[dict[str, Any]]]) -> None:
    curve["x"].append(x)
    for name, runs in answers.items():
        side = curve["sides"].setdefault(name, {"seconds": [], "found": [], "peak_mib": []})
        side["seconds"].append([r["seconds"] for r in runs])
        side["found"].append(runs[-1]["detections"])
        side["peak_mib"].append(runs[-1]["peak_mib"])
