"""Semantic segmentation heads. Source: detectron2/modeling/meta_arch/semantic_seg.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import REQUIRED, Node
from tf_d2.config.reading import Fields

_PREFIX = "MODEL.SEM_SEG_HEAD."


@dataclass(frozen=True)
class SemSegHeadConfig:
    """``MODEL.SEM_SEG_HEAD.*`` of SemSegFPNHead."""

    in_features: tuple[str, ...]
    num_classes: int
    convs_dim: int
    common_stride: int
    norm: str

    KEYS: ClassVar[dict[str, str]] = {
        "in_features": _PREFIX + "IN_FEATURES",
        "num_classes": _PREFIX + "NUM_CLASSES",
        "convs_dim": _PREFIX + "CONVS_DIM",
        "common_stride": _PREFIX + "COMMON_STRIDE",
        "norm": _PREFIX + "NORM",
    }

    @classmethod
    def _checked(cls, fields: Fields, backbone: Any) -> SemSegHeadConfig:
        strides = backbone.strides
        head = cls(
            in_features=fields.names("in_features", strides),
            num_classes=fields.integer("num_classes", 1),
            convs_dim=fields.integer("convs_dim", 1),
            common_stride=fields.choice("common_stride", (1, 2, 4, 8, 16, 32, 64, 128)),
            norm=fields.norm("norm"),
        )
        # A level is doubled until it is at the common stride, but at least once if it is not there.
        ends = {
            s if s == head.common_stride else min(s // 2, head.common_stride)
            for s in (strides[name] for name in head.in_features)
        }
        if len(ends) > 1:
            expected = f"levels finer than COMMON_STRIDE {head.common_stride} do not meet the others"
            raise fields.fail("in_features", expected)
        return head

    @classmethod
    def from_keys(cls, keys: Keys, name: str, backbone: Any) -> SemSegHeadConfig:
        return cls._checked(keys.fields(cls.KEYS), backbone)

    @classmethod
    def from_lazy(cls, node: Node, backbone: Any) -> SemSegHeadConfig:
        fields = node.fields({"num_classes": REQUIRED, "common_stride": REQUIRED})
        fields.put("in_features", f"{node.name}.input_shape", tuple(node.node("input_shape").value))
        node.put(fields, "convs_dim", "conv_dims")
        node.put_norm(fields, "norm", "norm", None)
        node.done("loss_weight ignore_value")
        return cls._checked(node.overridden(fields, cls.KEYS), backbone)

    def to_keys(self) -> Flat:
        values = {key: getattr(self, field) for field, key in self.KEYS.items()}
        return {_PREFIX + "NAME": "SemSegFPNHead", **values}
