"""PointRend's heads. Source: projects/PointRend/point_rend/config.py, mask_head.py, point_head.py, semantic_seg.py."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.parts.poolers import PoolerConfig
from tf_d2.config.parts.roi_heads import StandardROIHeadsConfig
from tf_d2.config.parts.sem_seg import SemSegHeadConfig
from tf_d2.config.reading import Fields, refusal

_MASK, _POINT, _IMPLICIT = "MODEL.ROI_MASK_HEAD.", "MODEL.POINT_HEAD.", "MODEL.IMPLICIT_POINTREND."

# Keys and defaults of ``add_pointrend_config``: those that inference reads, and the others.
_NEW_KEYS: Flat = {
    _MASK + "IN_FEATURES": ("p2",),
    _MASK + "FC_DIM": 1024,
    _MASK + "NUM_FC": 2,
    _MASK + "OUTPUT_SIDE_RESOLUTION": 7,
    _MASK + "POINT_HEAD_ON": False,
    _POINT + "NAME": "StandardPointHead",
    _POINT + "NUM_CLASSES": 80,
    _POINT + "IN_FEATURES": ("p2",),
    _POINT + "SUBDIVISION_STEPS": 5,
    _POINT + "SUBDIVISION_NUM_POINTS": 28 * 28,
    _POINT + "FC_DIM": 256,
    _POINT + "NUM_FC": 3,
    _POINT + "CLS_AGNOSTIC_MASK": False,
    _POINT + "COARSE_PRED_EACH_LAYER": True,
    _POINT + "COARSE_SEM_SEG_HEAD_NAME": "SemSegFPNHead",
    _IMPLICIT + "IMAGE_FEATURE_ENABLED": True,
    _IMPLICIT + "POS_ENC_ENABLED": True,
}
_IGNORED_KEYS: Flat = {
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "INPUT.COLOR_AUG_SSD": False,
    _POINT + "TRAIN_NUM_POINTS": 14 * 14,
    _POINT + "OVERSAMPLE_RATIO": 3,
    _POINT + "IMPORTANCE_SAMPLE_RATIO": 0.75,
    _IMPLICIT + "PARAMS_L2_REGULARIZER": 0.00001,
}


@dataclass(frozen=True)
class PointHeadConfig:
    """``StandardPointHead``, which classifies single points, and how a map is refined with it."""

    name: ClassVar[str] = "StandardPointHead"

    in_features: tuple[str, ...]  # levels it samples
    num_classes: int
    fc_dim: int
    num_fc: int  # hidden layers
    cls_agnostic_mask: bool
    coarse_pred_each_layer: bool  # the coarse logits go into every layer, not only the first
    subdivision_steps: int
    subdivision_num_points: int

    KEYS: ClassVar[dict[str, str]] = {
        "in_features": _POINT + "IN_FEATURES",
        "num_classes": _POINT + "NUM_CLASSES",
        "fc_dim": _POINT + "FC_DIM",
        "num_fc": _POINT + "NUM_FC",
        "cls_agnostic_mask": _POINT + "CLS_AGNOSTIC_MASK",
        "coarse_pred_each_layer": _POINT + "COARSE_PRED_EACH_LAYER",
        "subdivision_steps": _POINT + "SUBDIVISION_STEPS",
        "subdivision_num_points": _POINT + "SUBDIVISION_NUM_POINTS",
    }

    @property
    def out_channels(self) -> int:
        return 1 if self.cls_agnostic_mask else self.num_classes

    @classmethod
    def _values(cls, fields: Fields) -> dict[str, Any]:
        return {
            "in_features": fields.names("in_features"),
            "num_classes": fields.integer("num_classes", 1),
            "fc_dim": fields.integer("fc_dim", 1),
            "num_fc": fields.layers("num_fc", 0),
            "cls_agnostic_mask": fields.flag("cls_agnostic_mask"),
            "coarse_pred_each_layer": fields.flag("coarse_pred_each_layer"),
            "subdivision_steps": fields.integer("subdivision_steps", 0),
            "subdivision_num_points": fields.integer("subdivision_num_points", 1),
        }

    @classmethod
    def from_keys(cls, keys: Keys, classes_key: str) -> PointHeadConfig:
        """``classes_key``: where the number of classes stands that this head's must equal."""
        if keys[_POINT + "NAME"] != cls.name:
            raise keys.fail(_POINT + "NAME", f"expected {cls.name!r}")
        if keys[_POINT + "NUM_CLASSES"] != keys[classes_key]:
            raise keys.fail(_POINT + "NUM_CLASSES", f"expected that of {classes_key}, {keys[classes_key]!r}")
        return cls(**cls._values(keys.fields(cls.KEYS)))

    def to_keys(self) -> Flat:
        return {_POINT + "NAME": self.name, **{key: getattr(self, field) for field, key in self.KEYS.items()}}


