"""Where regions come from: a region proposal network, or a file. Source: detectron2/modeling/proposal_generator/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import Node, box2box_weights, second
from tf_d2.config.parts.anchors import ROTATED, AnchorConfig
from tf_d2.config.parts.conventions import Conventions
from tf_d2.config.reading import Fields, Floats, refusal

_TRAINING = (
    "anchor_matcher batch_size_per_image positive_fraction loss_weight anchor_boundary_thresh "
    "box_reg_loss_type smooth_l1_beta"
)


@dataclass(frozen=True)
class RPNConfig:
    """``MODEL.RPN.*`` with ``MODEL.PROPOSAL_GENERATOR.MIN_SIZE``; ``name`` is "RPN", or "RRPN" (rotated boxes)."""

    name: str
    in_features: tuple[str, ...]
    anchors: AnchorConfig
    conv_dims: tuple[int, ...]  # of the head; -1 keeps the number of channels
    bbox_reg_weights: Floats
    pre_nms_topk: int
    post_nms_topk: int
    nms_thresh: float
    min_size: float
    post_nms_topk_per_level: int = field(default=0, kw_only=True)  # 0 = none

    KEYS: ClassVar[dict[str, str]] = {
        "in_features": "MODEL.RPN.IN_FEATURES",
        "conv_dims": "MODEL.RPN.CONV_DIMS",
        "bbox_reg_weights": "MODEL.RPN.BBOX_REG_WEIGHTS",
        "pre_nms_topk": "MODEL.RPN.PRE_NMS_TOPK_TEST",
        "post_nms_topk": "MODEL.RPN.POST_NMS_TOPK_TEST",
        "post_nms_topk_per_level": "MODEL.RPN.POST_NMS_TOPK_PER_LEVEL",
        "nms_thresh": "MODEL.RPN.NMS_THRESH",
        "min_size": "MODEL.PROPOSAL_GENERATOR.MIN_SIZE",
    }

    @property
    def conventions(self) -> Conventions:
        return self.anchors.conventions

    @property
    def rotated(self) -> bool:
        return self.name == "RRPN"

    @classmethod
    def _checked(cls, fields: Fields, name: str, anchors: AnchorConfig) -> RPNConfig:
        dims = fields["conv_dims"]
        if (
            not isinstance(dims, tuple)
            or not dims
            or not all(type(d) is int and (d == -1 or d > 0) for d in dims)
        ):
            raise fields.fail("conv_dims", "expected a list of channel numbers, -1 to keep the number")
        min_size = fields.number("min_size")
        if min_size < 0:
            raise fields.fail("min_size", "expected at least 0")
        return cls(
            name=name,
            in_features=fields["in_features"],
            anchors=anchors,
            conv_dims=dims,
            bbox_reg_weights=fields.nonzero("bbox_reg_weights", [5 if name == "RRPN" else 4]),
            pre_nms_topk=fields.integer("pre_nms_topk", 1),
            post_nms_topk=fields.integer("post_nms_topk", 1),
            post_nms_topk_per_level=fields.integer("post_nms_topk_per_level", 0),
            nms_thresh=fields.nms_threshold("nms_thresh"),
            min_size=min_size,
        )

    @classmethod
    def from_keys(cls, keys: Keys, name: str, backbone: Any) -> RPNConfig:
        if keys["MODEL.RPN.HEAD_NAME"] != "StandardRPNHead":
            raise keys.fail("MODEL.RPN.HEAD_NAME", "expected one of 'StandardRPNHead'")
        generator = ROTATED if name == "RRPN" else "DefaultAnchorGenerator"
        if keys["MODEL.ANCHOR_GENERATOR.NAME"] != generator:
            raise keys.fail("MODEL.ANCHOR_GENERATOR.NAME", f"{name} needs {generator}")
        fields = keys.fields(cls.KEYS)
        in_features = fields.names("in_features", backbone.strides)
        anchors = AnchorConfig.from_keys(keys, "MODEL.RPN.IN_FEATURES", in_features)
        return cls._checked(fields, name, anchors)

    @classmethod
    def from_lazy(cls, node: Node, backbone: Any) -> RPNConfig:
        head = node.node("head")
        head.check("StandardRPNHead")
        fields = Fields()
        head.put(fields, "conv_dims", "conv_dims", [-1])
        head.done("in_channels num_anchors box_dim")
        node.put(fields, "in_features", "in_features")
        for name in ("pre_nms_topk", "post_nms_topk"):
            fields.put(name, f"{node.name}.{name}", second(node, name))
        fields.put("post_nms_topk_per_level", "", 0)
        node.put(fields, "nms_thresh", "nms_thresh", 0.7)
        node.put(fields, "min_size", "min_box_size", 0.0)
        box2box_weights(node, fields)
        node.overridden(fields, cls.KEYS)
        in_features = fields.names("in_features", backbone.strides)
        anchors = AnchorConfig.from_lazy(
            node.node("anchor_generator"), f"{node.name}.in_features", in_features
        )
        node.done(_TRAINING)
        return cls._checked(fields, "RRPN" if anchors.name == ROTATED else "RPN", anchors)

    def to_keys(self) -> Flat:
        values = {key: getattr(self, field) for field, key in self.KEYS.items()}
        return {"MODEL.PROPOSAL_GENERATOR.NAME": self.name, **values, **self.anchors.to_keys()}


@dataclass(frozen=True)
class PrecomputedProposalsConfig:
    """Regions come with the image (Fast R-CNN); the first ``topk`` are used."""

    topk: int  # DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST

    KEYS: ClassVar[dict[str, str]] = {"topk": "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST"}

    @classmethod
    def from_keys(cls, keys: Keys, name: str, backbone: Any) -> PrecomputedProposalsConfig:
        return cls(keys.fields(cls.KEYS).integer("topk", 0))

    def to_keys(self) -> Flat:
        return {"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals", self.KEYS["topk"]: self.topk}


def needs_rpn(generator: RPNConfig | PrecomputedProposalsConfig, owner: str) -> None:
    """Raise ConfigError where a model that cannot take given proposals would have to."""
    if isinstance(generator, PrecomputedProposalsConfig):
        raise refusal("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", f"{owner} needs RPN")
