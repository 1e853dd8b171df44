"""The configuration of a model: exactly what inference needs, and nothing that training alone uses.

Field names are the lower-case detectron2 keys, so that a reader of ``MODEL.RPN.NMS_THRESH`` finds
``config.rpn.nms_thresh``. Sizes are pixels of the network input. Every object is immutable and hashable.
"""

from __future__ import annotations

from dataclasses import dataclass

Floats = tuple[float, ...]


@dataclass(frozen=True)
class InputConfig:
    """How an image becomes the network input (``INPUT.*``, ``MODEL.PIXEL_*``)."""

    format: str  # "BGR" or "RGB": channel order of mean, std and the network input
    min_size_test: int  # shortest edge in pixels; 0 = no resize at all
    max_size_test: int  # cap of the longest edge in pixels
    pixel_mean: Floats
    pixel_std: Floats


@dataclass(frozen=True)
class ResNetConfig:
    """``MODEL.RESNETS.*``. ``out_features`` are the stages the backbone returns ("stem", "res2", ...)."""

    depth: int
    out_features: tuple[str, ...]
    norm: str
    num_groups: int
    width_per_group: int
    stride_in_1x1: bool
    res2_out_channels: int
    stem_out_channels: int
    res5_dilation: int
    deform_on_per_stage: tuple[bool, bool, bool, bool]
    deform_modulated: bool
    deform_num_groups: int


@dataclass(frozen=True)
class RegNetConfig:
    """``MODEL.REGNETS.*``, keys of this project: the arguments of detectron2's ``RegNet``, which only
    LazyConfig sets.

    Stem ``SimpleStem``, blocks ``ResBottleneckBlock`` as wide inside as outside. ``tf_d2.config.regnet``
    computes the stages. ``out_features`` are the stages the backbone returns ("stem", "s1", ...).
    """

    depth: int  # blocks in all stages together
    w_a: float  # slope and
    w_0: int  # start of the linear law of widths,
    w_m: float  # ratio of the widths of consecutive stages
    group_width: int  # channels per group of the 3x3 convolutions
    stem_width: int
    se_ratio: float  # hidden channels of squeeze and excitation per input channel of the block; 0 = none
    norm: str
    out_features: tuple[str, ...]


@dataclass(frozen=True)
class FPNConfig:
    """``MODEL.FPN.*``. ``top_block`` is "LastLevelMaxPool", "LastLevelP6P7" or None."""

    in_features: tuple[str, ...]
    out_channels: int
    norm: str | None  # null in the YAML (None) is no norm and no bias; "" is no norm but a bias
    fuse_type: str  # "sum" or "avg"
    top_block: str | None
    top_block_in_feature: str = "res5"  # only LastLevelP6P7
    square_pad: int = 0


@dataclass(frozen=True)
class AnchorConfig:
    """``MODEL.ANCHOR_GENERATOR.*``; one inner tuple per feature level, or a single one for all."""

    name: str  # DefaultAnchorGenerator or RotatedAnchorGenerator
    sizes: tuple[Floats, ...]
    aspect_ratios: tuple[Floats, ...]
    angles: tuple[Floats, ...]
    offset: float


@dataclass(frozen=True)
class RPNConfig:
    """``MODEL.RPN.*`` with ``MODEL.PROPOSAL_GENERATOR.MIN_SIZE``; ``name`` is "RPN" or "RRPN"."""

    name: str
    in_features: tuple[str, ...]
    conv_dims: tuple[int, ...]
    bbox_reg_weights: Floats
    pre_nms_topk: int
    post_nms_topk: int
    nms_thresh: float
    min_size: float


@dataclass(frozen=True)
class PoolerConfig:
    """One ROI pooler: ``type`` is ROIAlignV2, ROIAlign, ROIPool or ROIAlignRotated."""

    type: str
    resolution: int
    sampling_ratio: int


