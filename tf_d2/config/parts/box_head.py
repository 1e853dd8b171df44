"""The box head. Source: detectron2/modeling/roi_heads/box_head.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import REQUIRED, Node
from tf_d2.config.reading import Fields

_PREFIX = "MODEL.ROI_BOX_HEAD."


@dataclass(frozen=True)
class FastRCNNConvFCHeadConfig:
    """3x3 convolutions of ``conv_dims`` channels with ``norm``, then linear layers of ``fc_dims``."""

    conv_dims: tuple[int, ...]
    fc_dims: tuple[int, ...]
    norm: str

    KEYS: ClassVar[dict[str, str]] = {"norm": _PREFIX + "NORM"}

    @classmethod
    def _checked(cls, fields: Fields) -> FastRCNNConvFCHeadConfig:
        head = cls(fields.channels("conv_dims"), fields.channels("fc_dims"), fields.norm("norm"))
        if not head.conv_dims and not head.fc_dims:
            raise fields.fail("fc_dims", "FastRCNNConvFCHead needs NUM_CONV or NUM_FC above 0")
        return head

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> FastRCNNConvFCHeadConfig:
        fields = keys.fields(
            {
                "num_conv": _PREFIX + "NUM_CONV",
                "conv_dim": _PREFIX + "CONV_DIM",
                "num_fc": _PREFIX + "NUM_FC",
                "fc_dim": _PREFIX + "FC_DIM",
                **cls.KEYS,
            }
        )
        convs, fcs = fields.layers("num_conv", 0), fields.layers("num_fc", 0)
        fields.put("conv_dims", _PREFIX + "NUM_CONV", (fields.integer("conv_dim", 1),) * convs)
        fields.put("fc_dims", _PREFIX + "NUM_FC", (fields.integer("fc_dim", 1),) * fcs)
        return cls._checked(fields)

    @classmethod
    def from_lazy(cls, node: Node) -> FastRCNNConvFCHeadConfig:
        fields = node.fields({"conv_dims": REQUIRED, "fc_dims": REQUIRED})
        node.put_norm(fields, "norm", "conv_norm", "")
        node.done("input_shape")
        return cls._checked(node.overridden(fields, cls.KEYS))

    def to_keys(self) -> Flat:
        """What equal widths can say; others do not come back as they are."""
        return {
            _PREFIX + "NAME": "FastRCNNConvFCHead",
            _PREFIX + "NUM_CONV": len(self.conv_dims),
            _PREFIX + "NUM_FC": len(self.fc_dims),
            _PREFIX + "NORM": self.norm,
            **({_PREFIX + "CONV_DIM": self.conv_dims[0]} if self.conv_dims else {}),
            **({_PREFIX + "FC_DIM": self.fc_dims[0]} if self.fc_dims else {}),
        }
