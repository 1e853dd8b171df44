"""Configuration: detectron2's YAML -> frozen dataclasses that hold exactly what inference needs."""

from tf_d2.config.errors import ConfigError
from tf_d2.config.load import load_config, load_config_text, resolve_yaml
from tf_d2.config.schema import (
    AnchorConfig,
    BoxHeadConfig,
    FPNConfig,
    InputConfig,
    KeypointHeadConfig,
    MaskHeadConfig,
    ModelConfig,
    PanopticConfig,
    PoolerConfig,
    ResNetConfig,
    RetinaNetConfig,
    ROIHeadsConfig,
    RPNConfig,
    SemSegHeadConfig,
)

__all__ = [
    "AnchorConfig",
    "BoxHeadConfig",
    "ConfigError",
    "FPNConfig",
    "InputConfig",
    "KeypointHeadConfig",
    "MaskHeadConfig",
    "ModelConfig",
    "PanopticConfig",
    "PoolerConfig",
    "RPNConfig",
    "ROIHeadsConfig",
    "ResNetConfig",
    "RetinaNetConfig",
    "SemSegHeadConfig",
    "load_config",
    "load_config_text",
    "resolve_yaml",
]
