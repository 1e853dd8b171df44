"""A backbone and a semantic head. Source: detectron2/modeling/meta_arch/semantic_seg.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import Node
from tf_d2.config.parts.rcnn import COMMON


@dataclass(frozen=True)
class SemanticSegmentorConfig:
    """Backbone and semantic head."""

    name: ClassVar[str] = "SemanticSegmentor"

    backbone: Any
    sem_seg_head: Any  # a part of kind "sem_seg_head"

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> SemanticSegmentorConfig:
        backbone = keys.part("backbone", "MODEL.BACKBONE.NAME")
        return cls(backbone, keys.part("sem_seg_head", "MODEL.SEM_SEG_HEAD.NAME", backbone))

    @classmethod
    def from_lazy(cls, node: Node) -> SemanticSegmentorConfig:
        backbone = node.part("backbone", "backbone")
        config = cls(backbone, node.part("sem_seg_head", "sem_seg_head", backbone))
        node.done(COMMON)
        return config

    def to_keys(self) -> Flat:
        return {
            "MODEL.META_ARCHITECTURE": self.name,
            **self.backbone.to_keys(),
            **self.sem_seg_head.to_keys(),
        }
