"""Checkpoints as people have them, loaded into a model: what is complete loads, what is not says what to do."""

import numpy as np
import pytest

import tf_d2
import weights
from tf_d2 import cli
from tf_d2.config import ConfigError, load_config_text
from tf_d2.modeling import build_model

CONFIG = """
MODEL:
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res2, res3, res4, res5], RES2_OUT_CHANNELS: 16, STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 8,
    DEPTH: 50, NORM: %s}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16, NORM: %s}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6]}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5], NUM_CLASSES: 3}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 16, POOLER_RESOLUTION: 7}
"""
FROZEN, TRAINED = CONFIG % ("FrozenBN", "''"), CONFIG % ("BN", "''")


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    """A state dict that fits the two configurations."""
    specs = build_model(load_config_text(FROZEN)).variable_specs()
    return weights.to_state_dict({path: np.full(shape, 0.5, np.float32) for path, shape in specs.items()})


@pytest.fixture
def files(tmp_path, state):
    """Writes a configuration and a state dict; returns the two paths."""

    def write(text: str, tensors: dict[str, np.ndarray]):
        (tmp_path / "config.yaml").write_text(text)
        weights.write_pth(tmp_path / "model.pth", tensors)
        return tmp_path / "config.yaml", tmp_path / "model.pth"

    return write


def test_frozen_norms_may_be_without_statistics(files, state):
    bare = {key: value for key, value in state.items() if ".running_" not in key}
    model = tf_d2.load_model(*files(FROZEN, bare))
    values = {
        v.path: v.numpy() for v in model.variables if v.path.endswith(("moving_mean", "moving_variance"))
    }
    assert len(values) == 106
    assert all((value == path.endswith("moving_variance")).all() for path, value in values.items())


def test_other_batch_norms_may_not(files, state):
    """detectron2 only warns and detects with mean 0 and variance 1."""
    bare = {key: value for key, value in state.items() if ".running_" not in key}
    with pytest.raises(weights.ConversionError) as error:
        tf_d2.load_model(*files(TRAINED, bare))
    assert "106 statistics (running_mean, running_var) of batch norms are missing" in str(error.value)
    assert "backbone.bottom_up.res2.0.conv1.norm.running_mean" in str(error.value)
    tf_d2.load_model(*files(TRAINED, state))


def test_leftovers_are_left_out_only_when_asked(files, state):
    more = {**state, "discriminator.conv.weight": np.ones(2, np.float32), "roi_heads.extra.bias": np.ones(1)}
    paths = files(FROZEN, more)
    with pytest.raises(
        weights.ConversionError, match=r"--ignore-tensors 'discriminator.\*' 'roi_heads.extra.\*'"
    ):
        tf_d2.load_model(*paths)
    with pytest.raises(weights.ConversionError, match=r"1 unexpected:\n  roi_heads.extra.bias"):
        tf_d2.load_model(*paths, ignore_tensors=["discriminator.*"])
    tf_d2.load_model(*paths, ignore_tensors=["discriminator.*", "roi_heads.extra"])
    with pytest.raises(weights.ConversionError, match="is a list of patterns"):
        tf_d2.load_model(*paths, ignore_tensors="discriminator.*")


def test_what_the_model_needs_is_never_left_out(files, state):
    model = tf_d2.load_model(*files(FROZEN, state), ignore_tensors=["*"])
    assert all((variable.numpy() == 0.5).all() for variable in model.variables)


def test_one_of_two_models(files, state, tmp_path, capsys):
    both = {f"teacher.{key}": value for key, value in state.items()}
    both |= {f"student.{key}": value + 1 for key, value in state.items()}
    config, path = files(FROZEN, both)
    with pytest.raises(
        weights.CheckpointError, match=r"holds 2 models: 'student\.'.*'teacher\.'.*--prefix student"
    ):
        tf_d2.load_model(config, path)
    with pytest.warns(weights.CheckpointNotice):
        model = tf_d2.load_model(config, path, prefix="teacher")
    assert all((variable.numpy() == 0.5).all() for variable in model.variables)
    words = ["convert", "--config-file", config, "--weights", path, "--output", tmp_path / "m.weights.h5"]
    with pytest.raises(SystemExit) as status, pytest.warns(weights.CheckpointNotice):
        cli.main([*map(str, words), "--prefix", "teacher."])
    assert status.value.code == 0
    assert tf_d2.load_model(tmp_path / "m.weights.h5").variables[0].numpy().ravel()[0] == 0.5


def test_ignored_tensors_are_not_written_either(files, state, tmp_path):
    config, path = files(FROZEN, {**state, "critic.w": np.ones(2, np.float32)})
    words = ["convert", "--config-file", config, "--weights", path, "--output", tmp_path / "m.pth"]
    with pytest.raises(SystemExit) as status:
        cli.main([*map(str, words), "--ignore-tensors", "critic.*"])
    assert status.value.code == 0
    assert weights.read_checkpoint(tmp_path / "m.pth").state.keys() == state.keys()


def test_a_pyramid_without_norm_and_bias(files, state):
    """null is None in detectron2, where the bias is there for the empty name alone."""
    text = CONFIG % ("FrozenBN", "null")
    bare = {key: value for key, value in state.items() if "fpn_" not in key or not key.endswith(".bias")}
    assert len(state) - len(bare) == 8
    tf_d2.load_model(*files(text, bare))
    with pytest.raises(weights.ConversionError, match=r"8 unexpected:\n  backbone.fpn_lateral2.bias"):
        tf_d2.load_model(*files(text, state))


def test_keys_one_knows_about(files, state):
    config, path = files(FROZEN + "  MY_HEAD: {WIDTH: 3}\n", state)
    with pytest.raises(ConfigError, match=r"--ignore-keys MODEL.MY_HEAD.WIDTH"):
        tf_d2.Predictor(config, path)
    with pytest.warns(UserWarning, match=r"MODEL.MY_HEAD.WIDTH"):
        tf_d2.Predictor(config, path, ignore_keys=["MODEL.MY_HEAD"])


def test_names_that_are_only_the_ends_are_matched_when_asked(files, state):
    """As detectron2 does with ``model.pth?matching_heuristics=True``, for a local file, too."""
    ends = {key.removeprefix("backbone.").removeprefix("bottom_up."): value for key, value in state.items()}
    config, path = files(FROZEN, ends)
    with pytest.raises(weights.ConversionError):
        tf_d2.load_model(config, path)
    model = tf_d2.load_model(config, f"{path}?matching_heuristics=True")
    assert all((variable.numpy() == 0.5).all() for variable in model.variables)
