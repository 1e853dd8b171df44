"""docs/keras.md: every snippet runs, and gives what the text says."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOCUMENT = Path(__file__).parents[1] / "docs" / "keras.md"
pytestmark = pytest.mark.wide

NEEDS = ("pandas", "supervision", "trackers", "fiftyone")


def snippets() -> dict[str, str]:
    """Code by the heading above it."""
    pairs = re.findall(r"^#+ ([^\n]*)\n(?:(?!^#).)*?^```python\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    return dict(pairs)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the snippets without further packages leave behind."""
    scope: dict[str, Any] = {"folder": tmp_path_factory.mktemp("keras")}
    for heading, code in snippets().items():
        if not any(f"pip install {name}" in heading for name in NEEDS):
            code = code.replace('"shapes.keras"', "str(folder / 'shapes.keras')")
            exec(compile(code, heading, "exec"), scope)
    return scope


def test_the_snippets_are_found() -> None:
    assert len(snippets()) == 10 == DOCUMENT.read_text().count("```python")


def test_the_same_detections(ran: dict[str, Any]) -> None:
    expected = ran["model"](ran["pictures"])
    assert len(ran["second"]) == expected["counts"][1] > 0
    for model in (ran["same"], ran["copy"]):
        got = model(ran["pictures"])
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_features_and_saliency(ran: dict[str, Any]) -> None:
    assert ran["logits"].shape == (2, 2) and np.ptp(ran["logits"]) > 0
    assert ran["model"].backbone.compute_output_shape((None, 192, 256, 3))["p5"] == (None, 6, 8, 48)
    saliency = ran["saliency"].numpy()
    assert saliency.shape == (192, 256) and np.isfinite(saliency).all() and saliency.max() > 0


def test_results_are_a_perfect_match_of_themselves(ran: dict[str, Any]) -> None:
    assert len(ran["results"]) == len(ran["instances"]) > 0
    assert ran["evaluation"].stats[0] == pytest.approx(1)


def test_in_a_fresh_process(ran: dict[str, Any]) -> None:
    folder = ran["folder"]
    np.save(folder / "pictures.npy", ran["pictures"])
    code = """
import sys, keras, numpy as np
import tf_d2.modeling
found = keras.models.load_model(sys.argv[1] + "/shapes.keras")(np.load(sys.argv[1] + "/pictures.npy"))
np.savez(sys.argv[1] + "/found.npz", **{name: value.numpy() for name, value in found.items()})
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(folder / "found.npz")
    for name, value in ran["model"](ran["pictures"]).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("package", NEEDS)
def test_other_packages(ran: dict[str, Any], package: str) -> None:
    pytest.importorskip(package, reason=f"needs the package {package}")
    code = next(code for heading, code in snippets().items() if f"pip install {package}" in heading)
    scope = dict(ran)
    exec(compile(code, package, "exec"), scope)
    if package == "pandas":
        assert list(scope["table"])[:3] == ["class", "name", "score"] and len(scope["large"])
    if package == "supervision":
        assert len(scope["detections"]) and scope["drawn"].shape == ran["picture"].shape
    if package == "trackers":  # the picture does not change, so everything keeps its number
        assert scope["seen"][1] and scope["seen"][1] == scope["seen"][2]
        assert scope["drawn"].shape == ran["picture"].shape
    if package == "fiftyone":
        assert len(scope["sample"].predictions.detections) == len(ran["instances"])
