"""The meta-architectures made of a backbone and regions. Source: detectron2/modeling/meta_arch/rcnn.py,
panoptic_fpn.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import REQUIRED, Node
from tf_d2.config.parts.rpn import PrecomputedProposalsConfig, RPNConfig, needs_rpn
from tf_d2.config.reading import Fields

_BACKBONE, _GENERATOR = "MODEL.BACKBONE.NAME", "MODEL.PROPOSAL_GENERATOR.NAME"
# Arguments of every model that the input part takes, or that nothing at inference reads.
COMMON = "pixel_mean pixel_std input_format vis_period"


@dataclass(frozen=True)
class ProposalNetworkConfig:
    """Backbone and RPN."""

    name: ClassVar[str] = "ProposalNetwork"

    backbone: Any
    proposal_generator: RPNConfig

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> ProposalNetworkConfig:
        backbone = keys.part("backbone", _BACKBONE)
        generator = keys.part("proposal_generator", _GENERATOR, backbone)
        needs_rpn(generator, name)
        return cls(backbone, generator)

    @classmethod
    def from_lazy(cls, node: Node) -> ProposalNetworkConfig:
        backbone = node.part("backbone", "backbone")
        config = cls(backbone, node.part("proposal_generator", "proposal_generator", backbone))
        node.done(COMMON)
        return config

    def to_keys(self) -> Flat:
        return {
            "MODEL.META_ARCHITECTURE": self.name,
            **self.backbone.to_keys(),
            **self.proposal_generator.to_keys(),
        }


@dataclass(frozen=True)
class GeneralizedRCNNConfig:
    """Backbone, regions, ROI heads: Faster, Mask, Keypoint, Cascade and Fast R-CNN."""

    name: ClassVar[str] = "GeneralizedRCNN"

    backbone: Any  # a part of kind "backbone"
    proposal_generator: RPNConfig | PrecomputedProposalsConfig
    roi_heads: Any  # a part of kind "roi_heads"

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> GeneralizedRCNNConfig:
        return cls(**cls._from_keys(keys))

    @classmethod
    def _from_keys(cls, keys: Keys) -> dict[str, Any]:
        backbone = keys.part("backbone", _BACKBONE)
        generator = keys.part("proposal_generator", _GENERATOR, backbone)
        heads = keys.part("roi_heads", "MODEL.ROI_HEADS.NAME", backbone, generator)
        return {"backbone": backbone, "proposal_generator": generator, "roi_heads": heads}

    @classmethod
    def from_lazy(cls, node: Node) -> GeneralizedRCNNConfig:
        config = cls(**cls._from_lazy(node))
        node.done(COMMON)
        return config

    @classmethod
    def _from_lazy(cls, node: Node) -> dict[str, Any]:
        backbone = node.part("backbone", "backbone")
        generator = node.part("proposal_generator", "proposal_generator", backbone)
        heads = node.part("roi_heads", "roi_heads", backbone, generator)
        return {"backbone": backbone, "proposal_generator": generator, "roi_heads": heads}

    def to_keys(self) -> Flat:
        return {
            "MODEL.META_ARCHITECTURE": self.name,
            **self.backbone.to_keys(),
            **self.proposal_generator.to_keys(),
            **self.roi_heads.to_keys(),
        }


@dataclass(frozen=True)
class PanopticConfig:
    """``MODEL.PANOPTIC_FPN.COMBINE.*``: how instances and semantic classes become one map."""

    overlap_thresh: float
    stuff_area_limit: float
    instances_confidence_thresh: float

    KEYS: ClassVar[dict[str, str]] = {
        "overlap_thresh": "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
        "stuff_area_limit": "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
        "instances_confidence_thresh": "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
    }

    @classmethod
    def _checked(cls, fields: Fields) -> PanopticConfig:
        return cls(**{field: fields.number(field) for field in cls.KEYS})

    @classmethod
    def from_keys(cls, keys: Keys) -> PanopticConfig:
        return cls._checked(keys.fields(cls.KEYS))

    @classmethod
    def from_lazy(cls, node: Node) -> PanopticConfig:
        fields = Fields()
        node.put(fields, "overlap_thresh", "combine_overlap_thresh", 0.5)
        node.put(fields, "stuff_area_limit", "combine_stuff_area_thresh", 4096)
        node.put(fields, "instances_confidence_thresh", "combine_instances_score_thresh", 0.5)
        return cls._checked(node.overridden(fields, cls.KEYS))

    def to_keys(self) -> Flat:
        return {key: getattr(self, field) for field, key in self.KEYS.items()}


@dataclass(frozen=True)
class PanopticFPNConfig(GeneralizedRCNNConfig):
    """Mask R-CNN with a semantic head on the same features, and both in one map."""

    name: ClassVar[str] = "PanopticFPN"

    sem_seg_head: Any  # a part of kind "sem_seg_head"
    combine: PanopticConfig

    @classmethod
    def _from_keys(cls, keys: Keys) -> dict[str, Any]:
        arguments = super()._from_keys(keys)
        needs_rpn(arguments["proposal_generator"], cls.name)
        if not keys["MODEL.MASK_ON"]:
            raise keys.fail("MODEL.MASK_ON", f"{cls.name} needs masks")
        head = keys.part("sem_seg_head", "MODEL.SEM_SEG_HEAD.NAME", arguments["backbone"])
        return {**arguments, "sem_seg_head": head, "combine": PanopticConfig.from_keys(keys)}

    @classmethod
    def _from_lazy(cls, node: Node) -> dict[str, Any]:
        arguments = super()._from_lazy(node)
        head = node.part("sem_seg_head", "sem_seg_head", arguments["backbone"])
        if arguments["roi_heads"].mask_head is None:
            raise node.fields({"roi_heads": REQUIRED}).fail(
                "roi_heads", f"{cls.name} needs a mask_head", "no mask_head"
            )
        return {**arguments, "sem_seg_head": head, "combine": PanopticConfig.from_lazy(node)}

    def to_keys(self) -> Flat:
        return {**super().to_keys(), **self.sem_seg_head.to_keys(), **self.combine.to_keys()}
