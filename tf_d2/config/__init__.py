"""Configuration: detectron2's YAML -> frozen dataclasses that hold exactly what inference needs."""

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
from tf_d2.config.zoo import ZooModel, resolve_weights, unsupported_reason, zoo_models

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
