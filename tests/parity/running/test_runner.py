"""The runner with stand-in workers: what they say, how they fail, and that a failure is never a pass."""

import json
import os
import shlex
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest

from parity.core.status import Status
from parity.core.trace import TraceWriter
from parity.running import runner, sides, worker
from parity.running.sides import BackendChoice, BackendError, Setup, parse_backend
from parity.running.worker import Program, call_worker


def no_worker(monkeypatch):
    for module in (runner, worker):
        monkeypatch.setattr(module, "call_worker", lambda *given: pytest.fail("a worker was started"))


@pytest.fixture
def interpreter(tmp_path):
    """Makes an "interpreter" that ignores the module it is told to run and does ``body`` instead."""

    def make(body):
        path = tmp_path / "fake_python"
        head = f"#!{sys.executable}\nimport json, sys, time\njob = json.load(open(sys.argv[4]))\n"
        path.write_text(head + textwrap.dedent(body))
        path.chmod(0o755)
        return str(path)

    return make


def write_trace(path, scale=1.0, **manifest):
    with TraceWriter(path) as writer:
        writer.put("input/image", np.zeros((4, 6, 3), np.uint8))
        writer.put("steps/backbone/p2", np.full((1, 2, 3, 4), scale, np.float32))
        writer.finish({"backend": "torch", **manifest}, "{}")
    return path


def test_a_worker_that_delivers(interpreter, tmp_path):
    python = interpreter(
        """
        print("some library says hello")
        print(json.dumps({"event": "progress", "done": 1, "of": 2, "what": "picture"}), flush=True)
        open(job["output"], "w").write("x")
        print(json.dumps({"event": "done"}))
        """
    )
    seen = []
    events = call_worker(Program("any", python, 60), {}, tmp_path / "out.h5", progress=seen.append)
    assert [e["event"] for e in events] == ["progress", "done"] and seen == ["picture 1/2"]
    assert not (tmp_path / "out.log").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('print(json.dumps({"event": "error", "message": "no such class"})); sys.exit(2)', "no such class"),
        ("sys.stderr.write('segmentation fault'); sys.exit(139)", "status 139 [|] segmentation fault"),
        ("pass", "without writing its trace"),
        ('open(job["output"], "w"); print(json.dumps({"event": "error", "message": "late"}))', "late"),
    ],
)
def test_a_worker_that_fails_says_why(interpreter, tmp_path, body, message):
    with pytest.raises(BackendError, match=message):
        call_worker(Program("any", interpreter(body), 60), {}, tmp_path / "out.h5")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("h5py", "has no h5py: .* there: .*fake_python -m pip install numpy h5py PyYAML Pillow "),
        ("torch", "has no torch: .*fake_python -m pip install torch "),
        ("detectron2.config", "has no detectron2: install detectron2 there, or .*--torch-python"),
        ("parity.selftest", "ended with status 1 [|] .*No module named 'parity.selftest'"),
    ],
)
def test_a_module_that_the_interpreter_lacks_is_named_with_a_remedy(interpreter, tmp_path, module, message):
    body = f"raise ModuleNotFoundError(\"No module named '{module}'\")"
    with pytest.raises(BackendError, match=message):
        call_worker(Program("any", interpreter(body), 60), {}, tmp_path / "out.h5")


def test_a_worker_that_hangs_is_stopped(interpreter, tmp_path):
    with pytest.raises(BackendError, match="no result after"):
        call_worker(Program("any", interpreter("time.sleep(60)"), 0.7), {}, tmp_path / "out.h5")


def test_a_stale_trace_is_not_taken_for_a_result(interpreter, tmp_path):
    target = tmp_path / "out.h5"
    target.write_text("old")
    with pytest.raises(BackendError):
        call_worker(Program("any", interpreter("pass"), 60), {}, target)


def test_a_missing_interpreter(tmp_path):
    with pytest.raises(BackendError, match="cannot start"):
        call_worker(Program("any", str(tmp_path / "nothing"), 60), {}, tmp_path / "out.h5")


