"""The examples for Beam, Ray Data and Spark write the rows of `tf-d2 batch`; each where its package is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = Path(str(files("tf_d2"))) / "data" / "demo"
DIRECT = ("--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
PORTABLE = (
    *("--runner=PortableRunner", "--job_endpoint=embed", "--sdk_worker_parallelism=2"),
    "--environment_type=beam:env:harness_subprocess_python:v1",
    f"--environment_config={sys.executable} -m apache_beam.runners.worker.sdk_worker_main",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with an export and pictures, one of them broken; and the rows by file name."""
    from tf_d2.batch.model import Detector
    from tf_d2.serving import export

    folder = tmp_path_factory.mktemp("many")
    export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", folder / "shapes")
    photos = folder / "photos"
    photos.mkdir()
    whole = Image.open(DEMO / "shapes.png").convert("RGB")
    for size in ((160, 120), (200, 150), (128, 96)):
        whole.resize(size).save(photos / f"{size[0]}.jpg")
    (photos / "bad.jpg").write_bytes(b"nonsense")
    detector = Detector(folder / "shapes")
    return folder, {p.name: detector.row(p.name, p.read_bytes()) for p in sorted(photos.iterdir())}


def rows_of(example: str, made: tuple[Path, dict[str, Any]], output: Path, *words: str) -> dict[str, Any]:
    """What an example writes, by file name, with that as the path."""
    import pyarrow.parquet as pq

    folder, _ = made
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / example), "--model", str(folder / "shapes"), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    written = sorted(output.rglob("*.parquet"))
    rows = [row for path in written for row in pq.ParquetFile(path).read().to_pylist()]
    for row in rows:
        row["path"] = Path(row["path"]).name
    assert len(rows) == len({row["path"] for row in rows})
    return {row["path"]: row for row in rows}


# Before the fixture: an export that no test would use takes long.
@pytest.mark.skipif(find_spec("apache_beam") is None, reason="needs Apache Beam")
@pytest.mark.parametrize("runner", [DIRECT, PORTABLE], ids=["direct", "portable"])
def test_beam(runner: tuple[str, ...], made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    pattern, output = made[0] / "photos" / "*.jpg", tmp_path / "part"
    found = rows_of(
        "beam_detect.py", made, tmp_path, "--pictures", str(pattern), "--output", str(output), *runner
    )
    assert found == made[1]


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray Data")
def test_ray(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    words = ["--pictures", str(made[0] / "photos"), "--output", str(tmp_path / "out"), "--workers", "2"]
    assert rows_of("ray_detect.py", made, tmp_path / "out", *words) == made[1]


@pytest.mark.skipif(
    find_spec("pyspark") is None or shutil.which("java") is None, reason="needs pyspark and Java"
)
def test_spark(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    words = ["--pictures", str(made[0] / "photos" / "*.jpg"), "--output", str(tmp_path / "out")]
    assert rows_of("spark_detect.py", made, tmp_path / "out", *words) == made[1]
