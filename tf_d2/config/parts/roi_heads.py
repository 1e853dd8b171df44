"""ROI heads: what is computed on every region. Source: detectron2/modeling/roi_heads/."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.errors import ConfigError
from tf_d2.config.keys import Keys
from tf_d2.config.lazy import Node, box2box_weights
from tf_d2.config.parts.conventions import DETECTRON2, Conventions, conventions_of
from tf_d2.config.parts.poolers import UPRIGHT, PoolerConfig
from tf_d2.config.parts.resnet import ResNetConfig
from tf_d2.config.reading import Fields, Floats, refusal

_TRAINING = (
    "batch_size_per_image positive_fraction proposal_matcher proposal_matchers proposal_append_gt "
    "train_on_pred_boxes"
)
_PREDICTOR_TRAINING = (
    "smooth_l1_beta box_reg_loss_type loss_weight use_fed_loss get_fed_loss_cls_weights fed_loss_num_classes "
    "input_shape"
)
_CASCADE_WEIGHTS = "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"
_AGNOSTIC = "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"


@dataclass(frozen=True)
class BoxPredictorConfig:
    """``FastRCNNOutputLayers``, and how its scores become detections. One of ``bbox_reg_weights`` per box stage."""

    bbox_reg_weights: tuple[Floats, ...]
    cls_agnostic_bbox_reg: bool
    use_sigmoid_ce: bool
    score_thresh_test: float
    nms_thresh_test: float
    detections_per_image: int  # -1 = no limit
    conventions: Conventions = DETECTRON2

    KEYS: ClassVar[dict[str, str]] = {
        "cls_agnostic_bbox_reg": _AGNOSTIC,
        "use_sigmoid_ce": "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE",
        "score_thresh_test": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
        "nms_thresh_test": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
        "detections_per_image": "TEST.DETECTIONS_PER_IMAGE",
    }

    @classmethod
    def _checked(cls, fields: Fields, weights: tuple[Floats, ...]) -> BoxPredictorConfig:
        return cls(
            bbox_reg_weights=weights,
            cls_agnostic_bbox_reg=fields.flag("cls_agnostic_bbox_reg"),
            use_sigmoid_ce=fields.flag("use_sigmoid_ce"),
            score_thresh_test=fields.number("score_thresh_test"),
            nms_thresh_test=fields.nms_threshold("nms_thresh_test"),
            detections_per_image=fields.integer("detections_per_image", -1),
        )

    @classmethod
    def from_keys(cls, keys: Keys, weights: tuple[Floats, ...]) -> BoxPredictorConfig:
        return replace(cls._checked(keys.fields(cls.KEYS), weights), conventions=conventions_of(keys))

    @classmethod
    def from_lazy(cls, node: Node, num_classes: int) -> BoxPredictorConfig:
        node.check("FastRCNNOutputLayers")
        node.same("num_classes", "roi_heads", num_classes)
        fields = node.fields({"cls_agnostic_bbox_reg": False, "use_sigmoid_ce": False})
        node.put(fields, "score_thresh_test", "test_score_thresh", 0.0)
        node.put(fields, "nms_thresh_test", "test_nms_thresh", 0.5)
        node.put(fields, "detections_per_image", "test_topk_per_image", 100)
        box2box_weights(node, fields)
        node.done(_PREDICTOR_TRAINING)
        weights = fields.nonzero("bbox_reg_weights", [4, 5])
        return cls._checked(node.overridden(fields, cls.KEYS), (weights,))

    def to_keys(self) -> Flat:
        return {key: getattr(self, field) for field, key in self.KEYS.items()}


@dataclass(frozen=True)
class StandardROIHeadsConfig:
    """``MODEL.ROI_HEADS.*`` and the heads under it. ``StandardROIHeads``, and ``RROIHeads`` where ``rotated``."""

    name: ClassVar[str] = "StandardROIHeads"

    in_features: tuple[str, ...]
    num_classes: int
    box_pooler: PoolerConfig
    box_head: Any  # a part of kind "box_head"; None where there is none (Res5ROIHeads)
    box_predictor: BoxPredictorConfig
    mask_pooler: PoolerConfig | None
    mask_head: Any  # a part of kind "mask_head", or None
    keypoint_pooler: PoolerConfig | None
    keypoint_head: Any  # a part of kind "keypoint_head", or None
    rotated: bool = False

    KEYS: ClassVar[dict[str, str]] = {
        "in_features": "MODEL.ROI_HEADS.IN_FEATURES",
        "num_classes": "MODEL.ROI_HEADS.NUM_CLASSES",
    }

    @property
    def detections_per_image(self) -> int:
        return self.box_predictor.detections_per_image

    def mask_side(self) -> int:
        """Cells per side of a ROI mask."""
        return self.mask_head.mask_side(self.mask_pooler.resolution if self.mask_pooler else 0)

    # === yacs ===

    @classmethod
    def from_keys(cls, keys: Keys, name: str, backbone: Any, generator: Any) -> StandardROIHeadsConfig:
        return cls(**cls._from_keys(keys, name, backbone, generator))

    @classmethod
    def _from_keys(cls, keys: Keys, name: str, backbone: Any, generator: Any) -> dict[str, Any]:
        """The arguments of the dataclass."""
        fields = keys.fields(cls.KEYS)
        rotated = name == "RROIHeads"
        fields.names("in_features", backbone.strides)
        if getattr(generator, "rotated", rotated) != rotated:
            raise refusal("MODEL.ROI_HEADS.NAME", name, "RROIHeads and RRPN (rotated boxes) go together")
        cls._check_features(fields, backbone.strides)
        classes = fields.integer("num_classes", 1)
        if rotated:
            for key in ("MODEL.MASK_ON", "MODEL.KEYPOINT_ON"):
                if keys[key]:
                    raise keys.fail(key, "RROIHeads has boxes only")
        allowed = ("ROIAlignRotated",) if rotated else UPRIGHT
        keypoint, keypoint_key = keys["MODEL.KEYPOINT_ON"], "MODEL.ROI_KEYPOINT_HEAD.NAME"
        mask_head = mask_pooler = None
        if keys["MODEL.MASK_ON"]:
            mask_head, mask_pooler = cls._mask(keys, fields["in_features"], classes)
        return {
            "in_features": fields["in_features"],
            "num_classes": classes,
            "box_head": cls._box_head(keys),
            "box_pooler": PoolerConfig.from_keys(keys, "ROI_BOX_HEAD", allowed),
            "box_predictor": BoxPredictorConfig.from_keys(keys, cls._weights(keys, rotated)),
            "mask_head": mask_head,
            "mask_pooler": mask_pooler,
            "keypoint_head": keys.part("keypoint_head", keypoint_key) if keypoint else None,
            "keypoint_pooler": PoolerConfig.from_keys(keys, "ROI_KEYPOINT_HEAD") if keypoint else None,
            "rotated": rotated,
        }

    @classmethod
    def _mask(cls, keys: Keys, names: tuple[str, ...], num_classes: int) -> tuple[Any, PoolerConfig | None]:
        """The mask head and its pooler; a head that samples the levels ``names`` itself has none."""
        head = keys.part("mask_head", "MODEL.ROI_MASK_HEAD.NAME", num_classes)
        if not getattr(head, "samples_features", False):
            return head, PoolerConfig.from_keys(keys, "ROI_MASK_HEAD")
        if keys["MODEL.ROI_MASK_HEAD.POOLER_TYPE"] != "":
            raise keys.fail(
                "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "this mask head needs '' (it samples by itself)"
            )
        head.check_features(names, keys)
        return head, None

    @classmethod
    def _box_head(cls, keys: Keys) -> Any:
        return keys.part("box_head", "MODEL.ROI_BOX_HEAD.NAME")

    @classmethod
    def _check_features(cls, fields: Fields, strides: Mapping[str, int]) -> None:
        fields.pyramid("in_features", strides)

    @classmethod
    def _weights(cls, keys: Keys, rotated: bool) -> tuple[Floats, ...]:
        fields = keys.fields({"weights": "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"})
        return (fields.nonzero("weights", [5 if rotated else 4]),)

    # === LazyConfig ===

    @classmethod
    def from_lazy(cls, node: Node, backbone: Any, generator: Any) -> StandardROIHeadsConfig:
        arguments = cls._from_lazy(node, backbone, generator)
        node.done(_TRAINING)
        return cls(**arguments)

    @classmethod
    def _from_lazy(cls, node: Node, backbone: Any, generator: Any) -> dict[str, Any]:
        """The arguments of the dataclass; a subclass takes more of the node and adds its own."""
        fields = Fields()
        node.put(fields, "in_features", "box_in_features")
        node.put(fields, "num_classes", "num_classes")
        node.overridden(fields, cls.KEYS)
        names, classes = fields.pyramid("in_features", backbone.strides), fields.integer("num_classes", 1)
        strides = {name: backbone.strides[name] for name in names}
        box_head, box_predictor = cls._lazy_boxes(node, classes)
        arguments: dict[str, Any] = {
            "in_features": names,
            "num_classes": classes,
            "box_head": box_head,
            "box_pooler": PoolerConfig.from_lazy(node.node("box_pooler"), "ROI_BOX_HEAD", strides),
            "box_predictor": box_predictor,
        }
        for kind in ("mask", "keypoint"):
            arguments |= cls._lazy_instance_head(node, kind, strides, classes)
        return arguments

    @classmethod
    def _lazy_boxes(cls, node: Node, classes: int) -> tuple[Any, BoxPredictorConfig]:
        return node.part("box_head", "box_head"), BoxPredictorConfig.from_lazy(
            node.node("box_predictor"), classes
        )

    @staticmethod
    def _lazy_instance_head(
        node: Node, kind: str, strides: Mapping[str, int], classes: int
    ) -> dict[str, Any]:
        features, pooler = node.take(f"{kind}_in_features", None), node.take(f"{kind}_pooler", None)
        head = node.take(f"{kind}_head", None)
        if head is None:
            return {f"{kind}_head": None, f"{kind}_pooler": None}
        if tuple(features or ()) != tuple(strides):
            raise ConfigError(
                f"{node.name}.{kind}_in_features = {features!r} is not supported: expected that of "
                f"box_in_features, {list(strides)}"
            )
        if not isinstance(head, Node) or not isinstance(pooler, Node):
            raise ConfigError(f"{node.name}: {kind}_head and {kind}_pooler must be objects with a _target_")
        context = (classes,) if kind == "mask" else ()
        return {
            f"{kind}_head": head.read_as(f"{kind}_head", *context),
            f"{kind}_pooler": PoolerConfig.from_lazy(pooler, f"ROI_{kind.upper()}_HEAD", strides),
        }

    # === Back to yacs ===

    def to_keys(self) -> Flat:
        flat: Flat = {
            "MODEL.ROI_HEADS.NAME": "RROIHeads" if self.rotated else self.name,
            "MODEL.MASK_ON": self.mask_head is not None,
            "MODEL.KEYPOINT_ON": self.keypoint_head is not None,
            "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": self.box_predictor.bbox_reg_weights[0],
            **{key: getattr(self, field) for field, key in self.KEYS.items()},
            **self.box_predictor.to_keys(),
            **self.box_pooler.to_keys("ROI_BOX_HEAD"),
        }
        for kind, pooler, head in (
            ("ROI_BOX_HEAD", self.box_pooler, self.box_head),
            ("ROI_MASK_HEAD", self.mask_pooler, self.mask_head),
            ("ROI_KEYPOINT_HEAD", self.keypoint_pooler, self.keypoint_head),
        ):
            if head is not None:
                flat |= head.to_keys()
            if pooler is not None:
                flat |= pooler.to_keys(kind)
        return flat


@dataclass(frozen=True)
class CascadeROIHeadsConfig(StandardROIHeadsConfig):
    """``CascadeROIHeads``: as many equal box heads as the box predictor has ``bbox_reg_weights``."""

    name: ClassVar[str] = "CascadeROIHeads"

    @classmethod
    def _weights(cls, keys: Keys, rotated: bool) -> tuple[Floats, ...]:
        if keys[_AGNOSTIC] is not True:
            raise keys.fail(_AGNOSTIC, f"{cls.name} needs True")
        ious, weights = keys["MODEL.ROI_BOX_CASCADE_HEAD.IOUS"], keys[_CASCADE_WEIGHTS]
        if len(ious) != len(weights):
            raise keys.fail(
                _CASCADE_WEIGHTS, f"expected as many as MODEL.ROI_BOX_CASCADE_HEAD.IOUS = {ious!r}"
            )
        if not weights:
            raise keys.fail(_CASCADE_WEIGHTS, "expected at least one stage")
        stages = Fields()
        for i, stage in enumerate(weights):
            stages.put(str(i), _CASCADE_WEIGHTS, stage)
        return tuple(stages.nonzero(str(i), [4]) for i in range(len(weights)))

    @classmethod
    def _lazy_boxes(cls, node: Node, classes: int) -> tuple[Any, BoxPredictorConfig]:
        heads = [head.read_as("box_head") for head in node.nodes("box_heads")]
        predictors = [BoxPredictorConfig.from_lazy(p, classes) for p in node.nodes("box_predictors")]
        if not heads or len(heads) != len(predictors) or any(head != heads[0] for head in heads):
            raise ConfigError(f"{node.name}: expected as many equal box_heads as box_predictors")
        weights = tuple(predictor.bbox_reg_weights[0] for predictor in predictors)
        last = replace(
            predictors[-1], bbox_reg_weights=weights
        )  # its thresholds are those that detections pass
        form = {(p.cls_agnostic_bbox_reg, p.use_sigmoid_ce) for p in predictors}
        if len(form) > 1:
            raise ConfigError(
                f"{node.name}.box_predictors must be equal in cls_agnostic_bbox_reg and use_sigmoid_ce; found "
                f"{sorted(form)}"
            )
        return heads[0], last

    def to_keys(self) -> Flat:
        weights = self.box_predictor.bbox_reg_weights
        flat = super().to_keys()
        del flat["MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"]
        ious = {3: (0.5, 0.6, 0.7)}.get(len(weights), (0.5,) * len(weights))
        return {**flat, _CASCADE_WEIGHTS: weights, "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": ious}


@dataclass(frozen=True)
class Res5ROIHeadsConfig(StandardROIHeadsConfig):
    """``Res5ROIHeads``, the C4 heads: boxes and masks share ``res5``, the last stage of a ResNet of its own."""

    name: ClassVar[str] = "Res5ROIHeads"

    res5: ResNetConfig | None = None

    def mask_side(self) -> int:
        return self.mask_head.mask_side((self.box_pooler.resolution + 1) // 2)  # res5 halves what was pooled

    @classmethod
    def _from_keys(cls, keys: Keys, name: str, backbone: Any, generator: Any) -> dict[str, Any]:
        arguments = super()._from_keys(keys, name, backbone, generator)
        if keys["MODEL.KEYPOINT_ON"]:
            raise keys.fail("MODEL.KEYPOINT_ON", "Res5ROIHeads has no keypoint head; use StandardROIHeads")
        if getattr(arguments["mask_head"], "samples_features", False):
            raise keys.fail("MODEL.ROI_MASK_HEAD.NAME", "Res5ROIHeads gives its mask head what it pooled")
        if keys["MODEL.RESNETS.DEFORM_ON_PER_STAGE"][-1]:
            raise keys.fail("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "Res5ROIHeads has no deformable res5")
        return {**arguments, "res5": _plain_res5(ResNetConfig.from_keys(keys, "")), "mask_pooler": None}

    @classmethod
    def _box_head(cls, keys: Keys) -> Any:
        return None  # reads neither NAME nor the layers: stage res5 is its head

    @classmethod
    def _check_features(cls, fields: Fields, strides: Mapping[str, int]) -> None:
        if fields["in_features"] != ("res4",):  # it takes res4 and ends at stride 32
            raise fields.fail("in_features", "Res5ROIHeads needs ('res4',)")

    @classmethod
    def _from_lazy(cls, node: Node, backbone: Any, generator: Any) -> dict[str, Any]:
        fields = Fields()
        node.put(fields, "in_features", "in_features")
        node.put(fields, "num_classes", "num_classes")
        node.overridden(fields, cls.KEYS)
        cls._check_features(fields, backbone.strides)
        classes = fields.integer("num_classes", 1)
        strides = {name: backbone.strides[name] for name in fields.names("in_features", backbone.strides)}
        return {
            "in_features": fields["in_features"],
            "num_classes": classes,
            "box_head": None,
            "box_pooler": PoolerConfig.from_lazy(node.node("pooler"), "ROI_BOX_HEAD", strides),
            "box_predictor": BoxPredictorConfig.from_lazy(node.node("box_predictor"), classes),
            "mask_head": node.optional_part("mask_head", "mask_head", classes),
            "mask_pooler": None,
            "keypoint_head": None,
            "keypoint_pooler": None,
            "res5": _lazy_res5(node.node("res5"), backbone),
        }


def _plain_res5(resnet: ResNetConfig) -> ResNetConfig:
    """Always three plain bottlenecks with stride 2, whatever the backbone's depth, dilation or deformation."""
    return replace(
        resnet, depth=50, out_features=("res5",), res5_dilation=1, deform_on_per_stage=(False,) * 4
    )


