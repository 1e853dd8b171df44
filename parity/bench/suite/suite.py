"""The parts of ``tf-d2 bench --all``. Each measures one thing and is stored as one JSON file, so that parts can be
run again alone; tables and plots are made from the files (`parity.bench.suite.render`)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from parity.bench.bench import Options, Subject, agreement, run_sides, start, written
from parity.bench.results import Competitor, to_json
from parity.bench.suite.curves import BATCHES, PASTED, curve_models, curves_part, pixels_model
from parity.bench.suite.files import files_part
from parity.bench.suite.measuring import Suite, interleave, pair
from parity.bench.suite.models import FAMILIES, MASK_RCNN, families_named, jpeg_file, picture_file, prepare
from parity.core import machine
from parity.running.runner import resolved
from parity.running.sides import BackendError, Setup
from weights.errors import UsageError

SCHEMA = "tf-d2-bench/2"
_TRAINED_SIDES = ("tf", "tf-bfloat16")
_EXPORTED_SIDES = ("torchscript", "onnx", "openvino", "openvino-default", "openvino-torch")
_MAIN_SIDES = (*_EXPORTED_SIDES, "tf", "savedmodel", "savedmodel-untuned", "tf-bfloat16")
# The size of the exports' example, three that no multiple of 32 divides, and a small one that 32 divides.
_AGREEMENT_SIZES = ((800, 1216), (331, 597), (601, 901), (777, 1011), (480, 640))
# Sides of the table of agreement, and which of detectron2's exports they take: with free sizes where it can be had.
_AGREEMENT_SIDES = {
    "torchscript": "",
    "onnx": "onnx-free",
    "openvino": "onnx-free",
    "openvino-default": "onnx-free",
    "openvino-torch": "",
    "tf": "",
    "savedmodel": "",
}
_TRACE_SIZES = ((240, 320), (331, 477), (360, 480), (480, 360), (97, 603), (600, 800), (64, 64), (500, 375))


def run_parts(suite: Suite, names: Sequence[str]) -> list[Path]:
    """Measure the parts and write ``<output>/<part>.json`` as each is done. A part that fails is stored with its
    error, in place of old numbers. Raises ValueError for unknown names."""
    unknown = [n for n in names if n not in PARTS]
    if unknown:
        raise UsageError(f"no part is called {', '.join(unknown)}; known: {', '.join(PARTS)}")
    suite.output.mkdir(parents=True, exist_ok=True)
    suite.work.mkdir(parents=True, exist_ok=True)
    return [_run_part(suite, name) for name in names]


def _run_part(suite: Suite, name: str) -> Path:
    begin, error, data = time.monotonic(), "", {}
    suite.notes.clear()
    suite.say(f"== {name}")
    try:
        data = PARTS[name](suite)
    except Exception as problem:  # an hour of measuring must not be lost to one part
        error = str(problem) if isinstance(problem, BackendError) else f"{type(problem).__name__}: {problem}"
        suite.say(f"{name}: {error}")
    body = {
        "schema": SCHEMA,
        "part": name,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "machine": machine.facts(),
        "threads": suite.options.threads,
        "size": list(suite.size),
        "command": suite.command,
        "error": error,
        "notes": list(suite.notes),
        "data": data,
    }
    path = suite.output / f"{name}.json"
    path.write_text(json.dumps(tidy(body), indent=1) + "\n")
    suite.say(f"{name}: {body['minutes']} minutes")
    return path


def tidy(value: Any) -> Any:
    """For files that are kept: numbers with five significant digits, texts on one line and without the paths of
    this machine."""
    if isinstance(value, str):
        return re.sub(r"(?<![\w./])/(?:[\w.+@-]+/)+", "", " ".join(value.split()))[:500]
    if isinstance(value, float):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    if isinstance(value, dict):
        return {k: tidy(v) for k, v in value.items()}
    return [tidy(v) for v in value] if isinstance(value, (list, tuple)) else value


def prepare_all(suite: Suite) -> None:
    """Make every model, picture and export of detectron2 that the parts need and keep between runs, so that a
    measurement need not. Raises BackendError."""
    suite.work.mkdir(parents=True, exist_ok=True)
    (model,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    for form in ("torchscript", "onnx", "onnx-free", "openvino") if suite.reference == "detectron2" else ():
        suite.say(f"exporting: {form}")
        try:
            written(form, model, suite.options)
        except BackendError as error:
            suite.say(f"{form}: {error}")
    for family in FAMILIES:
        try:
            prepare([(family, ())], suite.size, suite.work, suite.options)
        except BackendError as error:
            suite.say(f"{family.title}: {error}")
    pixels_model(suite)
    for name in ("proposals", "classes"):
        curve_models(suite, name)
    for size in (*_TRACE_SIZES, *_AGREEMENT_SIZES, suite.size):
        picture_file(suite.work, size)
    for size in _jpeg_sizes(suite):
        jpeg_file(suite.work, size)


def _main_part(suite: Suite) -> dict[str, Any]:
    """Every way to run Mask R-CNN R50-FPN."""
    (model,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    exports = _MAIN_SIDES if suite.reference == "detectron2" else _MAIN_SIDES[len(_EXPORTED_SIDES) :]
    sides = [suite.reference, *exports, *(("compile",) if suite.compiled else ())]
    bench = run_sides(model, sides, suite.options)
    trained = run_sides(_demo(suite), [suite.reference, *_TRAINED_SIDES], suite.fewer(0.3))
    return {"bench": to_json(bench), "trained": to_json(trained), "reference": suite.reference}


def _agreement_part(suite: Suite) -> dict[str, Any]:
    """The detections of every way to run Mask R-CNN R50-FPN, against detectron2 eager, at several sizes of the
    network's input, the first of which is the one that the exports were made with."""
    model = pixels_model(suite)
    model = replace(model, images=[str(picture_file(suite.work, size)) for size in _AGREEMENT_SIZES])
    out: dict[str, Any] = {"sizes": [list(size) for size in _AGREEMENT_SIZES], "sides": {}}
    truth: list[dict[str, Any]] = []
    wanted = _AGREEMENT_SIDES if suite.reference == "detectron2" else {"tf": "", "savedmodel": ""}
    for name, form in {suite.reference: "", **wanted}.items():
        cells = []
        for k, found in enumerate(_found_at_sizes(suite, model, name, form)):
            if name == suite.reference:
                truth.append(found)
            if "boxes" not in truth[k] or "boxes" not in found:
                cells.append({"error": str(found.get("error", "the reference gave no answer"))})
                continue
            cells.append({**asdict(agreement(truth[k], found)), "seconds": float(found["seconds"])})
        out["sides"][name] = cells
    return out


