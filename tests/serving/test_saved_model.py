"""The one graph function of an export."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import tf_d2
from tf_d2.ops import conv, winograd
from tf_d2.serving import export
from tf_d2.serving.saved_model import ExportError, check_ops, traced

from .conftest import DEMO


def test_large_maps_are_computed_in_the_fast_way_and_saved(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(winograd, "_CELLS", 100)
    monkeypatch.setattr(winograd, "_WORK_ANYWHERE", 1)
    monkeypatch.setattr(winograd, "even", lambda *_: tf.constant(True))
    rng = np.random.default_rng(0)
    kernel = tf.Variable(rng.standard_normal((3, 3, 128, 128)).astype(np.float32) / 34)
    bias = tf.Variable(rng.standard_normal(128).astype(np.float32))

    def core(x: tf.Tensor) -> dict[str, tf.Tensor]:
        y = conv.conv2d(x, kernel.read_value(), bias.read_value(), padding=1, relu=True, large_maps=True)
        return {"y": y}

    specs = [tf.TensorSpec([None, None, None, 128])]
    function, variables = traced(core, specs)
    assert len(variables) == 2
    module: Any = tf.Module()
    module.weights = variables
    signature = tf.function(function, input_signature=specs, autograph=False)
    tf.saved_model.save(module, str(tmp_path), signatures=signature)
    assert "While" in " ".join(check_ops(tmp_path / "saved_model.pb"))
    loaded: Any = tf.saved_model.load(str(tmp_path))
    for shape, fast in (((2, 11, 10, 128), True), ((1, 9, 11, 128), False)):
        x = tf.constant(rng.standard_normal(shape).astype(np.float32))
        direct = core(x)["y"].numpy()  # eagerly, and so without it
        found = loaded.signatures["serving_default"](x)["y"].numpy()
        truth = tf.nn.conv2d(tf.cast(x, tf.float64), tf.cast(kernel, tf.float64), 1, "SAME")
        truth = tf.nn.relu(truth + tf.cast(bias, tf.float64)).numpy()
        error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
        assert error < np.sqrt(3 * 128) * np.finfo(np.float32).eps / 2
        if fast:
            assert not np.array_equal(found, direct)


def test_a_stray_tensor_is_no_variable() -> None:
    stray = tf.zeros([3, 4])
    with pytest.raises(ExportError, match=r"1 weights are not variables \(shapes \(3, 4\)\)"):
        traced(lambda x: {"y": x + stray}, [tf.TensorSpec([3, 4])])


@pytest.mark.wide
def test_an_export_gives_the_bits_of_a_predictor(tmp_path: Path, monkeypatch: Any) -> None:
    """With every 3x3 layer of the pyramid and of what stands on it computed in the fast way."""
    files = DEMO / "shapes.yaml", DEMO / "shapes.pkl"
    image = np.random.default_rng(1).integers(0, 256, (181, 233, 3), np.uint8)
    direct = tf_d2.Predictor(*files, constant_weights=False)(image)["instances"]
    monkeypatch.setattr(winograd, "_CELLS", 1)
    monkeypatch.setattr(winograd, "_CHANNELS", 16)
    monkeypatch.setattr(winograd, "_WORK_ANYWHERE", 1)
    monkeypatch.setattr(winograd, "even", lambda *_: tf.constant(True))
    folder = export(*files, tmp_path / "export").path
    expected = tf_d2.Predictor(*files, constant_weights=False)(image)["instances"]
    served: Any = tf.saved_model.load(str(folder)).signatures["serving_default"]
    found = served(inputs=tf.constant(image[None, :, :, ::-1]))
    count = int(found["num_detections"][0])
    boxes, scores = (found[f"detection_{name}"][0, :count] for name in ("boxes", "scores"))
    assert count == len(expected) == len(direct) > 0
    np.testing.assert_array_equal(boxes, expected.pred_boxes)
    np.testing.assert_array_equal(scores, expected.scores)
    assert not np.array_equal(scores, direct.scores)
    np.testing.assert_allclose(boxes, direct.pred_boxes, atol=1e-3)
    np.testing.assert_allclose(scores, direct.scores, atol=1e-5)
