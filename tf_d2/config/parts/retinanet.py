"""RetinaNet. Source: detectron2/modeling/meta_arch/retinanet.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import REQUIRED, Node, box2box_weights
from tf_d2.config.parts.anchors import ROTATED, AnchorConfig
from tf_d2.config.parts.conventions import Conventions
from tf_d2.config.parts.rcnn import COMMON
from tf_d2.config.reading import Fields, Floats

_PREFIX = "MODEL.RETINANET."
_TRAINING = "anchor_matcher focal_loss_alpha focal_loss_gamma smooth_l1_beta box_reg_loss_type"


@dataclass(frozen=True)
class RetinaNetConfig:
    """``MODEL.RETINANET.*``, the backbone and the anchors."""

    name: ClassVar[str] = "RetinaNet"

    backbone: Any
    anchors: AnchorConfig
    num_classes: int
    in_features: tuple[str, ...]
    num_convs: int
    conv_dims: tuple[
        int, ...
    ]  # width of each convolution of a tower; () where all are as wide as the features
    norm: str
    bbox_reg_weights: Floats
    score_thresh_test: float
    topk_candidates_test: int
    nms_thresh_test: float
    detections_per_image: int

    KEYS: ClassVar[dict[str, str]] = {
        "num_classes": _PREFIX + "NUM_CLASSES",
        "in_features": _PREFIX + "IN_FEATURES",
        "num_convs": _PREFIX + "NUM_CONVS",
        "norm": _PREFIX + "NORM",
        "bbox_reg_weights": _PREFIX + "BBOX_REG_WEIGHTS",
        "score_thresh_test": _PREFIX + "SCORE_THRESH_TEST",
        "topk_candidates_test": _PREFIX + "TOPK_CANDIDATES_TEST",
        "nms_thresh_test": _PREFIX + "NMS_THRESH_TEST",
        "detections_per_image": "TEST.DETECTIONS_PER_IMAGE",
    }

    @property
    def conventions(self) -> Conventions:
        return self.anchors.conventions

    @classmethod
    def _checked(cls, fields: Fields, backbone: Any, anchors: AnchorConfig) -> RetinaNetConfig:
        return cls(
            backbone=backbone,
            anchors=anchors,
            num_classes=fields.integer("num_classes", 1),
            in_features=fields["in_features"],
            num_convs=fields.layers("num_convs", 1),
            conv_dims=_widths(fields),
            norm=fields.norm("norm"),
            bbox_reg_weights=fields.nonzero("bbox_reg_weights", [4]),
            score_thresh_test=fields.number("score_thresh_test"),
            topk_candidates_test=fields.integer("topk_candidates_test", 1),
            nms_thresh_test=fields.nms_threshold("nms_thresh_test"),
            detections_per_image=fields.integer("detections_per_image", -1),
        )

    @classmethod
    def from_keys(cls, keys: Keys, name: str) -> RetinaNetConfig:
        backbone = keys.part("backbone", "MODEL.BACKBONE.NAME")
        if keys["MODEL.ANCHOR_GENERATOR.NAME"] == ROTATED:
            raise keys.fail("MODEL.ANCHOR_GENERATOR.NAME", "RetinaNet needs DefaultAnchorGenerator")
        fields = keys.fields(cls.KEYS)
        fields.put("conv_dims", cls.KEYS["num_convs"], ())
        in_features = fields.names("in_features", backbone.strides)
        return cls._checked(
            fields, backbone, AnchorConfig.from_keys(keys, cls.KEYS["in_features"], in_features)
        )

    @classmethod
    def from_lazy(cls, node: Node) -> RetinaNetConfig:
        backbone = node.part("backbone", "backbone")
        fields = node.fields({"num_classes": REQUIRED})
        dense_head(node, fields, backbone, "RetinaNetHead")
        node.put(fields, "score_thresh_test", "test_score_thresh", 0.05)
        node.put(fields, "topk_candidates_test", "test_topk_candidates", 1000)
        node.put(fields, "nms_thresh_test", "test_nms_thresh", 0.5)
        node.put(fields, "detections_per_image", "max_detections_per_image", 100)
        box2box_weights(node, fields)
        node.overridden(fields, cls.KEYS)
        in_features = fields.names("in_features", backbone.strides)
        owner = f"{node.name}.head_in_features"
        anchors = AnchorConfig.from_lazy(node.node("anchor_generator"), owner, in_features)
        node.done(f"{_TRAINING} {COMMON}")
        return cls._checked(fields, backbone, anchors)

    def to_keys(self) -> Flat:
        return {
            "MODEL.META_ARCHITECTURE": self.name,
            **self.backbone.to_keys(),
            **self.anchors.to_keys(),
            **{key: getattr(self, field) for field, key in self.KEYS.items()},
        }


def _widths(fields: Fields) -> tuple[int, ...]:
    dims = fields.channels("conv_dims")
    if dims and len(dims) != fields["num_convs"]:
        raise fields.fail("num_convs", f"expected {len(dims)}, the number of the head's conv_dims")
    return dims


def dense_head(node: Node, fields: Fields, backbone: Any, name: str) -> None:
    """The argument ``head`` of a dense detector as the fields ``num_convs``, ``conv_dims`` and ``norm``, and its
    ``in_features``."""
    head = node.node("head")
    head.check(name)
    head.same("num_classes", "model", fields["num_classes"])
    head.put(fields, "conv_dims", "conv_dims")
    dims, width = fields.channels("conv_dims"), getattr(backbone, "out_channels", None)
    fields.put("num_convs", f"{head.name}.conv_dims", len(dims))
    if all(dim == width for dim in dims):
        fields.put("conv_dims", f"{head.name}.conv_dims", ())
    head.put_norm(fields, "norm", "norm", "")
    head.done("input_shape num_anchors prior_prob")
    node.put(fields, "in_features", "head_in_features", None)
    if fields["in_features"] is None:  # every feature of the backbone, lowest level first
        fields.put("in_features", fields.where("in_features"), tuple(backbone.strides))
