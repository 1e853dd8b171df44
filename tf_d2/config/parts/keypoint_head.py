"""The keypoint head. Source: detectron2/modeling/roi_heads/keypoint_head.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import REQUIRED, Node
from tf_d2.config.parts.conventions import DETECTRON2, Conventions, conventions_of
from tf_d2.config.reading import Fields

_PREFIX = "MODEL.ROI_KEYPOINT_HEAD."


@dataclass(frozen=True)
class KeypointHeadConfig:
    """``KRCNNConvDeconvUpsampleHead``: 3x3 convolutions of ``conv_dims`` channels and two doublings."""

    conv_dims: tuple[int, ...]
    num_keypoints: int
    inference_min_size: int = (
        0  # least sides of the stretched map, in cells; not with detectron2's conventions
    )
    conventions: Conventions = DETECTRON2

    KEYS: ClassVar[dict[str, str]] = {
        "conv_dims": _PREFIX + "CONV_DIMS",
        "num_keypoints": _PREFIX + "NUM_KEYPOINTS",
        "inference_min_size": _PREFIX + "INFERENCE_MIN_SIZE",
    }

    @classmethod
    def _checked(cls, fields: Fields) -> KeypointHeadConfig:
        return cls(
            fields.channels("conv_dims"),
            fields.integer("num_keypoints", 1),
            fields.integer("inference_min_size", 0),
        )

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> KeypointHeadConfig:
        return replace(cls._checked(keys.fields(cls.KEYS)), conventions=conventions_of(keys))

    @classmethod
    def from_lazy(cls, node: Node) -> KeypointHeadConfig:
        fields = node.fields({"conv_dims": REQUIRED, "num_keypoints": REQUIRED})
        fields.put("inference_min_size", "", 0)
        node.done("input_shape loss_weight loss_normalizer")
        return cls._checked(node.overridden(fields, cls.KEYS))

    def to_keys(self) -> Flat:
        values = {key: getattr(self, field) for field, key in self.KEYS.items()}
        return {_PREFIX + "NAME": "KRCNNConvDeconvUpsampleHead", **values}
