"""TensorMask. Source: projects/TensorMask/tensormask/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.parts.anchors import ROTATED, AnchorConfig
from tf_d2.config.reading import Floats

_PREFIX = "MODEL.TENSOR_MASK."
_SIZES = "MODEL.ANCHOR_GENERATOR.SIZES"


@dataclass(frozen=True)
class TensorMaskConfig:
    """``MODEL.TENSOR_MASK.*``, the backbone and the anchors."""

    name: ClassVar[str] = "TensorMask"

    backbone: Any
    anchors: AnchorConfig
    in_features: tuple[str, ...]
    num_classes: int
    num_convs: int
    cls_channels: int
    bbox_channels: int
    mask_channels: int
    bbox_reg_weights: Floats
    score_thresh_test: float
    topk_candidates_test: int  # over all levels together
    nms_thresh_test: float
    detections_per_image: int
    mask_on: bool
    aligned_on: bool  # masks are predicted at the pixels they show, and gathered for each window
    bipyramid_on: bool  # all masks are predicted at the finest level, those of coarser levels with more cells

    KEYS: ClassVar[dict[str, str]] = {
        "in_features": _PREFIX + "IN_FEATURES",
        "num_classes": _PREFIX + "NUM_CLASSES",
        "num_convs": _PREFIX + "NUM_CONVS",
        "cls_channels": _PREFIX + "CLS_CHANNELS",
        "bbox_channels": _PREFIX + "BBOX_CHANNELS",
        "mask_channels": _PREFIX + "MASK_CHANNELS",
        "bbox_reg_weights": _PREFIX + "BBOX_REG_WEIGHTS",
        "score_thresh_test": _PREFIX + "SCORE_THRESH_TEST",
        "topk_candidates_test": _PREFIX + "TOPK_CANDIDATES_TEST",
        "nms_thresh_test": _PREFIX + "NMS_THRESH_TEST",
        "aligned_on": _PREFIX + "ALIGNED_ON",
        "bipyramid_on": _PREFIX + "BIPYRAMID_ON",
        "detections_per_image": "TEST.DETECTIONS_PER_IMAGE",
        "mask_on": "MODEL.MASK_ON",
    }
    NEW_KEYS: ClassVar[Flat] = {
        _PREFIX + "IN_FEATURES": ("p2", "p3", "p4", "p5", "p6", "p7"),
        _PREFIX + "NUM_CONVS": 4,
        _PREFIX + "NUM_CLASSES": 80,
        _PREFIX + "CLS_CHANNELS": 256,
        _PREFIX + "SCORE_THRESH_TEST": 0.05,
        _PREFIX + "TOPK_CANDIDATES_TEST": 6000,
        _PREFIX + "NMS_THRESH_TEST": 0.5,
        _PREFIX + "BBOX_CHANNELS": 128,
        _PREFIX + "BBOX_REG_WEIGHTS": (1.5, 1.5, 0.75, 0.75),
        _PREFIX + "MASK_CHANNELS": 128,
        _PREFIX + "ALIGNED_ON": False,
        _PREFIX + "BIPYRAMID_ON": False,
    }
    IGNORED_KEYS: ClassVar[Flat] = {
        _PREFIX + "FOCAL_LOSS_GAMMA": 3.0,
        _PREFIX + "FOCAL_LOSS_ALPHA": 0.3,
        _PREFIX + "MASK_LOSS_WEIGHT": 2.0,
        _PREFIX + "POSITIVE_WEIGHT": 1.5,
    }

    @property
    def mask_sizes(self) -> tuple[int, ...]:
        """Cells along a mask of each anchor of the finest level: its size in cells of that level."""
        stride = self.backbone.strides[self.in_features[0]]
        return tuple(int(size // stride) for size in self.anchors.sizes[0])

    def unit(self, level: int) -> int:
        """Cells of the finest level along one of a level's masks' windows: how many more cells these masks have."""
        return 2**level if self.bipyramid_on else 1

    @property
    def largest_mask(self) -> int:
        """Cells along the largest mask there can be."""
        return max(self.mask_sizes) * self.unit(len(self.in_features) - 1)

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> TensorMaskConfig:
        backbone = keys.part("backbone", "MODEL.BACKBONE.NAME")
        if keys["MODEL.ANCHOR_GENERATOR.NAME"] == ROTATED:
            raise keys.fail("MODEL.ANCHOR_GENERATOR.NAME", f"{name} needs DefaultAnchorGenerator")
        fields = keys.fields(cls.KEYS)
        names = fields.names("in_features", backbone.strides)
        config = cls(
            backbone=backbone,
            anchors=AnchorConfig.from_keys(keys, cls.KEYS["in_features"], names),
            in_features=names,
            num_classes=fields.integer("num_classes", 1),
            num_convs=fields.layers("num_convs", 0),
            cls_channels=fields.integer("cls_channels", 1),
            bbox_channels=fields.integer("bbox_channels", 1),
            mask_channels=fields.integer("mask_channels", 1),
            bbox_reg_weights=fields.nonzero("bbox_reg_weights", [4]),
            score_thresh_test=fields.number("score_thresh_test"),
            topk_candidates_test=fields.integer("topk_candidates_test", 1),
            nms_thresh_test=fields.nms_threshold("nms_thresh_test"),
            detections_per_image=fields.integer("detections_per_image", -1),
            mask_on=fields.flag("mask_on"),
            aligned_on=fields.flag("aligned_on"),
            bipyramid_on=fields.flag("bipyramid_on"),
        )
        if config.mask_on:
            config._check_masks(keys)
        return config

    def _check_masks(self, keys: Keys) -> None:
        if self.bipyramid_on and not self.aligned_on:
            raise keys.fail(self.KEYS["bipyramid_on"], f"needs {self.KEYS['aligned_on']} True")
        if len(self.anchors.aspect_ratios[0]) != 1:
            raise keys.fail("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "masks need one ratio")
        if min(self.mask_sizes) < 1:
            stride = self.backbone.strides[self.in_features[0]]
            raise keys.fail(_SIZES, f"the finest level needs sizes of at least its stride, {stride}")
        strides = [self.backbone.strides[name] for name in self.in_features]
        if self.bipyramid_on and any(s != strides[0] * 2**i for i, s in enumerate(strides)):
            raise keys.fail(self.KEYS["in_features"], "every level needs twice the stride of the one before")

    def to_keys(self) -> Flat:
        return {
            "MODEL.META_ARCHITECTURE": self.name,
            **self.backbone.to_keys(),
            **self.anchors.to_keys(),
            **{key: getattr(self, field) for field, key in self.KEYS.items()},
        }
