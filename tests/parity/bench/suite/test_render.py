"""Tables and plots from stored numbers."""

import json

import pytest

from parity.bench.results import Agreement, Bench, Competitor, to_json
from parity.bench.suite.render import growth, read_parts, write_page
from parity.bench.suite.suite import PARTS, SCHEMA


def bench(title="Mask R-CNN", ours="TensorFlow, tf.function"):
    sides = [
        Competitor("detectron2, eager", 4, 3, 100, 1500, 100, "torch 2", [2.0, 3.0, 4.0], steady_mib=1000.0),
        Competitor(ours, 3, 6, 200, 1800, 100, "TensorFlow 2", [1.0, 1.2, 1.0], steady_mib=1200.0),
    ]
    sides[0].agreement = Agreement(100, 100, 100, 0.0, 0.0)
    sides[1].agreement = Agreement(100, 99, 98, 0.0123, 4e-5)
    return Bench(sides, title, 2)


def curve(name, x):
    side = {"seconds": [[v / 10] * 2 for v in x], "found": [100] * len(x), "peak_mib": [1.0] * len(x)}
    return {"name": name, "x": x, "sides": {"detectron2": side, "tf": side}}


FAILED = {**to_json(bench()), "key": "x"}
FAILED["sides"] = [*FAILED["sides"][:1], {**FAILED["sides"][1], "seconds": [], "error": "out of memory"}]
START = {"seconds": [5.0, 6.0, 7.0], "parts": [{"load": 3.0, "first": 2.0}] * 3}
PHASES = {"decode": 0.01, "resize": 0.02, "network": 1.0, "post": 0.07}
CELL = {
    "reference": 100,
    "found": 100,
    "matched": 100,
    "worst_px": 0.004,
    "worst_score": 5e-5,
    "seconds": 1.5,
}
DATA = {
    "agreement": {
        "sizes": [[800, 1216], [331, 597]],
        "sides": {
            "detectron2": [CELL, CELL],
            "openvino-torch": [{**CELL, "matched": 94, "worst_px": 41.0}, {"error": "sizes are fixed"}],
            "tf": [{**CELL, "found": 99, "matched": 99}, CELL],
        },
    },
    "main": {"bench": to_json(bench()), "trained": to_json(bench("demo")), "reference": "detectron2"},
    "families": {"benches": [{**to_json(bench("RetinaNet")), "key": "r"}, FAILED], "median_ratio": 0.4},
    "endtoend": {
        "pictures": [
            {"size": [800, 1216], "sides": {"tf": {"seconds": [1.1, 1.1], "parts": PHASES, "found": 100}}}
        ],
        "paste": {
            "count": 100,
            "height": 3000,
            "width": 4000,
            "sides": {
                "detectron2": {"seconds": [2.0, 2.0], "extra_mib": 2500.0},
                "tf": {"seconds": [0.5, 0.5], "extra_mib": None},
            },
        },
    },
    "batch": {
        "batches": [1, 2],
        "sides": {
            "detectron2": {"seconds": [[2.0, 2.0], [4.0, 4.0]], "peak_mib": [1000.0, 2000.0]},
            "savedmodel": {"seconds": [[1.0, 1.0], [1.5, 1.5]], "peak_mib": [1000.0, 2000.0]},
        },
    },
    "curves": {
        "pixels": curve("pixels", [100000, 400000]),
        "proposals": curve("proposals", [100, 1000]),
        "classes": curve("classes", [1, 80]),
    },
    "files": {
        "pictures": 24,
        "loops": {"detectron2": 0.5, "tf": 0.8},
        "runs": {
            "tf-d2 batch": 1.0,
            "tf-d2 batch on one core": 0.6,
            "tf-d2 batch twice at once, on a core each": 1.08,
        },
    },
    "startup": {
        "starts": {"tf": START},
        "traces": {"sizes": 9, "traces": 1},
        "convert": {"seconds": [0.5], "read_seconds": [0.25], "bytes": [100_000_000], "tensors": [307]},
    },
    "profile": {
        "title": "Mask R-CNN",
        "seconds": 2.0,
        "heavy_seconds": 1.5,
        "inside_seconds": 1.9,
        "plain_seconds": 1.6,
        "rows": [["_FusedConv2D", 1500.0, 60.0], ["GatherV2", 400.0, 300.0]],
    },
    "gpu": {"unavailable": "device gpu: TensorFlow 2 sees no GPU on this machine"},
}
MACHINE = {"cpu": "some", "cores": 2, "memory_gib": 8.0, "system": "Linux x86_64", "python": "3.11"}


