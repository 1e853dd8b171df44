"""The command line of the bench: what is measured, what is only drawn again, and what is written down."""

import json

import pytest
import typer
from typer.testing import CliRunner

from parity.bench.suite import render as bench_render
from parity.bench.suite import suite as bench_suite
from parity.cli import bench as bench_cli
from parity.cli.bench import public_command


@pytest.fixture
def invoke(monkeypatch):
    """Runs the command with parts that only say what they were given; the page is made of their names."""
    app = typer.Typer()
    app.callback()(lambda: None)
    bench_cli.register(app)
    for name in list(bench_suite.PARTS):
        monkeypatch.setitem(bench_suite.PARTS, name, lambda suite: {"rounds": suite.options.rounds})
    monkeypatch.setattr(bench_render, "write_page", lambda parts, folder: " ".join(parts))
    return lambda *words: CliRunner().invoke(app, ["bench", *map(str, words)])


def test_all_parts_or_those_asked_for(invoke, tmp_path):
    result = invoke("--all", "--rounds", "3", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert sorted(p.stem for p in tmp_path.glob("*.json")) == sorted(bench_suite.PARTS)
    (tmp_path / "main.json").unlink()
    assert invoke("--only", "gpu, profile", "--size", "64x96", "--output", tmp_path).exit_code == 0
    assert not (tmp_path / "main.json").exists()
    assert json.loads((tmp_path / "gpu.json").read_text())["size"] == [64, 96]
    assert json.loads((tmp_path / "batch.json").read_text())["data"] == {"rounds": 3}


def test_render_runs_nothing(invoke, tmp_path):
    invoke("--only", "batch", "--output", tmp_path)
    before = (tmp_path / "batch.json").read_bytes()
    result = invoke("--render", "--rounds", "99", "--output", tmp_path)
    assert "results: batch" in result.output and (tmp_path / "batch.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--only", "speed"), "no part is called speed"), (("--all", "--size", "800"), "not like 800x1216")],
)
def test_misuse_is_explained(invoke, tmp_path, words, message):
    result = invoke(*words, "--output", tmp_path)
    assert result.exit_code == 2 and message in result.stderr


def test_commands_are_written_down_without_paths():
    words = [
        "bench",
        "--all",
        "--torch-python",
        "/a/folder/bin/python",
        "--output=/a/folder",
        "--rounds",
        "5",
    ]
    expected = "tf-d2 bench --all --torch-python PYTHON_WITH_DETECTRON2 --output=FOLDER --rounds 5"
    assert public_command(words) == expected


def test_a_side_that_does_not_exist_leaves_nothing_behind(invoke, tmp_path):
    done = invoke("run", "--backend", "tf", "--backend", "nope", "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "no bench side is called nope; known: torch, detectron2" in done.output
    assert not (tmp_path / "out").exists()
