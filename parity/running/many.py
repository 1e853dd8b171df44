"""Two backends on very many pictures: each loaded once, one picture after the other, resumable.

A folder holds

    manifest.json   model, list of pictures and options; another run than this one is refused
    rows.jsonl      one line per picture that was compared (`parity.core.collection.row_of`), appended and synced
    sides.json      what the last run knows about the two sides (versions, machine)
    work.PID/       the traces of the picture in work

A process may be killed at any moment: the next one drops a line that is not whole, and goes on with the pictures that
have none. Pictures that could not be compared are tried again.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.core.collection import Row, failed_row, read_rows, row_of
from parity.core.job import JobError, file_sha256, read_image
from parity.core.profiles import get_profile
from parity.core.status import Status
from parity.judge.judge import compare
from parity.judge.waivers import Waiver
from parity.running.kept import Kept, PictureError
from parity.running.runner import reproduce, resolved
from parity.running.sides import BackendChoice, Setup, able, check_backend, check_mutation, parse_backend
from parity.running.worker import Progress
from weights.errors import UsageError, UserError

SCHEMA = 1
# What a folder is searched for. A list or a pattern may name files of any other ending.
_SUFFIXES = frozenset(".jpg .jpeg .png .bmp .webp .tif .tiff .gif .npy".split())
_SIDE_FACTS = ("backend", "machine", "versions", "flags", "threads", "accelerator")


class FolderError(UserError, ValueError):
    """The folder belongs to another run. The message says what differs and what to do."""


def is_collection(text: str) -> bool:
    """Whether an input stands for pictures that are not named one by one: a folder, a .txt list or a pattern."""
    path = Path(text)
    return (
        path.is_dir()
        or path.suffix.lower() == ".txt"
        or (not path.exists() and any(c in text for c in "*?["))
    )


def pictures_of(inputs: Sequence[str]) -> list[str]:
    """Absolute paths in the order given; folders (with all below them) and patterns sorted by name.

    Raises ValueError naming every file that does not exist, and where there is no picture at all.
    """
    found: list[str] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found += sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        elif path.suffix.lower() == ".txt" and path.is_file():
            lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
            found += [str(path.parent / line) for line in lines if line]
        elif not path.exists() and any(c in text for c in "*?["):
            found += sorted(p for p in glob.glob(text, recursive=True) if os.path.isfile(p))
        else:
            found.append(text)
    missing = [path for path in found if not os.path.isfile(path)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UsageError(f"no such picture: {', '.join(missing[:5])}{more}")
    if not found:
        raise UsageError(f"no pictures in {', '.join(inputs)}")
    return [os.path.abspath(path) for path in found]


@dataclass(frozen=True)
class Plan:
    """What is compared with what. ``noise``: truth, threads or none (see `parity.running.runner.run`)."""

    setup: Setup
    reference: BackendChoice
    candidate: BackendChoice
    noise: str = "truth"
    mutate: str = ""
    early_stop: bool = True
    waivers: tuple[Waiver, ...] = ()

    def options(self) -> dict[str, Any]:
        """Everything that a result follows from besides model and pictures."""
        sides = [":".join(p for p in (b.name, b.target) if p) for b in (self.reference, self.candidate)]
        setup = self.setup
        return {
            "reference": sides[0],
            "candidate": sides[1],
            "profile": setup.profile,
            "device": setup.device,
            "threads": setup.threads,
            "repeat": setup.repeat,
            "noise": self.noise,
            "mutate": self.mutate,
            "early_stop": self.early_stop,
            "waivers": [repr(w) for w in self.waivers],
        }


def plan(
    setup: Setup, reference: str, candidate: str, *, torch_python: str | None = None, **options: Any
) -> Plan:
    """A checked `Plan`. Raises ValueError for a side that cannot run on pictures one by one."""
    sides = [parse_backend(text, torch_python) for text in (reference, candidate)]
    for backend, role in zip(sides, ("reference", "candidate"), strict=True):
        if backend.recorded:
            raise UsageError(f"the {role} is a recorded trace; over many pictures, name a backend to run")
        check_backend(backend, role, 1, get_profile(setup.profile))
    made = Plan(setup, sides[0], sides[1], **options)
    if made.noise not in ("none", "threads", "truth"):
        raise UsageError(f"noise {made.noise!r} is not one of: none, threads, truth")
    if made.mutate:
        check_mutation(made.mutate, sides[1:])
    return made


def run(
    made: Plan,
    pictures: Sequence[str],
    output: Path,
    *,
    progress: Progress = lambda text: None,
    done: Callable[[int, Row], None] = lambda count, row: None,
) -> Path:
    """Compare every picture that has no row yet; returns the file of the rows. ``done`` is told every row, and how many
    there are.

    Memory: both models, one picture, and the list of paths. Raises FolderError where ``output`` is of another run,
    BackendError where a side cannot load the model.
    """
    output = output.resolve()
    rows = output / "rows.jsonl"
    with _own(output):
        setup = resolved(replace(made.setup, images=pictures[:1]), output, progress)
        reference, candidate = able(made.reference, setup), able(made.candidate, setup)
        made = replace(made, reference=reference, candidate=candidate)
        _agree(output, made, setup, pictures)
        have = _resume(rows)
        for left in output.glob(
            "work.*"
        ):  # of a process that was killed; its backends may not have ended yet
            shutil.rmtree(left, ignore_errors=True)
        work = output / f"work.{os.getpid()}"
        work.mkdir()
        if len(have) < len(pictures):
            with ExitStack() as stack, open(rows, "ab") as file:
                sides = _Sides(made, setup, work, stack)
                count = len(have)
                for index, picture in enumerate(pictures):
                    if index in have:
                        continue
                    progress(Path(picture).name)
                    row = sides.row(index, picture)
                    file.write((json.dumps(row) + "\n").encode())
                    file.flush()
                    os.fsync(file.fileno())
                    count += 1
                    done(count, row)
                _write(output / "sides.json", sides.facts)
        shutil.rmtree(work, ignore_errors=True)
    return rows


class _Sides:
    """The processes of one run."""

    def __init__(self, made: Plan, setup: Setup, work: Path, stack: ExitStack) -> None:
        self.made, self.work = made, work
        self.facts: list[Mapping[str, Any]] = []
        extra = {"mutate": made.mutate} if made.mutate else {}

        def kept(backend: BackendChoice, own: Setup, role: str) -> Kept:
            return stack.enter_context(Kept(backend, own, work.parent, role))

        self.reference = kept(made.reference, setup, "reference")
        self.candidate = kept(made.candidate, replace(setup, extra={**setup.extra, **extra}), "candidate")
        self.noise: Kept | None = None
        if made.noise == "truth" and setup.profile != "semantic":
            self.noise = kept(made.reference, replace(setup, profile="semantic", repeat=1), "truth")
        elif made.noise != "none":
            threads = 1 if setup.threads != 1 else 2
            self.noise = kept(made.reference, replace(setup, threads=threads, repeat=1), "threads")

    def row(self, index: int, picture: str) -> Row:
        """Both sides on one picture, and the verdict. The traces are removed."""
        made = self.made
        names = ("reference.h5", "noise.h5", "candidate.h5")
        reference, noise, candidate = (self.work / name for name in names)
        try:
            read_image(picture)
            self.reference.trace(picture, reference)
            further = [] if self.noise is None else [self.noise.trace(picture, noise, self._feed(reference))]
            self.candidate.trace(picture, candidate, reference)
            (comparison,) = compare(
                reference,
                candidate,
                profile=made.setup.profile,
                noise=further,
                waivers=made.waivers,
                early_stop=made.early_stop,
            )
        except (PictureError, JobError) as error:
            return failed_row(index, picture, str(error))
        finally:
            for path in (reference, noise, candidate):
                path.unlink(missing_ok=True)
        if not self.facts:
            sides = (comparison.candidate_manifest, comparison.reference_manifest)
            self.facts = [{k: m[k] for k in _SIDE_FACTS if k in m} for m in sides]
        one = replace(made.setup, images=[picture])
        folder = self.work.parent / "pictures" / f"{index:06d}"
        comparison.command = reproduce(made.reference, made.candidate, one, folder, made.mutate)
        return row_of(index, picture, comparison)

    def _feed(self, reference: Path) -> Path | None:
        return reference if self.noise is not None and self.noise.role == "truth" else None


# === The folder ===


@contextmanager
def _own(output: Path) -> Iterator[None]:
    """The folder, for this process alone. Raises FolderError where it holds something else or is in use."""
    held = sorted(p.name for p in output.iterdir()) if output.is_dir() else []
    # What a run leaves that was killed before its manifest was written.
    early = {".lock", "config.yaml", "setup.json"}
    foreign = [n for n in held if n not in early and not n.startswith(("config.", "."))]
    if foreign and "manifest.json" not in held:
        raise FolderError(
            f"{output}: holds something else ({', '.join(foreign[:3])}); give a new or empty folder"
        )
    output.mkdir(parents=True, exist_ok=True)
    with open(output / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FolderError(f"{output}: another process compares pictures there; wait for it") from None
        yield


def _agree(output: Path, made: Plan, setup: Setup, pictures: Sequence[str]) -> None:
    """Write the manifest, or raise FolderError where there is one of another run."""
    listed = hashlib.sha256()
    for path in pictures:
        listed.update(f"{path}\0{os.path.getsize(path)}\n".encode())
    manifest = {
        "schema": SCHEMA,
        "model": {"config_sha256": file_sha256(setup.config), "weights_sha256": setup.weights_sha256},
        "pictures": {"count": len(pictures), "sha256": listed.hexdigest()},
        "options": made.options(),
    }
    path = output / "manifest.json"
    if not path.exists():
        _write(path, manifest)
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise FolderError(f"{path}: not readable ({error}); give another folder") from error
    named = {
        "schema": "another version of this program",
        "model": "another model",
        "pictures": "other pictures",
    }
    differing = [text for key, text in named.items() if before.get(key) != manifest[key]]
    old = before.get("options") or {}
    changed = [f"{k} {old.get(k)!r}, now {v!r}" for k, v in manifest["options"].items() if old.get(k) != v]
    differing += [f"other options ({'; '.join(changed)})"] if changed else []
    if differing:
        raise FolderError(
            f"{output}: made with {' and '.join(differing)}; give another folder, or the model, pictures and options "
            "of that run"
        )


def _resume(rows: Path) -> set[int]:
    """The pictures that are done. Lines that are not whole, and those of pictures that failed, are removed."""
    if not rows.exists():
        return set()
    have: set[int] = set()
    made = rows.with_name(".rows.jsonl")
    with open(made, "w") as file:
        for row in read_rows(rows):
            if row["status"] != str(Status.ERROR) and row["index"] not in have:
                have.add(row["index"])
                file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, rows)
    return have


def _write(path: Path, value: Any) -> None:
    made = path.with_name(f".{path.name}")
    made.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(made, path)
