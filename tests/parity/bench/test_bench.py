"""The bench: interleaving, ratios within rounds, sides that fail, and agreement, with stand-in workers."""

import json
import sys
import textwrap

import numpy as np
import pytest

from parity.bench import bench
from parity.bench.bench import Options, agreement, run_bench
from parity.bench.results import Agreement, Bench, Competitor, from_json, table, to_json, write_results
from parity.running.sides import Setup

STAND_IN = """
import json, sys
job = json.load(open(sys.argv[4]))
name = job["backend"]
if name == "onnx":
    print(json.dumps({"event": "error", "message": "no such file"})); sys.exit(2)
print(json.dumps({"event": "ready", "load_seconds": 1.5, "base_mib": 10, "version": "1"}), flush=True)
count = 0
for line in sys.stdin:
    asked = json.loads(line)["do"] if line.startswith("{") else line.strip()
    if asked == "settle":
        print(json.dumps({"event": "ran", "seconds": 0, "peak_mib": 40, "since_start_mib": 300}), flush=True)
        continue
    if asked != "run":
        print(json.dumps({"event": "error", "message": "cannot " + asked}), flush=True)
        continue
    count += 1
    if name == "compile" and count == 3:
        sys.exit(7)
    open(LOG, "a").write(name + " ")
    seconds = (0.2 if name == "torch" else 0.1) * count
    print("noise on standard output")
    print(json.dumps({"event": "ran", "seconds": seconds, "detections": 3, "peak_mib": 100}), flush=True)
"""


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Stand-ins for both frameworks that write down when they ran; the first is twice as slow as the
    second."""
    log = tmp_path / "order.txt"
    path = tmp_path / "fake_python"
    path.write_text(f"#!{sys.executable}\nLOG = {str(log)!r}\n" + textwrap.dedent(STAND_IN))
    path.chmod(0o755)
    monkeypatch.setattr(bench, "resolved", lambda setup, folder, progress: setup)
    monkeypatch.setattr(bench.sys, "executable", str(path))
    return log


def run(tmp_path, *backends, rounds=4):
    options = Options(rounds=rounds, warmup=1)
    return run_bench(Setup("c.yaml", "w", ["i.png"]), tmp_path / "o", backends, options)


def test_runs_are_interleaved_and_the_order_rotates(workers, tmp_path):
    run(tmp_path, "torch", "tf", rounds=3)
    assert workers.read_text().split() == ["torch", "tf", "tf", "torch", "torch", "tf", "tf", "torch"]


def test_ratios_are_taken_within_rounds(workers, tmp_path):
    result = run(tmp_path, "torch", "tf")
    first, second = result.sides
    assert second.seconds == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert result.ratios(second) == pytest.approx([0.5] * 4)
    assert first.first_seconds == pytest.approx(0.2) and len(first.seconds) == 4


def test_peaks_since_the_start_and_in_the_rounds_are_told_apart(workers, tmp_path):
    side = run(tmp_path, "tf").sides[0]
    assert side.peak_mib == 300 and side.steady_mib == 100


def test_a_side_that_fails_is_shown_and_the_others_run(workers, tmp_path):
    result = run(tmp_path, "torch", "onnx:x", "tf")
    assert [s.error for s in result.sides] == ["", "", "no such file"]
    assert "n/a: no such file" in table(result)


def test_a_side_that_dies_on_the_way_leaves_the_bench(workers, tmp_path):
    result = run(tmp_path, "torch", "compile", "tf", rounds=3)
    assert [s.name for s in result.sides] == [bench.NAMES[n] for n in ("torch", "tf", "compile")]
    assert result.sides[2].error == "the process ended with status 7"
    assert len(result.sides[0].seconds) == len(result.sides[1].seconds) == 3
    assert "n/a: the process ended" in table(result)


def test_unknown_sides_are_refused(tmp_path):
    with pytest.raises(ValueError, match="caffe"):
        run(tmp_path, "caffe")


def found(boxes, scores, classes):
    return {
        "boxes": np.array(boxes, np.float32),
        "scores": np.array(scores, np.float32),
        "classes": np.array(classes),
    }


def test_agreement_counts_pairs_and_names_the_worst():
    reference = found([[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 10]], [0.9, 0.8, 0.7], [1, 1, 2])
    other = found([[20, 20, 40, 40.5], [0, 0.25, 10, 10], [50, 0, 60, 10]], [0.9, 0.8, 0.7], [1, 1, 3])
    same = agreement(reference, other)
    assert (same.reference, same.found, same.matched) == (3, 3, 2)
    assert same.worst_px == pytest.approx(0.5) and same.worst_score == pytest.approx(0.1, abs=1e-6)


def test_agreement_of_nothing():
    nothing = found(np.zeros((0, 4)), [], [])
    same = agreement(nothing, nothing)
    assert (same.matched, same.worst_px) == (0, 0.0)


def test_results_are_written_and_read_again(tmp_path):
    same = Agreement(3, 3, 3, 0.0, 0.0)
    sides = [
        Competitor("PyTorch", 1, 2, 10, 100, 3, "1", [0.2, 0.3], agreement=same),
        Competitor("TensorFlow", 1, 2, 10, 50, 3, "2", [0.1, 0.1]),
    ]
    result = Bench(sides, "demo", 1, "cpu", {"cpu": "some", "cores": 2})
    path = write_results([result], tmp_path)
    assert "**0.42**" in path.read_text() and "<svg" in (tmp_path / "bench.svg").read_text()
    (stored,) = json.loads((tmp_path / "bench.json").read_text())
    assert from_json(stored) == result and to_json(from_json(stored)) == stored
