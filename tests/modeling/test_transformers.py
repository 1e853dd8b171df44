"""ViT, MViTv2 and Swin, block by block against what detectron2 recorded at reduced width."""

from functools import cache
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import weights
from tf_d2.config.parts.fpn import TopBlockConfig
from tf_d2.config.parts.mvit import MViTConfig
from tf_d2.config.parts.swin import SwinConfig
from tf_d2.config.parts.vit import SimpleFeaturePyramidConfig, ViTConfig
from tf_d2.modeling.mvit import MViT
from tf_d2.modeling.simple_feature_pyramid import SimpleFeaturePyramid
from tf_d2.modeling.swin import SwinTransformer
from tf_d2.modeling.vit import ViT
from tf_d2.stages import stage_array

DATA = Path(__file__).parents[1] / "data" / "new_baselines"


def pyramid(**changes):
    net = ViTConfig(img_size=128, norm_eps=1e-6, pretrain_img_size=64, use_rel_pos=True, **changes)
    top = TopBlockConfig("LastLevelMaxPool", "p5")
    config = SimpleFeaturePyramidConfig(net, "last_feat", 16, (4.0, 2.0, 1.0, 0.5), top_block=top)
    return SimpleFeaturePyramid(config, 3, "backbone")


def bottom_up(kind, config):
    with keras.name_scope("backbone"):
        return kind(config, 3, "bottom_up")


MODELS = {
    "vitdet_b": lambda: pyramid(
        embed_dim=48, depth=4, num_heads=3, window_size=3, window_block_indexes=(0, 2)
    ),
    "mvitv2_t": lambda: bottom_up(
        MViT, MViTConfig(embed_dim=8, depth=10, last_block_indexes=(0, 2, 7, 9), norm_eps=1e-6)
    ),
    "swin_b_cascade": lambda: bottom_up(
        SwinTransformer, SwinConfig(depths=(2, 2, 4, 2), embed_dim=8, num_heads=(1, 2, 2, 4))
    ),
}


@cache
def recording(name):
    arrays = {}
    with h5py.File(DATA / f"{name}.h5") as file:
        file.visititems(
            lambda key, item: arrays.update({key: item[()]} if isinstance(item, h5py.Dataset) else {})
        )
    return arrays


def built(name, dtype):
    """The backbone with its weights; every tensor of the file is used, or known to be of no use."""
    layer = MODELS[name]()
    specs = {v.path: tuple(v.shape) for v in layer.variables}
    prefix = "weights/backbone." if name.startswith("vitdet") else "weights/backbone.bottom_up."
    state = {k.removeprefix("weights/"): v for k, v in recording(name).items() if k.startswith(prefix)}
    arrays = weights.to_keras_arrays(state, specs, dtype=dtype)
    for variable in layer.variables:
        variable.assign(arrays[variable.path])
    return layer


def distance(got, expected):
    return np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64))


def steps(name, dtype, as_graph):
    layer = built(name, dtype)
    prefix = "backbone" if name.startswith("vitdet") else "backbone.bottom_up"
    x = tf.constant(np.moveaxis(recording(name)["steps64/input"], 1, -1).astype(dtype))

    def forward(x):
        stages = {}
        layer.forward(x, stages, prefix)
        return stages

    if as_graph:
        spec = [tf.TensorSpec([None, None, None, 3], x.dtype)]
        forward = tf.function(forward, input_signature=spec, autograph=False)
    return {k: stage_array(k, v.numpy()) for k, v in forward(x).items()}


def compared(name, group, stages):
    """(stage, distance) of everything recorded in ``group`` that the backbone computes; ``@n`` kept n rows."""
    for key, expected in recording(name).items():
        stage, _, rows = key.removeprefix(f"{group}/").partition("@")
        if key.startswith(f"{group}/") and stage in stages:
            got = stages[stage][:, : int(rows)] if rows else stages[stage]
            yield stage, distance(got, expected)


@pytest.mark.parametrize("as_graph", [False, pytest.param(True, marks=pytest.mark.wide)])
@pytest.mark.parametrize("name", MODELS)
def test_float64_steps(name, dtype, as_graph):
    if dtype == "float32":
        pytest.skip("see test_float32_steps")
    results = dict(compared(name, "steps64", steps(name, dtype, as_graph)))
    assert len(results) >= 5
    assert max(results.values()) < 1e-13, results


