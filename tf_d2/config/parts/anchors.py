"""Anchor generators. Source: detectron2/modeling/anchor_generator.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import REQUIRED, Node
from tf_d2.config.parts.conventions import DETECTRON2, Conventions, conventions_of
from tf_d2.config.reading import Fields, Floats

ROTATED = "RotatedAnchorGenerator"
_GENERATORS = ("DefaultAnchorGenerator", ROTATED)


@dataclass(frozen=True)
class AnchorConfig:
    """``MODEL.ANCHOR_GENERATOR.*``; one inner tuple per feature level, or a single one for all."""

    name: str  # DefaultAnchorGenerator or RotatedAnchorGenerator
    sizes: tuple[Floats, ...]
    aspect_ratios: tuple[Floats, ...]
    angles: tuple[Floats, ...]
    offset: float
    conventions: Conventions = DETECTRON2

    KEYS: ClassVar[dict[str, str]] = {
        "name": "MODEL.ANCHOR_GENERATOR.NAME",
        "sizes": "MODEL.ANCHOR_GENERATOR.SIZES",
        "aspect_ratios": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
        "angles": "MODEL.ANCHOR_GENERATOR.ANGLES",
        "offset": "MODEL.ANCHOR_GENERATOR.OFFSET",
    }

    @classmethod
    def _checked(cls, fields: Fields, owner: str, in_features: tuple[str, ...]) -> AnchorConfig:
        """``owner``: where the features are named that the anchors lie on."""
        anchors = cls(
            name=fields.choice("name", _GENERATORS),
            sizes=fields.levels("sizes"),
            aspect_ratios=fields.levels("aspect_ratios"),
            angles=fields.levels("angles"),
            offset=fields.number("offset"),
        )
        used = {"sizes": anchors.sizes, "aspect_ratios": anchors.aspect_ratios}
        if anchors.name == ROTATED:
            used["angles"] = anchors.angles
        for field, levels in used.items():
            if len(levels) not in (1, len(in_features)):
                expected = f"expected 1 list, or {len(in_features)}: one for each of {owner} {in_features}"
                raise fields.fail(field, expected, levels)
            if len({len(level) for level in levels}) != 1:
                raise fields.fail(field, "every level needs the same number of anchors", levels)
            if field != "angles" and min(map(min, levels)) <= 0:
                raise fields.fail(field, "expected positive numbers", levels)
        if not 0.0 <= anchors.offset < 1.0:
            raise fields.fail("offset", "expected 0 <= offset < 1")
        return anchors

    @classmethod
    def from_keys(cls, keys: Keys, owner: str, in_features: tuple[str, ...]) -> AnchorConfig:
        anchors = cls._checked(keys.fields(cls.KEYS), owner, in_features)
        return replace(anchors, conventions=conventions_of(keys))

    @classmethod
    def from_lazy(cls, node: Node, owner: str, in_features: tuple[str, ...]) -> AnchorConfig:
        name = node.check(*_GENERATORS)
        fields = node.fields({"sizes": REQUIRED, "aspect_ratios": REQUIRED, "offset": 0.5})
        fields.put("name", f"{node.name}._target_", name)
        default = ((-90, 0, 90),)
        node.put(fields, "angles", "angles", REQUIRED if name == ROTATED else default)
        node.done("strides")
        return cls._checked(node.overridden(fields, cls.KEYS), owner, in_features)

    def to_keys(self) -> Flat:
        return {key: getattr(self, field) for field, key in self.KEYS.items()}
