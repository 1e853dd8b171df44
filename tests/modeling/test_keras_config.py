"""What Keras asks of a model: configuration, shapes, prediction over batches."""

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import tf_d2
from tf_d2.config import load_config
from tf_d2.config.schema import ModelConfig
from tf_d2.modeling import D2Model, build_model


@pytest.fixture(scope="module")
def model(demo_files: Path) -> D2Model:
    return tf_d2.load_model(demo_files / "shapes.yaml", demo_files / "shapes.pkl")


@pytest.mark.parametrize(
    "opts", [(), ("MODEL.META_ARCHITECTURE", "ProposalNetwork", "MODEL.RPN.NMS_THRESH", 0.6)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_configurations_come_back(demo_files: Path, opts: tuple[Any, ...], dtype: str) -> None:
    config = load_config(demo_files / "shapes.yaml", opts)
    before = build_model(config, dtype)
    for after in (D2Model.from_config(before.get_config()), keras.models.clone_model(before)):
        assert type(after) is type(before) and after.config == config
        assert after.compute_dtype == dtype and after.variable_specs() == before.variable_specs()


# The last batch of five is smaller, and Keras makes another graph for it.
@pytest.mark.parametrize("count", [4, pytest.param(5, marks=pytest.mark.wide)])
def test_image_index_counts_over_batches(model: D2Model, demo_files: Path, count: int) -> None:
    picture = tf_d2.read_image(demo_files / "shapes.png")[:96, :128]
    pictures = np.stack([picture, np.zeros_like(picture), picture[::-1], picture[:, ::-1], picture])[:count]
    together = model(pictures)
    assert len(set(together["image_index"].numpy())) > 2
    found = model.predict(pictures, batch_size=2, verbose=0)
    np.testing.assert_array_equal(found["image_index"], together["image_index"])
    np.testing.assert_array_equal(found["counts"], together["counts"])
    assert found["image_index"].dtype == np.int32


def test_shapes(model: D2Model) -> None:
    shapes = model.compute_output_shape((2, 96, 128, 3))
    assert shapes["boxes"] == (None, 4) and shapes["counts"] == (2,)
    assert model.backbone.compute_output_shape((1, 96, 128, 3))["p3"] == (1, 12, 16, 48)
    inputs = keras.Input((96, 128, 3))
    outputs: Any = keras.Model(inputs, model(inputs)).output
    assert outputs["classes"].dtype == "int64" and outputs["boxes"].dtype == "float32"
    lines: list[str] = []
    model.summary(print_fn=lambda text, **_: lines.append(text))
    assert re.search(r"backbone \(FPN\)\s*│ {p2: \(None, None", "".join(lines))


def test_a_shape_that_does_not_fit(model: D2Model) -> None:
    with pytest.raises(NotImplementedError, match="no features of shape"):
        model.backbone.compute_output_shape((1, 96, 128, 5))


def test_what_yaml_cannot_say(demo_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LazyConfig that detectron2's keys cannot say comes from its own text, if that still says the same."""

    def unsayable(config: ModelConfig) -> None:
        del config

    model = tf_d2.load_model(demo_files / "shapes.yaml", demo_files / "shapes.pkl")
    monkeypatch.setattr("tf_d2.modeling.keras_config.to_keys", unsayable)
    assert D2Model.from_config(model.get_config()).config == model.config
    model.config = load_config(demo_files / "shapes.yaml", ["MODEL.RPN.NMS_THRESH", 0.6])
    with pytest.raises(ValueError, match=r"not at hand or has changed; .*load_model"):
        model.get_config()


def test_vertex_embeddings_are_refused(demo_files: Path, tmp_path: Path) -> None:
    model = build_model(load_config(demo_files / "shapes.yaml"))
    model.vertex_embeddings = {"smpl_27554": np.zeros((3, 2))}
    with pytest.raises(ValueError, match=r"no place for the vertex embeddings .*load_model"):
        model.save(tmp_path / "x.keras")
    assert not (tmp_path / "x.keras").exists()
