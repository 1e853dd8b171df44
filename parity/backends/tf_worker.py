"""The TensorFlow side of parity: runs a model of tf_d2 and writes one trace. The only module that imports
tf_d2.

    python -m parity.backends.tf_worker --job JOB.json

A job is what `parity.core.job` describes and, beyond that: ``mode`` ("trace", "mutations" to run every bug of
``mutations`` in turn, or "resolve" to write out the full configuration and the state dict for workers that
cannot read the user's files), ``backend`` (tf, tf-eager, savedmodel, serving), ``target`` (directory or URL
of the last two), ``opts``, ``dtype`` and ``mutate`` (a planted bug by name). Progress and errors are JSON
lines on standard output. Exit status: 0 written, 2 failed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from parity.core import feed as feeds
from parity.core import job as jobs
from parity.core import machine
from parity.core.job import Job
from parity.core.trace import Trace, TraceWriter
from parity.core.units import Unit, forced_name, units

DTYPES = {"semantic": "float64", "strict": "float32", "production": "float32"}


def say(event: str, **values: Any) -> None:
    """One line of progress for the process that started this one."""
    print(json.dumps({"event": event, **values}), flush=True)


@dataclass(frozen=True)
class Request:
    """A job and what only this worker understands."""

    job: Job
    mode: str = "trace"
    backend: str = "tf"
    target: str = ""
    opts: tuple[Any, ...] = ()
    dtype: str = ""
    mutate: str = ""
    mutations: tuple[str, ...] = ()
    folder: str = "."  # of the user, who names files relative to it
    ignore_keys: tuple[str, ...] = ()
    ignore_tensors: tuple[str, ...] = ()
    prefix: str | None = None


def read_request(path: str) -> Request:
    """The request in a JSON file. Raises JobError naming what is missing, unknown or wrong."""
    value = json.loads(Path(path).read_text(encoding="utf-8"))
    own: dict[str, Any] = {f.name: value.pop(f.name) for f in fields(Request) if f.name in value}
    known = {f.name for f in fields(Job)}
    if unknown := sorted(set(value) - known):
        raise jobs.JobError(f"job {path} has unknown entries: {', '.join(unknown)}")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    own |= {key: tuple(own.get(key) or ()) for key in ("opts", "mutations", "ignore_keys", "ignore_tensors")}
    return Request(Job(**given), **own)


def configure(job: Job) -> None:
    """Environment variables that must be set before TensorFlow is imported."""
    if job.threads is not None:
        for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ[name] = str(job.threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    elif job.profile != "production":
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"


def set_flags(job: Job) -> dict[str, Any]:
    """Set precision and determinism in TensorFlow, prove that they took effect, and return what holds.

    Raises RuntimeError when the device is missing or a flag did not take effect.
    """
    import tensorflow as tf

    profile, device = job.profile, job.device
    gpus = tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise RuntimeError(f"device gpu: TensorFlow {tf.__version__} sees no GPU on this machine")
    if profile != "production":
        tf.config.experimental.enable_tensor_float_32_execution(False)
        tf.config.experimental.enable_op_determinism()
        tf.random.set_seed(0)
    rounding = _matmul_rounding()
    if profile != "production" and rounding > 2.0**-14:
        raise RuntimeError(
            f"reduced precision is active although switched off: a product lost {rounding:.1e}"
        )
    return {
        "tf32_allowed": tf.config.experimental.tensor_float_32_execution_enabled(),
        "determinism": profile != "production",
        "onednn": onednn_in_use(),
        "canaries": {"matmul_error": rounding, "reduced_precision": rounding > 2.0**-14},
        "devices": [d.name for d in gpus] if device == "gpu" else ["CPU"],
        "gpu": [tf.config.experimental.get_device_details(d).get("device_name", "") for d in gpus],
    }


def onednn_in_use() -> bool | None:
    """Whether TensorFlow computes with oneDNN, by its own choice or as TF_ENABLE_ONEDNN_OPTS says; None where this
    version does not tell."""
    try:
        from tensorflow.python.util import _pywrap_util_port as port
    except ImportError:
        return None
    return bool(port.IsMklEnabled())


def _matmul_rounding() -> float:
    """Canary: relative error of a product of numbers that need 13 bits of mantissa. TF32 and bfloat16 lose
    them."""
    import tensorflow as tf

    exact = 1.0 + 2.0**-13
    a = tf.fill([64, 64], tf.constant(exact, tf.float32))
    product = tf.linalg.matmul(a, tf.eye(64))
    return float(tf.reduce_max(tf.abs(product - exact)))


class TensorFlowModel:
    """tf_d2.Predictor, as a tf.function or eagerly."""

    scope = "all"

    def __init__(self, request: Request) -> None:
        import tensorflow as tf

        import tf_d2

        if request.backend == "tf-eager" or request.mutate or request.mutations:
            tf.config.run_functions_eagerly(True)
        job = request.job
        self.dtype: Any = request.dtype or DTYPES[job.profile]
        self.predictor = tf_d2.Predictor(
            job.config_yaml, job.weights, dtype=self.dtype, opts=request.opts, fold_norms=False
        )
        if self.dtype != "float64":
            self.predictor.model.fold_norms()
        self.version = tf_d2.__version__
        config, _ = jobs.read_config(job.config_yaml)
        self.known = {name for unit in units(config) for name in (*unit.inputs, *unit.outputs)}

    @property
    def tensors(self) -> dict[str, str]:
        """Hash of every weight as the model holds it now, under detectron2's keys and in its layout."""
        import weights

        held = variables(self.predictor.model)
        arrays = {path: np.asarray(value, np.float32) for path, value in held.items()}
        return {k: jobs.tensor_hash(v) for k, v in weights.to_state_dict(arrays).items()}

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[dict[str, np.ndarray], list]:
        """Every stage and the results of one image, by trace name, and the panoptic segments."""
        given = {} if proposals is None else {"proposals": proposals}
        traced = self.predictor.trace(image, rescaled=False, **given)
        arrays = {"input/image": image}
        for name, value in traced.items():
            arrays[name if name.startswith("input/") else f"steps/{name}"] = value
        outputs, segments = named_outputs(self.predictor(image, **given))
        # A model may record more than the table has (every step of PointRend), which the other side does not.
        return {k: v for k, v in (arrays | outputs).items() if k in self.known}, segments

    def forced(self, unit: Unit, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """One unit on given inputs."""
        outputs = self.predictor.run_op(unit.op, unit.args, inputs)
        return list(outputs)[: len(unit.outputs)]  # the panoptic unit also returns its segment list


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
        segments = [{k: _plain(v) for k, v in s.items()} for s in result["panoptic_seg"][1]]
    return arrays, segments


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def trace(request: Request) -> None:
    """Run every image of the job and write the trace."""
    started = time.perf_counter()
    flags = set_flags(request.job)
    model = make_model(request)
    facts = {"flags": flags, "load_seconds": time.perf_counter() - started}
    with planted(request.mutate, model):
        write_trace(request, model, request.job.output, facts)


def planted(name: str, model: Any) -> contextlib.AbstractContextManager[None]:
    """The model with the bug called ``name`` ("": none)."""
    if not name:
        return contextlib.nullcontext()
    from parity.selftest.tf_mutations import plant

    return plant(name, model.predictor)


def mutations(request: Request) -> None:
    """One trace for each bug of the request, named ``<output>.<bug>.h5``; "identity" is the model as it
    is."""
    facts = {"flags": set_flags(request.job)}
    model = make_model(request)
    for name in request.mutations:
        path = f"{request.job.output}.{name}.h5"
        try:
            with planted("" if name == "identity" else name, model):
                write_trace(request, model, path, facts)
        except Exception as error:
            say("mutant", name=name, error=f"{type(error).__name__}: {error}")
            continue
        say("mutant", name=name, trace=path)
    Path(request.job.output).write_text("done")


def write_trace(request: Request, model: Any, output: str, facts: dict[str, Any]) -> None:
    """Run every image of the job and write the trace to ``output``."""
    job = request.job
    config, text = jobs.read_config(job.config_yaml)
    pictures = [read_image(p) for p in job.images]
    feed = Trace(job.feed) if job.feed else None
    runs: list[dict[str, Any]] = []
    with TraceWriter(output, len(pictures), job.roi_rows) as writer:
        for k, picture in enumerate(pictures):
            say("progress", done=k, of=len(pictures), what=Path(job.images[k]).name)
            runs.append(run_image(model, job, feed, writer, k, picture))
            if feed is not None and model.scope == "all":
                given = feeds.given_to(units(config), feed.images[k], job.profile)
                runs[-1]["derived"] = run_forced(model, units(config), given, writer, k)
                runs[-1]["inputs"] = feeds.hashes(given)
        told = jobs.base_manifest(request.backend, job, pictures, model.tensors)
        told["versions"] |= versions(model)
        told |= {"dtype": model.dtype, "scope": model.scope, "machine": machine.facts()}
        told |= {"mutation": request.mutate or None, **facts, **summary(job, runs)}
        if feed is not None and model.scope == "all":
            inputs, derived = ([run[key] for run in runs] for key in ("inputs", "derived"))
            told["forced"] = feeds.entry(feed, inputs, derived)
        writer.finish(told, text)
    if feed is not None:
        feed.close()


def run_image(
    model: Any, job: Job, feed: Trace | None, writer: TraceWriter, k: int, picture: np.ndarray
) -> dict[str, Any]:
    """Run one image as often as the job says and store the first run."""
    proposals = proposals_of(job, feed, k)
    first: dict[str, np.ndarray] = {}
    seconds: list[float] = []
    unstable: set[str] = set()
    for run in range(job.repeat):
        begin = time.perf_counter()
        arrays, segments = model.run(picture, proposals)
        seconds.append(time.perf_counter() - begin)
        if run:
            unstable.update(jobs.differing(first, arrays))
            continue
        first = arrays
        for name, value in arrays.items():
            writer.put(name, value, k)
        if "output/panoptic_seg" in arrays:
            writer.put_segments_info(segments, k)
    return {"seconds": seconds, "nondeterministic": sorted(unstable)}


def summary(job: Job, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Manifest entries about time, memory and repeatability."""
    unstable = sorted({name for run in runs for name in run["nondeterministic"]})
    return {
        "seconds": [run["seconds"] for run in runs],
        "peak_memory": {"resident": int(machine.peak_memory_mib() * 2**20)},
        "repeat": {"runs": job.repeat, "nondeterministic": unstable},
        "threads": {"intra_op": job.threads},
    }


def versions(model: Any) -> dict[str, str]:
    """Versions of what computed."""
    import keras
    import tensorflow as tf

    return {"tensorflow": tf.__version__, "keras": keras.__version__, "tf-d2": model.version}


def variables(model: Any) -> dict[str, np.ndarray]:
    """Every variable of a tf_d2 model by its path."""
    return {v.path.removeprefix("model/"): np.asarray(v) for v in model._all_variables()}


def read_image(path: str) -> np.ndarray:
    """A picture, read by tf_d2 itself; .npy files hold the pixels already."""
    import tf_d2

    return jobs.read_image(path) if path.endswith(".npy") else tf_d2.read_image(path)


def make_model(request: Request) -> Any:
    """The backend of the request. Each has ``run``, ``scope``, ``tensors``, ``dtype`` and ``version``."""
    if request.backend in ("tf", "tf-eager"):
        return TensorFlowModel(request)
    from parity.backends import tf_served

    return tf_served.make_model(request)


def proposals_of(job: Job, feed: Trace | None, k: int) -> np.ndarray | None:
    """Boxes in network pixels for a model without a proposal generator: of the job, or of the fed trace."""
    if job.proposals:
        return jobs.read_proposals(job.proposals[k])
    if feed is not None and "steps/input_proposals" in feed.images[k]:
        return feed.images[k]["steps/input_proposals"]
    return None


def run_forced(
    model: Any, table: Sequence[Unit], feed: Mapping[str, np.ndarray], writer: TraceWriter, k: int
) -> dict[str, list[str]]:
    """Every unit again on the fed trace's arrays. An array the feed lacks is computed from those it has;
    which stages needed that is returned. A unit whose inputs can be neither read nor computed is left out."""
    computed: dict[str, np.ndarray] = {}
    derived: dict[str, list[str]] = {}
    for unit in table:
        inputs = [feed[n] if n in feed else computed.get(n) for n in unit.inputs]
        if any(x is None for x in inputs):
            continue
        outputs = model.forced(unit, [x for x in inputs if x is not None])
        lacking = [n for n in unit.inputs if n not in feed]
        for name, value in zip(unit.outputs, outputs, strict=True):
            computed[name] = value
            writer.put(forced_name(name), value, k)
            if lacking:
                derived[name] = lacking
    return derived


def modules(request: Request) -> None:
    """Every module that ``job.modules`` names, on the input recorded for it in ``job.feed``."""
    import tensorflow as tf

    set_flags(request.job)
    model = make_model(request)
    assert request.job.feed is not None
    layers = layers_by_module(model.predictor.model)
    skipped: dict[str, str] = {}
    with (
        Trace(request.job.feed) as feed,
        TraceWriter(request.job.output) as writer,
        planted(request.mutate, model),
    ):
        recorded = feed.images[0]
        for name in (n for n in request.job.modules if n in layers):
            x = recorded[f"steps/{name}@in"]
            x = np.moveaxis(x, 1, -1) if x.ndim == 4 else x
            try:
                y = layers[name](tf.cast(tf.constant(x), layers[name].compute_dtype)).numpy()
            except Exception as error:
                skipped[name] = f"{type(error).__name__}: {error}"
                continue
            writer.put(f"steps/{name}@out", np.moveaxis(y, -1, 1) if y.ndim == 4 else y)
            if getattr(layers[name], "relu", False):
                skipped[name] = "relu"
        writer.finish({"backend": "tf", "skipped": skipped}, "{}")


def layers_by_module(model: Any) -> dict[str, Any]:
    """Layers and blocks that own weights, by detectron2's module names: the path all their variables share."""
    from tf_d2.layers.base import walk

    held: dict[str, Any] = {}
    for layer in walk(model):
        paths = [v.path.removeprefix("model/").split("/")[:-1] for v in layer.variables]
        if paths:
            same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
            held[".".join(parts[0] for parts in same)] = (
                layer  # a layer comes after the block around it and takes its place
            )
    return held


def write_config(request: Request) -> None:
    """Write the full configuration only."""
    from tf_d2.config import resolve_yaml
    from tf_d2.config.load import reference_yaml

    text = reference_yaml(resolve_yaml(request.job.config_yaml, request.opts))
    Path(request.job.output).write_text(text, encoding="utf-8")


def resolve(request: Request) -> None:
    """Write the full configuration, and the state dict beside it as ``<output>.npz``.

    Of a file with more than the model (another prefix, tensors to leave out) the model alone is written as
    ``<output>.pth``, which every backend then reads in its place.
    """
    import weights
    from tf_d2.config.load import reference_yaml
    from tf_d2.loading import model_yaml, resolve_model

    job = request.job
    os.chdir(request.folder)  # where a relative MODEL.WEIGHTS is looked for
    _, path = resolve_model(job.config_yaml, job.weights or None, request.opts, request.ignore_keys)
    state = weights.read_checkpoint(path, prefix=request.prefix).state
    if request.prefix is not None or request.ignore_tensors:
        state = {k: v for k, v in state.items() if not weights.is_ignored(k, request.ignore_tensors)}
        path = Path(job.output + ".pth")
        weights.write_pth(path, state)
    refuse_nonfinite(state, str(path))
    arrays: dict[str, Any] = dict(state)
    np.savez(job.output + ".npz", **arrays)
    say("resolved", weights=str(Path(path).resolve()), state=job.output + ".npz", tensors=len(state))
    text = reference_yaml(model_yaml(job.config_yaml, request.opts, request.ignore_keys))
    Path(job.output).write_text(text, encoding="utf-8")


def refuse_nonfinite(state: Mapping[str, np.ndarray], path: str) -> None:
    """Raise ValueError naming the weights that hold NaN or infinity. With them the sides would only fail somewhere
    inside, each in its own words."""
    import weights
    from weights.mapping import nonfinite_count

    counts = {key: nonfinite_count(array) for key, array in state.items() if not weights.harmless_reason(key)}
    bad = [f"{key}: {count}" for key, count in sorted(counts.items()) if count]
    if bad:
        more = f", and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise ValueError(
            f"{path} holds {sum(counts.values())} NaN or infinite values in {len(bad)} of its "
            f"tensors ({', '.join(bad[:10])}{more}): the training probably diverged; compare an earlier checkpoint"
        )


def export(request: Request) -> None:
    """Export the model to the folder ``output``."""
    from tf_d2.serving.exporter import export as export_model

    job = request.job
    export_model(job.config_yaml, job.weights, job.output, opts=request.opts, sem_seg="logits")


MODES: dict[str, Callable[[Request], None]] = {
    "trace": trace,
    "mutations": mutations,
    "modules": modules,
    "config": write_config,
    "resolve": resolve,
    "export": export,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job file; returns the exit status."""
    parser = argparse.ArgumentParser(prog="parity.backends.tf_worker")
    parser.add_argument("--job", required=True, help="JSON file, see the module's text")
    given = parser.parse_args(arguments)
    try:
        request = read_request(given.job)
        configure(request.job)
        MODES[request.mode](request)
    except Exception as error:
        if os.environ.get("PARITY_TRACEBACK"):
            raise
        say("error", message=f"{type(error).__name__}: {error}")
        return 2
    say("done", output=request.job.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