def test_workers_see_this_project_and_what_the_user_put_on_the_path(interpreter, tmp_path, monkeypatch):
    python = interpreter(
        """
        import os
        root, *more = os.environ["PYTHONPATH"].split(os.pathsep)
        print(json.dumps({"event": "seen", "names": sorted(os.listdir(root)), "more": more}))
        open(job["output"], "w").write("x")
        """
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/projects/DensePose", "/projects/TensorMask"]))
    events = call_worker(Program("any", python, 60), {}, tmp_path / "out.h5")
    assert events[0]["names"] == ["parity", "tf_d2", "weights"]
    assert events[0]["more"] == ["/projects/DensePose", "/projects/TensorMask"]
    monkeypatch.delenv("PYTHONPATH")
    assert call_worker(Program("any", python, 60), {}, tmp_path / "out.h5")[0]["more"] == []


def test_backend_names(tmp_path):
    trace = tmp_path / "a.h5"
    trace.write_text("")
    assert parse_backend(str(trace)) == BackendChoice("trace", str(trace))
    assert parse_backend("torch", "/usr/bin/python9").interpreter == "/usr/bin/python9"
    assert parse_backend("savedmodel:export/1").target == "export/1"
    for bad in (
        "tensorflow2",
        "savedmodel",
        "serving:",
        "serving:http://host:8501",
        str(tmp_path / "missing.h5"),
    ):
        with pytest.raises(ValueError):
            parse_backend(bad)


def test_two_recorded_traces_need_no_framework(tmp_path):
    a, b = write_trace(tmp_path / "a.h5"), write_trace(tmp_path / "b.h5", 1.5)
    same = runner.run("c.yaml", None, ["x.png"], output=tmp_path / "o", reference=str(a), candidates=[str(a)])
    other = runner.run(
        "c.yaml", None, ["x.png"], output=tmp_path / "o", reference=str(a), candidates=[str(b)]
    )
    assert same[0].exit_code == 0 and other[0].exit_code == 1
    assert "--reference" in other[0].command


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_side_that_fails_is_an_error_with_exit_code_2(interpreter, tmp_path, monkeypatch, side):
    python = interpreter('print(json.dumps({"event": "error", "message": "out of memory"})); sys.exit(2)')
    monkeypatch.setattr(runner, "resolved", lambda setup, folder, progress: setup)
    trace = str(write_trace(tmp_path / "a.h5"))
    names = {"reference": trace, "candidate": trace} | {side: "torch"}
    (comparison,) = runner.run(
        "c.yaml",
        "w.npz",
        ["x.png"],
        output=tmp_path / "out",
        reference=names["reference"],
        candidates=[names["candidate"]],
        torch_python=python,
    )
    assert comparison.exit_code == 2
    assert comparison.stages[0].status is Status.ERROR and "out of memory" in comparison.stages[0].message


def test_several_candidates_are_all_judged(tmp_path):
    a, b = write_trace(tmp_path / "a.h5"), write_trace(tmp_path / "b.h5", 1.5)
    found = runner.run(
        "c.yaml", None, ["x.png"], output=tmp_path / "o", reference=str(a), candidates=[str(a), str(b)]
    )
    assert [c.exit_code for c in found] == [0, 1]


def test_the_job_has_only_what_the_torch_workers_know(interpreter, tmp_path):
    from dataclasses import fields

    from parity.core.job import Job

    python = interpreter(
        """
        print(json.dumps({"event": "job", "keys": sorted(job)}))
        open(job["output"], "w").write("x")
        """
    )
    setup = Setup("c.yaml", "w.npz", ["x.png"], extra={"feed": "r.h5"})
    log = []
    monkey = worker.call_worker

    def spy(*arguments, **options):
        log.extend(monkey(*arguments, **options))
        return log

    worker.call_worker = spy
    try:
        worker.run_backend(BackendChoice("torch", "", python), setup, tmp_path / "out.h5")
    finally:
        worker.call_worker = monkey
    assert set(log[0]["keys"]) <= {f.name for f in fields(Job)}


def test_reproduce_quotes_for_the_shell():
    setup = Setup(
        "my config.yaml", "w.pkl", ["it's.png"], threads=1, proposals=["a.npy"], opts=("MODEL.DEVICE", "cpu")
    )
    words = shlex.split(runner.reproduce(BackendChoice("torch"), BackendChoice("tf"), setup, "out"))
    assert (
        "my config.yaml" in words and "it's.png" in words and words[-3:] == ["--opts", "MODEL.DEVICE", "cpu"]
    )
    assert words[words.index("--threads") + 1] == "1" and words[words.index("--proposals") + 1] == "a.npy"


def test_unknown_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="profile"):
        runner.run("c", None, ["i"], output=tmp_path, profile="loose")
    with pytest.raises(ValueError, match="noise"):
        runner.run("c", None, ["i"], output=tmp_path, noise="guess")


