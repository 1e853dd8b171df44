"""DeepLab v3 and v3+ against what the real detectron2 answered on the same picture.

tests/data/deeplab_trident: models of reduced width with random weights, a picture, the answer and some stages, of v3+
also in float64.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_d2
import weights
from tf_d2.config import load_config
from tf_d2.modeling.deeplab import ASPP, DepthwiseSeparableConv2d

DATA = Path(__file__).parents[1] / "data" / "deeplab_trident"
MODELS = ("deeplab_v3", "deeplab_v3_plus")
FLOAT64 = 1e-12
# How many times as far from a float64 run as detectron2's float32 run another order of summation may be.
FACTOR = 2.0


@cache
def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def group(name: str, prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in recorded(name).items() if k.startswith(prefix)}


def make_predictor(name: str, folder: Path, *opts: Any, **options: Any) -> tf_d2.Predictor:
    (folder / "config.yaml").write_text(str(recorded(name)["config"]))
    weights.write_detectron2_pkl(folder / "model.pkl", group(name, "weights/"))
    opts = ("MODEL.WEIGHTS", "", *opts)
    return tf_d2.Predictor(folder / "config.yaml", folder / "model.pkl", opts=list(opts), **options)


def error(got: Any, expected: Any) -> float:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def of(trace: Any, stage: str) -> np.ndarray:
    name, _, channels = stage.partition("@")  # only the first channels are recorded
    return trace[name][:, : int(channels)] if channels else trace[name]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Logits and traces of float64 models, which are the truth for float32 ones."""
    found = {}
    for name in MODELS:
        predictor = make_predictor(name, tmp_path_factory.mktemp(name), dtype="float64")
        image = recorded(name)["input/image"]
        found[name] = predictor(image)["sem_seg"], predictor.trace(image)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_detectron2(name: str, tmp_path: Path, exact: dict[str, Any]) -> None:
    predictor, (truth, true_trace) = make_predictor(name, tmp_path), exact[name]
    image, expected = recorded(name)["input/image"], recorded(name)["output/sem_seg"]
    logits = predictor(image)["sem_seg"]
    assert error(logits, truth) < FACTOR * error(expected, truth)
    np.testing.assert_array_equal(logits.argmax(axis=0), expected.argmax(axis=0))
    trace, stages = predictor.trace(image), group(name, "steps/")
    assert len(stages) >= 3
    for stage, theirs in stages.items():
        true = of(true_trace, stage)
        assert error(of(trace, stage), true) < FACTOR * error(theirs, true), stage


def test_stages_in_float64(exact: dict[str, Any]) -> None:
    name = "deeplab_v3_plus"
    expected = group(name, "steps64/")
    assert len(expected) == 4
    for stage, array in expected.items():
        assert error(of(exact[name][1], stage), array) < FLOAT64, stage


def test_another_grid_computes_something_else_with_the_same_weights(tmp_path: Path) -> None:
    name = "deeplab_v3"
    predictor = make_predictor(name, tmp_path, "MODEL.RESNETS.RES5_MULTI_GRID", [1, 1, 1])
    trace = predictor.trace(recorded(name)["input/image"])
    (expected,) = (v for k, v in group(name, "steps/").items() if k.startswith("backbone/res5"))
    assert error(trace["backbone/res5"][:, : expected.shape[1]], expected) > 0.01


def test_a_picture_that_does_not_fit_the_pooling_is_refused(tmp_path: Path) -> None:
    predictor = make_predictor("deeplab_v3", tmp_path)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"multiple of 4 x 8 cells.*INPUT\.CROP\.ENABLED False"
    ):
        predictor(np.zeros([100, 150, 3], np.uint8))


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
    layer = DepthwiseSeparableConv2d(2, 1, 3, "conv", "", dilation=2)
    depthwise = np.zeros([3, 3, 1, 2], np.float32)
    depthwise[0, 1, 0, 0], depthwise[1, 1, 0, 1] = 1, 2  # two rows up; in place, doubled
    layer.depthwise.kernel.assign(depthwise)
    layer.pointwise.kernel.assign(np.array([[[[1], [10]]]], np.float32))
    x = np.random.default_rng(0).uniform(size=[1, 5, 4, 2]).astype(np.float32)
    above = np.pad(x, [(0, 0), (2, 0), (0, 0), (0, 0)])[:, :5]
    expected = above[..., :1] + 20 * x[..., 1:]
    np.testing.assert_allclose(layer(tf.constant(x)), expected, rtol=1e-6)
