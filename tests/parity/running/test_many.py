"""Comparing very many pictures, with stand-in backends: resumed, refused, and nothing lost or doubled."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from parity.core.collection import read_rows, summarize
from parity.core.job import file_sha256
from parity.running import many
from parity.running.kept import Kept
from parity.running.many import FolderError, Plan, is_collection, pictures_of
from parity.running.sides import BackendChoice, BackendError, Setup

# Answers what it is asked; the numbers depend on the picture's first pixel. 7: fails there, 9: dies there.
WORKER = """
import numpy as np
from parity.core import job as jobs
from parity.core.trace import TraceWriter
open(SEEN, "a").write(f"start {job['profile']} {job['mode']}\\n")
print(json.dumps({"event": "ready"}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    image = jobs.read_image(asked["images"][0])
    value = int(image[0, 0, 0])
    open(SEEN, "a").write(f"{value} {asked['feed'] is not None}\\n")
    time.sleep(SLEEP)
    if value == 9:
        sys.stderr.write("out of memory"); sys.exit(137)
    if value == 7:
        print(json.dumps({"event": "failed", "message": "no such op"}), flush=True)
        continue
    with TraceWriter(asked["output"]) as writer:
        writer.put("input/image", image)
        writer.put("steps/backbone/p2", np.full((1, 2, 3, 4), value + SHIFT, np.float32))
        writer.finish({"backend": "torch", "dtype": "float32", "images": ["x"]}, "{}")
    print(json.dumps({"event": "written"}), flush=True)
"""


@pytest.fixture
def backend(tmp_path):
    """Makes a backend that does the above, with what it was asked in the file ``name``.txt."""

    def make(name, shift=0.0, sleep=0.0, body=WORKER):
        path = tmp_path / name
        head = f"#!{sys.executable}\nimport json, sys, time\njob = json.load(open(sys.argv[4]))\n"
        head += f"SHIFT, SLEEP, SEEN = float({str(shift)!r}), {sleep}, {str(tmp_path / name) + '.txt'!r}\n"
        path.write_text(head + textwrap.dedent(body))
        path.chmod(0o755)
        return BackendChoice("torch", "", str(path))

    return make


@pytest.fixture(autouse=True)
def nothing_to_resolve(monkeypatch, tmp_path):
    (tmp_path / "c.yaml").write_text("MODEL: {}\n")
    monkeypatch.setattr(many, "resolved", lambda setup, folder, progress: setup)


def write_pictures(folder, values):
    folder.mkdir(exist_ok=True)
    for k, value in enumerate(values):
        np.save(folder / f"{k:03d}.npy", np.full((2, 2, 3), value, np.uint8))
    return pictures_of([str(folder)])


def plan_of(tmp_path, reference, candidate, **options):
    setup = Setup(str(tmp_path / "c.yaml"), "w.npz", [], repeat=1, timeout=300, weights_sha256="ab")
    return Plan(setup, reference, candidate, **{"noise": "none", **options})


def seen(tmp_path, name):
    return (tmp_path / f"{name}.txt").read_text().splitlines()


def test_each_side_starts_once_and_every_picture_has_a_row(tmp_path, backend):
    pictures = write_pictures(tmp_path / "p", [1, 2, 3])
    made = plan_of(tmp_path, backend("ref"), backend("cand"))
    told = []
    rows = list(read_rows(many.run(made, pictures, tmp_path / "o", done=lambda n, row: told.append(n))))
    assert [(r["index"], r["picture"], r["status"]) for r in rows] == [
        (k, path, "PASS") for k, path in enumerate(pictures)
    ]
    assert told == [1, 2, 3]
    assert seen(tmp_path, "ref") == ["start strict keep", "1 False", "2 False", "3 False"]
    assert seen(tmp_path, "cand") == ["start strict keep", "1 True", "2 True", "3 True"]
    assert f"--input {pictures[1]} " in rows[1]["command"]
    left = sorted(p.name for p in (tmp_path / "o").iterdir())
    assert left == [".lock", "candidate.log", "manifest.json", "reference.log", "rows.jsonl", "sides.json"]
    many.run(made, pictures, tmp_path / "o")  # nothing is left to do, and nothing starts
    assert len(seen(tmp_path, "ref")) == 4


def test_a_float64_run_is_fed_with_the_reference(tmp_path, backend):
    pictures = write_pictures(tmp_path / "p", [1])
    made = plan_of(tmp_path, backend("ref"), backend("cand"), noise="truth")
    many.run(made, pictures, tmp_path / "o")
    # The same stand-in is the reference and its float64 run.
    assert sorted(seen(tmp_path, "ref")) == ["1 False", "1 True", "start semantic keep", "start strict keep"]


def test_a_difference_is_found_and_the_worst_come_first(tmp_path, backend):
    pictures = write_pictures(tmp_path / "p", [100, 1, 10])
    rows = many.run(plan_of(tmp_path, backend("ref"), backend("cand", 0.5)), pictures, tmp_path / "o")
    summary = summarize(read_rows(rows))
    assert (summary.exit_code, summary.statuses) == (1, {"FAIL": 3})
    assert [row["index"] for row in summary.worst] == [1, 2, 0]  # 0.5 of 1, of 10, of 100


def test_pictures_that_cannot_be_compared_are_rows_and_are_tried_again(tmp_path, backend):
    pictures = write_pictures(tmp_path / "p", [1, 7, 9, 2])
    Path(pictures[3]).write_bytes(b"broken")
    made = plan_of(tmp_path, backend("ref"), backend("cand"))
    rows = list(read_rows(many.run(made, pictures, tmp_path / "o")))
    assert [r["status"] for r in rows] == ["PASS", "ERROR", "ERROR", "ERROR"]
    assert rows[1]["headline"] == "reference: no such op"
    assert rows[2]["headline"] == "reference: its process ended with status 137 | out of memory"
    assert "cannot read image" in rows[3]["headline"]
    assert summarize(rows).exit_code == 2
    again = list(read_rows(many.run(made, pictures, tmp_path / "o")))
    assert again == rows
    asked = Counter(line for line in seen(tmp_path, "ref") if not line.startswith("start"))
    assert asked == {"1 False": 1, "7 False": 2, "9 False": 2}


def test_a_model_that_cannot_be_loaded_ends_the_run(tmp_path, backend):
    broken = backend(
        "ref", body='print(json.dumps({"event": "error", "message": "no such key"})); sys.exit(2)'
    )
    pictures = write_pictures(tmp_path / "p", [1])
    with pytest.raises(BackendError, match="reference: torch cannot load the model: no such key"):
        many.run(plan_of(tmp_path, broken, backend("cand")), pictures, tmp_path / "o")
    assert list(read_rows(tmp_path / "o" / "rows.jsonl")) == []


def test_a_worker_that_hangs_is_stopped(tmp_path, backend):
    setup = Setup(str(tmp_path / "c.yaml"), "w.npz", [], repeat=1, timeout=4)
    (picture,) = write_pictures(tmp_path / "p", [1])
    with Kept(backend("ref", sleep=60), setup, tmp_path, "reference") as side:
        with pytest.raises(BackendError, match="its process ended with status -9"):
            side.trace(picture, tmp_path / "t.h5")


KILLED = """
import sys
from pathlib import Path
from parity.running import many
from parity.running.runner import BackendChoice, Setup
many.resolved = lambda setup, folder, progress: setup
root = Path(sys.argv[1])
setup = Setup(str(root / "c.yaml"), "w.npz", [], repeat=1, timeout=300, weights_sha256="ab")
sides = [BackendChoice("torch", "", str(root / name)) for name in ("ref", "cand")]
many.run(many.Plan(setup, *sides, noise="none"), many.pictures_of([str(root / "p")]), root / "o")
"""


def test_killed_and_run_again_nothing_is_lost_or_doubled(tmp_path, backend):
    pictures = write_pictures(tmp_path / "p", range(10, 16))
    made = plan_of(tmp_path, backend("ref", sleep=0.05), backend("cand", sleep=0.05))
    rows = tmp_path / "o" / "rows.jsonl"
    for wanted in (2, 4):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
        end = time.monotonic() + 120
        while (not rows.exists() or rows.read_bytes().count(b"\n") < wanted) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with open(rows, "ab") as file:  # as if it had been in the middle of a line
            file.write(b'{"index": 5, "pict')
    many.run(made, pictures, tmp_path / "o")
    assert Counter(row["index"] for row in read_rows(rows)) == Counter(range(6))
    asked = Counter(line for line in seen(tmp_path, "ref") if not line.startswith("start"))
    assert all(1 <= asked[f"{value} False"] <= 3 for value in range(10, 16))
    assert not list((tmp_path / "o").glob("work*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": "threads"}, r"other options \(noise 'none', now 'threads'\)"),
        ({"mutate": "x"}, r"other options \(mutate '', now 'x'\)"),
        ("model", "another model"),
        ("pictures", "other pictures"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, backend, change, message):
    pictures = write_pictures(tmp_path / "p", [1, 2])
    reference, candidate = backend("ref"), backend("cand")
    many.run(plan_of(tmp_path, reference, candidate), pictures, tmp_path / "o")
    before = file_sha256(tmp_path / "o" / "rows.jsonl")
    if change == "model":
        (tmp_path / "c.yaml").write_text("MODEL: {A: 1}\n")
    options = change if isinstance(change, dict) else {}
    wanted = pictures[:1] if change == "pictures" else pictures
    with pytest.raises(FolderError, match=f"made with {message}; give another folder"):
        many.run(plan_of(tmp_path, reference, candidate, **options), wanted, tmp_path / "o")
    assert file_sha256(tmp_path / "o" / "rows.jsonl") == before


def test_a_folder_with_something_else_is_refused(tmp_path, backend):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.tex").write_text("")
    pictures = write_pictures(tmp_path / "p", [1])
    with pytest.raises(FolderError, match=r"holds something else \(thesis.tex\)"):
        many.run(plan_of(tmp_path, backend("ref"), backend("cand")), pictures, tmp_path / "o")


def test_which_pictures(tmp_path):
    folder = tmp_path / "p"
    pictures = write_pictures(folder, [1, 2])
    (folder / "notes.md").write_text("")
    (folder / "deep").mkdir()
    np.save(folder / "deep" / "z.npy", np.zeros((2, 2, 3), np.uint8))
    deep = str(folder / "deep" / "z.npy")
    assert pictures_of([str(folder)]) == [*pictures, deep]
    assert pictures_of([str(folder / "*.npy")]) == pictures
    (tmp_path / "list.txt").write_text("p/001.npy\n\np/000.npy\n")
    assert pictures_of([str(tmp_path / "list.txt")]) == pictures[::-1]
    assert [is_collection(t) for t in (str(folder), str(tmp_path / "list.txt"), "a/*.jpg", pictures[0])] == [
        *[True] * 3,
        False,
    ]
    with pytest.raises(ValueError, match=r"no such picture: gone\.png"):
        pictures_of(["gone.png"])
    with pytest.raises(ValueError, match="no pictures in"):
        pictures_of([str(folder / "*.jpg")])


def test_recorded_sides_are_refused(tmp_path):
    (tmp_path / "a.h5").write_text("")
    with pytest.raises(ValueError, match="the reference is a recorded trace"):
        many.plan(Setup("c", "w", []), str(tmp_path / "a.h5"), "tf")


def test_rows_are_json_lines_without_nan(tmp_path, backend):
    pictures = write_pictures(tmp_path / "p", [1])
    rows = many.run(
        plan_of(tmp_path, backend("ref"), backend("cand", float("inf"))), pictures, tmp_path / "o"
    )
    row = json.loads(rows.read_text(), parse_constant=pytest.fail)
    assert row["status"] == "FAIL"
