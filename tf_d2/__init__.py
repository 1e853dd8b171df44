"""detectron2 models in TensorFlow: load a checkpoint, get the same detections, prove it, serve it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tf_d2.config import ConfigError, ModelConfig, load_config
    from tf_d2.config.extension import extend
    from tf_d2.instances import Instances
    from tf_d2.loading import load_model
    from tf_d2.modeling.given import transform_proposals
    from tf_d2.ops.image_io import ImageError, read_image
    from tf_d2.predictor import Predictor
    from weights import UserError, WeightsError

__version__ = "0.1.0"

# Imported on first use, so that `tf_d2.client` and the command line's help do not load TensorFlow.
_HOME = {
    "ConfigError": "tf_d2.config",
    "ImageError": "tf_d2.ops.image_io",
    "Instances": "tf_d2.instances",
    "ModelConfig": "tf_d2.config",
    "Predictor": "tf_d2.predictor",
    "UserError": "weights",
    "WeightsError": "weights",
    "extend": "tf_d2.config.extension",
    "load_config": "tf_d2.config",
    "load_model": "tf_d2.loading",
    "read_image": "tf_d2.ops.image_io",
    "transform_proposals": "tf_d2.modeling.given",
}

__all__ = [
    "ConfigError",
    "ImageError",
    "Instances",
    "ModelConfig",
    "Predictor",
    "UserError",
    "WeightsError",
    "extend",
    "load_config",
    "load_model",
    "read_image",
    "transform_proposals",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tf_d2' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