@pytest.mark.parametrize("name", MODELS)
def test_float32_steps(name):
    """As near to the truth (float64) as detectron2's own float32, which differs from it by up to 3e-6 here."""
    stages = steps(name, "float32", False)
    compared_count = 0
    for key, exact in recording(name).items():
        stage = key.removeprefix("steps64/").partition("@")[0]
        if not key.startswith("steps64/") or stage not in stages:
            continue
        (theirs,) = (v for k, v in recording(name).items() if k.partition("@")[0] == f"steps/{stage}")
        count = exact.shape[1]
        noise = distance(theirs[:, :count], exact)
        assert distance(stages[stage][:, :count], exact) < max(2 * noise, 3e-7), stage
        compared_count += 1
    assert compared_count >= 5


# Model, its blocks of which detectron2's input is recorded (by their path), and the stage that is it.
FED = [
    *(("vitdet_b", f"net.blocks.{i}", f"net.blocks.{i - 1}") for i in (1, 2, 3)),
    *(("mvitv2_t", f"bottom_up.blocks.{i}", f"bottom_up.blocks.{i - 1}") for i in (4, 9)),
    ("swin_b_cascade", "bottom_up.layers.2.blocks.0", "bottom_up.layers.1.downsample"),
    ("swin_b_cascade", "bottom_up.layers.2.blocks.1", "bottom_up.layers.2.blocks.0"),
    ("swin_b_cascade", "bottom_up.layers.3.blocks.0", "bottom_up.layers.2.downsample"),
    ("swin_b_cascade", "bottom_up.layers.3.blocks.1", "bottom_up.layers.3.blocks.0"),
]
ROUNDINGS = 8 * 2.0**-23  # of a sum of some hundred terms, should detectron2 happen to add in a better order


@cache
def layer_of(name, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return built(name, policy)
    finally:
        keras.config.set_dtype_policy(before)


def on_input(name, path, x, policy):
    """One block on given tokens, as an array of their shape's kind."""
    parent, _, number = path.partition(".")[2].rpartition(".")
    layer = layer_of(name, policy)
    layer = layer.net if parent == "blocks" and name == "vitdet_b" else layer
    if parent == "blocks":
        return layer.blocks[number](tf.constant(x.astype(policy))).numpy()
    stage = layer.layer_list[parent.split(".")[1]]
    side = int(x.shape[1] ** 0.5)  # the maps of this recording are square
    tokens = tf.constant(x.astype(policy).reshape(1, side, side, -1))
    return (
        stage.blocks[number](tokens, apart=stage.apart(tokens)).numpy().reshape(x.shape[0], side * side, -1)
    )


@pytest.mark.parametrize(("name", "block", "source"), FED)
def test_a_block_in_float32_is_as_near_the_truth_as_detectron2s(name, block, source):
    """On the input that detectron2 recorded. The truth is the block in float64, which test_float64_steps proves."""
    record = recording(name)
    x, theirs = (record[f"steps/backbone.{stage}"] for stage in (source, block))
    exact = on_input(name, block, x, "float64")
    noise = distance(theirs, exact)
    assert noise < 2e-6
    assert distance(on_input(name, block, x, "float32"), exact) < min(3 * noise + ROUNDINGS, 2e-6)


def test_bounded_attention_changes_nothing_but_memory():
    x = tf.constant(np.moveaxis(recording("vitdet_b")["steps64/input"], 1, -1))
    layer = built("vitdet_b", "float32")
    whole = layer(x)["p2"].numpy()
    for block in layer.net.blocks.values():
        block.attn.logits_budget = 5000
    assert 0 <= distance(layer(x)["p2"].numpy(), whole) < 1e-6


def test_residual_blocks_and_their_names():
    net = ViTConfig(
        img_size=64, embed_dim=8, depth=2, num_heads=2, residual_block_indexes=(1,), use_abs_pos=False
    )
    vit = ViT(net, 3, "net")
    keys = {weights.path_to_key(v.path) for v in vit.variables}
    assert {f"net.blocks.1.residual.{part}.weight" for part in ("conv1", "norm1", "conv2", "norm3")} <= keys
    assert not any("blocks.0.residual" in key or "pos_embed" in key for key in keys)
    assert "net.blocks.1.residual.conv1.bias" not in keys
    # With a norm of zeros at its end, as it is initialised, the residual block changes nothing.
    assert vit(tf.ones([1, 65, 70, 3]))["last_feat"].shape == (1, 4, 4, 8)