@dataclass(frozen=True)
class ImplicitPointHeadConfig(PointHeadConfig):
    """``ImplicitPointHead``: a point head whose weights another head predicts for each object."""

    name: ClassVar[str] = "ImplicitPointHead"

    image_feature_enabled: bool
    pos_enc_enabled: bool

    KEYS: ClassVar[dict[str, str]] = {
        **PointHeadConfig.KEYS,
        "image_feature_enabled": _IMPLICIT + "IMAGE_FEATURE_ENABLED",
        "pos_enc_enabled": _IMPLICIT + "POS_ENC_ENABLED",
    }

    @property
    def start_resolution(self) -> int:
        """Side of the first grid: its square is the number of points."""
        return isqrt(self.subdivision_num_points)

    @classmethod
    def _values(cls, fields: Fields) -> dict[str, Any]:
        points = fields["subdivision_num_points"]
        if type(points) is int and points > 0 and isqrt(points) ** 2 != points:
            raise fields.fail("subdivision_num_points", "an implicit head needs a square number")
        if fields["num_fc"] == 0:
            raise fields.fail("num_fc", "an implicit head needs at least 1")
        values = super()._values(fields)
        image, position = fields.flag("image_feature_enabled"), fields.flag("pos_enc_enabled")
        if not image and not position:
            raise fields.fail(
                "image_feature_enabled", f"one of it and {_IMPLICIT}POS_ENC_ENABLED must be True"
            )
        return {**values, "image_feature_enabled": image, "pos_enc_enabled": position}


@dataclass(frozen=True)
class PointRendMaskHeadConfig:
    """``PointRendMaskHead``, or ``ImplicitPointRendMaskHead`` where its point head is implicit."""

    # It samples the levels itself: the ROI heads have no pooler for it (POOLER_TYPE "").
    samples_features: ClassVar[bool] = True
    NEW_KEYS: ClassVar[Flat] = _NEW_KEYS
    IGNORED_KEYS: ClassVar[Flat] = _IGNORED_KEYS

    in_features: tuple[str, ...]  # levels that the coarse head samples
    pooler_resolution: int  # side of the grid it samples
    conv_dim: int
    fc_dim: int
    num_fc: int
    output_side_resolution: int  # side of the coarse mask
    point_head: PointHeadConfig

    KEYS: ClassVar[dict[str, str]] = {
        "in_features": _MASK + "IN_FEATURES",
        "pooler_resolution": _MASK + "POOLER_RESOLUTION",
        "conv_dim": _MASK + "CONV_DIM",
        "fc_dim": _MASK + "FC_DIM",
        "num_fc": _MASK + "NUM_FC",
        "output_side_resolution": _MASK + "OUTPUT_SIDE_RESOLUTION",
    }

    @property
    def implicit(self) -> bool:
        return isinstance(self.point_head, ImplicitPointHeadConfig)

    @property
    def start_and_steps(self) -> tuple[int, int]:
        """Side of the first grid of points, and the doublings after it.

        A doubling after which every cell would be computed anew is left out.
        """
        head = self.point_head
        if isinstance(head, ImplicitPointHeadConfig):
            return head.start_resolution, head.subdivision_steps
        side, steps = self.output_side_resolution, head.subdivision_steps
        while 4 * side**2 <= head.subdivision_num_points:
            side, steps = side * 2, steps - 1
        return side, steps

    def mask_side(self, pooled: int = 0) -> int:
        """Cells per side of the masks that come out; nothing is pooled for them."""
        del pooled
        side, steps = self.start_and_steps
        return side * 2**steps

    @classmethod
    def from_keys(cls, keys: Keys, name: str, num_classes: int) -> PointRendMaskHeadConfig:
        implicit = name.startswith("Implicit")
        fields = keys.fields(cls.KEYS)
        if not implicit and keys[_MASK + "POINT_HEAD_ON"] is not True:
            # Without it the head of detectron2 has a loss but no inference.
            raise keys.fail(_MASK + "POINT_HEAD_ON", "PointRendMaskHead needs True")
        if fields.integer("pooler_resolution", 2) % 2:
            raise fields.fail("pooler_resolution", "expected an even number, which a convolution halves")
        point_head = (ImplicitPointHeadConfig if implicit else PointHeadConfig).from_keys(
            keys, "MODEL.ROI_HEADS.NUM_CLASSES"
        )
        head = cls(
            in_features=fields.names("in_features"),
            pooler_resolution=fields["pooler_resolution"],
            conv_dim=fields.integer("conv_dim", 1),
            fc_dim=fields.integer("fc_dim", 1),
            num_fc=fields.layers("num_fc", 1),
            output_side_resolution=fields.integer("output_side_resolution", 1),
            point_head=point_head,
        )
        if head.start_and_steps[1] < 0:
            key = _POINT + "SUBDIVISION_NUM_POINTS"
            raise keys.fail(key, f"more points than {_POINT}SUBDIVISION_STEPS doublings can use")
        return head

    def check_features(self, names: tuple[str, ...], keys: Keys) -> None:
        """Raise ConfigError unless both heads sample levels that the ROI heads have."""
        for key, used in (
            (_MASK + "IN_FEATURES", self.in_features),
            (_POINT + "IN_FEATURES", self.point_head.in_features),
        ):
            if not set(used) <= set(names):
                raise keys.fail(key, f"expected some of MODEL.ROI_HEADS.IN_FEATURES, {names!r}")

    def to_keys(self) -> Flat:
        return {
            _MASK + "NAME": "ImplicitPointRendMaskHead" if self.implicit else "PointRendMaskHead",
            _MASK + "POOLER_TYPE": "",
            _MASK + "POINT_HEAD_ON": not self.implicit,
            **{key: getattr(self, field) for field, key in self.KEYS.items()},
            **self.point_head.to_keys(),
        }


