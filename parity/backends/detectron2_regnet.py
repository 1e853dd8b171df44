"""detectron2's RegNet behind the YAML keys that this project gives it (detectron2 itself has none).

`add_regnet` makes MODEL.REGNETS.* and the names build_regnet_backbone and build_regnet_fpn_backbone known.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem

_DEFAULTS = {
    "DEPTH": 0,
    "W_A": 0.0,
    "W_0": 0,
    "W_M": 0.0,
    "GROUP_WIDTH": 0,
    "STEM_WIDTH": 0,
    "SE_RATIO": 0.0,
    "NORM": "BN",
    "OUT_FEATURES": [],
}


def add_regnet(cfg: Any) -> None:
    """Add the keys to detectron2's configuration and the backbones to its registry (once)."""
    cfg.MODEL.REGNETS = CfgNode(dict(_DEFAULTS))
    for build in (build_regnet_backbone, build_regnet_fpn_backbone):
        if build.__name__ not in BACKBONE_REGISTRY:
            BACKBONE_REGISTRY.register(build)


def build_regnet_backbone(cfg: Any, input_shape: ShapeSpec) -> RegNet:
    """The bottom-up network alone."""
    arguments = {key.lower(): value for key, value in cfg.MODEL.REGNETS.items()}
    return RegNet(stem_class=SimpleStem, block_class=ResBottleneckBlock, **arguments)


def build_regnet_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """FPN over it, p6 from p5."""
    return FPN(
        bottom_up=build_regnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
