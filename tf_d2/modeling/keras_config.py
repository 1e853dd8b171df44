"""What Keras asks of a model besides its results: a configuration, ``predict``, shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tf_d2.config.build import to_keys
from tf_d2.config.load import load_config_text, to_yaml
from tf_d2.config.schema import ModelConfig
from weights.errors import UsageError


class KerasConfig(keras.Model):
    """A model that its configuration (`tf_d2.config.ModelConfig`) describes whole.

    ``model.save("x.keras")`` writes it, ``keras.models.load_model`` reads it once ``tf_d2.modeling`` is imported. Keras
    knows every subclass by one name: the configuration says which one it is.
    """

    config: ModelConfig
    vertex_embeddings: dict[str, np.ndarray]
    read_yaml: Callable[[], str] | None = None
    """The configuration's own YAML, where detectron2's keys cannot say it; set by `tf_d2.load_model`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable(package="tf_d2", name="D2Model")(cls)

    def get_config(self) -> dict[str, Any]:
        """``{"config": resolved YAML, "dtype": "float32"}``.

        Raises:
            ValueError: what the model is cannot be said by its YAML alone.
        """
        if self.vertex_embeddings:
            raise UsageError(
                "Keras's files have no place for the vertex embeddings of DensePose's CSE models; build the model with "
                "tf_d2.load_model from its configuration and checkpoint instead"
            )
        return {"config": self._yaml(), "dtype": self.dtype_policy.name}

    def _yaml(self) -> str:
        flat = to_keys(self.config)
        if flat is not None:
            return to_yaml(flat)
        text = self.read_yaml() if self.read_yaml is not None else ""
        if not text or load_config_text(text) != self.config:
            raise UsageError(
                "this model's configuration cannot be written as detectron2's keys, and the file it came from is not "
                "at hand or has changed; build the model with tf_d2.load_model and save that one"
            )
        return text

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The model of `get_config`'s answer, with all-zero variables; its class is what the YAML says."""
        from tf_d2.modeling.model import build_model

        del custom_objects
        return build_model(load_config_text(config["config"]), config["dtype"])

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Keras's ``predict``: batches of pictures of one size -> the dict of :meth:`D2Model.call`, batches joined.

        ``image_index`` counts pictures over all batches.
        """
        found = super().predict(x, *args, **kwargs)
        if isinstance(found, dict) and "image_index" in found:
            counts = found["counts"]  # rows lie picture by picture
            found["image_index"] = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return found

    # Asked for shapes, Keras would give every result the model's own dtype.
    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def compute_output_shape(self, input_shape: Any) -> dict[str, tuple[int | None, ...]]:
        """``(B, H, W, 3)``, None where unknown -> shapes by name; nothing is computed."""
        specs = self.compute_output_spec(keras.KerasTensor(input_shape, "float32"))
        return {name: tuple(spec.shape) for name, spec in specs.items()}