def test_bugs_that_cannot_be_planted_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"no planted bug is called 'nonsense'; see: tf-d2 parity list-mutations"
    ):
        runner.run("c", None, ["i"], output=tmp_path / "out", mutate="nonsense")
    with pytest.raises(ValueError, match="can be planted in tf and tf-eager, not in savedmodel"):
        runner.run(
            "c", None, ["i"], output=tmp_path / "out", candidates=["savedmodel:d"], mutate="resize_floor"
        )
    assert not (tmp_path / "out").exists()


def test_manifests_are_compared_before_anything_else(tmp_path):
    import parity

    a = write_trace(tmp_path / "a.h5", weights_sha256="1" * 64, tensors={"w": "x"})
    b = write_trace(tmp_path / "b.h5", weights_sha256="2" * 64, tensors={"w": "x"})
    (comparison,) = parity.compare(a, b)
    assert comparison.stopped_at == "manifest" and comparison.first_bad.name == "manifest/weights_sha256"
    c = write_trace(tmp_path / "c.h5", weights_sha256="1" * 64, tensors={"w": "y", "v": "z"})
    (comparison,) = parity.compare(a, c)
    assert comparison.stopped_at == "weights" and "extra in the candidate: v" in comparison.first_bad.message


def test_a_side_that_is_not_deterministic_gives_exit_code_3(tmp_path):
    import parity

    a = write_trace(tmp_path / "a.h5")
    b = write_trace(tmp_path / "b.h5", repeat={"runs": 2, "nondeterministic": ["steps/backbone/p2"]})
    (comparison,) = parity.compare(a, b)
    assert comparison.exit_code == 3 and comparison.status is Status.PASS
    (comparison,) = parity.compare(a, b, profile="production")
    assert comparison.exit_code == 0


def test_json_of_a_result_survives_a_round_trip(tmp_path):
    import parity
    from parity.core.results import from_json, to_json

    a, b = write_trace(tmp_path / "a.h5"), write_trace(tmp_path / "b.h5", 1.5)
    comparisons = parity.compare(a, b)
    text = json.dumps(to_json(comparisons), allow_nan=False)
    again = from_json(json.loads(text))
    assert to_json(again) == to_json(comparisons) and again[0].exit_code == 1
    with pytest.raises(ValueError, match="schema"):
        from_json({"schema": "other/1"})


def test_noise_is_measured_from_files_too(tmp_path):
    import parity

    a, b = write_trace(tmp_path / "a.h5"), write_trace(tmp_path / "b.h5", 1 + 5e-6)
    noisy = write_trace(tmp_path / "n.h5", 1 + 2e-6)
    (comparison,) = parity.compare(a, b, noise=[noisy])
    stage = next(s for s in comparison.stages if s.name == "steps/backbone/p2")
    assert stage.limit.noise == pytest.approx(2e-6, rel=0.1) and stage.status is Status.PASS
    (comparison,) = parity.compare(a, b, noise=[a])
    assert comparison.exit_code == 1 and not any("noise of" in n for n in comparison.notes)


def test_one_path_stands_for_a_list_of_one(interpreter, tmp_path, monkeypatch):
    """A string is a sequence of its letters, and a worker once read the picture "/"."""
    python = interpreter(
        """
        open(job["output"] + ".json", "w").write(json.dumps([job["images"], job["proposals"]]))
        print(json.dumps({"event": "error", "message": "enough"})); sys.exit(2)
        """
    )
    monkeypatch.setattr(runner, "resolved", lambda setup, folder, progress: setup)
    trace = write_trace(tmp_path / "a.h5")
    for one in (str, Path):
        (comparison,) = runner.run(
            "c.yaml",
            "w.npz",
            one(tmp_path / "street.jpg"),
            output=tmp_path / "out",
            reference="torch",
            candidates=one(trace),
            proposals=one(tmp_path / "boxes.npy"),
            torch_python=python,
        )
        assert "enough" in comparison.stages[0].message
        told = json.loads((tmp_path / "out" / "reference.h5.json").read_text())
        assert told == [[str(tmp_path / "street.jpg")], [str(tmp_path / "boxes.npy")]]
    with pytest.raises(TypeError, match="PathLike"):
        runner.run("c.yaml", None, [np.zeros((4, 6, 3), np.uint8)], output=tmp_path, reference=trace)