def _found_at_sizes(suite: Suite, model: Subject, name: str, form: str) -> list[dict[str, Any]]:
    """Detections of one side for every picture of the model, or {"error"}. A side whose process ends at a picture is
    started again for the next."""
    out: list[dict[str, Any]] = []
    pictures = range(len(model.images))
    while len(out) < len(pictures):
        with contextlib.ExitStack() as stack:
            try:
                target = f":{written(form, model, suite.options)}" if form else ""
                worker = start(stack, name + target, model, suite.options)
            except BackendError as error:
                return out + [{"error": str(error)}] * (len(pictures) - len(out))
            try:
                for k in pictures[len(out) :]:
                    suite.say(f"{name}: picture {k + 1} of {len(pictures)}")
                    seconds = min(worker.ask("run", image=k)["seconds"] for _ in range(2))
                    path = model.folder / f"found_{k}.npz"
                    worker.ask("keep", path=str(path))
                    out.append({**np.load(path), "seconds": seconds})
            except BackendError as error:
                out.append({"error": str(error)})
    return out


def _families_part(suite: Suite) -> dict[str, Any]:
    """One model of every family, detectron2 against us. A family that cannot be run is left out with a note."""
    out: list[dict[str, Any]] = []
    for family in families_named(suite.families):
        try:
            (model,) = prepare([(family, ())], suite.size, suite.work, suite.options)
            bench = run_sides(model, [suite.reference, "tf"], suite.fewer(0.5))
        except BackendError as error:
            suite.note(f"{family.title} is left out: {error}")
            continue
        out.append({"key": family.key, **to_json(bench)})
    ratios = [b["sides"][1]["ratio"] for b in out if len(b["sides"]) > 1 and b["sides"][1]["ratio"]]
    return {"benches": out, "median_ratio": median(ratios) if ratios else None}


