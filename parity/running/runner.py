"""Running the two sides, each in a process of its own, and judging what they wrote.

A backend is one of ``parity.backends.BACKENDS`` (``detectron2``, ``torch``, ``tf``, ``savedmodel:DIR``, ...) or the
path of a recorded trace. Workers report progress as JSON lines; one that fails or hangs becomes an
ERROR result (exit code 2), never a missing line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parity.backends import BACKENDS
from parity.core.job import file_sha256, read_served
from parity.core.manifest import threads_of
from parity.core.profiles import Profile, get_profile
from parity.core.results import Comparison, StageResult
from parity.core.status import Status
from parity.core.trace import Trace, TraceError
from parity.judge.judge import compare
from parity.judge.sides import TraceLike, check_precision
from parity.judge.waivers import Waiver
from parity.running.feeding import Run, feed_again
from parity.selftest.mutations import BY_NAME
from weights.errors import UsageError, UserError

Progress = Callable[[str], None]
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

TORCH_BACKENDS = tuple(name for name, kind in BACKENDS.items() if kind.torch)
DEFAULT_TIMEOUT = 1800.0  # seconds


class BackendError(UserError, RuntimeError):
    """A worker that did not deliver. The message is what it said, or how it ended."""


@dataclass(frozen=True)
class Backend:
    """One side of a comparison: a worker and its interpreter, or a recorded trace (``target`` is its
    path)."""

    name: str
    target: str = ""
    interpreter: str = sys.executable

    @property
    def recorded(self) -> bool:
        """Whether there is nothing to run."""
        return self.name == "trace"


@dataclass(frozen=True)
class Setup:
    """What both sides run: the job's common part. ``threads`` 0 leaves the framework's default."""

    config: str
    weights: str | None
    images: Sequence[str]
    profile: str = "strict"
    device: str = "cpu"
    threads: int = 0
    opts: Sequence[Any] = ()
    proposals: Sequence[str] = ()
    repeat: int = 2
    timeout: float = DEFAULT_TIMEOUT
    extra: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    state: str = ""  # the weights as a plain state dict, for workers that do not read the user's format
    left_out: Mapping[str, Any] = field(
        default_factory=dict
    )  # ignore_keys, ignore_tensors, prefix: see tf_d2.load_model
    source: Setup | None = None  # what the user asked for, before the files were resolved


def parse_backend(text: str, torch_python: str | None = None) -> Backend:
    """The backend a user named. ValueError says what is known."""
    name, _, target = text.partition(":")
    if name in BACKENDS and BACKENDS[name].target:
        if not target:
            raise UsageError(f"backend {name} needs what it runs: {name}:{BACKENDS[name].target}")
        if name == "serving":
            read_served(target)  # a mistake shows here, before the reference has run
        return Backend(name, absolute_path(target))
    if text in BACKENDS:
        return Backend(text, "", torch_python or sys.executable) if text in TORCH_BACKENDS else Backend(text)
    if text == "auto":
        return auto_reference(torch_python or sys.executable)
    if Path(text).is_file():
        return Backend("trace", absolute_path(text))
    known = ", ".join([*(f"{n}:{k.target}" if k.target else n for n, k in BACKENDS.items()), "auto"])
    raise UsageError(f"backend {text!r} is neither one of {known} nor a trace file that exists")


def auto_reference(interpreter: str) -> Backend:
    """detectron2 where the interpreter has it, else the compact PyTorch reference."""
    has = any(_can_import(interpreter, name) for name in ("detectron2",))
    return Backend("detectron2" if has else "torch", "", interpreter)


def _can_import(interpreter: str, module: str) -> bool:
    if interpreter == sys.executable:
        return importlib.util.find_spec(module) is not None
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([interpreter, "-c", code], capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"cannot run {interpreter}: {error}") from error


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
    interpreter = torch_python or sys.executable
    return _run_all(setup, backends, folder, noise, waivers, early_stop, mutate, interpreter, progress)


def several(given: Paths) -> list[str]:
    """Names or paths as a list. One alone is a list of one: a string is a sequence, too, of its letters."""
    return [os.fspath(g) for g in ([given] if isinstance(given, str | os.PathLike) else given)]


def check_mutation(name: str, candidates: Sequence[Backend]) -> None:
    """Raise ValueError where no bug has that name, or a candidate is not a model that it can be planted in."""
    if name not in BY_NAME:
        raise UsageError(f"no planted bug is called {name!r}; see: tf-d2 parity list-mutations")
    for candidate in candidates:
        if candidate.name not in ("tf", "tf-eager") or candidate.recorded:
            raise UsageError(f"the bug {name} can be planted in tf and tf-eager, not in {candidate.name}")


def check_backend(backend: Backend, role: str, images: int, profile: Profile) -> None:
    """Raise ValueError where a backend cannot be a side (``role``) of a comparison of so many images at this
    precision. Found out later, what is wrong with a trace would seem to be a fault of the side that is fed with it."""
    if not backend.recorded:
        exported = frozenset(["float32"]) if BACKENDS[backend.name].target else frozenset()
        check_precision(role, f"what {backend.name} computes", exported, profile)
        return
    try:
        with Trace(backend.target) as trace:
            held, precisions = len(trace.images), trace.precisions()
    except TraceError as error:
        raise UsageError(f"{error}. As {role}, name such a file or a backend to run") from error
    if held != images:
        raise UsageError(
            f"the {role} {backend.target} holds {held} images, but {images} are given: "
            "name the pictures that it was made from, in their order"
        )
    check_precision(role, backend.target, precisions, profile)


def absolute_path(path: str | os.PathLike[str]) -> str:
    """A file's absolute path, since workers run in a folder of their own; a name of the zoo as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


