"""Running the two sides, each in a process of its own, and judging what they wrote.

A backend is one of ``parity.backends.BACKENDS`` (``detectron2``, ``torch``, ``tf``, ``savedmodel:DIR``, ...) or the
path of a recorded trace. Workers report progress as JSON lines; one that fails or hangs becomes an
ERROR result (exit code 2), never a missing line.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.core.job import file_sha256
from parity.core.manifest import threads_of
from parity.core.profiles import get_profile
from parity.core.results import Comparison, StageResult
from parity.core.status import Status
from parity.judge.judge import compare
from parity.judge.sides import TraceLike
from parity.judge.waivers import Waiver
from parity.running.feeding import Run, feed_again
from parity.running.sides import (
    DEFAULT_TIMEOUT,
    TORCH_BACKENDS,
    BackendChoice,
    BackendError,
    Paths,
    Setup,
    able,
    absolute_path,
    check_backend,
    check_mutation,
    parse_backend,
    precise_backend,
    several,
)
from parity.running.worker import Call, Program, Progress, call_worker, run_backend
from weights.errors import UsageError


def run(
    config: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None,
    images: Paths,
    *,
    output: str | os.PathLike[str],
    reference: str | os.PathLike[str] = "auto",
    candidates: Paths = ("tf",),
    profile: str = "strict",
    device: str = "cpu",
    torch_python: str | None = None,
    threads: int = 0,
    noise: str = "truth",
    repeat: int = 2,
    opts: Sequence[Any] = (),
    proposals: Paths = (),
    timeout: float = DEFAULT_TIMEOUT,
    waivers: Sequence[Waiver] = (),
    early_stop: bool = True,
    mutate: str = "",
    left_out: Mapping[str, Any] | None = None,
    progress: Progress = lambda text: None,
) -> list[Comparison]:
    """Run a reference and one or more candidates on the same model and images, and compare them.

    One image, candidate or proposal file may stand for a list of one. Traces and the resolved configuration
    go to ``output``. ``noise`` says how the reference's own noise is measured: "threads" (a second run with
    another thread count), "truth" (that and a float64 run) or "none". ``repeat`` runs per side prove
    determinism. ``mutate`` plants a named bug in the candidate (the harness tests itself with it).
    ``left_out``: ``ignore_keys``, ``ignore_tensors`` and ``prefix`` as for ``tf_d2.load_model``. Worker
    failures give comparisons with an ERROR stage. Raises ValueError for unusable arguments and BackendError
    when the configuration cannot be resolved at all.
    """
    chosen = get_profile(profile)
    if noise not in ("none", "threads", "truth"):
        raise UsageError(f"noise {noise!r} is not one of: none, threads, truth")
    backends = [parse_backend(b, torch_python) for b in several([reference, *several(candidates)])]
    if mutate:
        check_mutation(mutate, backends[1:])
    for k, backend in enumerate(backends):
        check_backend(backend, "candidate" if k else "reference", len(several(images)), chosen)
    folder = Path(output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        absolute_path(config),
        None if weights is None else absolute_path(weights),
        several(images),
        profile,
        device,
        threads,
        opts,
        several(proposals),
        repeat,
        timeout,
        left_out=left_out or {},
    )
    if any(not b.recorded for b in backends):
        setup = resolved(setup, folder, progress)
        backends = [able(backend, setup) for backend in backends]
    how = _How(folder, noise, torch_python or sys.executable, progress, tuple(waivers), early_stop, mutate)
    return _run_all(setup, backends, how)


@dataclass(frozen=True)
class _How:
    """What is the same for all backends of a run: see ``run``."""

    folder: Path
    noise: str
    interpreter: str
    progress: Progress
    waivers: tuple[Waiver, ...] = ()
    early_stop: bool = True
    mutate: str = ""


def _run_all(setup: Setup, backends: Sequence[BackendChoice], how: _How) -> list[Comparison]:
    folder, progress, mutate = how.folder, how.progress, how.mutate
    first, *others = backends
    try:
        trace = run_backend(first, setup, folder / "reference.h5", progress)
    except BackendError as error:
        return [
            _error(first.name, b.name, setup, f"the reference failed: {error}", first.name) for b in others
        ]
    noise_traces, notes = _noise_runs(first, setup, trace, how)
    out: list[Comparison] = []
    for k, backend in enumerate(others):
        target = folder / ("candidate.h5" if len(others) == 1 else f"candidate{k}.h5")
        extra = {"feed": str(trace)} | ({"mutate": mutate} if mutate else {})
        try:
            path = run_backend(backend, _with(setup, **extra), target, progress)
        except BackendError as error:
            out.append(
                _error(first.name, backend.name, setup, f"the candidate failed: {error}", backend.name)
            )
            continue
        told = list(notes)
        if backend.recorded:
            path, note = feed_again(
                trace, path, setup.profile, folder / "fed_again.h5", _repeat(setup, first, trace, progress)
            )
            told += [note] if note else []
        found = compare(
            trace,
            path,
            profile=setup.profile,
            noise=noise_traces,
            waivers=how.waivers,
            early_stop=how.early_stop,
        )
        for comparison in found:
            comparison.notes += told
            comparison.command = reproduce(first, backend, setup, folder, mutate)
        out += found
    return out


def _repeat(setup: Setup, reference: BackendChoice, feed: Path, progress: Progress) -> Run:
    """How to run the model that wrote a trace again, fed by the reference."""

    def run(manifest: Mapping[str, Any], target: Path) -> Path:
        name = str(manifest.get("backend"))
        if name not in ("tf", "tf-eager", *TORCH_BACKENDS):
            raise BackendError(f"nothing here runs what wrote it ({name})")
        count = threads_of(manifest)
        again = setup if setup.source else resolved(setup, target.parent, progress)
        if manifest.get("weights_sha256") != again.weights_sha256:
            raise BackendError("it was made from other weights")
        again = replace(_with(again, feed=str(feed)), threads=count or setup.threads, repeat=1)
        interpreter = reference.interpreter if name in TORCH_BACKENDS else sys.executable
        return run_backend(BackendChoice(name, "", interpreter), again, target, progress)

    return run


def _with(setup: Setup, **extra: Any) -> Setup:
    return replace(setup, extra={**setup.extra, **extra})


def _noise_runs(
    backend: BackendChoice, setup: Setup, feed: Path, how: _How
) -> tuple[list[TraceLike], list[str]]:
    """Further runs that limits follow from: a float64 one of the reference, or, where that is not wanted or not
    possible, one with another thread count. A recording cannot run, but torch or detectron2 can in its place.
    Failures are notes, as such runs only loosen nothing."""
    notes: list[str] = []
    folder, progress = how.folder, how.progress
    if how.noise == "none":
        return [], ["noise runs switched off"]
    if how.noise == "truth" and setup.profile != "semantic":
        precise = _with(replace(setup, profile="semantic", repeat=1), feed=str(feed.resolve()))
        try:
            exact = precise_backend(backend, how.interpreter)
            if exact is not None:
                precise = precise if precise.source else resolved(precise, folder, progress)
                exact = able(exact, precise)
                return [str(run_backend(exact, precise, folder / "noise_truth.h5", progress))], notes
            notes.append("no float64 run, since a recording cannot run and torch is not installed")
        except BackendError as error:
            notes.append(f"the float64 run failed, so limits are estimates: {error}")
    if backend.recorded:
        return [], notes or ["the reference's noise was not measured"]
    other = replace(setup, threads=1 if setup.threads != 1 else 2, repeat=1)
    try:
        return [str(run_backend(backend, other, folder / "noise_threads.h5", progress))], notes
    except BackendError as error:
        return [], [*notes, f"noise run failed, so static limits apply: {error}"]


def _error(reference: str, candidate: str, setup: Setup, message: str, name: str) -> Comparison:
    comparison = Comparison(reference, candidate, setup.profile)
    comparison.stages.append(StageResult(f"run/{name}", "manifest", "exact", Status.ERROR, message))
    return comparison


def reproduce(
    reference: BackendChoice, candidate: BackendChoice, setup: Setup, folder: Path, mutate: str = ""
) -> str:
    """The command line that repeats a comparison."""
    setup = setup.source or setup
    words = ["tf-d2", "parity", "--config-file", setup.config]
    words += ["--weights", setup.weights] if setup.weights else []
    words += ["--input", *setup.images, "--reference", reference.target or reference.name]
    name = (
        candidate.target
        if candidate.recorded
        else ":".join(p for p in (candidate.name, candidate.target) if p)
    )
    words += ["--candidate", name, "--profile", setup.profile, "--device", setup.device]
    if reference.interpreter != sys.executable:
        words += ["--torch-python", reference.interpreter]
    words += ["--threads", str(setup.threads)] if setup.threads else []
    words += ["--proposals", *setup.proposals] if setup.proposals else []
    words += ["--mutate", mutate] if mutate else []
    words += ["--output", str(folder)]
    for name, value in setup.left_out.items():
        option = "--" + name.replace("_", "-")
        words += [] if not value else [option, value] if isinstance(value, str) else [option, *value]
    words += ["--opts", *map(str, setup.opts)] if setup.opts else []
    return shlex.join(words)


def resolved(setup: Setup, folder: Path, progress: Progress, call: Call = call_worker) -> Setup:
    """The same setup with the full configuration and a plain state dict written to ``folder``, so that both
    sides read the same two files, and neither framework is needed to read the user's. ``call`` does the job."""
    target = folder / "config.yaml"
    job = {
        "mode": "resolve",
        "config_yaml": setup.config,
        "weights": setup.weights or "",
        "opts": list(setup.opts),
        "images": list(setup.images) or ["none"],
        "folder": os.getcwd(),
        **setup.left_out,
    }
    progress("reading configuration and weights")
    program = Program("parity.backends.tf_tools", timeout=setup.timeout)
    events = call(program, job, target, progress=progress)
    found = next((e for e in events if e["event"] == "resolved"), None)
    if found is None:
        raise BackendError("the configuration was resolved but no weights were named")
    files = {k: str(found[k]) for k in ("weights", "state")}
    files["weights_sha256"] = file_sha256(files["weights"])
    files["conventions"] = str(found.get("conventions", "detectron2"))
    (folder / "setup.json").write_text(json.dumps({"config": str(target), **files}))
    return replace(setup, config=str(target), opts=(), source=setup.source or setup, **files)