@dataclass(frozen=True)
class PointRendROIHeadsConfig(StandardROIHeadsConfig):
    """``PointRendROIHeads``: reads the mask head's old name, ``CoarseMaskHead``, as today's."""

    name: ClassVar[str] = "PointRendROIHeads"

    @classmethod
    def _mask(
        cls, keys: Keys, names: tuple[str, ...], num_classes: int
    ) -> tuple[PointRendMaskHeadConfig, PoolerConfig | None]:
        name = keys[_MASK + "NAME"]
        if name == "CoarseMaskHead":
            head = keys.named("mask_head", "PointRendMaskHead", num_classes)
            head.check_features(names, keys)
            return head, None
        if name != "PointRendMaskHead":
            raise keys.fail(
                _MASK + "NAME", f"{cls.name} needs 'PointRendMaskHead' (or its old name 'CoarseMaskHead')"
            )
        return super()._mask(keys, names, num_classes)


@dataclass(frozen=True)
class PointRendSemSegHeadConfig:
    """``PointRendSemSegHead``: a coarse semantic head and a point head."""

    NEW_KEYS: ClassVar[Flat] = _NEW_KEYS
    IGNORED_KEYS: ClassVar[Flat] = _IGNORED_KEYS

    coarse_sem_seg_head: SemSegHeadConfig
    point_head: PointHeadConfig

    @property
    def num_classes(self) -> int:
        return self.coarse_sem_seg_head.num_classes

    @property
    def in_features(self) -> tuple[str, ...]:
        """Levels that either head reads."""
        return tuple(dict.fromkeys((*self.coarse_sem_seg_head.in_features, *self.point_head.in_features)))

    @classmethod
    def from_keys(cls, keys: Keys, name: str, backbone: Any) -> PointRendSemSegHeadConfig:
        coarse = keys[_POINT + "COARSE_SEM_SEG_HEAD_NAME"]
        if coarse != "SemSegFPNHead":
            raise keys.fail(_POINT + "COARSE_SEM_SEG_HEAD_NAME", "expected 'SemSegFPNHead'")
        head = PointHeadConfig.from_keys(keys, "MODEL.SEM_SEG_HEAD.NUM_CLASSES")
        if len(head.in_features) != 1 or head.in_features[0] not in backbone.strides:
            # detectron2's own inference puts several on the axis of the images and fails.
            expected = f"{name} needs one of {', '.join(backbone.strides)}"
            raise keys.fail(_POINT + "IN_FEATURES", expected)
        if head.num_classes < 2 or head.cls_agnostic_mask:
            raise refusal(
                _POINT + "NUM_CLASSES",
                1 if head.cls_agnostic_mask else head.num_classes,
                f"{name} compares the two best classes ({_POINT}CLS_AGNOSTIC_MASK must be False)",
            )
        return cls(SemSegHeadConfig.from_keys(keys, coarse, backbone), head)

    def to_keys(self) -> Flat:
        return {
            **self.coarse_sem_seg_head.to_keys(),
            **self.point_head.to_keys(),
            "MODEL.SEM_SEG_HEAD.NAME": "PointRendSemSegHead",
        }
