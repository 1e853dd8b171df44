"""``tf-d2 convert`` that fails or is stopped; what it converts is in tests/weights/test_commands.py."""

import os
import subprocess
import sys

import numpy as np
import pytest

import weights
from tf_d2.cli import main
from tf_d2.commands import convert

STOPPED = """
import os, signal, sys, weights.keras_file, weights.writers

def stop(*arrays):
    os.kill(os.getpid(), signal.SIGTERM)
    return True

weights.keras_file.same_bits = weights.writers.same_bits = stop  # once everything is written
from tf_d2.cli import main
main(["convert", *sys.argv[1:]])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")
@pytest.mark.parametrize("suffix", [pytest.param(".weights.h5", marks=pytest.mark.wide), ".pth"])
def test_sigterm(tmp_path, demo_files, suffix):
    """A container that is stopped, or `timeout`: as if the command had failed."""
    words = ["--weights", demo_files / "shapes.pkl", "--output", tmp_path / f"out{suffix}"]
    if suffix == ".weights.h5":
        words += ["--config-file", demo_files / "shapes.yaml"]
    command = [sys.executable, "-c", STOPPED, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".weights.h5", ".pkl"])
def test_the_file_that_does_not_fit_is_named(tmp_path, demo_files, suffix):
    state = weights.read_checkpoint(demo_files / "shapes.pkl").state
    key = "roi_heads.box_predictor.cls_score.weight"
    bad = tmp_path / "bad.safetensors"
    for value, message in (
        (state[key] > 0, "1 not floating point"),
        (np.full_like(state[key], np.nan), "512 NaN or infinite"),
    ):
        weights.write_safetensors(bad, {**state, key: value})
        with pytest.raises(weights.WeightsError) as error:
            convert.run(str(bad), tmp_path / f"out{suffix}", str(demo_files / "shapes.yaml"))
        assert str(error.value).startswith(f"{bad}: ") and message in str(error.value)
    assert os.listdir(tmp_path) == [bad.name]


def test_options_change_the_config_that_travels_in_a_file(demo_files, tmp_path):
    first, second = tmp_path / "a.weights.h5", tmp_path / "b.weights.h5"
    convert.run(str(demo_files / "shapes.pkl"), first, str(demo_files / "shapes.yaml"))
    convert.run(str(first), second, None, ["TEST.DETECTIONS_PER_IMAGE", 7])
    text = weights.read_checkpoint(second).config
    assert text is not None and "DETECTIONS_PER_IMAGE: 7\n" in text
    with pytest.raises(weights.WeightsError, match="give it with --config-file"):
        convert.run(
            str(demo_files / "shapes.pkl"), tmp_path / "c.pkl", None, ["TEST.DETECTIONS_PER_IMAGE", 7]
        )


def test_conventions_travel_in_a_converted_file(demo_files, tmp_path):
    target = tmp_path / "a.weights.h5"
    words = ["convert", "--weights", str(demo_files / "shapes.pkl"), "--output", str(target)]
    words += ["--config-file", str(demo_files / "shapes.yaml"), "--conventions", "detectron"]
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert not leaving.value.code
    text = weights.read_checkpoint(target).config
    assert text is not None and 'CONVENTIONS: "detectron"\n' in text
