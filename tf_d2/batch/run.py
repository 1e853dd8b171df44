"""The work itself: what is missing is done, nothing is done twice, and a kill at any moment loses one shard at most.

A shard is a fixed range of the list of pictures. Its file appears, whole, by a rename; before it, its numbers appear
in ``stats/``. A shard that has its file is done. While a process works on a shard it holds a lock on
``claims/NUMBER``, which the system releases when the process ends in whatever way, so several processes may share a
folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tf_d2.batch import inputs as listing
from tf_d2.batch.formats import FORMATS, write_shard
from tf_d2.batch.model import Detector, fingerprint, version_folder
from tf_d2.batch.rows import Row, failed
from tf_d2.commands.options import write_atomically
from weights.errors import UsageError, UserError

SCHEMA = "tf-d2-batch/2"
# Pictures being read, decoded, detected on or written at the same time.
WORKERS = 4


class BatchError(UserError, ValueError):
    """The folder belongs to another run, or too many pictures failed. The message says what to do."""


@dataclass(frozen=True)
class Options:
    """What makes two runs the same one (with the model and the list of pictures)."""

    format: str = "parquet"
    shard_size: int = 256


@dataclass
class Summary:
    """What stands in the folder, and what this process has added."""

    shards: int = 0
    pictures: int = 0
    failures: int = 0
    detections: int = 0
    done_before: int = 0
    busy_elsewhere: int = 0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)  # of failures


@dataclass(frozen=True)
class Folder:
    """An output folder that is ready: its list of pictures, its options, its manifest."""

    path: Path
    index: listing.Index
    options: Options
    manifest: Mapping[str, Any]

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-len(self.index) // self.options.shard_size)

    def shard(self, number: int) -> Path:
        """The file of a shard."""
        return self.path / f"part-{number:05d}.{FORMATS[self.options.format].suffix}"

    def stats(self, number: int) -> Path:
        """The file with the numbers of a shard."""
        return self.path / "stats" / f"{number:05d}.json"


# === The folder ===


def prepare(export: Path, inputs: list[str], output: Path, options: Options) -> Folder:
    """Make the folder, or find it made by the same run.

    Raises BatchError where it was made by another model, from other pictures or with other options, or holds something
    else; ValueError where there are no pictures.
    """
    folder = version_folder(export)
    if options.format not in FORMATS:
        raise UsageError(f"no format {options.format!r}; there are {', '.join(FORMATS)}")
    if output.is_dir() and any(output.iterdir()) and not (output / "manifest.json").exists():
        others = [p.name for p in sorted(output.iterdir()) if p.name not in (".lock", "inputs.jsonl")]
        if any(not name.startswith(".") for name in others):
            raise BatchError(
                f"{output}: holds something else ({', '.join(others[:3])}); give an empty or new folder"
            )
    output.mkdir(parents=True, exist_ok=True)
    with _locked(output / ".lock"):
        for left in output.glob(".inputs.*"):  # of a process that was killed here
            left.unlink(missing_ok=True)
        made = output / f".inputs.{os.getpid()}"
        try:
            count, digest = listing.write_index(inputs, made)
            if not count:
                raise UsageError(f"no pictures in {', '.join(inputs)}")
            manifest = {
                "schema": SCHEMA,
                "model": {"name": folder.parent.name, "fingerprint": fingerprint(folder)},
                "inputs": {"count": count, "sha256": digest},
                "options": {"format": options.format, "shard_size": options.shard_size},
                "category_ids": _category_ids(folder),
                "versions": [versions()],
            }
            manifest = _agreed(output, manifest)
            os.replace(made, output / "inputs.jsonl")
        finally:
            made.unlink(missing_ok=True)
        for name in ("stats", "claims"):
            (output / name).mkdir(exist_ok=True)
    return Folder(output, listing.Index(output / "inputs.jsonl"), options, manifest)


def _category_ids(folder: Path) -> list[int]:
    return list(json.loads((folder / "assets" / "export.json").read_text()).get("category_ids") or [])


def _agreed(output: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest that is there, if it is of the same run, or the new one, written. Raises BatchError."""
    path = output / "manifest.json"
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise BatchError(f"{path}: not readable ({error}); give another folder") from error
        named = {"model": "another model", "inputs": "other pictures", "options": "other options"}
        differing = [text for key, text in named.items() if before.get(key) != manifest[key]]
        if before.get("schema") != SCHEMA or differing:
            told = {key: before.get(key) for key in named}
            raise BatchError(
                f"{output}: made with {' and '.join(differing) or 'another version of this program'} "
                f"({json.dumps(told)}); give another folder, or the model, pictures and options of that run"
            )
        if manifest["versions"][0] in before["versions"]:
            return before
        manifest = before | {"versions": before["versions"] + manifest["versions"]}
    write_atomically(path, (json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def versions() -> dict[str, str]:
    """What computes here."""
    import tensorflow as tf

    import tf_d2

    return {
        "tf_d2": tf_d2.__version__,
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


class _locked:
    """Hold a lock file, waiting for it."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w")

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


# === The work ===


def run(
    folder: Folder,
    detector: Detector,
    *,
    max_failures: int | None = None,
    progress: Callable[[Summary], None] = lambda _: None,
) -> Summary:
    """Do every shard that nobody has done and nobody else is doing. Raises BatchError beyond ``max_failures``, after
    the shards that were complete have been written.

    Memory: a few pictures, the rows of the shards in work, and 8 bytes per picture of the list.
    """
    begin, summary = time.monotonic(), Summary(shards=folder.shards)
    for number in range(folder.shards):
        if folder.shard(number).exists():
            _count(summary, _read_stats(folder, number))
            summary.done_before += 1
    _limit(folder, summary, max_failures)
    progress(summary)
    rows: dict[int, list[Row]] = {}
    claims: dict[int, Any] = {}
    work = _stream(folder, claims, summary)
    with ThreadPoolExecutor(WORKERS) as pool:
        window: deque[tuple[int, int, Future[Row]]] = deque()

        def fill() -> None:
            while len(window) < 2 * WORKERS and (given := next(work, None)):
                number, size, item = given
                window.append((number, size, pool.submit(_one, detector, item)))

        try:
            fill()
            while window:
                number, size, future = window.popleft()
                row = future.result()
                fill()
                rows.setdefault(number, []).append(row)
                _count(summary, _stats([row]))
                if len(rows[number]) == size:
                    _finish(folder, number, rows.pop(number))
                    claims.pop(number).close()
                    summary.seconds = time.monotonic() - begin
                _limit(folder, summary, max_failures)
                progress(summary)
        finally:
            for _, _, future in window:
                future.cancel()
            for claim in claims.values():
                claim.close()
    summary.seconds = time.monotonic() - begin
    return summary


def _stream(
    folder: Folder, claims: dict[int, Any], summary: Summary
) -> Iterator[tuple[int, int, listing.Item]]:
    """Every picture of the shards that this process could claim, with its shard's number and size."""
    step = folder.options.shard_size
    for number in range(folder.shards):
        if folder.shard(number).exists():
            continue
        claim = open(folder.path / "claims" / f"{number:05d}", "w")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
            summary.busy_elsewhere += 1
            continue
        if folder.shard(number).exists():  # finished between the two looks
            claim.close()
            continue
        claims[number] = claim
        _sweep(folder, number)
        part = folder.index.part(number * step, (number + 1) * step)
        for item in part:
            yield number, len(part), item


def _sweep(folder: Folder, number: int) -> None:
    """Remove what a killed process left half-written of this shard, which is claimed."""
    for path in (folder.shard(number), folder.stats(number)):
        for left in path.parent.glob(f".{path.name}.*"):
            left.unlink(missing_ok=True)


def _one(detector: Detector, item: listing.Item) -> Row:
    try:
        name, data = listing.read(item)
    except OSError as error:
        return failed(item.name, f"{(error.strerror or str(error)).lower()}")
    except ValueError as error:
        return failed(item.name, str(error).removeprefix(f"{item.name}: "))
    return detector.row(name, data)


def _finish(folder: Folder, number: int, rows: list[Row]) -> None:
    write_atomically(folder.stats(number), (json.dumps(_stats(rows)) + "\n").encode())
    write_shard(folder.options.format, rows, folder.shard(number), folder.manifest["category_ids"])


def _stats(rows: list[Row]) -> dict[str, Any]:
    bad = [f"{row['path']}: {row['failure']}" for row in rows if row["failure"] is not None]
    found = sum(len(row["scores"] or ()) for row in rows)  # null: failed, or a model of maps alone
    return {"pictures": len(rows), "failures": bad, "detections": found}


def _read_stats(folder: Folder, number: int) -> dict[str, Any]:
    try:
        return json.loads(folder.stats(number).read_text())
    except (OSError, ValueError) as error:
        raise BatchError(
            f"{folder.shard(number)} is there, but {folder.stats(number)} is not readable ({error}); remove the former "
            "to have it made again"
        ) from error


def _count(summary: Summary, stats: Mapping[str, Any]) -> None:
    summary.pictures += stats["pictures"]
    summary.failures += len(stats["failures"])
    summary.detections += stats["detections"]
    summary.examples = (summary.examples + stats["failures"])[:3]


def _limit(folder: Folder, summary: Summary, max_failures: int | None) -> None:
    if max_failures is not None and summary.failures > max_failures:
        raise BatchError(
            f"{summary.failures} of {summary.pictures} pictures failed, more than --max-failures {max_failures}: "
            f"{'; '.join(summary.examples)}. Finished shards are kept in {folder.path}"
        )