def _run_all(
    setup: Setup,
    backends: Sequence[Backend],
    folder: Path,
    noise: str,
    waivers: Sequence[Waiver],
    early_stop: bool,
    mutate: str,
    interpreter: str,
    progress: Progress,
) -> list[Comparison]:
    first, *others = backends
    try:
        trace = run_backend(first, setup, folder / "reference.h5", progress)
    except BackendError as error:
        return [
            _error(first.name, b.name, setup, f"the reference failed: {error}", first.name) for b in others
        ]
    noise_traces, notes = _noise_runs(first, setup, trace, folder, noise, interpreter, progress)
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
            trace, path, profile=setup.profile, noise=noise_traces, waivers=waivers, early_stop=early_stop
        )
        for comparison in found:
            comparison.notes += told
            comparison.command = reproduce(first, backend, setup, folder, mutate)
        out += found
    return out


def _repeat(setup: Setup, reference: Backend, feed: Path, progress: Progress) -> Run:
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
        return run_backend(Backend(name, "", interpreter), again, target, progress)

    return run


def _with(setup: Setup, **extra: Any) -> Setup:
    return replace(setup, extra={**setup.extra, **extra})


def _noise_runs(
    backend: Backend, setup: Setup, feed: Path, folder: Path, noise: str, interpreter: str, progress: Progress
) -> tuple[list[TraceLike], list[str]]:
    """Further runs that limits follow from: a float64 one of the reference, or, where that is not wanted or not
    possible, one with another thread count. A recording cannot run, but torch or detectron2 can in its place.
    Failures are notes, as such runs only loosen nothing."""
    notes: list[str] = []
    if noise == "none":
        return [], ["noise runs switched off"]
    if noise == "truth" and setup.profile != "semantic":
        precise = _with(replace(setup, profile="semantic", repeat=1), feed=str(feed.resolve()))
        try:
            exact = precise_backend(backend, interpreter)
            if exact is not None:
                precise = precise if precise.source else resolved(precise, folder, progress)
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


def precise_backend(reference: Backend, interpreter: str) -> Backend | None:
    """What gives the float64 run beside a reference: itself, or for a recording detectron2 or torch; None where
    neither is installed."""
    if not reference.recorded:
        return reference
    for name in ("detectron2", "torch"):
        if _can_import(interpreter, name):
            return Backend(name, "", interpreter)
    return None


def _error(reference: str, candidate: str, setup: Setup, message: str, name: str) -> Comparison:
    comparison = Comparison(reference, candidate, setup.profile)
    comparison.stages.append(StageResult(f"run/{name}", "manifest", "exact", Status.ERROR, message))
    return comparison


def reproduce(reference: Backend, candidate: Backend, setup: Setup, folder: Path, mutate: str = "") -> str:
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


def resolved(setup: Setup, folder: Path, progress: Progress) -> Setup:
    """The same setup with the full configuration and a plain state dict written to ``folder``, so that both
    sides read the same two files, and neither framework is needed to read the user's."""
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
    events = call_worker("parity.backends.tf_tools", sys.executable, job, target, setup.timeout, progress)
    found = next((e for e in events if e["event"] == "resolved"), None)
    if found is None:
        raise BackendError("the configuration was resolved but no weights were named")
    files = {k: str(found[k]) for k in ("weights", "state")}
    files["weights_sha256"] = file_sha256(files["weights"])
    (folder / "setup.json").write_text(json.dumps({"config": str(target), **files}))
    return replace(setup, config=str(target), opts=(), source=setup.source or setup, **files)


