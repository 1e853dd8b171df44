"""The Beam handler on its runners; only where Apache Beam is installed (`pip install 'tf-d2[beam]'`)."""

from __future__ import annotations

import io
import json
import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

beam = pytest.importorskip("apache_beam")

DEMO = Path(str(files("tf_d2"))) / "data" / "demo"
DIRECT = ("--runner=DirectRunner", "--direct_num_workers=2")
RUNNERS = {
    "one process": ("--runner=DirectRunner", "--direct_running_mode=in_memory"),
    "threads": (*DIRECT, "--direct_running_mode=multi_threading"),
    "processes": (*DIRECT, "--direct_running_mode=multi_processing"),
    "portable": (
        *("--runner=PortableRunner", "--job_endpoint=embed", "--sdk_worker_parallelism=2"),
        "--environment_type=beam:env:harness_subprocess_python:v1",
        f"--environment_config={sys.executable} -m apache_beam.runners.worker.sdk_worker_main",
    ),
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported demo."""
    from tf_d2.serving import export

    root = tmp_path_factory.mktemp("beam") / "shapes"
    export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", root)
    return root


def pictures() -> dict[str, bytes]:
    """Two sizes, and a broken one."""
    buffers = {}
    for size in ((160, 120), (200, 150), (128, 96)):
        buffer = io.BytesIO()
        Image.open(DEMO / "shapes.png").convert("RGB").resize(size).save(buffer, "PNG")
        buffers[f"{size[0]}.png"] = buffer.getvalue()
    return buffers | {"bad.png": b"nonsense"}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("runner", RUNNERS)
def test_rows_are_those_of_the_batch_command(runner: str, shapes: Path, tmp_path: Path) -> None:
    from apache_beam.options.pipeline_options import PipelineOptions

    from tf_d2.batch.model import Detector
    from tf_d2.beam import Detect

    def told(row: dict[str, Any]) -> str:
        import json
        import os

        return json.dumps(row | {"process": os.getpid()})

    buffers = pictures()
    with beam.Pipeline(options=PipelineOptions(list(RUNNERS[runner]))) as pipeline:
        given = pipeline | beam.Create(list(buffers.items())) | beam.Reshuffle()
        rows = given | Detect(str(shapes))
        for name in ("detections", "failed"):
            written = rows[name] | f"json {name}" >> beam.Map(told)
            written | f"write {name}" >> beam.io.WriteToText(str(tmp_path / name), num_shards=1)
    found = {
        name: [
            json.loads(line) for path in tmp_path.glob(f"{name}-*") for line in path.read_text().splitlines()
        ]
        for name in ("detections", "failed")
    }
    everything = found["detections"] + found["failed"]
    processes = {row.pop("process") for row in everything}
    assert (processes == {os.getpid()}) == (runner in ("one process", "threads"))
    detector = Detector(shapes)
    assert len(everything) == len(buffers)
    expected = {name: detector.row(name, data) for name, data in buffers.items()}
    assert {row["path"]: row for row in everything} == expected
    assert [row["path"] for row in found["failed"]] == ["bad.png"]
