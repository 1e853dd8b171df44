"""``tf-d2 beam``: the pipeline where Apache Beam is installed, and what is said where it is not."""

from __future__ import annotations

import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from tf_d2.cli import main

DEMO = Path(str(files("tf_d2"))) / "data" / "demo"


def failed(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["beam", *arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_without_beam_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "tf_d2.beam", raising=False)
    message = failed(
        ["--model", str(tmp_path), "--input", "*.png", "--output", str(tmp_path / "new" / "part")], capsys
    )
    assert "pip install 'tf-d2[beam]'" in message and not (tmp_path / "new").exists()


def test_all_problems_at_once(tmp_path, capsys):
    message = failed(["--model", str(tmp_path / "no"), "--input", "a", "--output", "b", "stray"], capsys)
    assert "no such folder" in message and "stray: not an option" in message


@pytest.mark.skipif(find_spec("apache_beam") is None, reason="needs Apache Beam (extra beam)")
@pytest.mark.filterwarnings("default")
def test_rows_of_two_patterns(tmp_path, capsys):
    from pyarrow import parquet

    from tf_d2.batch.model import Detector
    from tf_d2.serving import export

    export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", tmp_path / "shapes")
    Image.open(DEMO / "shapes.png").convert("RGB").resize((160, 120)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"nonsense")
    patterns = [str(tmp_path / "*.png"), str(tmp_path / "*.jpg")]
    main_arguments = ["beam", "--model", str(tmp_path / "shapes"), "--input", *patterns]
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *main_arguments,
                "--output",
                str(tmp_path / "out" / "part"),
                "--direct_running_mode",
                "in_memory",
            ]
        )
    assert ended.value.code == 0
    rows = [
        row
        for path in (tmp_path / "out").glob("part-*.parquet")
        for row in parquet.read_table(path).to_pylist()
    ]
    found = {Path(row["path"]).name: row for row in rows}
    assert set(found) == {"a.png", "b.jpg"} and found["b.jpg"]["boxes"] is None and found["b.jpg"]["failure"]
    expected = Detector(tmp_path / "shapes").row("a.png", (tmp_path / "a.png").read_bytes())
    assert found["a.png"]["scores"] == pytest.approx(expected["scores"], abs=0)
    assert found["a.png"]["classes"] == expected["classes"] and found["a.png"]["failure"] is None
