"""Configuration: detectron2's YAML -> frozen dataclasses that hold exactly what inference needs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tf_d2.config.classes import category_ids, class_names, keypoint_names, stuff_names
    from tf_d2.config.errors import ConfigError, DownloadError
    from tf_d2.config.load import load_config, load_config_text, resolve_yaml, resolve_yaml_text
    from tf_d2.config.parts.anchors import AnchorConfig
    from tf_d2.config.parts.box_head import FastRCNNConvFCHeadConfig
    from tf_d2.config.parts.fpn import FPNConfig
    from tf_d2.config.parts.input import InputConfig
    from tf_d2.config.parts.keypoint_head import KeypointHeadConfig
    from tf_d2.config.parts.mask_head import MaskHeadConfig
    from tf_d2.config.parts.poolers import PoolerConfig
    from tf_d2.config.parts.rcnn import PanopticConfig
    from tf_d2.config.parts.regnet import RegNetConfig
    from tf_d2.config.parts.resnet import ResNetConfig
    from tf_d2.config.parts.retinanet import RetinaNetConfig
    from tf_d2.config.parts.rpn import RPNConfig
    from tf_d2.config.parts.sem_seg import SemSegHeadConfig
    from tf_d2.config.schema import ModelConfig
    from tf_d2.config.zoo import resolve_weights, unsupported_reason
    from tf_d2.config.zoo_table import ZooModel, zoo_models

# Imported on first use: a command that reads one module of this package does not load every part of a model.
_HOME = {
    "AnchorConfig": "tf_d2.config.parts.anchors",
    "ConfigError": "tf_d2.config.errors",
    "DownloadError": "tf_d2.config.errors",
    "FPNConfig": "tf_d2.config.parts.fpn",
    "FastRCNNConvFCHeadConfig": "tf_d2.config.parts.box_head",
    "InputConfig": "tf_d2.config.parts.input",
    "KeypointHeadConfig": "tf_d2.config.parts.keypoint_head",
    "MaskHeadConfig": "tf_d2.config.parts.mask_head",
    "ModelConfig": "tf_d2.config.schema",
    "PanopticConfig": "tf_d2.config.parts.rcnn",
    "PoolerConfig": "tf_d2.config.parts.poolers",
    "RPNConfig": "tf_d2.config.parts.rpn",
    "RegNetConfig": "tf_d2.config.parts.regnet",
    "ResNetConfig": "tf_d2.config.parts.resnet",
    "RetinaNetConfig": "tf_d2.config.parts.retinanet",
    "SemSegHeadConfig": "tf_d2.config.parts.sem_seg",
    "ZooModel": "tf_d2.config.zoo_table",
    "category_ids": "tf_d2.config.classes",
    "class_names": "tf_d2.config.classes",
    "keypoint_names": "tf_d2.config.classes",
    "load_config": "tf_d2.config.load",
    "load_config_text": "tf_d2.config.load",
    "resolve_weights": "tf_d2.config.zoo",
    "resolve_yaml": "tf_d2.config.load",
    "resolve_yaml_text": "tf_d2.config.load",
    "stuff_names": "tf_d2.config.classes",
    "unsupported_reason": "tf_d2.config.zoo",
    "zoo_models": "tf_d2.config.zoo_table",
}

__all__ = [
    "AnchorConfig",
    "ConfigError",
    "DownloadError",
    "FPNConfig",
    "FastRCNNConvFCHeadConfig",
    "InputConfig",
    "KeypointHeadConfig",
    "MaskHeadConfig",
    "ModelConfig",
    "PanopticConfig",
    "PoolerConfig",
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


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tf_d2.config' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
