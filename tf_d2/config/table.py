"""The one table: a name that a configuration uses -> the part it is, and the Keras layer that computes it.

``PARTS[kind][name]``, where a name is that of detectron2's registry (yacs) or of the class behind ``_target_``
(LazyConfig; without modules for detectron2's own, the whole path for others). What each kind's ``from_keys(keys,
name, *context)`` and ``from_lazy(node, *context)`` get as context, and how its layer is made:

====================  ==============================  ========================================================
kind                  context (configurations)        layer
====================  ==============================  ========================================================
meta_architecture     none                            ``layer(model_config)``, a `tf_d2.modeling.D2Model`
backbone              none                            ``layer(config, in_channels, name)``, a `Backbone`
proposal_generator    backbone                        ``layer(config, channels, strides, name)``
roi_heads             backbone, proposal generator    ``layer(config, backbone)``
box_head              none                            ``layer(config, in_channels, resolution, name)``
mask_head             number of classes               ``layer(config, in_channels, num_classes, name)``, or
                                                      ``layer(config, backbone, name)`` of a configuration
                                                      with ``samples_features``
keypoint_head         none                            ``layer(config, in_channels, name)``
sem_seg_head          backbone                        ``layer(config, backbone, name)``
ins_embed_head        backbone                        ``layer(config, backbone, name)``
====================  ==============================  ========================================================
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from tf_d2.config.defaults import add_keys
from tf_d2.config.parts.box_head import FastRCNNConvFCHeadConfig
from tf_d2.config.parts.deeplab import DeepLabHeadConfig, DeepLabResNetConfig
from tf_d2.config.parts.densepose import DensePoseROIHeadsConfig
from tf_d2.config.parts.fcos import FCOSConfig
from tf_d2.config.parts.fpn import FPNConfig
from tf_d2.config.parts.keypoint_head import KeypointHeadConfig
from tf_d2.config.parts.mask_head import MaskHeadConfig
from tf_d2.config.parts.mvit import MViTConfig
from tf_d2.config.parts.panoptic_deeplab import (
    PanopticDeepLabConfig,
    PanopticDeepLabInsEmbedHeadConfig,
    PanopticDeepLabSemSegHeadConfig,
)
from tf_d2.config.parts.point_rend import (
    PointRendMaskHeadConfig,
    PointRendROIHeadsConfig,
    PointRendSemSegHeadConfig,
)
from tf_d2.config.parts.rcnn import GeneralizedRCNNConfig, PanopticFPNConfig, ProposalNetworkConfig
from tf_d2.config.parts.regnet import RegNetConfig
from tf_d2.config.parts.resnet import ResNetConfig
from tf_d2.config.parts.retinanet import RetinaNetConfig
from tf_d2.config.parts.roi_heads import CascadeROIHeadsConfig, Res5ROIHeadsConfig, StandardROIHeadsConfig
from tf_d2.config.parts.rpn import PrecomputedProposalsConfig, RPNConfig
from tf_d2.config.parts.sem_seg import SemSegHeadConfig
from tf_d2.config.parts.semantic_segmentor import SemanticSegmentorConfig
from tf_d2.config.parts.swin import SwinConfig
from tf_d2.config.parts.tensor_mask import TensorMaskConfig
from tf_d2.config.parts.trident import (
    TridentRes5ROIHeadsConfig,
    TridentResNetConfig,
    TridentRPNConfig,
    TridentStandardROIHeadsConfig,
)
from tf_d2.config.parts.vit import SimpleFeaturePyramidConfig, ViTConfig


class Part(NamedTuple):
    """A configuration class, and where its layer is: ``"module:Class"`` (imported when a model is built) or itself.

    ``doors``: the kinds of configuration in which the name means this part.
    """

    config: type
    layer: Any
    doors: tuple[str, ...] = ("yacs", "lazy")

    @property
    def yacs(self) -> bool:
        return "yacs" in self.doors

    @property
    def lazy(self) -> bool:
        return "lazy" in self.doors


_YACS, _LAZY = ("yacs",), ("lazy",)
_META = "tf_d2.modeling.meta_arch"
_ROI = "tf_d2.modeling.roi_heads"
_RESNET = "tf_d2.modeling.resnet:ResNet"
_REGNET = "tf_d2.modeling.regnet:RegNet"
_FPN = "tf_d2.modeling.fpn:FPN"
_RPN = "tf_d2.modeling.rpn:RPN"
_POINT_REND = "tf_d2.modeling.point_rend"
_PANOPTIC_DEEPLAB = "tf_d2.modeling.panoptic_deeplab"

PARTS: dict[str, dict[str, Part]] = {
    "meta_architecture": {
        "GeneralizedRCNN": Part(GeneralizedRCNNConfig, f"{_META}.rcnn:GeneralizedRCNN"),
        "ProposalNetwork": Part(ProposalNetworkConfig, f"{_META}.rcnn:ProposalNetwork"),
        "RetinaNet": Part(RetinaNetConfig, f"{_META}.retinanet:RetinaNet"),
        "FCOS": Part(FCOSConfig, f"{_META}.fcos:FCOS", _LAZY),
        "SemanticSegmentor": Part(SemanticSegmentorConfig, f"{_META}.semantic_segmentor:SemanticSegmentor"),
        "PanopticFPN": Part(PanopticFPNConfig, f"{_META}.panoptic_fpn:PanopticFPN"),
        "PanopticDeepLab": Part(PanopticDeepLabConfig, f"{_META}.panoptic_deeplab:PanopticDeepLab", _YACS),
        "TensorMask": Part(TensorMaskConfig, f"{_META}.tensor_mask:TensorMask", _YACS),
    },
    "backbone": {
        "build_resnet_backbone": Part(ResNetConfig, _RESNET, _YACS),
        "build_resnet_deeplab_backbone": Part(DeepLabResNetConfig, _RESNET, _YACS),
        "build_trident_resnet_backbone": Part(TridentResNetConfig, _RESNET, _YACS),
        "build_regnet_backbone": Part(RegNetConfig, _REGNET, _YACS),
        "build_resnet_fpn_backbone": Part(FPNConfig, _FPN, _YACS),
        "build_retinanet_resnet_fpn_backbone": Part(FPNConfig, _FPN, _YACS),
        "build_regnet_fpn_backbone": Part(FPNConfig, _FPN, _YACS),
        "ResNet": Part(ResNetConfig, _RESNET, _LAZY),
        "RegNet": Part(RegNetConfig, _REGNET, _LAZY),
        "FPN": Part(FPNConfig, _FPN, _LAZY),
        "ViT": Part(ViTConfig, "tf_d2.modeling.vit:ViT", _LAZY),
        "SimpleFeaturePyramid": Part(
            SimpleFeaturePyramidConfig, "tf_d2.modeling.simple_feature_pyramid:SimpleFeaturePyramid", _LAZY
        ),
        "MViT": Part(MViTConfig, "tf_d2.modeling.mvit:MViT", _LAZY),
        "SwinTransformer": Part(SwinConfig, "tf_d2.modeling.swin:SwinTransformer", _LAZY),
    },
    "proposal_generator": {
        "RPN": Part(RPNConfig, _RPN),
        "RRPN": Part(RPNConfig, _RPN, _YACS),
        "TridentRPN": Part(TridentRPNConfig, _RPN, _YACS),
        "PrecomputedProposals": Part(PrecomputedProposalsConfig, None, _YACS),
    },
    "roi_heads": {
        "Res5ROIHeads": Part(Res5ROIHeadsConfig, f"{_ROI}:Res5ROIHeads"),
        "StandardROIHeads": Part(StandardROIHeadsConfig, f"{_ROI}:StandardROIHeads"),
        "CascadeROIHeads": Part(CascadeROIHeadsConfig, f"{_ROI}:CascadeROIHeads"),
        "PointRendROIHeads": Part(PointRendROIHeadsConfig, f"{_ROI}:StandardROIHeads", _YACS),
        "DensePoseROIHeads": Part(
            DensePoseROIHeadsConfig, "tf_d2.modeling.densepose.roi_heads:DensePoseROIHeads", _YACS
        ),
        "TridentRes5ROIHeads": Part(TridentRes5ROIHeadsConfig, f"{_ROI}:Res5ROIHeads", _YACS),
        "TridentStandardROIHeads": Part(TridentStandardROIHeadsConfig, f"{_ROI}:StandardROIHeads", _YACS),
        "RROIHeads": Part(StandardROIHeadsConfig, f"{_ROI}:StandardROIHeads", _YACS),
    },
    "box_head": {
        "FastRCNNConvFCHead": Part(FastRCNNConvFCHeadConfig, "tf_d2.modeling.box_head:FastRCNNConvFCHead"),
    },
    "mask_head": {
        "MaskRCNNConvUpsampleHead": Part(MaskHeadConfig, "tf_d2.modeling.mask_head:MaskRCNNConvUpsampleHead"),
        "PointRendMaskHead": Part(PointRendMaskHeadConfig, f"{_POINT_REND}.mask_head:make_mask_head", _YACS),
        "ImplicitPointRendMaskHead": Part(
            PointRendMaskHeadConfig, f"{_POINT_REND}.mask_head:make_mask_head", _YACS
        ),
    },
    "keypoint_head": {
        "KRCNNConvDeconvUpsampleHead": Part(
            KeypointHeadConfig, "tf_d2.modeling.keypoint_head:KRCNNConvDeconvUpsampleHead"
        ),
    },
    "sem_seg_head": {
        "SemSegFPNHead": Part(SemSegHeadConfig, "tf_d2.modeling.semantic_seg:SemSegFPNHead"),
        "DeepLabV3Head": Part(DeepLabHeadConfig, "tf_d2.modeling.deeplab:make_head", _YACS),
        "DeepLabV3PlusHead": Part(DeepLabHeadConfig, "tf_d2.modeling.deeplab:make_head", _YACS),
        "PointRendSemSegHead": Part(
            PointRendSemSegHeadConfig, f"{_POINT_REND}.semantic_seg:PointRendSemSegHead", _YACS
        ),
        "PanopticDeepLabSemSegHead": Part(
            PanopticDeepLabSemSegHeadConfig, f"{_PANOPTIC_DEEPLAB}:PanopticDeepLabSemSegHead", _YACS
        ),
    },
    "ins_embed_head": {
        "PanopticDeepLabInsEmbedHead": Part(
            PanopticDeepLabInsEmbedHeadConfig, f"{_PANOPTIC_DEEPLAB}:PanopticDeepLabInsEmbedHead", _YACS
        ),
    },
}


def add_part_keys(config: type) -> None:
    """Make the yacs keys known that a part brings along, beyond detectron2's own.

    ``NEW_KEYS`` and ``IGNORED_KEYS`` of the class: key -> default, of those inference reads and of the others.
    """
    add_keys(getattr(config, "NEW_KEYS", {}), getattr(config, "IGNORED_KEYS", {}))


for _parts in PARTS.values():
    for _part in _parts.values():
        add_part_keys(_part.config)


def layer_of(kind: str, config: Any) -> Any:
    """The Keras class (or function) that makes the layer of a part's configuration."""
    for part in PARTS[kind].values():
        if part.config is type(config):
            if not isinstance(part.layer, str):
                return part.layer
            module, _, name = part.layer.partition(":")
            return getattr(import_module(module), name)
    raise KeyError(f"no part of kind {kind!r} has the configuration {type(config).__name__}")
