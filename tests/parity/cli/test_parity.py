"""``tf-d2 parity`` from the outside: exit codes, files written, messages."""

import json
import shlex
from xml.etree import ElementTree

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from parity.cli.parity import register
from parity.core.trace import TraceWriter


def app():
    application = typer.Typer()

    @application.callback()
    def root():
        pass

    register(application)
    return application


def call(*words):
    return CliRunner().invoke(app(), ["parity", *map(str, words)])


def write_trace(path, scale=1.0, **manifest):
    with TraceWriter(path) as writer:
        rng = np.random.default_rng(0)
        writer.put("input/image", rng.integers(0, 255, (40, 60, 3), np.uint8))
        writer.put("steps/backbone/p2", scale * rng.normal(size=(1, 4, 10, 15)).astype(np.float32))
        writer.put("steps/backbone/p3", rng.normal(size=(1, 4, 5, 8)).astype(np.float32))
        writer.put("output/instances/pred_boxes", np.array([[5, 5, 20, 25], [30, 5, 50, 30]], np.float32))
        writer.put("output/instances/scores", np.array([0.9, 0.8], np.float32))
        writer.put("output/instances/pred_classes", np.array([0, 1]))
        writer.finish({"backend": "torch", "versions": {"torch": "2"}, **manifest}, "{}")
    return path


@pytest.fixture
def traces(tmp_path):
    return write_trace(tmp_path / "a.h5"), write_trace(tmp_path / "b.h5", 1.5)


def test_exit_codes_of_rejudge(traces, tmp_path):
    a, b = traces
    shaky = write_trace(tmp_path / "c.h5", repeat={"runs": 2, "nondeterministic": ["steps/backbone/p2"]})
    assert call("rejudge", a, a).exit_code == 0
    assert call("rejudge", a, b).exit_code == 1
    assert call("rejudge", a, tmp_path / "missing.h5").exit_code == 2
    assert call("rejudge", a, shaky).exit_code == 3


def test_the_terminal_names_the_first_bad_stage(traces):
    result = call("rejudge", *traces)
    assert "DIFFERENT" in result.output and "starts here" in result.output
    assert "first bad stage: steps/backbone/p2" in result.output


def test_a_doubtful_difference_is_said_to_be_one_wherever_the_verdict_is(tmp_path):
    a, b = write_trace(tmp_path / "a.h5"), write_trace(tmp_path / "b.h5", 1 + 4e-5)
    result = call("rejudge", a, b, "--output", tmp_path / "out")
    assert result.exit_code == 1 and "caution: rounding alone" in result.output
    for name in ("report.html", "parity.json", "parity.xml"):
        assert "rounding alone may make a difference of this size" in (tmp_path / "out" / name).read_text()


def test_files_of_a_report(traces, tmp_path):
    out = tmp_path / "out"
    assert call("rejudge", *traces, "--output", out).exit_code == 1
    data = json.loads((out / "parity.json").read_text())
    assert data["schema"] == "tf-d2-parity/1" and data["exit_code"] == 1
    assert data["comparisons"][0]["first_bad"] == "steps/backbone/p2"
    suites = ElementTree.parse(out / "parity.xml").getroot()
    failed = [c.get("name") for c in suites.iter("testcase") if c.find("failure") is not None]
    assert failed == ["verdict", "steps/backbone/p2"]
    assert int(suites[0].get("failures")) == len(failed)
    assert "starts here" in (out / "report.html").read_text()


def test_the_report_says_how_to_judge_again(traces, tmp_path):
    a, b = traces
    call("rejudge", a, b, "--noise", a, "--keep-going", "--output", tmp_path / "out")
    command = json.loads((tmp_path / "out" / "parity.json").read_text())["comparisons"][0]["command"]
    words = shlex.split(command)
    assert words[:5] == ["tf-d2", "parity", "rejudge", str(a), str(b)]
    assert words[words.index("--noise") + 1] == str(a) and words[-1] == "--keep-going"


def test_what_cannot_start_says_what_is_needed(tmp_path):
    result = call("--config-file", "c.yaml")
    assert result.exit_code == 2
    missing = call("--config-file", "c.yaml", "--input", tmp_path / "no.png", "--output", tmp_path / "o")
    assert missing.exit_code == 2


def test_conventions_that_contradict_the_options_are_refused(tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    words = ["--config-file", "c.yaml", "--input", picture, "--output", tmp_path / "o"]
    words += ["--opts", "MODEL.CONVENTIONS", "--opts", "detectron"]
    result = call(*words, "--conventions", "detectron2")
    assert result.exit_code == 2 and "--conventions detectron2 contradicts" in result.output
    assert call(*words, "--conventions", "detectron1").exit_code == 2  # not one of those that there are


def test_a_profile_named_after_a_project_stands_for_its_conventions(tmp_path, monkeypatch):
    from parity.running import runner

    asked = {}

    def run(*given, **options):
        asked.update(options)
        raise SystemExit(7)

    monkeypatch.setattr(runner, "run", run)
    (tmp_path / "a.png").write_bytes(b"")
    words = ["--config-file", "c.yaml", "--input", tmp_path / "a.png", "--output", tmp_path / "o"]
    assert call(*words, "--profile", "detectron").exit_code == 7
    assert asked["profile"] == "strict" and list(asked["opts"]) == ["MODEL.CONVENTIONS", "detectron"]
    assert call(*words, "--profile", "semantic", "--conventions", "detectron").exit_code == 7
    assert asked["profile"] == "semantic" and list(asked["opts"]) == ["MODEL.CONVENTIONS", "detectron"]
    refused = call(*words, "--profile", "maskrcnn-benchmark", "--conventions", "detectron")
    assert refused.exit_code == 2 and "contradicts --conventions detectron" in refused.output


def test_a_waiver_needs_a_reason_and_a_date(traces):
    a, b = traces
    assert call("rejudge", a, b, "--waive", "steps/backbone/p2=known@2999-01-01").exit_code == 0
    assert call("rejudge", a, b, "--waive", "steps/backbone/p2=known@2001-01-01").exit_code == 1
    assert call("rejudge", a, b, "--waive", "steps/backbone/p2").exit_code != 0
