"""Pictures per second over files: what counts, what is left out, and commands that fail."""

import os
from pathlib import Path

import pytest

from parity.bench.bench import Options
from parity.bench.suite import files
from parity.bench.suite.measuring import Suite
from parity.running.sides import BackendError


def shards(folder: Path, times: list[float]) -> None:
    folder.mkdir()
    for k, seconds in enumerate(times):
        path = folder / f"part-{k:05d}.parquet"
        path.touch()
        os.utime(path, ns=(0, int(seconds * 1e9)))


def test_the_first_pictures_of_every_process_do_not_count(tmp_path: Path) -> None:
    shards(tmp_path / "one", [10, 15, 16, 17, 18])
    assert files.rate(tmp_path / "one", 5, 1) == pytest.approx(1.0)
    shards(tmp_path / "two", [10, 10, 15, 15, 15.5, 15.5, 16, 16])
    assert files.rate(tmp_path / "two", 8, 2) == pytest.approx(4.0)
    with pytest.raises(BackendError, match="8 shards of 9 pictures"):
        files.rate(tmp_path / "two", 9, 2)


def test_every_way_is_run_over_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite(tmp_path / "out", tmp_path / "work", Options(), size=(40, 60), scale=0.25)
    (tmp_path / "work").mkdir()
    commands = []

    class Model:
        images = ("x",)

    def run(arguments: list[str], count: int, pinned: bool, scratch: Path) -> None:
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        commands.append(
            (count, given["--processes"], pinned, len(list(Path(given["--input"]).glob("*.jpg"))))
        )

    def loop(suite: Suite, name: str, model: Model, paths: list[str]) -> float:
        if name != "tf":
            raise BackendError("no detectron2")
        return 2.0

    monkeypatch.setattr(files, "prepare", lambda *_: [Model()])
    monkeypatch.setattr(files, "replace", lambda model, **_: model)
    monkeypatch.setattr(files, "exported", lambda *_: "export")
    monkeypatch.setattr(files, "_loop", loop)
    monkeypatch.setattr(files, "run_together", run)
    monkeypatch.setattr(files, "rate", lambda folder, count, processes: 10.0 * processes + count)
    monkeypatch.setattr(files, "_cores", lambda: [0, 1])
    found = files.files_part(suite)
    assert commands == [(1, "1", False, 6), (1, "2", False, 6), (1, "1", True, 6), (2, "1", True, 6)]
    assert found["pictures"] == 6 and found["loops"] == {"tf": 2.0}
    assert list(found["runs"].values()) == [16.0, 26.0, 16.0, 26.0]
    assert suite.notes == ["torch is left out: no detectron2"]


def test_a_command_that_fails_is_said(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"tf-d2 batch: status 2: .*--nonsense"):
        files.run_together(["--nonsense"], 1, False, tmp_path)
