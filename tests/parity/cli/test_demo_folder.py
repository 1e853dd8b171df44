"""A demo in a folder that holds something already."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from parity.cli import demo


def run(*arguments: str):
    app = typer.Typer()
    app.callback()(lambda: None)
    demo.register(app)
    return CliRunner().invoke(app, ["demo", *arguments], env={"COLUMNS": "300"})


def test_a_folder_that_is_not_empty_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_command", lambda *words: pytest.fail("it started"))
    (tmp_path / "mine.txt").write_text("x")
    result = run("--output", str(tmp_path))
    assert result.exit_code == 2
    assert "is not empty (mine.txt); name another folder with --output, or write over it" in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    assert run("--output", str(tmp_path / "mine.txt")).exit_code == 2


def test_on_purpose_it_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def predict(*words: str) -> None:
        seen.append(words)
        raise typer.Exit(7)

    monkeypatch.setattr(demo, "_command", predict)
    (tmp_path / "mine.txt").write_text("x")
    assert run("--output", str(tmp_path), "--overwrite").exit_code == 7
    assert run("--output", str(tmp_path / "new")).exit_code == 7
    assert [words[0] for words in seen] == ["predict", "predict"]
