"""What the TensorFlow worker hands to the other side."""

import json
from pathlib import Path

import numpy as np
import pytest

import weights
from parity.job import Job
from parity.workers import tf_worker

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
