"""The matrix of settings: what is run, what is kept, and how it is shown. Running models is left to the command."""

import json
import os
import sys
from dataclasses import replace

import pytest

from parity.core.results import Comparison, StageResult
from parity.core.status import Status
from parity.running.sides import BackendChoice, BackendError, Setup
from parity.selftest import matrix
from parity.selftest.matrix import Axes, Cell, Files

TORCH = matrix.reference("demo", "")
PROGRAMS = {"installed": sys.executable, "old": "/old/python"}


@pytest.fixture
def ran(monkeypatch):
    """The keys of the cells that were run, none of them really."""
    keys = []

    def cell(key, files, call):
        assert files.folder.is_dir() and files.tensorflow == PROGRAMS[key[2]]
        keys.append(key)
        return Cell(*key, exit_code=0, worst_px=1e-4, worst_score=1e-6)

    monkeypatch.setattr(matrix, "_cell", cell)
    return keys


def test_a_second_start_goes_on_where_the_first_ended(ran, tmp_path):
    settings = ["oneDNN off", "oneDNN AVX2"]
    matrix.run_matrix(tmp_path, Axes(["demo"], settings, PROGRAMS, ["avx2"]))
    assert len(ran) == 4
    more = Axes(["demo", "other/model"], settings, PROGRAMS, ["default", "avx2"])
    cells = matrix.run_matrix(tmp_path, more)
    # PyTorch's other kernels are tried against one setting.
    assert len(cells) == len(set(ran)) == len(ran) == 12
    assert [cell.exit_code for cell in cells] == [0] * 12
    assert len(json.loads((tmp_path / "matrix.json").read_text())) == 12
    assert (tmp_path / "matrix.md").read_text() == matrix.render(cells)


