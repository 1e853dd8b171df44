"""What the TensorFlow worker hands to the other side."""

import json
from pathlib import Path

import numpy as np
import pytest

import weights
from parity.backends import tf_worker
from parity.core.job import Job
from tf_d2.commands import convert
from tf_d2.config import load_config

SCORES = "roi_heads.box_predictor.cls_score.weight"


@pytest.fixture
def request_with(tmp_path, demo_files):
    """Makes the request to resolve the embedded model with some tensors of its checkpoint changed."""

    def make(**changes):
        state = {**weights.read_checkpoint(demo_files / "shapes.pkl").state, **changes}
        weights.write_safetensors(tmp_path / "model.safetensors", state)
        given = str(demo_files / "shapes.yaml"), str(tmp_path / "model.safetensors")
        job = Job(*given, ("none",), str(tmp_path / "out.yaml"))
        return tf_worker.Request(job, mode="resolve")

    return make


def test_weights_that_are_not_finite_are_named_before_either_side_runs(request_with, tmp_path, demo_files):
    """detectron2 and the PyTorch reference would fail at a reshape of no boxes."""
    broken = np.array(weights.read_checkpoint(demo_files / "shapes.pkl").state[SCORES])
    broken[0, :3], broken[1, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=rf"model\.safetensors holds 4 NaN .* in 1 of .*{SCORES}: 4"):
        tf_worker.resolve(request_with(**{SCORES: broken}))
    assert not Path(tmp_path / "out.yaml").exists()


def test_what_inference_does_not_use_may_be_anything(request_with, tmp_path, capsys):
    tf_worker.resolve(request_with(**{"roi_heads.box_predictor.fed_loss_cls_weights": np.float32([np.nan])}))
    assert json.loads(capsys.readouterr().out)["event"] == "resolved"
    assert Path(tmp_path / "out.yaml").exists()


def test_relative_weights_of_the_config_and_converted_files(demo_files, tmp_path, capsys, monkeypatch):
    """Workers run in a folder of their own; what a YAML names relative to the user's is found there."""
    monkeypatch.chdir(tmp_path)  # put back afterwards
    (tmp_path / "user").mkdir()
    state = weights.read_checkpoint(demo_files / "shapes.pkl").state
    weights.write_safetensors(tmp_path / "user" / "model.safetensors", state)
    job = Job(str(demo_files / "shapes.yaml"), "", ("none",), str(tmp_path / "out.yaml"))
    opts = ("MODEL.WEIGHTS", "model.safetensors")
    tf_worker.resolve(tf_worker.Request(job, "resolve", opts=opts, folder=str(tmp_path / "user")))
    told = json.loads(capsys.readouterr().out)
    assert told["weights"] == str(tmp_path / "user" / "model.safetensors")

    convert.run(str(demo_files / "shapes.pkl"), tmp_path / "m.weights.h5", str(demo_files / "shapes.yaml"))
    job = Job(str(tmp_path / "m.weights.h5"), "", ("none",), str(tmp_path / "again.yaml"))
    tf_worker.resolve(tf_worker.Request(job, "resolve"))
    assert load_config(tmp_path / "again.yaml") == load_config(demo_files / "shapes.yaml")


def test_a_file_with_more_than_the_model_is_written_as_the_model_alone(demo_files, tmp_path, capsys):
    state = weights.read_checkpoint(demo_files / "shapes.pkl").state
    more = {f"{who}.{key}": value for key, value in state.items() for who in ("teacher", "student")}
    weights.write_pth(tmp_path / "both.pth", {**more, "teacher.critic.w": np.ones(2, np.float32)})
    job = Job(
        str(demo_files / "shapes.yaml"), str(tmp_path / "both.pth"), ("none",), str(tmp_path / "out.yaml")
    )
    request = tf_worker.Request(job, "resolve", ignore_tensors=("critic.*",), prefix="teacher")
    with pytest.warns(weights.CheckpointNotice):
        tf_worker.resolve(request)
    told = json.loads(capsys.readouterr().out)
    assert told["weights"] == str(tmp_path / "out.yaml.pth")
    assert weights.read_checkpoint(told["weights"]).state.keys() == state.keys()
    assert set(np.load(told["state"]).files) == state.keys()
