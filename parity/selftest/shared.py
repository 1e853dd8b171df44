"""Many jobs in one process of a framework: importing it takes longer than a small model runs.

Each job is a worker's (`parity.running.worker.call_worker`). Those of one interpreter, framework, environment and
number of threads share a process, which is ended after :data:`_JOBS` of them, so that memory stays bounded.

python -m parity.selftest.shared    reads {"module": ..., "job": FILE} per line, does each, and says how it ended
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parity.running.sides import BackendError
from parity.running.worker import Program, ended, event_of, piped

_JOBS = 12
# What a process reads when it starts, and what the jobs themselves set.
_READ_AT_START = ("TF_", "ONEDNN_", "ATEN_")
_SET_BY_JOBS = ("TF_NUM_", "TF_CPP_MIN_LOG_LEVEL", "TF_FORCE_GPU_ALLOW_GROWTH")

_Key = tuple[Any, ...]


class _Process:
    """One running process, the folder it works in, and how many jobs it has had."""

    def __init__(self, interpreter: str) -> None:
        self.scratch = tempfile.TemporaryDirectory(prefix="parity-")
        folder = Path(self.scratch.name)
        self.log = folder / "log"
        self.interpreter = interpreter
        self.jobs = 0
        try:
            self.popen = piped([interpreter, "-m", "parity.selftest.shared"], folder, self.log)
        except BackendError:
            self.scratch.cleanup()
            raise

    def do(self, module: str, job: Mapping[str, Any], timeout: float) -> list[dict[str, Any]] | None:
        """The events of a job; None where the process ended in it."""
        self.jobs += 1
        path = Path(self.scratch.name) / "job.json"
        path.write_text(json.dumps(job))
        assert self.popen.stdin is not None and self.popen.stdout is not None
        try:
            self.popen.stdin.write(json.dumps({"module": module, "job": str(path)}) + "\n")
            self.popen.stdin.flush()
        except OSError:  # it died between two jobs
            return None
        events: list[dict[str, Any]] = []
        timer = threading.Timer(timeout, self.popen.kill)
        timer.start()
        try:
            for event in filter(None, map(event_of, self.popen.stdout)):
                if event["event"] == "ended":
                    return events
                events.append(event)
        finally:
            timer.cancel()
        return None

    def said(self) -> str:
        """Status and last words of a process that ended."""
        return ended(self.popen.wait(), self.log, self.interpreter)

    def close(self) -> None:
        """End the process."""
        self.popen.kill()
        self.popen.communicate()
        self.scratch.cleanup()


class Shared:
    """A `call_worker` whose jobs share processes. Use as a context manager."""

    def __init__(self) -> None:
        self._running: dict[_Key, _Process] = {}

    def __enter__(self) -> Shared:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running.values():
            process.close()
        self._running.clear()

    def call(
        self,
        program: Program,
        job: Mapping[str, Any],
        target: Path,
        *,
        progress: Callable[[str], None] = lambda text: None,
    ) -> list[dict[str, Any]]:
        """Do one job in the process for its kind, as `call_worker` does. Raises BackendError where it fails; what
        ends a process ends only this job."""
        target.unlink(missing_ok=True)
        progress(program.module)
        key = _key(program, job)
        process = self._running.get(key) or _Process(program.interpreter)
        self._running[key] = process
        events = process.do(program.module, {**job, "output": str(target.resolve())}, program.timeout)
        failure = process.said() if events is None else ""
        if events is None or process.jobs >= _JOBS:
            process.close()
            del self._running[key]
        messages = [str(e.get("message")) for e in events or () if e["event"] == "error"]
        if events is None or messages or not target.exists():
            raise BackendError([*messages, failure or "ended without writing its trace"][0])
        return events


def _key(program: Program, job: Mapping[str, Any]) -> _Key:
    """Jobs of one key may share a process. Never two frameworks: they load other builds of the same libraries."""
    read = {n: v for n, v in os.environ.items() if n.startswith(_READ_AT_START)}
    variables = tuple(sorted((n, v) for n, v in read.items() if not n.startswith(_SET_BY_JOBS)))
    framework = "torch" if "torch" in program.module else "tensorflow"
    return program.interpreter, framework, job.get("threads"), variables


def main() -> None:
    """Do what standard input names until it ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        sys.argv = [asked["module"], "--job", asked["job"]]
        status: Any = 0
        try:
            runpy.run_module(asked["module"], run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        except Exception as error:
            print(json.dumps({"event": "error", "message": f"{type(error).__name__}: {error}"}), flush=True)
            status = 2
        print(json.dumps({"event": "ended", "status": status}), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # whoever asked is gone; to take a framework and its models down takes seconds
