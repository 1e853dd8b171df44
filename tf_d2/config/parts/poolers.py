"""ROI poolers. Source: detectron2/modeling/poolers.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import Node
from tf_d2.config.parts.conventions import DETECTRON2, Conventions, conventions_of
from tf_d2.config.reading import POOLERS, Fields

UPRIGHT = POOLERS[:3]


@dataclass(frozen=True)
class PoolerConfig:
    """One ROI pooler: ``type`` is ROIAlignV2, ROIAlign, ROIPool or ROIAlignRotated.

    A box of ``canonical_box_size`` pixels is pooled from level ``canonical_level`` (stride 2 to its power), one of
    twice the size from the next.
    """

    type: str
    resolution: int
    sampling_ratio: int
    canonical_box_size: int = 224
    canonical_level: int = 4
    conventions: Conventions = DETECTRON2

    @classmethod
    def _checked(cls, fields: Fields, allowed: Sequence[str]) -> PoolerConfig:
        return cls(
            type=fields.choice("type", allowed),
            resolution=fields.integer("resolution", 1),
            sampling_ratio=fields.integer("sampling_ratio", 0),
            canonical_box_size=fields.integer("canonical_box_size", 1),
            canonical_level=fields.integer("canonical_level", 1),
        )

    @classmethod
    def from_keys(cls, keys: Keys, head: str, allowed: Sequence[str] = UPRIGHT) -> PoolerConfig:
        """``head``: the section of the keys, such as "ROI_MASK_HEAD"."""
        fields = keys.fields(cls._keys(head))
        return replace(cls._checked(fields, allowed), conventions=conventions_of(keys))

    @classmethod
    def from_lazy(
        cls, node: Node, head: str, strides: Mapping[str, int], allowed: Sequence[str] = UPRIGHT
    ) -> PoolerConfig:
        """``strides``: of the features that it pools from, for ``scales`` must be theirs."""
        node.check("ROIPooler")
        fields = Fields()
        node.put(fields, "resolution", "output_size")
        size = fields["resolution"]
        if isinstance(size, tuple) and len(set(size)) == 1:
            fields.put("resolution", fields.where("resolution"), size[0])
        node.put(fields, "sampling_ratio", "sampling_ratio")
        node.put(fields, "type", "pooler_type")
        node.put(fields, "canonical_box_size", "canonical_box_size", 224)
        node.put(fields, "canonical_level", "canonical_level", 4)
        node.put(fields, "scales", "scales")
        scales = tuple(1.0 / stride for stride in strides.values())
        if fields["scales"] != scales:
            raise fields.fail("scales", f"expected 1 / stride of {', '.join(strides)}: {scales}")
        node.done()
        return cls._checked(node.overridden(fields, cls._keys(head)), allowed)

    @staticmethod
    def _keys(head: str) -> dict[str, str]:
        return {
            "type": f"MODEL.{head}.POOLER_TYPE",
            "resolution": f"MODEL.{head}.POOLER_RESOLUTION",
            "sampling_ratio": f"MODEL.{head}.POOLER_SAMPLING_RATIO",
            "canonical_box_size": "MODEL.ROI_HEADS.CANONICAL_BOX_SIZE",
            "canonical_level": "MODEL.ROI_HEADS.CANONICAL_LEVEL",
        }

    def to_keys(self, head: str) -> Flat:
        return {key: getattr(self, field) for field, key in self._keys(head).items()}
