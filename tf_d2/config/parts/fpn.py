"""Feature pyramids over a bottom-up network. Source: detectron2/modeling/backbone/fpn.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.errors import ConfigError
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import REQUIRED, Node
from tf_d2.config.reading import NORMS, Fields, refusal

# yacs name of a pyramid -> the network below it and the levels on top of it
_BUILDERS = {
    "build_resnet_fpn_backbone": ("build_resnet_backbone", "LastLevelMaxPool"),
    "build_retinanet_resnet_fpn_backbone": ("build_resnet_backbone", "LastLevelP6P7"),
    "build_regnet_fpn_backbone": ("build_regnet_backbone", "LastLevelMaxPool"),
}


@dataclass(frozen=True)
class TopBlockConfig:
    """Levels on top of a pyramid: ``name`` is LastLevelMaxPool (one) or LastLevelP6P7 (two).

    ``in_feature``: what they are computed from, of the network below ("res5") or of the pyramid ("p5").
    """

    name: str
    in_feature: str

    @property
    def num_levels(self) -> int:
        return {"LastLevelMaxPool": 1, "LastLevelP6P7": 2}[self.name]

    @classmethod
    def from_lazy(cls, node: Node) -> TopBlockConfig:
        if node.check("LastLevelMaxPool", "LastLevelP6P7") == "LastLevelMaxPool":
            node.done()
            return cls("LastLevelMaxPool", "p5")
        top = cls("LastLevelP6P7", node.take("in_feature", "res5"))
        node.done("in_channels out_channels")
        return top


@dataclass(frozen=True)
class FPNConfig:
    """``MODEL.FPN.*`` and the network below. ``square_pad``: side of the padded input in pixels; 0 = as usual."""

    bottom_up: Any  # a part of kind "backbone"
    in_features: tuple[str, ...]
    out_channels: int
    norm: str | None  # null in the YAML (None) is no norm and no bias; "" is no norm but a bias
    fuse_type: str  # "sum" or "avg"
    top_block: TopBlockConfig | None
    square_pad: int = field(default=0)

    KEYS: ClassVar[dict[str, str]] = {
        "in_features": "MODEL.FPN.IN_FEATURES",
        "out_channels": "MODEL.FPN.OUT_CHANNELS",
        "norm": "MODEL.FPN.NORM",
        "fuse_type": "MODEL.FPN.FUSE_TYPE",
        "square_pad": "MODEL.FPN.SQUARE_PAD",
    }

    @property
    def strides(self) -> dict[str, int]:
        """Pixels per cell of p2, p3, ..., lowest level first."""
        levels = [self.bottom_up.strides[f].bit_length() - 1 for f in self.in_features]
        extra = self.top_block.num_levels if self.top_block else 0
        return {f"p{level}": 2**level for level in range(levels[0], levels[-1] + 1 + extra)}

    @classmethod
    def _checked(cls, fields: Fields, bottom_up: Any, top_block: TopBlockConfig | None) -> FPNConfig:
        strides = bottom_up.strides
        fpn = cls(
            bottom_up=bottom_up,
            in_features=fields.pyramid("in_features", strides),
            out_channels=fields.integer("out_channels", 1),
            norm=fields.choice("norm", (*NORMS, None)),
            fuse_type=fields.choice("fuse_type", ("sum", "avg")),
            top_block=top_block,
            square_pad=fields.integer("square_pad", 0),
        )
        if top_block is not None and top_block.name == "LastLevelMaxPool":
            if strides[fpn.in_features[-1]] != 32:
                raise fields.fail(
                    "in_features", f"{top_block.name} makes p6 from p5, so it must end at stride 32"
                )
        elif top_block is not None and top_block.in_feature not in (*strides, *fpn.strides):
            raise refusal("LastLevelP6P7.in_feature", top_block.in_feature, f"one of {', '.join(strides)}")
        return fpn

    @classmethod
    def over(cls, keys: Keys, bottom_up: Any, top_block: TopBlockConfig | None) -> FPNConfig:
        """The pyramid that ``MODEL.FPN.*`` describes, over any network."""
        return cls._checked(keys.fields(cls.KEYS), bottom_up, top_block)

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> FPNConfig:
        below, top = _BUILDERS[name]
        bottom_up, key = keys.named("backbone", below), "MODEL.FPN.TOP_FEATURE"
        if top == "LastLevelMaxPool" and keys[key]:
            raise keys.fail(key, f"expected '' with {name}, whose p6 is made of p5")
        feature = "p5" if top == "LastLevelMaxPool" else keys[key] or "res5"
        return cls.over(keys, bottom_up, TopBlockConfig(top, feature))

    @classmethod
    def from_lazy(cls, node: Node) -> FPNConfig:
        bottom_up = node.part("backbone", "bottom_up")
        if isinstance(bottom_up, FPNConfig):
            raise ConfigError(f"{node.name}.bottom_up: a pyramid over a pyramid is not supported")
        top = node.take("top_block", None)
        top_block = TopBlockConfig.from_lazy(top) if isinstance(top, Node) else None
        fields = node.fields(
            {"in_features": REQUIRED, "out_channels": REQUIRED, "fuse_type": "sum", "square_pad": 0}
        )
        node.put_norm(fields, "norm", "norm", "")
        if node.take("norm", "") is None:
            fields.put("norm", f"{node.name}.norm", None)
        node.done()
        return cls._checked(node.overridden(fields, cls.KEYS), bottom_up, top_block)

    def to_keys(self) -> Flat:
        below = self.bottom_up.to_keys()
        wanted = below["MODEL.BACKBONE.NAME"], self.top_block.name if self.top_block else None
        name = next((n for n, pair in _BUILDERS.items() if pair == wanted), "FPN")
        values = {key: getattr(self, field) for field, key in self.KEYS.items()}
        return {**below, **values, "MODEL.BACKBONE.NAME": name}
