"""The report on many pictures: the numbers stand in it, nothing is loaded from elsewhere, names are escaped."""

import io

import numpy as np
from PIL import Image
from rich.console import Console

from parity.core.collection import failed_row, summarize
from parity.report.collection import show, write_report

ROW = {
    "index": 0,
    "status": "FAIL",
    "deterministic": True,
    "headline": "DIFFERENT: first at <steps>",
    "box_px": [0.5, 0.001],
    "score": [0.25],
    "rel_l2": 0.125,
    "reference": 3,
    "candidate": 2,
    "matched": 2,
    "command": "tf-d2 parity --input x",
}


def test_page(tmp_path):
    Image.fromarray(np.zeros((400, 300, 3), np.uint8)).save(tmp_path / "a&b.png")
    rows = [ROW | {"picture": str(tmp_path / "a&b.png")}, failed_row(1, "gone<.png", "no such file")]
    page = write_report(summarize(rows), ["processor: x < y"], tmp_path / "r.html").read_text()
    for text in (
        "NOT COMPARED: 0 of 2 pictures agree (1 ERROR, 1 FAIL)",
        "2 of 3 and 2",
        "5.0e-01",
        "2.5e-01",
    ):
        assert text in page
    assert "a&amp;b.png" in page
    assert "gone&lt;.png" in page
    assert "processor: x &lt; y" in page
    assert page.count("data:image/jpeg;base64,") == 1
    assert "http" not in page.replace("<!doctype html>", "")


def test_terminal():
    out = io.StringIO()
    rows = [ROW | {"picture": "a[b].png"}, ROW | {"index": 1, "picture": "c.png", "status": "PASS"}]
    show(summarize(rows), Console(file=out, width=100))
    text = out.getvalue()
    assert text.startswith("DIFFERENT: 1 of 2 pictures agree (1 FAIL)\n4 detections matched, of 6 and 4\n")
    lines = text.splitlines()
    assert lines[3].split() == ["boxes,", "px", "4", "1.0e-03", "5.0e-01", "5.0e-01"]
    worst = [line for line in lines if line.startswith(("FAIL", "PASS"))]
    assert [line.split()[-1] for line in worst] == ["a[b].png", "c.png"]
