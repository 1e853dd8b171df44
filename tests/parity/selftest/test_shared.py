"""Jobs that share a process: which do, how each ends, and what one that dies does to the others."""

import os
import sys

import pytest

from parity.running.sides import BackendError
from parity.running.worker import Program
from parity.selftest import shared
from parity.selftest.shared import Shared

# A worker as those of the backends: it writes who it is, or fails as it is told.
WORKER = """
import json, os, sys
job = json.load(open(sys.argv[2]))
if job.get("die"):
    print("last words", file=sys.stderr, flush=True)
    os._exit(7)
if job.get("crash"):
    raise ValueError("no such kernel")
if job.get("refuse"):
    print(json.dumps({"event": "error", "message": "refused"}), flush=True)
    sys.exit(2)
if not job.get("idle"):
    open(job["output"], "w").write(f"{os.getpid()} {os.environ.get('TF_ENABLE_ONEDNN_OPTS')}")
print(json.dumps({"event": "done"}), flush=True)
sys.exit(0)
"""


@pytest.fixture
def do(tmp_path, monkeypatch):
    """Does a job of the worker above; returns its process and what that has in its environment."""
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "torch_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    target = tmp_path / "out"
    with Shared() as processes:

        def job(module="worker", **given):
            events = processes.call(Program(module, sys.executable, 60), given, target)
            assert events == [{"event": "done"}]
            return target.read_text().split()

        job.processes = processes
        yield job


def test_jobs_of_one_kind_share_a_process(do, monkeypatch):
    first = do(threads=1)
    assert do(threads=1) == first and first[1] == "1"
    assert do(threads=2)[0] != first[0]
    assert do("torch_worker", threads=1)[0] != first[0]
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "1")  # a job sets this one itself
    assert do(threads=1) == first
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    other = do(threads=1)
    assert other[0] != first[0] and other[1] == "0"


def test_a_process_ends_after_some_jobs(do, monkeypatch):
    monkeypatch.setattr(shared, "_JOBS", 2)
    one, two, three = do()[0], do()[0], do()[0]
    assert one == two != three and not os.path.exists(f"/proc/{one}")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("crash", "ValueError: no such kernel"),
        ("refuse", "refused"),
        ("idle", "ended without writing its trace"),
    ],
)
def test_a_failed_job_leaves_the_process_alive(do, how, message):
    before = do()
    with pytest.raises(BackendError, match=f"^{message}$"):
        do(**{how: True})
    assert do() == before


def test_a_job_that_ends_the_process_ends_only_itself(do):
    before = do()
    with pytest.raises(BackendError, match=r"ended with status 7 [|] last words"):
        do(die=True)
    assert do()[0] != before[0]


def test_a_job_that_hangs_is_stopped(tmp_path, monkeypatch):
    (tmp_path / "sleeper.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Shared() as processes, pytest.raises(BackendError, match="ended with status -9"):
        processes.call(Program("sleeper", sys.executable, 0.5), {}, tmp_path / "out")


def test_an_interpreter_that_is_not_there(tmp_path):
    with Shared() as processes, pytest.raises(BackendError, match="cannot start /no/python"):
        processes.call(Program("worker", "/no/python", 60), {}, tmp_path / "out")
