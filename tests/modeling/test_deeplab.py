"""DeepLab v3 and v3+ against what the real detectron2 answered on the same picture.

tests/data/deeplab_trident: models of reduced width with random weights, a picture, the answer and some stages, of v3+
also in float64.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.recordings import (
    FLOAT64,
    Recording,
    answer_and_trace,
    assert_near,
    eagerly,
    error,
    recording,
    stage,
)

from tf_d2.config import load_config
from tf_d2.modeling.deeplab import ASPP, DepthwiseSeparableConv2d
from tf_d2.ops.image_io import ImageError

MODELS = ("deeplab_v3", "deeplab_v3_plus")


def model(name: str) -> Recording:
    return recording(f"deeplab_trident/{name}.npz")


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Logits and traces of float64 models, which are the truth for float32 ones."""
    found = {}
    for name in MODELS:
        predictor = model(name).predictor(tmp_path_factory.mktemp(name), dtype="float64")
        image = model(name).image
        with eagerly():
            found[name] = predictor(image)["sem_seg"], predictor.trace(image)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_detectron2(name: str, tmp_path: Path, exact: dict[str, Any]) -> None:
    truth, true_trace = exact[name]
    predictor = model(name).predictor(tmp_path)
    # The other one is in a graph in tests/serving/test_panoptic_deeplab.py.
    with eagerly() if name == "deeplab_v3" else nullcontext():
        result, trace = answer_and_trace(predictor, model(name).image)
    logits, expected = result["sem_seg"], model(name)["output/sem_seg"]
    assert_near(logits, expected, truth, factor=2.0)
    np.testing.assert_array_equal(logits.argmax(axis=0), expected.argmax(axis=0))
    stages = model(name).group("steps/")
    assert len(stages) >= 3
    for key, theirs in stages.items():
        assert_near(stage(trace, key), theirs, stage(true_trace, key), key, factor=2.0)


def test_stages_in_float64(exact: dict[str, Any]) -> None:
    name = "deeplab_v3_plus"
    expected = model(name).group("steps64/")
    assert len(expected) == 4
    for key, array in expected.items():
        assert error(stage(exact[name][1], key), array) < FLOAT64, key


def test_another_grid_computes_something_else_with_the_same_weights(tmp_path: Path) -> None:
    name = "deeplab_v3"
    predictor = model(name).predictor(tmp_path, ["MODEL.RESNETS.RES5_MULTI_GRID", [1, 1, 1]])
    with eagerly():
        trace = predictor.trace(model(name).image)
    (expected,) = (v for k, v in model(name).group("steps/").items() if k.startswith("backbone/res5"))
    assert error(trace["backbone/res5"][:, : expected.shape[1]], expected) > 0.01


def test_a_picture_that_does_not_fit_the_pooling_is_refused(tmp_path: Path) -> None:
    predictor = model("deeplab_v3").predictor(tmp_path)
    tall = np.zeros([100, 150, 3], np.uint8)
    with pytest.raises(
        ImageError, match=r"a 100x150 image becomes .*, 64 x 128 pixels.*INPUT\.CROP\.ENABLED False"
    ):
        predictor(tall)
    sizes = tf.constant([[100, 150]])
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"multiple of 4 x 8 cells.*INPUT\.CROP\.ENABLED False"
    ):
        predictor.model(tall[None], sizes)


def head_config(*opts: Any) -> Any:
    name = (
        "projects/DeepLab/configs/Cityscapes-SemanticSegmentation/deeplab_v3_R_103_os16_mg124_poly_90k_bs16"
    )
    return load_config(name, opts=list(opts)).sem_seg_head


def test_pooling_windows() -> None:
    x = np.arange(2 * 4 * 6, dtype=np.float32).reshape(1, 4, 6, 2)
    aspp = ASPP(head_config("INPUT.CROP.SIZE", [32, 48]), 2, "aspp")
    windows = [[x[0, i : i + 2, j : j + 3].mean(axis=(0, 1)) for j in range(4)] for i in range(3)]
    np.testing.assert_allclose(aspp.pool(tf.constant(x))[0], windows, rtol=1e-6)
    aspp = ASPP(head_config("INPUT.CROP.ENABLED", False), 2, "aspp")
    np.testing.assert_allclose(aspp.pool(tf.constant(x)), x.mean(axis=(1, 2), keepdims=True), rtol=1e-6)


def test_separable_convolution_filters_each_channel_then_mixes() -> None:
    layer = DepthwiseSeparableConv2d((2, 1), 3, "conv", "", dilation=2)
    depthwise = np.zeros([3, 3, 1, 2], np.float32)
    depthwise[0, 1, 0, 0], depthwise[1, 1, 0, 1] = 1, 2  # two rows up; in place, doubled
    layer.depthwise.kernel.assign(depthwise)
    layer.pointwise.kernel.assign(np.array([[[[1], [10]]]], np.float32))
    x = np.random.default_rng(0).uniform(size=[1, 5, 4, 2]).astype(np.float32)
    above = np.pad(x, [(0, 0), (2, 0), (0, 0), (0, 0)])[:, :5]
    expected = above[..., :1] + 20 * x[..., 1:]
    np.testing.assert_allclose(layer(tf.constant(x)), expected, rtol=1e-6)
