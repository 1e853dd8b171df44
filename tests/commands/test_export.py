"""``tf-d2 export`` passes its options on and prints what was written."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import tf_d2.serving
from tf_d2.commands import export as command
from tf_d2.serving import ExportError, ExportReport


def run(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, error: Exception | None = None
) -> tuple[Any, dict[str, Any]]:
    seen: dict[str, Any] = {}

    def export(config: str, weights: str | None, output: Path, **options: Any) -> ExportReport:
        if error is not None:
            raise error
        seen.update(options, config=config, weights=weights, output=output)
        path = Path(output) / str(options["version"])
        return ExportReport(
            path, "m", options["version"], 12_300_000, 0.5, 2.25, 0.125, ("Abs", "Add"), 30, 50_000_000
        )

    monkeypatch.setattr(tf_d2.serving, "export", export)
    app = typer.Typer()
    app.callback()(lambda: None)
    command.register(app)
    return CliRunner().invoke(app, ["export", *arguments]), seen


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    result, seen = run(monkeypatch, "--config-file", "c.yaml", "--weights", "w.pkl", "--output", "out")
    assert result.exit_code == 0, result.output
    assert seen == {
        "config": "c.yaml",
        "weights": "w.pkl",
        "output": Path("out"),
        "version": 1,
        "name": None,
        "overwrite": False,
        "max_detections": None,
        "masks": "roi",
        "sem_seg": "labels",
        "precision": "float32",
        "pad_independent": False,
        "bad_images": "status",
        "max_image_pixels": None,
        "box_format": "xyxy",
        "step_pixels": 2**20,
        "opts": [],
        "allow_nonfinite": False,
        "ignore_keys": (),
        "ignore_tensors": (),
        "prefix": None,
    }
    for text in ("out/1", "12.3 MB", "2.25 s", "50,000,000", "2 kinds"):
        assert text in result.output


def test_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--version 3 --name n --max-detections 7 --masks png --sem-seg logits --precision bfloat16"
    options += " --pad-independent --bad-images error --max-image-pixels 1000 --box-format tf --step-pixels 5"
    options += " --opts TEST.DETECTIONS_PER_IMAGE --opts 9"
    result, seen = run(monkeypatch, "--config-file", "zoo/name", "--output", "o", *options.split())
    assert result.exit_code == 0, result.output
    assert (seen["weights"], seen["version"], seen["name"], seen["max_detections"]) == (None, 3, "n", 7)
    assert (seen["masks"], seen["sem_seg"], seen["precision"]) == ("png", "logits", "bfloat16")
    assert (seen["pad_independent"], seen["bad_images"], seen["max_image_pixels"]) == (True, "error", 1000)
    assert (seen["box_format"], seen["step_pixels"]) == ("tf", 5)
    assert not seen["overwrite"]
    assert seen["opts"] == ["TEST.DETECTIONS_PER_IMAGE", "9"]


def test_sigterm_ends_as_an_exception() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = False
    with pytest.raises(SystemExit) as ended, command.terminated_by_exception():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            cleaned = True
    assert cleaned
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_errors_reach_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--config-file", "c", "--output", "o")
    result, _ = run(monkeypatch, *arguments, error=ExportError("o/1 exists"))
    assert isinstance(result.exception, ValueError)  # tf_d2.cli prints it and exits with 2
    result, _ = run(monkeypatch, *arguments, "--masks", "polygons")
    assert result.exit_code == 2


def test_a_folder_in_use_is_found_before_tensorflow_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "import_tensorflow", lambda: pytest.fail("too late"))
    (tmp_path / "photo.jpg").write_text("x")
    arguments = ("--config-file", "c", "--output", str(tmp_path), "--name", "m")
    result, seen = run(monkeypatch, *arguments)
    assert str(result.exception) == (
        f"{tmp_path} holds something else than an export (photo.jpg); name a new or empty folder, or write beside it "
        "with --overwrite"
    )
    (tmp_path / "photo.jpg").rename(tmp_path / "3")
    result, seen = run(monkeypatch, *arguments, "--version", "3")
    assert str(result.exception) == (
        f"{tmp_path / '3'} exists; export another version (--version 4), or replace it with --overwrite"
    )
    assert seen == {}
    monkeypatch.setattr(command, "import_tensorflow", lambda: None)
    result, seen = run(monkeypatch, *arguments, "--version", "3", "--overwrite")
    assert (result.exit_code, seen["overwrite"]) == (0, True)