def _endtoend_part(suite: Suite) -> dict[str, Any]:
    """From JPEG bytes to masks of the picture, in parts; and masks pasted into a large picture."""
    (model,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    options = suite.fewer(0.5)
    out: dict[str, Any] = {"pictures": [], "paste": {}}
    with contextlib.ExitStack() as stack:
        workers = pair(stack, model, options, suite)
        for size in _jpeg_sizes(suite):
            path = str(jpeg_file(suite.work, size))
            answers = interleave(suite, workers, options, lambda w, p=path: w.ask("phases", path=p))
            out["pictures"].append({"size": list(size), "sides": _phases(answers)})
        runs = interleave(suite, workers, options, lambda w: w.ask("paste", **PASTED))
    out["paste"] = {
        **PASTED,
        "sides": {
            n: {"seconds": [a["seconds"] for a in r], "extra_mib": r[-1]["extra_mib"]}
            for n, r in runs.items()
        },
    }
    return out


def _jpeg_sizes(suite: Suite) -> list[tuple[int, int]]:
    """A picture that needs no resizing, one that is shrunk, and a small one that is enlarged."""
    return [suite.size, (2 * suite.size[0], 2 * suite.size[1]), (480, 640)]


def _phases(answers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median seconds of every phase and of the whole, per side."""
    out = {}
    for name, runs in answers.items():
        parts = {key: median(r["parts"][key] for r in runs) for key in runs[0]["parts"]}
        out[name] = {"seconds": [r["seconds"] for r in runs], "parts": parts, "found": runs[-1]["detections"]}
    return out


def _batch_part(suite: Suite) -> dict[str, Any]:
    """Images per second at several batch sizes: detectron2's model on a list, our export on a batch."""
    (model,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    options = suite.fewer(0.3)
    out: dict[str, Any] = {"batches": [], "sides": {}}
    with contextlib.ExitStack() as stack:
        workers = pair(stack, model, options, suite, "savedmodel")
        for size in BATCHES:
            answers = interleave(suite, workers, options, lambda w, n=size: w.ask("batch", size=n))
            out["batches"].append(size)
            for name, runs in answers.items():
                side = out["sides"].setdefault(name, {"seconds": [], "peak_mib": []})
                side["seconds"].append([r["seconds"] for r in runs])
                side["peak_mib"].append(runs[-1]["peak_mib"])
    return out


def _startup_part(suite: Suite) -> dict[str, Any]:
    """The demo from a cold start, converting a checkpoint, and traces across sizes."""
    images = [str(picture_file(suite.work, s)) for s in _TRACE_SIZES]
    model = _demo(suite)
    starts = _cold_starts(suite, model)
    (zoo,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    with contextlib.ExitStack() as stack:
        worker = start(stack, "tf", replace(model, images=images), suite.options)
        for k in range(len(images)):
            worker.ask("run", image=k)
        traces = worker.ask("traces")["traces"]
        suite.say("converting")
        conversions = [worker.ask("convert", source=zoo.weights, config_yaml=zoo.config) for _ in range(3)]
    keys = ("seconds", "read_seconds", "bytes", "tensors")
    return {
        "starts": starts,
        "traces": {"sizes": len(images), "traces": traces},
        "convert": {key: [c[key] for c in conversions] for key in keys},
    }


def _demo(suite: Suite) -> Subject:
    """The embedded model, which is a trained one, and its picture."""
    from parity.core.demo import embedded_demo

    demo, folder = embedded_demo(), suite.work / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(str(demo / "shapes.yaml"), str(demo / "shapes.pkl"), [str(demo / "shapes.png")])
    setup = resolved(setup, folder, suite.say)
    return Subject(setup.config, setup.weights or "", setup.images, folder, setup.state, "the demo (trained)")


def _cold_starts(suite: Suite, model: Subject) -> dict[str, Any]:
    """Three cold starts of each side, in turn."""
    names = [suite.reference, "tf"]
    starts: dict[str, Any] = {name: {"seconds": [], "parts": []} for name in names}
    for k in range(3):
        for name in names[:: 1 if k % 2 == 0 else -1]:
            suite.say(f"start {k + 1} of 3: {name}")
            try:
                seconds, parts = _cold_start(name, model, suite.options)
            except BackendError as error:
                if name == "tf":
                    raise
                suite.note(f"{name} is left out: {error}")
                continue
            starts[name]["seconds"].append(seconds)
            starts[name]["parts"].append(parts)
    return {name: found for name, found in starts.items() if found["seconds"]}


def _cold_start(name: str, model: Subject, options: Options) -> tuple[float, dict[str, float]]:
    """Seconds from starting the process to the first answer; and those of loading and of the first run alone."""
    side = Competitor(name)
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        worker = start(stack, name, model, options, side)
        first = worker.ask("run")["seconds"]
        seconds = time.monotonic() - begin
    return seconds, {"load": side.load_seconds, "first": first}


def _profile_part(suite: Suite) -> dict[str, Any]:
    """Where TensorFlow's time goes. Operations run one after the other here, each on all threads, so that their
    times add up to the whole."""
    (model,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    options = replace(suite.options, inter_threads=1)
    with contextlib.ExitStack() as stack:
        return {"title": model.title, **start(stack, "tf", model, options).ask("profile", runs=3)}


def _gpu_part(suite: Suite) -> dict[str, Any]:
    """Both frameworks on a GPU, TF32 off and on, and how many kernels ROIAlign starts. Where there is no GPU the
    answer says so."""
    (model,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    out: dict[str, Any] = {"benches": [], "launches": None}
    options = replace(suite.options, device="gpu")
    for tf32 in (False, True):
        bench = run_sides(model, [suite.reference, "tf"], replace(options, tf32=tf32))
        if not any(side.seconds for side in bench.sides):
            return {"unavailable": "; ".join(f"{s.name}: {s.error}" for s in bench.sides)}
        out["benches"].append({"tf32": tf32, **to_json(bench)})
    with contextlib.ExitStack() as stack:
        try:
            out["launches"] = start(stack, "tf", model, options).ask("launches")
        except BackendError as error:
            suite.say(f"launches: {error}")
    return out


PARTS: dict[str, Callable[[Suite], dict[str, Any]]] = {
    "main": _main_part,
    "agreement": _agreement_part,
    "families": _families_part,
    "endtoend": _endtoend_part,
    "batch": _batch_part,
    "files": files_part,
    "curves": curves_part,
    "startup": _startup_part,
    "profile": _profile_part,
    "gpu": _gpu_part,
}


def default_work() -> Path:
    """Where models and pictures are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tf_d2" / "bench"
