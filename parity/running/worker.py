"""Workers: a backend in a process of its own, which says in lines of JSON what it does, and writes a trace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from parity.backends import BACKENDS
from parity.running.sides import DEFAULT_TIMEOUT, TORCH_BACKENDS, BackendChoice, BackendError, Setup

Progress = Callable[[str], None]

_OURS = ("parity", "weights", "tf_d2")
_MISSING = re.compile(r"ModuleNotFoundError: No module named '(\w+)[\w.]*'")
# What a worker imports besides its framework, and the packages of these modules.
_NEEDED = {"numpy": "numpy", "h5py": "h5py", "yaml": "PyYAML", "PIL": "Pillow"}


class Call(Protocol):
    """Does a job in a process of a program and returns its events; see :func:`call_worker`."""

    def __call__(
        self, program: Program, job: Mapping[str, Any], target: Path, *, progress: Progress = ...
    ) -> list[dict[str, Any]]: ...


class Program(NamedTuple):
    """A module to run as a worker, the Python that runs it, and the seconds it may take."""

    module: str
    interpreter: str = sys.executable
    timeout: float = DEFAULT_TIMEOUT


def job_of(backend: BackendChoice, setup: Setup) -> dict[str, Any]:
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


def run_backend(
    backend: BackendChoice, setup: Setup, target: Path, progress: Progress = lambda text: None
) -> Path:
    """Run one side on a resolved setup and return its trace's path. Raises BackendError with what it said."""
    if backend.recorded:
        return Path(backend.target)
    job = job_of(backend, setup)
    label = f"{backend.name} ({setup.profile}, {setup.device})"
    progress(label)
    program = Program(BACKENDS[backend.name].module, backend.interpreter, setup.timeout)
    call_worker(program, job, target, progress=lambda text: progress(f"{label}: {text}"))
    return target


def call_worker(
    program: Program,
    job: Mapping[str, Any],
    target: Path,
    *,
    progress: Progress = lambda text: None,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> list[dict[str, Any]]:
    """Run one worker program on a job; its events, each also given to ``on_event`` as it comes.

    Raises BackendError when the worker fails, hangs or writes nothing.
    """
    module, interpreter, timeout = program
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
        path = Path(scratch) / "job.json"
        path.write_text(json.dumps({**job, "output": str(target.resolve())}))
        log = target.with_suffix(".log")
        environment = os.environ | {"PYTHONPATH": python_path(Path(scratch)), "PYTHONUNBUFFERED": "1"}
        command = [interpreter, "-m", module, "--job", str(path)]
        with open(log, "w") as errors:
            try:
                process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=scratch
                )
            except OSError as error:
                raise BackendError(f"cannot start {interpreter}: {error}") from error
            events = _listen(process, timeout, progress, on_event)
    said = [str(e.get("message")) for e in events if e["event"] == "error"]
    if process.returncode == 0 and not said and target.exists():
        log.unlink(missing_ok=True)
        return events
    raise BackendError(f"{said[-1] if said else ended(process.returncode, log, interpreter)} (log: {log})")


def ended(status: int, log: Path, interpreter: str) -> str:
    """How a process ended that should not have: its status and last words, or the module that its interpreter lacks and
    what to do about it."""
    tail = [t.strip() for t in log.read_text(errors="replace").splitlines() if t.strip()][-3:]
    missing = _MISSING.fullmatch(tail[-1]) if tail else None
    if missing and missing[1] not in _OURS:
        return f"{interpreter} has no {missing[1]}: {_remedy(missing[1], interpreter)}"
    ending = f"ended with status {status}" if status else "ended without writing its trace"
    return " | ".join([f"its process {ending}", *tail])


def python_path(scratch: Path) -> str:
    """This project's packages, and behind them what the user put on the path (detectron2's projects)."""
    return os.pathsep.join([import_root(scratch), *filter(None, [os.environ.get("PYTHONPATH")])])


def piped(
    command: Sequence[str], folder: Path, log: Path, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """A process that is asked and answers by its standard input and output, started in ``folder`` with
    :func:`python_path` and ``variables`` in its environment; what it says besides goes to ``log``. Raises BackendError
    where it cannot be started."""
    environment = os.environ | {"PYTHONPATH": python_path(folder), "PYTHONUNBUFFERED": "1"}
    environment |= variables or {}
    try:
        with open(log, "w") as errors:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=folder,
            )
    except OSError as error:
        raise BackendError(f"cannot start {command[0]}: {error}") from error


def import_root(scratch: Path) -> str:
    """A folder that holds this project's packages and nothing else, so that a foreign interpreter sees only
    them and none of the packages installed beside this one."""
    root = scratch / "packages"
    root.mkdir()
    here = Path(__file__).resolve().parents[2]
    for name in _OURS:
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
            for event in (e for line in lines if (e := event_of(line)) is not None):
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


def event_of(line: str) -> dict[str, Any] | None:
    """What a worker says in one line; None for anything else that was printed."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("event"), str) else None


def _remedy(module: str, interpreter: str) -> str:
    """What to do where a worker's interpreter lacks a module."""
    if module == "detectron2":
        return "install detectron2 there, or name the interpreter that has it (--torch-python)"
    packages = " ".join(_NEEDED.values()) if module in _NEEDED else module
    return f"install what this side of the comparison needs there: {interpreter} -m pip install {packages}"
