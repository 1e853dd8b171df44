"""The HTML report: complete in one file, safe with hostile names, readable in a browser."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import parity
from parity.core.results import StageResult, to_json
from parity.core.status import Status
from parity.core.trace import TraceWriter
from parity.report.html import render, tree, write_report


def write_trace(path, shift=0.0, name="steps/backbone/p2"):
    rng = np.random.default_rng(0)
    with TraceWriter(path) as writer:
        image = np.full((60, 90, 3), 200, np.uint8)
        image[20:40, 30:60] = (40, 90, 160)
        writer.put("input/image", image)
        writer.put(name, rng.normal(size=(1, 4, 10, 15)).astype(np.float32) + np.float32(shift))
        writer.put("steps/backbone/p3", rng.normal(size=(1, 4, 5, 8)).astype(np.float32))
        boxes = np.array([[5, 5, 20, 25], [30, 5, 50, 30], [60, 30, 85, 55]], np.float32)
        boxes[1] += np.float32(shift)
        boxes[2] += np.float32(40 * shift)
        masks = np.zeros((3, 60, 90), bool)
        masks[0, 6:20, 6:18] = True
        masks[0, 6, 6] = shift == 0
        writer.put("output/instances/pred_boxes", boxes)
        writer.put("output/instances/scores", np.array([0.9, 0.8, 0.7], np.float32))
        writer.put("output/instances/pred_classes", np.array([0, 1, 1]))
        writer.put("output/instances/pred_masks", masks)
        writer.finish({"backend": "torch", "versions": {"torch": "2.13"}}, "{}")
    return path


def page(tmp_path, shift=0.5):
    a, b = write_trace(tmp_path / "a.h5"), write_trace(tmp_path / "b.h5", shift)
    comparisons = parity.compare(a, b)
    return comparisons, write_report(comparisons, tmp_path / "report.html").read_text()


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    _, text = page(tmp_path)
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", text)
    assert all(s.startswith(("data:image/png;base64,", "data:image/webp;base64,", "#")) for s in sources)
    assert "@import" not in text and "url(http" not in text


def test_the_page_holds_verdict_pictures_and_the_json(tmp_path):
    comparisons, text = page(tmp_path)
    assert "DIFFERENT" in text and "← starts here" in text and "Where it starts" in text
    assert text.count("data:image/") == 3, "heat map, detections, masks"
    embedded = re.search(r'<script type="application/json" id="result">(.*?)</script>', text, re.S).group(1)
    assert json.loads(embedded) == json.loads(json.dumps(to_json(comparisons)))


def test_a_page_without_differences(tmp_path):
    _, text = page(tmp_path, shift=0.0)
    assert "SAME" in text and "Where it starts" not in text and "starts here" not in text


def test_names_and_messages_are_escaped(tmp_path):
    comparisons, _ = page(tmp_path)
    hostile = "</script><img src=x onerror=alert(1)>"
    comparisons[0].notes.append(hostile)
    comparisons[0].stages[0].message = hostile
    comparisons[0].candidate_manifest["note"] = hostile
    from parity.report.html import _section

    text = render(comparisons, [_section(comparisons[0], [None, None])])
    assert hostile not in text and "<img src=x" not in text


def test_traces_that_are_gone_cost_only_their_pictures(tmp_path):
    comparisons, _ = page(tmp_path)
    comparisons[0].traces = (str(tmp_path / "x.h5"), str(tmp_path / "y.h5"))
    text = write_report(comparisons, tmp_path / "again.html").read_text()
    assert "DIFFERENT" in text and "data:image/" not in text


def test_every_candidate_is_drawn_from_its_own_trace(tmp_path):
    a, b, c = (write_trace(tmp_path / f"{n}.h5", s) for n, s in (("a", 0.0), ("b", 0.5), ("c", 0.25)))
    comparisons = parity.compare(a, b) + parity.compare(a, c)
    text = write_report(comparisons, tmp_path / "report.html").read_text()
    pictures = re.findall(r"data:image/[^\"]+", text)
    assert len(pictures) == 6, "heat map, detections, masks of each"
    assert pictures[0] != pictures[3] and pictures[1] != pictures[4]
    assert "traces" not in json.dumps([list(c) for c in to_json(comparisons)["comparisons"]])


def test_the_tree_keeps_every_stage():
    names = ["weights", "steps/backbone.bottom_up/res2", "steps/backbone/p2", "output/instances"]
    stages = [StageResult(n, "heads", "continuous", Status.PASS) for n in names]
    root = tree(stages)
    assert sorted(s.name for s in root.all_stages) == sorted(names)
    assert set(root.children) == {"checks", "steps", "output"}


def browser(folder, *words):
    """What a headless Chromium writes to standard output."""
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
    ]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--disable-quic", f"--user-data-dir={folder / 'profile'}", *words]
    return subprocess.run(command, check=True, capture_output=True, timeout=120, text=True).stdout


PROBE = """<iframe id=f width=400 height=900 src=report.html></iframe><script>
f.onload = function () {
  var root = f.contentDocument.documentElement, over = [];
  f.contentDocument.querySelectorAll('body *').forEach(function (e) {
    if (!e.closest('.scroll *, pre, svg') && e.getBoundingClientRect().right > 401) over.push(e.outerHTML.slice(0, 80));
  });
  document.title = 'width ' + root.scrollWidth + ' ' + over.join(' | ');
};</script>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_the_page_fits_a_phone(tmp_path):
    """At 400 pixels nothing reaches out of the page; what is wide scrolls inside its card."""
    page(tmp_path)
    (tmp_path / "probe.html").write_text(PROBE)
    words = ("--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom")
    text = browser(tmp_path, *words, f"file://{tmp_path / 'probe.html'}")
    assert "<title>width 400 </title>" in text, text[:800]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_browser_draws_the_page(tmp_path):
    page(tmp_path)
    picture = tmp_path / "page.png"
    browser(
        tmp_path, "--window-size=1180,2400", f"--screenshot={picture}", f"file://{tmp_path / 'report.html'}"
    )
    from PIL import Image

    with Image.open(picture) as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    red = (np.abs(pixels.astype(int) - (220, 38, 38)).max(axis=2) < 12).mean()
    assert red > 0.02, "the banner of a failed comparison is red"
