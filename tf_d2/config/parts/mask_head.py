"""The mask head. Source: detectron2/modeling/roi_heads/mask_head.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.errors import ConfigError
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import REQUIRED, Node
from tf_d2.config.reading import Fields

_PREFIX = "MODEL.ROI_MASK_HEAD."


@dataclass(frozen=True)
class MaskHeadConfig:
    """``MaskRCNNConvUpsampleHead``: 3x3 convolutions and a transposed one; ``conv_dims`` has the last one's, too."""

    conv_dims: tuple[int, ...]
    norm: str
    cls_agnostic_mask: bool
    threshold: float = 0.5  # of a pixel's probability
    dilation: int = 1  # of the 3x3 convolutions

    KEYS: ClassVar[dict[str, str]] = {
        "norm": _PREFIX + "NORM",
        "cls_agnostic_mask": _PREFIX + "CLS_AGNOSTIC_MASK",
        "threshold": _PREFIX + "THRESH",
        "dilation": _PREFIX + "DILATION",
    }

    def mask_side(self, pooled: int) -> int:
        """Cells per side of the masks made from ``pooled`` x ``pooled`` features."""
        return 2 * pooled

    @classmethod
    def _checked(cls, fields: Fields) -> MaskHeadConfig:
        if not fields.channels("conv_dims"):
            raise fields.fail("conv_dims", "expected at least one number of channels")
        threshold = fields.number("threshold")
        if not 0 <= threshold <= 1:
            raise fields.fail("threshold", "expected a probability")
        return cls(
            fields["conv_dims"],
            fields.norm("norm"),
            fields.flag("cls_agnostic_mask"),
            threshold,
            fields.integer("dilation", 1),
        )

    @classmethod
    def from_keys(cls, keys: Keys, name: str, num_classes: int) -> MaskHeadConfig:
        fields = keys.fields({"num_conv": _PREFIX + "NUM_CONV", "dim": _PREFIX + "CONV_DIM", **cls.KEYS})
        dims = (fields.integer("dim", 1),) * (fields.layers("num_conv", 0) + 1)
        fields.put("conv_dims", _PREFIX + "CONV_DIM", dims)
        return cls._checked(fields)

    @classmethod
    def from_lazy(cls, node: Node, num_classes: int) -> MaskHeadConfig:
        fields = node.fields({"conv_dims": REQUIRED})
        node.put_norm(fields, "norm", "conv_norm", "")
        classes = node.take("num_classes")
        if classes not in (1, num_classes):
            raise ConfigError(
                f"{node.name}.num_classes = {classes!r} is not supported: expected that of roi_heads, {num_classes!r}"
            )
        fields.put("cls_agnostic_mask", f"{node.name}.num_classes", classes == 1 and num_classes != 1)
        fields.put("threshold", "", 0.5)
        fields.put("dilation", "", 1)
        node.done("input_shape loss_weight vis_period")
        return cls._checked(node.overridden(fields, cls.KEYS))

    def to_keys(self) -> Flat:
        values: dict[str, Any] = {key: getattr(self, field) for field, key in self.KEYS.items()}
        return {
            _PREFIX + "NAME": "MaskRCNNConvUpsampleHead",
            _PREFIX + "NUM_CONV": len(self.conv_dims) - 1,
            _PREFIX + "CONV_DIM": self.conv_dims[0],
            **values,
        }
