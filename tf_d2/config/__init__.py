"""Configuration: detectron2's YAML -> frozen dataclasses that hold exactly what inference needs."""

from tf_d2.config.classes import category_ids, class_names, keypoint_names, stuff_names
from tf_d2.config.errors import ConfigError, DownloadError
from tf_d2.config.load import load_config, load_config_text, resolve_yaml, resolve_yaml_text
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
    RegNetConfig,
    ResNetConfig,
    RetinaNetConfig,
    ROIHeadsConfig,
    RPNConfig,
    SemSegHeadConfig,
)
from tf_d2.config.zoo import ZooModel, resolve_weights, unsupported_reason, zoo_models

__all__ = [
    "AnchorConfig",
    "BoxHeadConfig",
    "ConfigError",
    "DownloadError",
    "FPNConfig",
    "InputConfig",
    "KeypointHeadConfig",
    "MaskHeadConfig",
    "ModelConfig",
    "PanopticConfig",
    "PoolerConfig",
    "ROIHeadsConfig",
    "RPNConfig",
    "RegNetConfig",
    "ResNetConfig",
    "RetinaNetConfig",
    "SemSegHeadConfig",
    "ZooModel",
    "category_ids",
    "class_names",
    "keypoint_names",
    "load_config",
    "load_config_text",
    "resolve_weights",
    "resolve_yaml",
    "resolve_yaml_text",
    "stuff_names",
    "unsupported_reason",
    "zoo_models",
]
