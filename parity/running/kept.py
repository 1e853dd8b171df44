"""A backend that keeps its model loaded: one process, asked for one trace after the other."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

from parity.backends import BACKENDS
from parity.running.sides import BackendChoice, BackendError, Setup
from parity.running.worker import ended, event_of, job_of, piped


class PictureError(BackendError):
    """One trace that did not come about; the worker may be asked for the next one."""


class _Running(NamedTuple):
    process: subprocess.Popen[str]
    scratch: tempfile.TemporaryDirectory[str]


class Kept:
    """One side of many comparisons. Starts when it is asked first, and again after it died. Use as a context manager.

    ``folder``: where its log is written.
    """

    def __init__(self, backend: BackendChoice, setup: Setup, folder: Path, role: str) -> None:
        self.backend, self.setup, self.role = backend, setup, role
        self._log = folder / f"{role}.log"
        self._running: _Running | None = None

    def trace(self, picture: str, target: Path, feed: Path | None = None) -> Path:
        """The trace of one picture, fed with another one.

        Raises PictureError where that failed, and BackendError where the model cannot even be loaded.
        """
        target.unlink(missing_ok=True)
        if self._running is None:
            self._start(picture)
        asked = {"images": [picture], "output": str(target), "feed": None if feed is None else str(feed)}
        assert self._running is not None and self._running.process.stdin is not None
        try:
            self._running.process.stdin.write(json.dumps(asked) + "\n")
            self._running.process.stdin.flush()
        except OSError:  # it died; what it said is read below
            pass
        answer = self._answer(("written", "failed"))
        if answer is None:
            raise PictureError(f"{self.role}: {self._ended()}")
        if answer["event"] == "failed":
            raise PictureError(f"{self.role}: {answer.get('message')}")
        return target

    def close(self) -> None:
        """End the process."""
        if self._running is None:
            return
        process, scratch = self._running
        process.kill()
        process.communicate()
        scratch.cleanup()
        self._running = None

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, picture: str) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="parity-")
        root = Path(scratch.name)
        job = job_of(self.backend, self.setup) | {"mode": "keep", "images": [picture], "output": "none"}
        (root / "job.json").write_text(json.dumps(job))
        command = [self.backend.interpreter, "-m", BACKENDS[self.backend.name].module]
        try:
            process = piped([*command, "--job", str(root / "job.json")], root, self._log)
        except BackendError:
            scratch.cleanup()
            raise
        self._running = _Running(process, scratch)
        answer = self._answer(("ready", "error"))
        if answer is None or answer["event"] == "error":
            said = answer.get("message") if answer else None
            text = said or self._ended()
            self.close()
            raise BackendError(f"{self.role}: {self.backend.name} cannot load the model: {text}")

    def _answer(self, events: tuple[str, ...]) -> dict[str, Any] | None:
        """The next of these events; None where the process ends or takes longer than the setup allows."""
        assert self._running is not None and self._running.process.stdout is not None
        timer = threading.Timer(self.setup.timeout, self._running.process.kill)
        timer.start()
        try:
            for line in self._running.process.stdout:
                event = event_of(line)
                if event is not None and event["event"] in events:
                    return event
        finally:
            timer.cancel()
        return None

    def _ended(self) -> str:
        """How the process ended, which is then forgotten."""
        assert self._running is not None
        self._running.process.wait()
        text = ended(self._running.process.returncode, self._log, self.backend.interpreter)
        self.close()
        return text
