"""The bench: interleaving, ratios within rounds, and sides that fail, with stand-in workers."""

import sys
import textwrap

import pytest

from parity import bench
from parity.bench import Bench, Side, run_bench, table, write_results


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Stand-ins for both frameworks that write down when they ran; the first is twice as slow as the
    second."""
    log = tmp_path / "order.txt"
    path = tmp_path / "fake_python"
    path.write_text(
        f"#!{sys.executable}\n"
        + textwrap.dedent(
            f"""
            import json, sys
            job = json.load(open(sys.argv[4]))
            name = job["backend"]
            if name == "onnx":
                print(json.dumps({{"event": "error", "message": "no such file"}})); sys.exit(2)
            print(json.dumps({{"event": "ready", "load_seconds": 1.5, "base_mib": 10, "version": "1"}}), flush=True)
            count = 0
            for line in sys.stdin:
                count += 1
                open({str(log)!r}, "a").write(name + " ")
                seconds = (0.2 if name == "torch" else 0.1) * count
                print("noise on standard output")
                print(json.dumps({{"event": "ran", "seconds": seconds, "detections": 3, "peak_mib": 100}}), flush=True)
            """
        )
    )
    path.chmod(0o755)
    monkeypatch.setattr(bench, "resolved", lambda setup, folder, progress: setup)
    monkeypatch.setattr(bench.sys, "executable", str(path))
    return log


def run(tmp_path, *backends, rounds=4):
    return run_bench(
        "c.yaml", "w", "i.png", output=tmp_path / "o", backends=backends, rounds=rounds, warmup=1
    )


def test_runs_are_interleaved_and_the_order_rotates(workers, tmp_path):
    run(tmp_path, "torch", "tf", rounds=3)
    assert workers.read_text().split() == ["torch", "tf", "tf", "torch", "torch", "tf", "tf", "torch"]


def test_ratios_are_taken_within_rounds(workers, tmp_path):
    result = run(tmp_path, "torch", "tf")
    first, second = result.sides
    assert second.seconds == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert result.ratios(second) == pytest.approx([0.5] * 4)
    assert first.first_seconds == pytest.approx(0.2) and len(first.seconds) == 4


def test_a_side_that_fails_is_shown_and_the_others_run(workers, tmp_path):
    result = run(tmp_path, "torch", "onnx:x", "tf")
    assert [s.error for s in result.sides] == ["", "", "no such file"]
    assert "did not run: no such file" in table(result)


def test_unknown_sides_are_refused(tmp_path):
    with pytest.raises(ValueError, match="caffe"):
        run(tmp_path, "caffe")


def test_results_are_written(tmp_path):
    sides = [
        Side("PyTorch", 1, 2, 10, 100, 3, "1", [0.2, 0.3]),
        Side("TensorFlow", 1, 2, 10, 50, 3, "2", [0.1, 0.1]),
    ]
    result = Bench(sides, "demo", 1, "cpu", {"cpu": "some", "cores": 2})
    path = write_results([result], tmp_path)
    assert "**0.42**" in path.read_text() and "<svg" in (tmp_path / "bench.svg").read_text()
    assert (tmp_path / "bench.json").is_file()
