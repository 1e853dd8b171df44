"""The parts of ``tf-d2 bench --all``. Each measures one thing and is stored as one JSON file, so that parts can be
run again alone; tables and plots are made from the files (`parity.bench.suite.render`)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from parity.bench.bench import (
    Model,
    Options,
    Side,
    Worker,
    agreement,
    run_sides,
    start,
    to_json,
    written,
)
from parity.bench.suite.models import FAMILIES, MASK_RCNN, jpeg_file, picture_file, prepare
from parity.core import machine
from parity.running.runner import BackendError, Setup, auto_reference, resolved
from weights.errors import UsageError

SCHEMA = "tf-d2-bench/2"
TRAINED_SIDES = ("tf", "tf-bfloat16")
EXPORTED_SIDES = ("torchscript", "onnx", "openvino", "openvino-default", "openvino-torch")
MAIN_SIDES = (*EXPORTED_SIDES, "tf", "savedmodel", "tf-bfloat16")
BATCHES = (1, 2, 4, 8)
SQUARES = (320, 480, 640, 800, 1024, 1440, 2048)  # pixels on a side
PROPOSALS = (100, 300, 1000, 2000, 5000)
CLASSES = (1, 20, 80, 300, 1200)
PASTED = {"count": 100, "height": 3000, "width": 4000}
# The size of the exports' example, three that no multiple of 32 divides, and a small one that 32 divides.
AGREEMENT_SIZES = ((800, 1216), (331, 597), (601, 901), (777, 1011), (480, 640))
# Sides of the table of agreement, and which of detectron2's exports they take: with free sizes where it can be had.
AGREEMENT_SIDES = {
    "torchscript": "",
    "onnx": "onnx-free",
    "openvino": "onnx-free",
    "openvino-default": "onnx-free",
    "openvino-torch": "",
    "tf": "",
    "savedmodel": "",
}
TRACE_SIZES = ((240, 320), (331, 477), (360, 480), (480, 360), (97, 603), (600, 800), (64, 64), (500, 375))


@dataclass(frozen=True)
class Suite:
    """What to measure with. ``size``: (height, width) of the picture and of the network's input; ``work``: folder
    for models, pictures and exports, kept; ``rounds``: of the main table, other parts run fewer; ``scale``
    multiplies the sizes, batches, proposals and classes of the curves (small for a trial run)."""

    output: Path
    work: Path
    options: Options
    size: tuple[int, int] = (800, 1216)
    compiled: bool = False
    families: Sequence[str] = ()
    scale: float = 1.0
    command: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def reference(self) -> str:
        """detectron2 where the interpreter has it, else our own PyTorch reference."""
        return auto_reference(self.options.interpreter).name

    def fewer(self, share: float, warmup: int = 1) -> Options:
        """Options for a part that takes a share of the rounds, at least two."""
        return replace(self.options, rounds=max(2, round(self.options.rounds * share)), warmup=warmup)

    def note(self, text: str) -> None:
        """Something a reader of the results must know."""
        self.notes.append(text)
        self.say(text)

    def say(self, text: str) -> None:
        """Progress."""
        self.options.progress(text)


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
        prepare([(family, ())], suite.size, suite.work, suite.options)
    _pixels_model(suite)
    for name in ("proposals", "classes"):
        _curve_models(suite, name)
    for size in (*TRACE_SIZES, *AGREEMENT_SIZES, suite.size):
        picture_file(suite.work, size)
    for size in _jpeg_sizes(suite):
        jpeg_file(suite.work, size)


# === Parts ===


def main_part(suite: Suite) -> dict[str, Any]:
    """Every way to run Mask R-CNN R50-FPN."""
    (model,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    exports = MAIN_SIDES if suite.reference == "detectron2" else MAIN_SIDES[len(EXPORTED_SIDES) :]
    sides = [suite.reference, *exports, *(("compile",) if suite.compiled else ())]
    bench = run_sides(model, sides, suite.options)
    trained = run_sides(_demo(suite), [suite.reference, *TRAINED_SIDES], suite.fewer(0.3))
    return {"bench": to_json(bench), "trained": to_json(trained), "reference": suite.reference}


def agreement_part(suite: Suite) -> dict[str, Any]:
    """The detections of every way to run Mask R-CNN R50-FPN, against detectron2 eager, at several sizes of the
    network's input, the first of which is the one that the exports were made with."""
    model = _pixels_model(suite)
    model = replace(model, images=[str(picture_file(suite.work, size)) for size in AGREEMENT_SIZES])
    out: dict[str, Any] = {"sizes": [list(size) for size in AGREEMENT_SIZES], "sides": {}}
    truth: list[dict[str, Any]] = []
    wanted = AGREEMENT_SIDES if suite.reference == "detectron2" else {"tf": "", "savedmodel": ""}
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