def _truncated(path):
    whole = write_trace(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _keras_weights(path):
    with h5py.File(path, "w") as file:
        file["layers/conv/vars/0"] = np.ones((3, 3), np.float32)


@pytest.mark.parametrize("role", ["reference", "candidate"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("not a trace"), "cannot open"),
        (lambda path: path.write_bytes(b""), "cannot open"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "cannot open"),
        (_truncated, "truncated"),
        (_keras_weights, "is not a trace"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_before_anything_runs(tmp_path, monkeypatch, make, message, role):
    no_worker(monkeypatch)
    make(tmp_path / "bad.h5")
    sides = {"reference": "torch", "candidates": "tf"}
    sides["candidates" if role == "candidate" else role] = str(tmp_path / "bad.h5")
    with pytest.raises(ValueError, match=rf"(?s)bad\.h5.*{message}|{message}.*bad\.h5") as found:
        runner.run("c.yaml", None, "x.png", output=tmp_path / "out", **sides)
    assert f"As {role}, name such a file or a backend to run" in str(found.value)
    assert not (tmp_path / "out").exists()


def test_a_trace_of_other_pictures_is_refused_before_anything_runs(tmp_path, monkeypatch):
    no_worker(monkeypatch)
    trace = write_trace(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"reference .*a\.h5 holds 1 images, but 2 are given"):
        runner.run("c.yaml", None, ["x.png", "y.png"], output=tmp_path / "out", reference=trace)


@pytest.mark.parametrize(
    ("reference", "candidate", "message"),
    [
        ("a.h5", "tf", r"a\.h5 is float32; the semantic profile needs a float64 reference"),
        ("torch", "savedmodel:exported", "savedmodel computes is float32; .* a float64 candidate"),
        ("torch", "serving:http://host:8501/m", "serving computes is float32"),
    ],
)
def test_float32_is_refused_in_the_semantic_profile_before_anything_runs(
    tmp_path, monkeypatch, reference, candidate, message
):
    """A right model would be called different at its first stage."""
    monkeypatch.chdir(tmp_path)
    no_worker(monkeypatch)
    write_trace(tmp_path / "a.h5", dtype="float32")
    with pytest.raises(ValueError, match=message):
        runner.run(
            "c.yaml",
            None,
            "x.png",
            output=tmp_path / "out",
            reference=reference,
            candidates=candidate,
            profile="semantic",
        )


@pytest.mark.parametrize(
    ("reference", "held", "expected"),
    [
        ("torch", (), "torch"),  # it runs, so it can run in float64
        ("trace", ("torch", "detectron2"), "detectron2"),
        ("trace", ("torch",), "torch"),
        ("trace", (), None),
    ],
)
def test_what_gives_the_float64_run_beside_a_reference(monkeypatch, reference, held, expected):
    monkeypatch.setattr(sides, "_can_import", lambda interpreter, name: name in held)
    found = sides.precise_backend(BackendChoice(reference, "r.h5"), "python")
    assert (found.name if found else None) == expected


def how(folder):
    return runner._How(folder, "truth", sys.executable, lambda text: None)


@pytest.mark.parametrize("works", [True, False])
def test_thread_noise_is_measured_only_where_there_is_no_float64_run(tmp_path, monkeypatch, works):
    ran = []

    def run_backend(backend, setup, target, progress=None):
        ran.append(setup.profile)
        if setup.profile == "semantic" and not works:
            raise BackendError("out of memory")
        return target

    monkeypatch.setattr(runner, "run_backend", run_backend)
    setup = Setup("c.yaml", "w.pkl", ["i.png"], source=Setup("c.yaml", "w.pkl", ["i.png"]))
    traces, notes = runner._noise_runs(BackendChoice("torch"), setup, tmp_path / "r.h5", how(tmp_path))
    assert ran == (["semantic"] if works else ["semantic", "strict"])
    assert [Path(str(t)).name for t in traces] == ["noise_truth.h5" if works else "noise_threads.h5"]
    assert works or "limits are estimates: out of memory" in notes[0]


def test_a_recording_without_torch_is_judged_by_estimates(tmp_path, monkeypatch):
    monkeypatch.setattr(sides, "_can_import", lambda interpreter, name: False)
    setup = Setup("c.yaml", "w.pkl", ["i.png"])
    reference = BackendChoice("trace", "r.h5")
    traces, notes = runner._noise_runs(reference, setup, tmp_path / "r.h5", how(tmp_path))
    assert traces == [] and "torch is not installed" in notes[0]
