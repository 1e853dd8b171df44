"""The Beam handler on the DirectRunner; only where Apache Beam is installed (`pip install 'tf-d2[beam]'`)."""

from __future__ import annotations

import io
import json
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

beam = pytest.importorskip("apache_beam")

DEMO = Path(str(files("tf_d2"))) / "data" / "demo"


@pytest.mark.filterwarnings("default")
def test_rows_are_those_of_the_batch_command(tmp_path: Path) -> None:
    from apache_beam.options.pipeline_options import PipelineOptions

    from tf_d2.batch.model import Detector
    from tf_d2.beam import Detect
    from tf_d2.serving import export

    export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", tmp_path / "shapes")
    buffers = {}
    for size in ((160, 120), (200, 150)):
        buffer = io.BytesIO()
        Image.open(DEMO / "shapes.png").convert("RGB").resize(size).save(buffer, "PNG")
        buffers[f"{size[0]}.png"] = buffer.getvalue()
    buffers["bad.png"] = b"nonsense"
    options = PipelineOptions(["--runner=DirectRunner", "--direct_running_mode=in_memory"])
    with beam.Pipeline(options=options) as pipeline:
        rows = pipeline | beam.Create(list(buffers.items())) | Detect(str(tmp_path / "shapes"))
        for name in ("detections", "failed"):
            written = rows[name] | f"json {name}" >> beam.Map(json.dumps)
            written | f"write {name}" >> beam.io.WriteToText(str(tmp_path / name), num_shards=1)
    found = {
        name: [
            json.loads(line) for path in tmp_path.glob(f"{name}-*") for line in path.read_text().splitlines()
        ]
        for name in ("detections", "failed")
    }
    detector = Detector(tmp_path / "shapes")
    expected = {name: detector.row(name, data) for name, data in buffers.items()}
    assert {row["path"]: row for row in found["detections"] + found["failed"]} == expected
    assert [row["path"] for row in found["failed"]] == ["bad.png"]
