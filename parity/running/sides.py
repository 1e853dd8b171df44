"""What is compared: backends by name, and on which model and pictures."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parity.backends import BACKENDS
from parity.core.checkout import from_a_checkout
from parity.core.job import read_served
from parity.core.profiles import Profile
from parity.core.trace import Trace, TraceError
from parity.judge.sides import check_precision
from weights.errors import UsageError, UserError

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

TORCH_BACKENDS = tuple(name for name, kind in BACKENDS.items() if kind.torch)
DEFAULT_TIMEOUT = 1800.0  # seconds


class BackendError(UserError, RuntimeError):
    """A worker that did not deliver. The message is what it said, or how it ended."""


@dataclass(frozen=True)
class BackendChoice:
    """One side of a comparison: a worker and its interpreter, or a recorded trace (``target`` is its
    path)."""

    name: str
    target: str = ""
    interpreter: str = sys.executable
    automatic: bool = False  # nobody named it: another may take its place

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
    conventions: str = "detectron2"  # whose arithmetic the model follows
    left_out: Mapping[str, Any] = field(
        default_factory=dict
    )  # ignore_keys, ignore_tensors, prefix: see tf_d2.load_model
    source: Setup | None = None  # what the user asked for, before the files were resolved


def parse_backend(text: str, torch_python: str | None = None) -> BackendChoice:
    """The backend a user named. ValueError says what is known."""
    name, _, target = text.partition(":")
    if name in BACKENDS and BACKENDS[name].target:
        if not target:
            raise UsageError(f"backend {name} needs what it runs: {name}:{BACKENDS[name].target}")
        if name == "serving":
            read_served(target)  # a mistake shows here, before the reference has run
        return BackendChoice(name, absolute_path(target))
    if text in BACKENDS:
        return (
            BackendChoice(text, "", torch_python or sys.executable)
            if text in TORCH_BACKENDS
            else BackendChoice(text)
        )
    if text == "auto":
        return auto_reference(torch_python or sys.executable)
    if Path(text).is_file():
        return BackendChoice("trace", absolute_path(text))
    known = ", ".join([*(f"{n}:{k.target}" if k.target else n for n, k in BACKENDS.items()), "auto"])
    raise UsageError(f"backend {text!r} is neither one of {known} nor a trace file that exists")


def auto_reference(interpreter: str) -> BackendChoice:
    """detectron2 where the interpreter has it, else the compact PyTorch reference."""
    has = any(_can_import(interpreter, name) for name in ("detectron2",))
    return BackendChoice("detectron2" if has else "torch", "", interpreter, automatic=True)


def able(backend: BackendChoice, setup: Setup) -> BackendChoice:
    """A backend that has the conventions of a resolved model: itself, or the PyTorch reference where detectron2 was
    chosen by nobody. Raises BackendError where somebody named detectron2."""
    if backend.name != "detectron2" or setup.conventions == "detectron2":
        return backend
    if backend.automatic:
        return replace(backend, name="torch")
    raise BackendError(
        f"the model computes with the conventions of {setup.conventions}, which detectron2 does not have: name torch "
        "in its place, or compare what detectron2 makes of the same weights with --opts MODEL.CONVENTIONS detectron2"
    )


def _can_import(interpreter: str, module: str) -> bool:
    if interpreter == sys.executable:
        return importlib.util.find_spec(module) is not None
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    try:
        return subprocess.run([interpreter, "-c", code], capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"cannot run {interpreter}: {error}") from error


def several(given: Paths) -> list[str]:
    """Names or paths as a list. One alone is a list of one: a string is a sequence, too, of its letters."""
    return [os.fspath(g) for g in ([given] if isinstance(given, str | os.PathLike) else given)]


def check_mutation(name: str, candidates: Sequence[BackendChoice]) -> None:
    """Raise ValueError where no bug has that name, or a candidate is not a model that it can be planted in."""
    with from_a_checkout("planted bugs"):
        from parity.selftest.mutations import BY_NAME
    if name not in BY_NAME:
        raise UsageError(f"no planted bug is called {name!r}; see: tf-d2 parity list-mutations")
    for candidate in candidates:
        if candidate.name not in ("tf", "tf-eager") or candidate.recorded:
            raise UsageError(f"the bug {name} can be planted in tf and tf-eager, not in {candidate.name}")


def check_backend(backend: BackendChoice, role: str, images: int, profile: Profile) -> None:
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


def precise_backend(reference: BackendChoice, interpreter: str) -> BackendChoice | None:
    """What gives the float64 run beside a reference: itself, or for a recording detectron2 or torch; None where
    neither is installed."""
    if not reference.recorded:
        return reference
    for name in ("detectron2", "torch"):
        if _can_import(interpreter, name):
            return BackendChoice(name, "", interpreter, automatic=True)
    return None
