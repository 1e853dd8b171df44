"""Commands below `tf-d2 parity` and `tf-d2 bench`, and what was written before there were any."""

import pytest
import typer
from typer.testing import CliRunner

from parity.bench.suite import measuring
from parity.cli import bench, parity
from parity.cli.groups import BenchGroup


@pytest.fixture
def invoke():
    app = typer.Typer()
    app.callback()(lambda: None)
    parity.register(app)
    return lambda words: CliRunner().invoke(app, words.split())


@pytest.mark.parametrize("words", ["parity ops", "parity --ops", "parity run --ops"])
def test_operations(invoke, monkeypatch, words):
    asked = []
    monkeypatch.setattr(parity, "run_ops", lambda *given: asked.append(given))
    result = invoke(f"{words} --device gpu --torch-python PY --full")
    assert result.exit_code == 0, result.output
    assert asked == [(None, "PY", "gpu", True)]


MODEL = "--config-file c.yaml --weights w.pkl --input a.png --output out --profile semantic --opts K 1"


@pytest.mark.parametrize(
    "words, narrowed",
    [
        ("parity", False),
        ("parity run", False),
        ("parity --bisect", True),
        ("parity run --bisect", True),
        ("parity bisect", True),
    ],
)
def test_models(invoke, monkeypatch, words, narrowed):
    asked, found = [], []
    monkeypatch.setattr(parity, "_run", lambda *given: asked.append(given) or [])
    monkeypatch.setattr(parity, "finish", lambda *given: None)
    monkeypatch.setattr(parity, "_bisect", lambda *given: found.append(given))
    result = invoke(f"{words} {MODEL.replace(' 1', ' --opts 1')}")
    assert result.exit_code == 2, result.output  # nothing was compared
    assert bool(found) == narrowed
    ((_, _, options),) = asked
    assert (options["config"], options["weights"]) == ("c.yaml", "w.pkl")
    assert options["profile"] == "semantic" and options["opts"] == ["K", "1"]


def test_bisect_has_the_options_of_run_but_no_flag(invoke):
    result = invoke(f"parity bisect {MODEL} --bisect")
    assert result.exit_code == 2 and "No such option: --bisect" in result.output


def test_no_words_say_what_is_needed(invoke):
    result = invoke("parity")
    assert result.exit_code == 2 and "needed: --config-file, --input and --output" in result.output


def test_a_misspelt_command_is_no_picture(invoke):
    result = invoke("parity rejuge a b")
    assert result.exit_code == 2 and "No such command 'rejuge'" in result.output


@pytest.mark.parametrize(
    "words, meant",
    [
        ("--output o", "run"),
        ("--config-file c --output o", "run"),
        ("--all --output o", "suite"),
        ("--output o --only=main", "suite"),
        ("--render --output o", "suite"),
        ("--prepare", "suite"),
        ("", "run"),
    ],
)
def test_the_bench_that_is_meant(words, meant):
    assert BenchGroup(name="bench", commands={}).meant(words.split()) == meant


@pytest.mark.parametrize("words", ["bench suite", "bench suite --all", "bench --all"])
def test_the_suite_measures_everything_unless_parts_are_named(invoke, monkeypatch, words):
    asked = []
    monkeypatch.setattr(measuring, "Suite", lambda *given: "suite")
    monkeypatch.setattr(bench, "_measure", lambda *given: bool(asked.append(given)))
    assert invoke(f"{words} --output o").exit_code == 0
    assert asked == [("suite", True, "")]


def test_help_lists_the_commands(invoke):
    out = invoke("parity --help").output
    assert all(name in out for name in ("run", "ops", "bisect", "rejudge", "mutations", "list-mutations"))
