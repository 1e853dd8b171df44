"""RegNet models against numbers recorded from the real detectron2 (tests/data/parity/variants.npz)."""

from functools import cache

import numpy as np
import pytest
import tensorflow as tf
import yaml
from support import variants

import weights
from tf_d2.config import load_config_text
from tf_d2.layers.base import walk
from tf_d2.layers.conv import Conv2d
from tf_d2.modeling import build_model
from tf_d2.ops.resize import resize_uint8, shortest_edge_size
from tf_d2.stages import stage_array

NAMES = ("regnetx", "regnety")


@cache
def model_of(name):
    """A variant with its weights, given under detectron2's keys."""
    model = build_model(load_config_text(yaml.safe_dump(variants.tiny_config(variants.VARIANTS[name]))))
    specs = model.variable_specs()
    keys = {weights.path_to_key(path): shape for path, shape in specs.items()}
    torch_shapes = {}
    for key, shape in keys.items():
        if len(shape) == 4 and "fc1" in key:  # a linear layer after a flatten
            torch_shapes[key] = (shape[3], shape[0] * shape[1] * shape[2])
        else:
            torch_shapes[key] = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
    model.assign(weights.to_keras_arrays(variants.tiny_state(torch_shapes), specs))
    return model


def stages_of(model):
    height, width = shortest_edge_size(*variants.picture().shape[:2], 64, 96)
    resized = resize_uint8(tf.constant(variants.picture()), height, width)[None]
    stages = {}
    outputs = model.forward(model.prepare(resized, None), tf.constant([[height, width]]), None, stages)
    return {k: stage_array(k, v.numpy()) for k, v in stages.items()}, outputs


def recorded(name):
    with np.load(variants.RECORDING) as archive:
        return {k.removeprefix(f"{name}/"): archive[k] for k in archive if k.startswith(f"{name}/")}


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_stages_are_those_of_detectron2(name, folded):
    model, want = model_of(name), recorded(name)
    (model.fold_norms if folded else model.unfold_norms)()
    stages, outputs = stages_of(model)
    compared = set()
    for key, array in stages.items():
        mark = want.get(f"steps/{key}")
        if mark is None or key.startswith(("proposal_generator/", "roi_heads")):
            continue
        np.testing.assert_allclose(
            variants.fingerprint(array), mark, rtol=0, atol=1e-5 * mark[0], err_msg=key
        )
        compared.add(key)
    bottom_up = {"backbone.bottom_up.stem", *(f"backbone.bottom_up/s{i}" for i in range(1, 5))}
    assert bottom_up | {f"backbone/p{i}" for i in range(2, 7)} <= compared
    np.testing.assert_array_equal(outputs["classes"], want["output/instances/pred_classes"])
    np.testing.assert_allclose(outputs["scores"], want["output/instances/scores"], atol=1e-5)


def test_every_convolution_of_the_backbone_is_folded():
    model = model_of("regnety")
    model.fold_norms()
    convolutions = [layer for layer in walk(model.backbone.bottom_up) if isinstance(layer, Conv2d)]
    with_norm = [conv for conv in convolutions if conv.norm is not None]
    blocks, excitation = 10, 2
    assert len(with_norm) == 1 + 3 * blocks + 4  # stem, a, b, c, and four projections
    assert len(convolutions) == len(with_norm) + excitation * blocks
    assert all(conv._folded is not None for conv in with_norm)


def test_stages_nobody_asked_for_are_built_since_checkpoints_hold_them():
    changes = {
        **variants.REGNET_FPN,
        "BACKBONE.NAME": "build_regnet_backbone",
        "META_ARCHITECTURE": "ProposalNetwork",
        "RPN.IN_FEATURES": ["s2"],
        "ANCHOR_GENERATOR.SIZES": [[16, 32]],
        "REGNETS": {**variants.REGNET, "OUT_FEATURES": ["stem", "s2"]},
    }
    model = build_model(load_config_text(yaml.safe_dump(variants.tiny_config(changes))))
    specs = model.variable_specs()
    assert {path.split("/")[1] for path in specs if path.startswith("backbone/")} == {
        "stem",
        "s1",
        "s2",
        "s3",
        "s4",
    }
    assert list(model.backbone.strides) == ["stem", "s1", "s2", "s3", "s4"] and model.size_divisibility == 0
    assert set(model.backbone(tf.zeros([1, 32, 32, 3]))) == {"stem", "s2"}
