"""Processes that are watched and killed: how far they came, and how much memory they took. Standard library only."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from parity.running.worker import import_root
from weights.errors import UserError

_SAMPLE_SECONDS = 0.5
FRUITLESS = 10  # lives in a row that brought nothing: the kills come faster than the work can be done


class SoakError(UserError, RuntimeError):
    """A run ended by itself with an error, or never gets on."""


def _processes_of(root: int) -> Iterator[tuple[int, str]]:
    """A process and all below it: number and command line. Linux; elsewhere nothing."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it has just ended
            continue
        below.setdefault(parent, []).append(int(entry.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        waiting += below.get(pid, [])
        try:
            yield pid, (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue


def _memory_by_program(root: int) -> dict[str, float]:
    """Resident MiB of a process and all below it, those of one program (``-m NAME``) together."""
    found: dict[str, float] = {}
    for pid, command in _processes_of(root):
        words = command.split()
        name = words[words.index("-m") + 1] if "-m" in words[:-1] else "other"
        try:
            lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
        except OSError:
            continue
        mib = sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))
        found[name] = found.get(name, 0.0) + mib
    return found


@dataclass
class Life:
    """One process from start to end: what it left done, and (done, resident MiB by program) over its time."""

    seconds: float = 0.0
    killed: bool = False
    done: int = 0
    samples: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def peak(self, program: str, low: int, high: float = float("inf")) -> float:
        """Largest memory while between ``low`` and ``high`` pictures were done; NaN without a sample."""
        found = [mib[program] for done, mib in self.samples if low <= done <= high and program in mib]
        return max(found, default=float("nan"))


def live(
    command: Sequence[str],
    done: Callable[[], int],
    limit: float | None,
    log: Path,
    fine: Sequence[int] = (0,),
) -> Life:
    """Run a command, killed with all its processes after ``limit`` seconds (None: never). Raises SoakError where it
    ends with a status that is not among ``fine``."""
    life, begin = Life(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch, open(log, "ab") as said:
        environment = os.environ | {"PYTHONPATH": import_root(Path(scratch))}
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)
        try:
            while process.poll() is None:
                if limit is not None and time.monotonic() - begin > limit:
                    life.killed = True
                    break
                life.samples.append((done(), _memory_by_program(process.pid)))
                left = _SAMPLE_SECONDS if limit is None else limit - (time.monotonic() - begin)
                time.sleep(min(_SAMPLE_SECONDS, max(left, 0.0) + 0.001))
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    life.seconds, life.done = time.monotonic() - begin, done()
    if not life.killed and process.returncode not in fine:
        tail = log.read_text(errors="replace").strip().splitlines()[-3:]
        raise SoakError(f"status {process.returncode}: {' | '.join(tail)}")
    return life


def until_done(
    command: Sequence[str], done: Callable[[], int], every: float, log: Path, seed: int = 5
) -> list[Life]:
    """Lives of a command that is killed after 0.2 to 1.8 times ``every`` seconds and started again, until it ends by
    itself. Raises SoakError where ten in a row bring nothing."""
    lives, rng = [], random.Random(seed)
    while not lives or lives[-1].killed:
        lives.append(live(command, done, every * rng.uniform(0.2, 1.8), log))
        last = [life.done for life in lives[-FRUITLESS - 1 :]]
        if len(last) > FRUITLESS and lives[-1].killed and len(set(last)) == 1:
            raise SoakError(
                f"{FRUITLESS} lives of about {every:.0f} s brought nothing; give a larger --every"
            )
    return lives


def memory_table(life: Life, marks: Sequence[int]) -> dict[str, dict[str, float]]:
    """Program -> peak resident MiB while so many pictures were done: from the first one to the first mark, and so on.
    Before the first one a program is still loading. NaN for a span without a sample."""
    programs = sorted({name for _, mib in life.samples for name in mib if mib[name] > 0})
    spans = list(zip([1, *marks], marks, strict=False))
    return {
        name: {f"{low} to {high}": life.peak(name, low, high) for low, high in spans} for name in programs
    }


def grown(table: Mapping[str, Mapping[str, float]], share: float = 0.1, mib: float = 16.0) -> list[str]:
    """Programs that take more at the end than at the beginning, by more than a share and so many MiB."""
    found = []
    for name, peaks in table.items():
        first, last = (list(peaks.values())[k] for k in (0, -1))
        if last > first * (1 + share) + mib:
            found.append(f"memory of {name} grew from {first:.0f} to {last:.0f} MiB")
    return found