def test_environment_is_that_of_one_setting_and_is_restored(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    with matrix.environment(TF_ENABLE_ONEDNN_OPTS="0"):
        assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0" and "ONEDNN_MAX_CPU_ISA" not in os.environ
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "SSE41" and "TF_ENABLE_ONEDNN_OPTS" not in os.environ


def test_what_cannot_run_is_a_cell_with_its_reason(monkeypatch, tmp_path):
    def fail(*arguments):
        raise BackendError("no kernel\nfor it")

    monkeypatch.setattr(matrix, "_setup", fail)
    axes = Axes(["demo"], ["oneDNN off"], {"installed": sys.executable}, ["avx2"])
    (cell,) = matrix.run_matrix(tmp_path, axes)
    assert (cell.exit_code, cell.error) == (2, "no kernel\nfor it")


def test_a_cell_runs_under_its_setting_and_tells_the_worst(monkeypatch, tmp_path):
    seen = []

    def candidate(program, job, target, *, progress=None):
        seen.append((program.interpreter, job["threads"], job["feed"], os.environ["TF_ENABLE_ONEDNN_OPTS"]))
        return []

    def references(setup, files, capability, call):
        seen.append(os.environ["ATEN_CPU_CAPABILITY"])
        return [tmp_path / "reference.h5", tmp_path / "truth.h5"]

    stages = [
        StageResult("backbone/p2", "backbone", "continuous", Status.PASS),
        StageResult(
            "output", "detections", "set", Status.FAIL, details={"worst_box_px": 0.5, "worst_score": 0.1}
        ),
    ]
    monkeypatch.setattr(matrix, "_setup", lambda *arguments: Setup("c", "w", ["i"]))
    monkeypatch.setattr(matrix, "_references", references)
    monkeypatch.setattr(matrix, "compare", lambda *traces, noise: [Comparison("r", "c", "strict", stages)])
    files = Files(tmp_path, "/old/python", TORCH)
    cell = matrix._cell(("demo", "oneDNN off, 2 threads", "old", "avx2"), files, candidate)
    assert seen == ["avx2", ("/old/python", 2, str(tmp_path / "reference.h5"), "0")]
    assert (cell.exit_code, cell.worst_px, cell.worst_score, cell.first_bad) == (1, 0.5, 0.1, "output")


def test_table():
    good = Cell("demo", "oneDNN off", "2.21.0", "avx2", 0, 1.3e-4, 1.2e-6)
    bad = replace(good, setting="oneDNN", exit_code=1, worst_px=None, first_bad="backbone/p2")
    worse = replace(good, model="other", exit_code=2, error="no kernel\nfor it")
    lines = matrix.render([good, bad, worse]).splitlines()
    assert lines[2].startswith("1 of 3 runs agree with PyTorch, of 2 models.")
    assert lines[-4] == "| model | TensorFlow | PyTorch kernels | oneDNN off | oneDNN |"
    assert lines[-2] == "| demo | 2.21.0 | avx2 | 0 1.3e-04 1.2e-06 | **1** - 1.2e-06 backbone/p2 |"
    assert lines[-1] == "| other | 2.21.0 | avx2 | **2** no kernel |  |"


def test_table_names_the_processor_and_what_was_not_run():
    good = Cell("demo", "oneDNN off", "2.21.0", "avx2", 0, 1.3e-4, 1.2e-6, processor="Some CPU (avx2)")
    old = replace(good, tensorflow="2.16.2", processor="")
    text = matrix.render([good, replace(good, model="a/b"), old], ["a/b", "c/d"])
    assert "\nProcessor: Some CPU (avx2).\n" in text and text.count("Processor") == 1
    assert text.endswith("\nNot run, 1 of the 2 published models: c/d.\n")
    # All rows of a model stand together, though they were run at different times.
    assert [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| demo")] == [
        "2.16.2",
        "2.21.0",
    ]


def test_table_tells_which_entries_are_of_another_processor():
    first = Cell("demo", "oneDNN off", "2.21.0", "avx2", 0, 1.3e-4, 1.2e-6, processor="Some CPU (avx2)")
    second = replace(first, setting="oneDNN", exit_code=1, first_bad="output", processor="Other CPU (sse4_1)")
    third = replace(first, model="a/b", exit_code=2, error="no kernel", processor="Other CPU (sse4_1)")
    lines = matrix.render([first, second, third]).splitlines()
    assert (
        "Processors, the first where an entry names none: [1] Some CPU (avx2); [2] Other CPU (sse4_1)."
        in lines
    )
    assert lines[-2].endswith("| 0 1.3e-04 1.2e-06 | **1** 1.3e-04 1.2e-06 output [2] |")
    assert lines[-1].endswith("| **2** no kernel [2] |  |")


def test_files_of_a_model_are_made_once(tmp_path):
    calls, asked = [], []

    def call(program, job, target, *, progress=None):
        calls.append(job.get("mode", program.module))
        asked.append((job.get("reference"), program.interpreter))
        target.write_text("made")
        return [{"event": "resolved", "weights": str(target), "state": str(target)}]

    model = "COCO-Detection/fast_rcnn_R_50_FPN_1x"
    files = Files(tmp_path, "/old/python", BackendChoice("detectron2", "", "/d2/python"))
    setup = matrix._setup(model, files, call)
    assert asked[1] == ("detectron2", "/d2/python")
    assert calls == ["config", "parity.backends.torch_random", "resolve"]
    assert setup.config == str(tmp_path / "config.yaml") and setup.weights == setup.state == setup.config
    again = matrix._setup(model, files, call)
    assert len(calls) == 3 and replace(setup, source=None) == again
    (tmp_path / "config.yaml").unlink()  # as when the folder was moved
    assert matrix._setup(model, files, call) == setup and calls[3:] == calls[:3]
    assert again.threads == again.repeat == 1 and again.proposals == (str(tmp_path / "proposals.npy"),)


def test_models_are_those_that_run_once_each():
    names = matrix.zoo_models()
    assert len(names) == len(set(names)) and "COCO-Detection/faster_rcnn_R_50_FPN_1x" in names
    assert not any("_3x" in name and name.replace("_3x", "_1x") in names for name in names)
    for part in ("X_101", "regnetx", "regnety", "X_152", "fast_rcnn", "panoptic", "retinanet"):
        assert any(part in name for name in names)


def test_a_name_that_is_not_a_models_is_said_before_anything_runs(ran, tmp_path, capsys):
    with pytest.raises(SystemExit):
        matrix.main(["--output", str(tmp_path / "t"), "--models", "demo", "COCO-Detection/nothing"])
    said = capsys.readouterr().err
    assert "not the name of a published model: COCO-Detection/nothing" in said
    assert not ran and not (tmp_path / "t").exists()


def test_models_of_projects_are_compared_with_detectron2():
    own = matrix.reference("COCO-Detection/faster_rcnn_R_50_FPN_1x", "/d2/python")
    assert (own.name, own.interpreter) == ("torch", sys.executable)
    project = matrix.reference("projects/DensePose/configs/densepose_rcnn_R_50_FPN_s1x", "/d2/python")
    assert (project.name, project.interpreter) == ("detectron2", "/d2/python")
