"""A backend that is kept running: loaded once, one trace per line, a failure is of its line only."""

import io
import json

import numpy as np
import pytest

from parity.backends import driver
from parity.core.trace import Trace


class Stub(driver.Backend):
    name, scope = "stub", "outputs"
    loads = 0

    def __init__(self, job, config):
        type(self).loads += 1

    def run(self, image, proposals):
        if image[0, 0, 0] == 7:
            raise ArithmeticError("no")
        return {"output/instances/scores": np.full(2, image[0, 0, 0], np.float32)}, []

    def tensors(self):
        return {"w": "hash"}


def test_one_load_and_a_trace_for_every_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.yaml").write_text("MODEL: {META_ARCHITECTURE: RetinaNet}\n")
    (tmp_path / "w.npz").write_bytes(b"")
    lines = []
    for k, value in enumerate((1, 7, 3)):
        np.save(tmp_path / f"{k}.npy", np.full((2, 2, 3), value, np.uint8))
        asked = {"images": [str(tmp_path / f"{k}.npy")], "output": str(tmp_path / f"{k}.h5"), "feed": None}
        lines.append(json.dumps(asked) + "\n")
    job = {"config_yaml": str(tmp_path / "c.yaml"), "weights": str(tmp_path / "w.npz"), "mode": "keep"}
    (tmp_path / "job.json").write_text(json.dumps(job | {"images": ["none"], "output": "none"}))
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(lines)))
    monkeypatch.setattr(Stub, "loads", 0)
    assert driver.main(Stub, ["--job", str(tmp_path / "job.json")]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [e["event"] for e in events if e["event"] != "progress"] == [
        *("ready", "written", "failed", "written", "done")
    ]
    assert next(e for e in events if e["event"] == "failed")["message"] == "ArithmeticError: no"
    assert Stub.loads == 1
    for k, value in ((0, 1), (2, 3)):
        with Trace(tmp_path / f"{k}.h5") as trace:
            assert trace.images[0]["output/instances/scores"].tolist() == [value, value]
            assert trace.manifest["tensors"] == {"w": "hash"}


@pytest.mark.parametrize("mode", ["resolve", "other"])
def test_other_modes_are_refused(tmp_path, capsys, mode):
    job = {"config_yaml": "c", "weights": "w", "images": ["x"], "output": "o", "mode": mode}
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert driver.main(Stub, ["--job", str(tmp_path / "job.json")]) == 2
    assert "this worker writes traces only" in capsys.readouterr().out