@dataclass(frozen=True)
class BoxHeadConfig:
    """``MODEL.ROI_BOX_HEAD.*`` and, for cascades, one tuple of ``bbox_reg_weights`` per stage."""

    name: str  # "FastRCNNConvFCHead", or "" for Res5ROIHeads
    num_conv: int
    conv_dim: int
    num_fc: int
    fc_dim: int
    norm: str
    pooler: PoolerConfig
    bbox_reg_weights: tuple[Floats, ...]
    cls_agnostic_bbox_reg: bool
    use_sigmoid_ce: bool


@dataclass(frozen=True)
class MaskHeadConfig:
    """``MODEL.ROI_MASK_HEAD.*``."""

    num_conv: int
    conv_dim: int
    norm: str
    pooler: PoolerConfig
    cls_agnostic_mask: bool


@dataclass(frozen=True)
class KeypointHeadConfig:
    """``MODEL.ROI_KEYPOINT_HEAD.*``."""

    conv_dims: tuple[int, ...]
    num_keypoints: int
    pooler: PoolerConfig


@dataclass(frozen=True)
class ROIHeadsConfig:
    """``MODEL.ROI_HEADS.*`` and the heads under it."""

    name: str  # Res5ROIHeads, StandardROIHeads, CascadeROIHeads or RROIHeads
    in_features: tuple[str, ...]
    num_classes: int
    score_thresh_test: float
    nms_thresh_test: float
    detections_per_image: int
    box_head: BoxHeadConfig
    mask_head: MaskHeadConfig | None
    keypoint_head: KeypointHeadConfig | None


@dataclass(frozen=True)
class RetinaNetConfig:
    """``MODEL.RETINANET.*``."""

    num_classes: int
    in_features: tuple[str, ...]
    num_convs: int
    norm: str
    bbox_reg_weights: Floats
    score_thresh_test: float
    topk_candidates_test: int
    nms_thresh_test: float
    detections_per_image: int


@dataclass(frozen=True)
class SemSegHeadConfig:
    """``MODEL.SEM_SEG_HEAD.*`` (SemSegFPNHead)."""

    in_features: tuple[str, ...]
    num_classes: int
    convs_dim: int
    common_stride: int
    norm: str


@dataclass(frozen=True)
class PanopticConfig:
    """``MODEL.PANOPTIC_FPN.COMBINE.*``."""

    overlap_thresh: float
    stuff_area_limit: float
    instances_confidence_thresh: float


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. The parts a meta-architecture does not have are None.

    Exactly one of ``resnet`` and ``regnet`` is given (ValueError otherwise); it is the network below the FPN.
    ``precomputed_proposal_topk`` is ``DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST`` and matters only where
    ``rpn`` is None in a GeneralizedRCNN (Fast R-CNN).
    """

    meta_architecture: str  # GeneralizedRCNN, ProposalNetwork, RetinaNet, SemanticSegmentor or PanopticFPN
    input: InputConfig
    resnet: ResNetConfig | None
    fpn: FPNConfig | None
    anchors: AnchorConfig
    rpn: RPNConfig | None
    roi_heads: ROIHeadsConfig | None
    retinanet: RetinaNetConfig | None
    sem_seg_head: SemSegHeadConfig | None
    panoptic: PanopticConfig | None
    precomputed_proposal_topk: int
    weights: str = ""  # MODEL.WEIGHTS as written: the checkpoint when none is given beside a file
    dataset: str = (
        ""  # first of DATASETS.TEST, else of DATASETS.TRAIN; informational, for the names of classes
    )
    regnet: RegNetConfig | None = None

    def __post_init__(self) -> None:
        if (self.resnet is None) == (self.regnet is None):
            raise ValueError("a model has either a resnet or a regnet")

    @property
    def bottom_up(self) -> ResNetConfig | RegNetConfig:
        """The one of ``resnet`` and ``regnet`` that the model has."""
        found = self.regnet or self.resnet
        assert found is not None
        return found
