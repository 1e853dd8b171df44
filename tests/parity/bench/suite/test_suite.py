"""The parts of ``tf-d2 bench --all``: storing, merging, and sides that are left out, with stand-in workers."""

import json
from dataclasses import replace

import numpy as np
import pytest

from parity.bench.bench import Options, Subject
from parity.bench.results import Bench, Competitor
from parity.bench.suite import suite as bench_suite
from parity.bench.suite.measuring import Suite, interleave
from parity.bench.suite.models import bench_picture, jpeg_file, picture_file
from parity.bench.suite.suite import run_parts, tidy
from parity.running.sides import BackendError


@pytest.fixture
def suite(tmp_path):
    return Suite(tmp_path / "out", tmp_path / "work", Options(rounds=4, warmup=0))


def test_parts_are_stored_one_by_one(suite, monkeypatch):
    def noted(suite):
        suite.note("something")
        return {"value": 1 / 3}

    monkeypatch.setitem(bench_suite.PARTS, "main", noted)
    monkeypatch.setitem(bench_suite.PARTS, "gpu", lambda suite: {"unavailable": "none"})
    (suite.output).mkdir()
    (suite.output / "batch.json").write_text("{}")
    paths = run_parts(suite, ["main", "gpu"])
    assert [p.name for p in paths] == ["main.json", "gpu.json"]
    main, gpu = (json.loads(p.read_text()) for p in paths)
    assert main["data"] == {"value": 0.33333} and main["notes"] == ["something"] and main["machine"]["cores"]
    assert gpu["notes"] == []
    assert (suite.output / "batch.json").read_text() == "{}"  # what was not asked for stays


def test_a_part_that_fails_is_stored_with_its_error(suite, monkeypatch):
    def fails(suite):
        raise BackendError("no interpreter")

    monkeypatch.setitem(bench_suite.PARTS, "main", fails)
    (path,) = run_parts(suite, ["main"])
    assert json.loads(path.read_text())["error"] == "no interpreter"


def test_a_family_that_cannot_run_leaves_the_others_their_numbers(suite, monkeypatch):
    def prepared(wanted, size, work, options):
        ((family, _),) = wanted
        if "GN" in family.title:
            raise BackendError("no timm")
        return [Subject("config", "weights", [], work, title=family.title)]

    measured = [Competitor("torch", seconds=[2.0, 2.0]), Competitor("tf", seconds=[1.0, 1.0])]
    monkeypatch.setattr(Suite, "reference", "torch")
    monkeypatch.setattr(bench_suite, "prepare", prepared)
    monkeypatch.setattr(bench_suite, "run_sides", lambda model, sides, options: Bench(measured, model.title))
    (path,) = run_parts(replace(suite, families=["GN", "Keypoint"]), ["families"])
    part = json.loads(path.read_text())
    assert [bench["title"] for bench in part["data"]["benches"]] == ["Keypoint R-CNN R50-FPN"]
    assert part["data"]["median_ratio"] == 0.5 and not part["error"]
    assert part["notes"] == ["Mask R-CNN R50-FPN, GN is left out: no timm"]


def test_unknown_parts_are_refused(suite):
    with pytest.raises(ValueError, match="everything"):
        run_parts(suite, ["everything"])


class StandIn:
    def __init__(self, name, log, fails_at=None):
        self.name, self.log, self.left = name, log, fails_at

    def act(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise BackendError("out of memory")
        self.log.append(self.name)
        return {"seconds": len(self.log)}


def test_workers_take_turns(suite):
    log = []
    workers = {n: StandIn(n, log) for n in "ab"}
    out = interleave(suite, workers, Options(rounds=2, warmup=1), StandIn.act)
    assert "".join(log) == "abbaab"
    assert {k: [a["seconds"] for a in v] for k, v in out.items()} == {"a": [4, 5], "b": [3, 6]}


def test_a_reference_that_fails_is_left_out_with_a_note(suite):
    log = []
    workers = {"torch": StandIn("t", log, 1), "tf": StandIn("o", log)}
    out = interleave(suite, workers, Options(rounds=3, warmup=0), StandIn.act)
    assert list(out) == ["tf"] and len(out["tf"]) == 3
    assert suite.notes == ["torch is left out: out of memory"]


def test_our_side_must_not_fail(suite):
    workers = {"torch": StandIn("t", []), "tf": StandIn("o", [], 0)}
    with pytest.raises(BackendError):
        interleave(suite, workers, Options(rounds=1, warmup=0), StandIn.act)


def test_what_is_stored_is_short_and_without_paths():
    assert tidy({"a": [1.23456789, float("nan"), 3], "b": (True, "x")}) == {
        "a": [1.2346, None, 3],
        "b": [True, "x"],
    }
    assert tidy("gone:\n  (log: /a/folder/bench_tf.log)") == "gone: (log: bench_tf.log)"
    assert tidy("pip install 'a/b' parity/results/bench") == "pip install 'a/b' parity/results/bench"


def test_pictures_are_always_the_same(tmp_path):
    first = bench_picture(40, 60)
    assert first.shape == (40, 60, 3) and first.dtype == np.uint8 and first.std() > 20
    assert (first == bench_picture(40, 60)).all()
    assert (np.load(picture_file(tmp_path, (40, 60))) == first).all()
    assert jpeg_file(tmp_path, (40, 60)).stat().st_size > 500