def job_of(backend: Backend, setup: Setup) -> dict[str, Any]:
    """The job of one side on a resolved setup, without its output."""
    job = {
        "config_yaml": setup.config,
        "weights": setup.weights,
        "images": [str(Path(i).resolve()) for i in setup.images],
        "proposals": [str(Path(p).resolve()) for p in setup.proposals],
        "profile": setup.profile,
        "device": setup.device,
        "threads": setup.threads or (os.cpu_count() or 1),
        "repeat": setup.repeat,
        "weights_sha256": setup.weights_sha256 or None,
        **setup.extra,
    }
    if backend.name in TORCH_BACKENDS:
        job["weights"] = setup.state or setup.weights
    else:
        job |= {"backend": backend.name, "target": backend.target}
    return job


def run_backend(backend: Backend, setup: Setup, target: Path, progress: Progress = lambda text: None) -> Path:
    """Run one side on a resolved setup and return its trace's path. Raises BackendError with what it said."""
    if backend.recorded:
        return Path(backend.target)
    job = job_of(backend, setup)
    label = f"{backend.name} ({setup.profile}, {setup.device})"
    progress(label)
    call_worker(
        BACKENDS[backend.name].module,
        backend.interpreter,
        job,
        target,
        setup.timeout,
        lambda text: progress(f"{label}: {text}"),
    )
    return target


def call_worker(
    module: str,
    interpreter: str,
    job: Mapping[str, Any],
    target: Path,
    timeout: float,
    progress: Progress = lambda text: None,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> list[dict[str, Any]]:
    """Run one worker program on a job; its events, each also given to ``on_event`` as it comes.

    Raises BackendError when the worker fails, hangs or writes nothing.
    """
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        path = Path(scratch) / "job.json"
        path.write_text(json.dumps({**job, "output": str(target.resolve())}))
        log = target.with_suffix(".log")
        environment = os.environ | {"PYTHONPATH": import_root(Path(scratch)), "PYTHONUNBUFFERED": "1"}
        command = [interpreter, "-m", module, "--job", str(path)]
        with open(log, "w") as errors:
            try:
                process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=scratch
                )
            except OSError as error:
                raise BackendError(f"cannot start {interpreter}: {error}") from error
            events = _listen(process, timeout, progress, on_event)
    return _checked(events, process.returncode, target, log, timeout)


def import_root(scratch: Path) -> str:
    """A folder that holds this project's packages and nothing else, so that a foreign interpreter sees only
    them and none of the packages installed beside this one."""
    root = scratch / "packages"
    root.mkdir()
    here = Path(__file__).resolve().parents[2]
    for name in ("parity", "weights", "tf_d2"):
        if (here / name).is_dir():
            os.symlink(here / name, root / name)
    return str(root)


def _listen(
    process: subprocess.Popen[str],
    timeout: float,
    progress: Progress,
    on_event: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Read a worker's events until it ends; kill it after ``timeout`` seconds."""
    events: list[dict[str, Any]] = []
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        process.kill()

    timer = threading.Timer(timeout, stop)
    timer.start()
    try:
        assert process.stdout is not None
        with process.stdout as lines:
            for event in (e for line in lines if (e := _event(line)) is not None):
                events.append(event)
                on_event(event)
                if event["event"] == "progress":
                    progress(f"{event.get('what', '')} {event.get('done', '')}/{event.get('of', '')}")
        process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            process.kill()
            process.wait()
    if stopped.is_set() and process.returncode:
        events.append({"event": "error", "message": f"no result after {timeout:.0f} s; it was stopped"})
    return events


def _event(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None


def _checked(
    events: list[dict[str, Any]], code: int, target: Path, log: Path, timeout: float
) -> list[dict[str, Any]]:
    said = [str(e.get("message")) for e in events if e["event"] == "error"]
    if code == 0 and not said and target.exists():
        log.unlink(missing_ok=True)
        return events
    if not said:
        tail = [t for t in log.read_text(errors="replace").splitlines() if t.strip()][-3:]
        ending = f"ended with status {code}" if code else "ended without writing its trace"
        said = [f"{ending}; {' | '.join(tail)}" if tail else ending]
    raise BackendError(f"{said[-1]} (log: {log})")
