"""FCOS. Source: detectron2/modeling/meta_arch/fcos.py. Only LazyConfig can say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tf_d2.config.defaults import Flat
from tf_d2.config.errors import ConfigError
from tf_d2.config.lazy import REQUIRED, Node
from tf_d2.config.parts.anchors import AnchorConfig
from tf_d2.config.parts.rcnn import COMMON
from tf_d2.config.parts.retinanet import dense_head
from tf_d2.config.reading import Fields

_TRAINING = "center_sampling_radius focal_loss_alpha focal_loss_gamma"
OFFSET = 0.5  # of the anchor generator: a location is the centre of its cell


@dataclass(frozen=True)
class FCOSConfig:
    """A box, a class and a centerness for each cell of the pyramid."""

    name: ClassVar[str] = "FCOS"

    backbone: Any
    num_classes: int
    in_features: tuple[str, ...]
    num_convs: int
    conv_dims: tuple[
        int, ...
    ]  # width of each convolution of a tower; () where all are as wide as the features
    norm: str
    score_thresh_test: float
    topk_candidates_test: int
    nms_thresh_test: float
    detections_per_image: int

    KEYS: ClassVar[dict[str, str]] = {"detections_per_image": "TEST.DETECTIONS_PER_IMAGE"}

    @property
    def anchors(self) -> AnchorConfig:
        """The cells as boxes: one square of a stride's size around every centre."""
        sizes = tuple((float(self.backbone.strides[f]),) for f in self.in_features)
        return AnchorConfig("DefaultAnchorGenerator", sizes, ((1.0,),), ((-90.0, 0.0, 90.0),), OFFSET)

    @classmethod
    def _checked(cls, fields: Fields, backbone: Any) -> FCOSConfig:
        return cls(
            backbone=backbone,
            num_classes=fields.integer("num_classes", 1),
            in_features=fields.names("in_features", backbone.strides),
            num_convs=fields.layers("num_convs", 1),
            conv_dims=fields.channels("conv_dims"),
            norm=fields.norm("norm"),
            score_thresh_test=fields.number("score_thresh_test"),
            topk_candidates_test=fields.integer("topk_candidates_test", 1),
            nms_thresh_test=fields.nms_threshold("nms_thresh_test"),
            detections_per_image=fields.integer("detections_per_image", -1),
        )

    @classmethod
    def from_lazy(cls, node: Node) -> FCOSConfig:
        backbone = node.part("backbone", "backbone")
        fields = node.fields({"num_classes": REQUIRED})
        dense_head(node, fields, backbone, "FCOSHead")
        node.put(fields, "score_thresh_test", "test_score_thresh", 0.2)
        node.put(fields, "topk_candidates_test", "test_topk_candidates", 1000)
        node.put(fields, "nms_thresh_test", "test_nms_thresh", 0.6)
        node.put(fields, "detections_per_image", "max_detections_per_image", 100)
        transform = node.take("box2box_transform", None)
        if transform is not None:
            if not isinstance(transform, Node) or transform.target != "Box2BoxTransformLinear":
                raise ConfigError(f"{node.name}.box2box_transform: expected Box2BoxTransformLinear")
            transform.only("normalize_by_size", True)
            transform.done()
        node.done(f"{_TRAINING} {COMMON}")
        return cls._checked(node.overridden(fields, cls.KEYS), backbone)

    def to_keys(self) -> Flat:
        return {
            "MODEL.META_ARCHITECTURE": self.name,
            **self.backbone.to_keys(),
            "MODEL.RETINANET.IN_FEATURES": self.in_features,
            "MODEL.RETINANET.NUM_CLASSES": self.num_classes,
            "MODEL.RETINANET.SCORE_THRESH_TEST": self.score_thresh_test,
            "MODEL.RETINANET.NMS_THRESH_TEST": self.nms_thresh_test,
            "TEST.DETECTIONS_PER_IMAGE": self.detections_per_image,
        }