def _found_at_sizes(suite: Suite, model: Model, name: str, form: str) -> list[dict[str, Any]]:
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


def families_part(suite: Suite) -> dict[str, Any]:
    """One model of every family, detectron2 against us."""
    chosen = [f for f in FAMILIES if not suite.families or any(w in f.key for w in suite.families)]
    out: list[dict[str, Any]] = []
    for family in chosen:
        (model,) = prepare([(family, ())], suite.size, suite.work, suite.options)
        bench = run_sides(model, [suite.reference, "tf"], suite.fewer(0.5))
        out.append({"key": family.key, **to_json(bench)})
    ratios = [b["sides"][1]["ratio"] for b in out if len(b["sides"]) > 1 and b["sides"][1]["ratio"]]
    return {"benches": out, "median_ratio": median(ratios) if ratios else None}


def endtoend_part(suite: Suite) -> dict[str, Any]:
    """From JPEG bytes to masks of the picture, in parts; and masks pasted into a large picture."""
    (model,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    options = suite.fewer(0.5)
    out: dict[str, Any] = {"pictures": [], "paste": {}}
    with contextlib.ExitStack() as stack:
        workers = _pair(stack, model, options, suite)
        for size in _jpeg_sizes(suite):
            path = str(jpeg_file(suite.work, size))
            answers = _interleave(suite, workers, options, lambda w, p=path: w.ask("phases", path=p))
            out["pictures"].append({"size": list(size), "sides": _phases(answers)})
        runs = _interleave(suite, workers, options, lambda w: w.ask("paste", **PASTED))
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


def batch_part(suite: Suite) -> dict[str, Any]:
    """Images per second at several batch sizes: detectron2's model on a list, our export on a batch."""
    (model,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    options = suite.fewer(0.3)
    out: dict[str, Any] = {"batches": [], "sides": {}}
    with contextlib.ExitStack() as stack:
        workers = _pair(stack, model, options, suite, "savedmodel")
        for size in BATCHES:
            answers = _interleave(suite, workers, options, lambda w, n=size: w.ask("batch", size=n))
            out["batches"].append(size)
            for name, runs in answers.items():
                side = out["sides"].setdefault(name, {"seconds": [], "peak_mib": []})
                side["seconds"].append([r["seconds"] for r in runs])
                side["peak_mib"].append(runs[-1]["peak_mib"])
    return out


def curves_part(suite: Suite) -> dict[str, Any]:
    """Seconds against pixels, proposals and classes."""
    return {
        "pixels": _pixels_curve(suite),
        **{name: _model_curve(suite, name) for name in ("proposals", "classes")},
    }


def _pixels_curve(suite: Suite) -> dict[str, Any]:
    model = _pixels_model(suite)
    sides = [int(Path(path).stem.split("x")[-1]) for path in model.images]
    options = suite.fewer(0.3, 0)
    out = _curve("pixels")
    with contextlib.ExitStack() as stack:
        workers = _pair(stack, model, options, suite)
        for k, side in enumerate(sides):
            suite.say(f"pixels: {side} x {side}")
            _interleave(suite, workers, replace(options, rounds=1), lambda w, k=k: w.ask("run", image=k))
            answers = _interleave(suite, workers, options, lambda w, k=k: w.ask("run", image=k))
            _add_point(out, side * side, answers)
    return out


def _pixels_model(suite: Suite) -> Model:
    """The model of the main table, which takes pictures as large as they are, and square pictures."""
    unresized = ["INPUT.MIN_SIZE_TEST", 0]
    usual = ["INPUT.MIN_SIZE_TEST", min(suite.size)]
    (model,) = prepare([(MASK_RCNN, unresized)], suite.size, suite.work, suite.options, usual)
    sides = [max(64, int(n * suite.scale) // 32 * 32) for n in SQUARES]
    images = [str(picture_file(suite.work, (n, n))) for n in dict.fromkeys(sides)]
    return replace(model, images=images)


def _model_curve(suite: Suite, name: str) -> dict[str, Any]:
    """A curve whose points are different models, on a smaller picture so that what varies shows."""
    values, models = _curve_models(suite, name)
    options = suite.fewer(0.3, 0)
    out = _curve(name)
    with contextlib.ExitStack() as stack:
        workers = _pair(stack, models[0], options, suite)
        for k, (value, model) in enumerate(zip(values, models, strict=True)):
            suite.say(f"{name}: {value}")
            for worker in workers.values():
                if k:
                    worker.ask("load", config_yaml=model.config, weights=model.weights)
            _interleave(suite, workers, replace(options, rounds=2), lambda w: w.ask("run"))
            answers = _interleave(suite, workers, options, lambda w: w.ask("run"))
            _add_point(out, value, answers)
    return out


def _curve_models(suite: Suite, name: str) -> tuple[list[int], list[Model]]:
    """The points of a curve and their models, for a picture of 3/5 of the usual sides."""
    size = (max(64, suite.size[0] * 3 // 160 * 32), max(64, suite.size[1] * 3 // 160 * 32))
    given = PROPOSALS if name == "proposals" else CLASSES
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


def startup_part(suite: Suite) -> dict[str, Any]:
    """The demo from a cold start, converting a checkpoint, and traces across sizes."""
    images = [str(picture_file(suite.work, s)) for s in TRACE_SIZES]
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


def _demo(suite: Suite) -> Model:
    """The embedded model, which is a trained one, and its picture."""
    from parity.selftest.mutation_run import embedded_demo

    demo, folder = embedded_demo(), suite.work / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(str(demo / "shapes.yaml"), str(demo / "shapes.pkl"), [str(demo / "shapes.png")])
    setup = resolved(setup, folder, suite.say)
    return Model(setup.config, setup.weights or "", setup.images, folder, setup.state, "the demo (trained)")


def _cold_starts(suite: Suite, model: Model) -> dict[str, Any]:
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


def _cold_start(name: str, model: Model, options: Options) -> tuple[float, dict[str, float]]:
    """Seconds from starting the process to the first answer; and those of loading and of the first run alone."""
    side = Side(name)
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        worker = start(stack, name, model, options, side)
        first = worker.ask("run")["seconds"]
        seconds = time.monotonic() - begin
    return seconds, {"load": side.load_seconds, "first": first}


def profile_part(suite: Suite) -> dict[str, Any]:
    """Where TensorFlow's time goes. Operations run one after the other here, each on all threads, so that their
    times add up to the whole."""
    (model,) = prepare([(MASK_RCNN, ())], suite.size, suite.work, suite.options)
    options = replace(suite.options, inter_threads=1)
    with contextlib.ExitStack() as stack:
        return {"title": model.title, **start(stack, "tf", model, options).ask("profile", runs=3)}


def gpu_part(suite: Suite) -> dict[str, Any]:
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
    "main": main_part,
    "agreement": agreement_part,
    "families": families_part,
    "endtoend": endtoend_part,
    "batch": batch_part,
    "curves": curves_part,
    "startup": startup_part,
    "profile": profile_part,
    "gpu": gpu_part,
}


# === Common ===


def _pair(
    stack: contextlib.ExitStack, model: Model, options: Options, suite: Suite, ours: str = "tf"
) -> dict[str, Worker]:
    """The reference and one of our sides, loaded. The reference is left out, and a note says so, where it cannot be
    started."""
    workers: dict[str, Worker] = {}
    for name in (suite.reference, ours):
        try:
            workers[name] = start(stack, name, model, options)
        except BackendError as error:
            if name == ours:
                raise
            suite.note(f"{name} is left out: {error}")
    return workers


def _interleave(
    suite: Suite, workers: dict[str, Worker], options: Options, act: Callable[[Worker], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """``act`` on every worker in turn, round by round, beginning with the next one each time; the answers of the
    rounds that count. A reference that cannot do it leaves, with a note; ours must."""
    out: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for k in range(options.warmup + options.rounds):
        names = list(workers)
        for name in names[k % len(names) :] + names[: k % len(names)]:
            try:
                answer = act(workers[name])
            except BackendError as error:
                if name == names[-1]:
                    raise
                workers.pop(name)
                out.pop(name)
                suite.note(f"{name} is left out: {error}")
                continue
            if k >= options.warmup:
                out[name].append(answer)
    return out


def default_work() -> Path:
    """Where models and pictures are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tf_d2" / "bench"
