"""Jobs that need tf_d2 and write no trace of a model.

    python -m parity.backends.tf_tools --job job.json

``mode``: "resolve" writes the full configuration, and the state dict beside it, for backends that cannot read the
user's files; "config" the configuration only; "export" the exported model; "modules" every module inside a unit on
the input recorded for it (for `bisect`).
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity.backends import driver
from parity.backends.tf import TensorFlowModel, planted
from parity.backends.tf_environment import configure
from parity.core import job as jobs
from parity.core.job import Job, JobError
from parity.core.trace import Trace, TraceWriter


def modules(job: Job) -> None:
    """Every module that ``job.modules`` names, on the input recorded for it in ``job.feed``."""
    config, _ = jobs.read_config(job.config_yaml)
    model = TensorFlowModel(job, config)
    import tensorflow as tf

    assert job.feed is not None
    layers = _layers_by_module(model.predictor.model)
    skipped: dict[str, str] = {}
    with (
        Trace(job.feed) as feed,
        TraceWriter(job.output) as writer,
        planted(job.mutate, model),
    ):
        recorded = feed.images[0]
        for name in (n for n in job.modules if n in layers):
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


def _layers_by_module(model: Any) -> dict[str, Any]:
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


def _write_config(job: Job) -> None:
    """Write the full configuration only."""
    from tf_d2.config import resolve_yaml
    from tf_d2.config.load import reference_yaml

    text = reference_yaml(resolve_yaml(job.config_yaml, job.opts))
    Path(job.output).write_text(text, encoding="utf-8")


def resolve(job: Job) -> None:
    """Write the full configuration, and the state dict beside it as ``<output>.npz``.

    Of a file with more than the model (another prefix, tensors to leave out) the model alone is written as
    ``<output>.pth``, which every backend then reads in its place.
    """
    import weights
    from tf_d2.config.load import reference_yaml
    from tf_d2.loading import model_yaml, resolve_model

    os.chdir(job.folder)  # where a relative MODEL.WEIGHTS is looked for
    config, path = resolve_model(job.config_yaml, job.weights or None, job.opts, job.ignore_keys)
    conventions = config.conventions.name
    checkpoint = weights.read_checkpoint(path, prefix=job.prefix)
    # The references read whole names of detectron2's, so files of Detectron and maskrcnn-benchmark are renamed here.
    state = checkpoint.state if conventions == "detectron2" else _whole_state(config, checkpoint)
    if job.prefix is not None or job.ignore_tensors:
        state = {k: v for k, v in state.items() if not weights.is_ignored(k, job.ignore_tensors)}
        path = Path(job.output + ".pth")
        weights.write_pth(path, state)
    _refuse_nonfinite(state, str(path))
    arrays: dict[str, Any] = dict(state)
    np.savez(job.output + ".npz", **arrays)
    found = {"weights": str(Path(path).resolve()), "state": job.output + ".npz", "conventions": conventions}
    jobs.say("resolved", **found, tensors=len(state))
    text = reference_yaml(model_yaml(job.config_yaml, job.opts, job.ignore_keys))
    Path(job.output).write_text(text, encoding="utf-8")


def _whole_state(config: Any, checkpoint: Any) -> dict[str, np.ndarray]:
    """A checkpoint of an older project under the model's names, with the statistics (0 and 1) that norms of such a
    file do not have."""
    from tf_d2.layers.base import unfilled
    from tf_d2.modeling.model import build_model
    from weights import matched_state
    from weights.mapping import path_to_key, torch_shape

    with unfilled():
        model = build_model(config)
    specs = model.variable_specs()
    state = dict(matched_state(checkpoint, specs))
    for path in sorted(model.frozen_statistics()):
        key = path_to_key(path)
        if key not in state:
            shape = torch_shape(specs[path], path.rsplit("/", 1)[-1])
            fill = np.ones if key.endswith("running_var") else np.zeros
            state[key] = fill(shape, np.float32)
    return state


def _refuse_nonfinite(state: Mapping[str, np.ndarray], path: str) -> None:
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


def export(job: Job) -> None:
    """Export the model to the folder ``output``."""
    from parity.backends.savedmodel import export_for_comparison

    export_for_comparison(job, job.output)


_MODES: dict[str, Callable[[Job], None]] = {
    "modules": modules,
    "config": _write_config,
    "resolve": resolve,
    "export": export,
}


def do(job: Job) -> None:
    """Do what the job's mode says."""
    if job.mode not in _MODES:
        raise JobError(f"mode {job.mode!r} is not one of {', '.join(_MODES)}")
    configure(job)
    _MODES[job.mode](job)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    return driver.do_job(do, arguments)


if __name__ == "__main__":
    sys.exit(main())