def _lazy_res5(node: Node, backbone: Any) -> ResNetConfig:
    """The stage must be the one that ``Res5ROIHeads`` makes of the yacs keys."""
    node.check("ResNet.make_stage")
    if not isinstance(backbone, ResNetConfig):
        raise ConfigError(f"{node.name} is not supported: the backbone of Res5ROIHeads must be a ResNet")
    expected = {
        "num_blocks": 3,
        "stride_per_block": (2, 1, 1),
        "in_channels": 4 * backbone.res2_out_channels,
        "bottleneck_channels": 8 * backbone.num_groups * backbone.width_per_group,
        "out_channels": 8 * backbone.res2_out_channels,
        "stride_in_1x1": backbone.stride_in_1x1,
    }
    for key, value in expected.items():
        node.same(key, "the res5 of a C4 model", value)
    if backbone.num_groups != 1:
        node.same("num_groups", "the backbone", backbone.num_groups)
    block = str(node.take("block_class"))
    if not block.endswith(".BottleneckBlock"):
        raise ConfigError(f"{node.name}.block_class = {block!r} is not supported: expected BottleneckBlock")
    fields = Fields()
    node.put_norm(fields, "norm", "norm", "BN")
    node.overridden(fields, {"norm": ResNetConfig.KEYS["norm"]})
    node.done()
    return replace(_plain_res5(backbone), norm=fields.norm("norm"))