def stored(folder, names=tuple(DATA), **changes):
    for name in names:
        body = {
            "schema": SCHEMA,
            "part": name,
            "date": "2026-01-02",
            "minutes": 1.0,
            "machine": MACHINE,
            "threads": 2,
            "size": [800, 1216],
            "command": "tf-d2 bench --all",
            "error": "",
            "notes": [],
            "data": DATA[name],
            **changes,
        }
        (folder / f"{name}.json").write_text(json.dumps(body))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    stored(folder)
    return write_page(read_parts(folder), folder)


def test_every_part_has_a_section(page):
    assert set(DATA) == set(PARTS)
    assert page.read_text().count("\n## ") == len(PARTS)


@pytest.mark.parametrize(
    "text",
    [
        "| TensorFlow, tf.function (TensorFlow 2) | **0.40** | 1 | 1 to 1.2 | 98 of 100 | 1.2e-02 | 4.0e-05 |",
        "| side | 800x1216 | 331x597 |",
        "front end, float32 | **94 of 100**, 4.1e+01 px, 5.0e-05 | n/a: sizes are fixed |",
        "| TensorFlow, tf.function | **99 of 100 (99 found)**, 4.0e-03 px, 5.0e-05 | 100 of 100, 4.0e-03 px, 5.0e-05 |",
        "Median of the ratios: **0.40**",
        "n/a: TensorFlow, tf.function: out of memory",
        "| 800x1216, TensorFlow, tf.function | **9.1%** | 1100 | 10 | 20 | 1000 | 70 | 100 |",
        "| TensorFlow, tf.function | **0.25** | 0.5 | 0.5 to 0.5 | n/a |",
        "| 2 | **0.38** | 0.50 | 1.33 |",
        "| 400,000 | **1.00** |",
        "| `Predictor` in a loop | 0.8 | **1.00** |",
        "| tf-d2 batch | 1 | **1.25** |",
        "From one process on one core to two on two: 1.80.",
        "median **200 MB/s**",
        "so conversion runs at 0.50 of it",
        "pictures of 9 sizes: **1**",
        "takes 1.6 s, of which **94%** are convolutions and matrix products, as the profiler times them, and "
        "**6%** everything else",
        "it takes 2 s: 75.0% convolutions and products, 20.0% other operations, 5.0% outside",
        "n/a: device gpu: TensorFlow 2 sees no GPU on this machine",
        "main (1.0 min), agreement (1.0 min), families (1.0 min)",
    ],
)
def test_numbers_of_the_page(page, text):
    assert text in page.read_text()


def test_plots_are_small_files_with_text(page):
    plots = {p.stem: p.read_text() for p in page.parent.glob("*.svg")}
    assert set(plots) == {"main", "families", "batch", "curves", "profile"}
    assert all("<text" in text and len(text) < 200_000 for text in plots.values())
    assert "RetinaNet" in plots["families"] and "megapixels" in plots["curves"]


def test_plots_do_not_change_when_made_again(page):
    folder = page.parent
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    write_page(read_parts(folder), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_failed_part_and_notes_are_shown(tmp_path):
    stored(tmp_path, ["main"], error="no memory")
    stored(tmp_path, ["batch"], notes=["detectron2 is left out: gone"])
    text = write_page(read_parts(tmp_path), tmp_path).read_text()
    assert "n/a: no memory" in text and "Detectron2 is left out: gone" in text
    assert not (tmp_path / "main.svg").exists()


def test_another_schema_is_refused(tmp_path):
    stored(tmp_path, ["main"], schema="tf-d2-bench/1")
    with pytest.raises(ValueError, match="measure this part again"):
        read_parts(tmp_path)
    with pytest.raises(ValueError, match="no measured part"):
        write_page({}, tmp_path)


def test_growth_is_an_exponent():
    assert growth([1, 10], [[1.0], [10.0]], 1) == "1.00"
    assert growth([1, 10], [[1.0], [100.0]], 1) == "2.00"
    assert growth([1, 10], [[1.0], [1.0]], 0) == ""
