"""The feature pyramid against plain loops: lateral, top down, output, and the levels on top."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from support import loops

from tf_d2.config import load_config_text
from tf_d2.config.parts.fpn import TopBlockConfig
from tf_d2.modeling.fpn import FPN

DATA = Path(__file__).parents[1] / "data" / "modeling"


@pytest.fixture(scope="module")
def config():
    with h5py.File(DATA / "mask_fpn.h5") as file:
        return load_config_text(str(file.attrs["config"])).model.backbone


def features(fpn, rng):
    return {
        name: rng.normal(
            size=(2, 64 // fpn.bottom_up.strides[name], 96 // fpn.bottom_up.strides[name], channels)
        ).astype(np.float32)
        for name, channels in fpn.bottom_up.channels.items()
        if name in fpn.in_features
    }


def parts(fpn, name):
    layer = getattr(fpn, name)
    return np.asarray(layer.kernel.value), 0.0 if layer.bias is None else np.asarray(layer.bias.value)


def pyramid(fpn, given):
    """p2 to p5 by the definition."""
    out, above = {}, None
    for level, name in zip((5, 4, 3, 2), ("res5", "res4", "res3", "res2"), strict=True):
        lateral = loops.conv(given[name], *parts(fpn, f"fpn_lateral{level}"))
        if above is not None:
            lateral = lateral + above.repeat(2, axis=1).repeat(2, axis=2)
            lateral = lateral / 2 if fpn.average else lateral
        above = lateral
        out[f"p{level}"] = loops.conv(lateral, *parts(fpn, f"fpn_output{level}"), padding=1)
    return out


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
def test_top_down(config, fuse_type):
    fpn = FPN(replace(config, fuse_type=fuse_type), 3, "backbone")
    rng = np.random.default_rng(0)
    loops.fill(fpn, rng, 0.1)
    given = features(fpn, rng)
    got = fpn.top_down({name: tf.constant(x) for name, x in given.items()})
    expected = pyramid(fpn, given)
    expected["p6"] = expected["p5"][:, ::2, ::2]
    assert list(got) == ["p2", "p3", "p4", "p5", "p6"]
    for name, x in expected.items():
        np.testing.assert_allclose(got[name], x, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("source", ["res5", "p5"])
def test_two_levels_of_convolutions_on_top(config, source):
    """Of RetinaNet: from the network below or the pyramid; p6 is returned without the ReLU that p7 reads it through."""
    fpn = FPN(replace(config, top_block=TopBlockConfig("LastLevelP6P7", source)), 3, "backbone")
    rng = np.random.default_rng(1)
    loops.fill(fpn, rng, 0.1)
    given = features(fpn, rng)
    got = fpn.top_down({name: tf.constant(x) for name, x in given.items()})
    top = fpn.top_block
    start = given["res5"] if source == "res5" else np.asarray(got["p5"])
    six = loops.conv(start, np.asarray(top.p6.kernel.value), np.asarray(top.p6.bias.value), 1, 2)
    seven = loops.conv(loops.relu(six), np.asarray(top.p7.kernel.value), np.asarray(top.p7.bias.value), 1, 2)
    np.testing.assert_allclose(got["p6"], six, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["p7"], seven, rtol=1e-4, atol=1e-5)
    assert (six < 0).any()
    assert fpn.strides == {f"p{k}": 2**k for k in range(2, 8)}


def test_what_is_said_of_the_features(config):
    fpn = FPN(config, 3, "backbone")
    assert fpn.out_features == ("p2", "p3", "p4", "p5", "p6") and fpn.size_divisibility == 32
    assert fpn.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert set(fpn.channels.values()) == {config.out_channels}
    own = {v.path.split("/")[1] for v in fpn.variables} - {"bottom_up"}
    assert own == {f"fpn_{kind}{level}" for kind in ("lateral", "output") for level in (2, 3, 4, 5)}


def test_every_feature_is_recorded_under_its_path(config):
    fpn, stages = FPN(config, 3, "backbone"), {}
    got = fpn.forward(tf.zeros([1, 64, 96, 3]), stages, "backbone")
    assert [tuple(x.shape[1:3]) for x in got.values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert all(stages[f"backbone/{name}"] is x for name, x in got.items())
    assert "backbone.bottom_up/res5" in stages
