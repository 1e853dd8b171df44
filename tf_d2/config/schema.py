"""The configuration of a model: exactly what inference needs, and nothing that training alone uses.

A tree of frozen dataclasses that mirrors the modules: `ModelConfig.model` is the meta-architecture, below it are
the backbone, the heads and so on, each a part of its own (`tf_d2.config.parts`). Field names are the lower-case
detectron2 keys, so that a reader of ``MODEL.RPN.NMS_THRESH`` finds ``config.rpn.nms_thresh``. Sizes are pixels of
the network input. Every object is immutable and hashable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tf_d2.config.parts.conventions import Conventions
from tf_d2.config.parts.input import InputConfig
from tf_d2.config.parts.rcnn import PanopticConfig
from tf_d2.config.parts.rpn import PrecomputedProposalsConfig, RPNConfig


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. The properties are the parts and facts that code outside of a meta-architecture asks for."""

    model: Any  # a part of kind "meta_architecture"
    input: InputConfig
    weights: str = ""  # MODEL.WEIGHTS as written: the checkpoint when none is given beside a file
    dataset: str = (
        ""  # first of DATASETS.TEST, else of DATASETS.TRAIN; informational, for the names of classes
    )

    @property
    def meta_architecture(self) -> str:
        """detectron2's name of the class: "GeneralizedRCNN", "RetinaNet", ..."""
        return self.model.name

    @property
    def conventions(self) -> Conventions:
        """Whose conventions it computes with."""
        return self.input.conventions

    @property
    def mask_threshold(self) -> float:
        """The probability from which a pixel belongs to a mask (detectron2), or above which it does."""
        return getattr(getattr(self.roi_heads, "mask_head", None), "threshold", 0.5)

    @property
    def backbone(self) -> Any:
        return self.model.backbone

    @property
    def rpn(self) -> RPNConfig | None:
        """The region proposal network, where the model has one."""
        generator = getattr(self.model, "proposal_generator", None)
        return generator if isinstance(generator, RPNConfig) else None

    @property
    def needs_proposals(self) -> bool:
        """Whether regions have to be given with each image (Fast R-CNN)."""
        return isinstance(getattr(self.model, "proposal_generator", None), PrecomputedProposalsConfig)

    @property
    def precomputed_proposal_topk(self) -> int:
        """How many of the given regions are used; only for models that need them."""
        return self.model.proposal_generator.topk

    @property
    def roi_heads(self) -> Any:
        """The ROI heads or None."""
        return getattr(self.model, "roi_heads", None)

    @property
    def detector(self) -> Any:
        """What has ``num_classes`` and ``detections_per_image``: ROI heads, a one-stage model, or None."""
        return self.roi_heads or (self.model if hasattr(self.model, "detections_per_image") else None)

    @property
    def sem_seg_head(self) -> Any:
        """The semantic head or None."""
        return getattr(self.model, "sem_seg_head", None)

    @property
    def panoptic(self) -> PanopticConfig | None:
        """How instances and semantic classes are combined, where the model does that."""
        return getattr(self.model, "combine", None)
