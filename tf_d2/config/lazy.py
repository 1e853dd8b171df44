"""The YAML that a LazyConfig training saves (``_target_:`` keys), read as data -> detectron2's flat keys.

Nothing is imported or called: the class named by ``_target_`` only selects which arguments are understood.
Every argument of an object that inference uses is translated, known to matter to training alone, or an error.
Defaults are those of detectron2's constructors, which differ from the YAML keys (anchor offset 0.5, score
threshold 0). Source: ``configs/common/models``, ``detectron2/config/lazy.py`` and the constructors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tf_d2.config.defaults import KEYS, Flat
from tf_d2.config.errors import ConfigError
from tf_d2.config.merge import as_tuples

_INTERPOLATION = re.compile(r"\$\{(\.*)([A-Za-z0-9_.]+)\}")
_MAX_HOPS = 20

_TRAINING = {
    "RPN": "anchor_matcher batch_size_per_image positive_fraction loss_weight anchor_boundary_thresh "
    "box_reg_loss_type smooth_l1_beta",
    "ROIHeads": "batch_size_per_image positive_fraction proposal_matcher proposal_matchers "
    "proposal_append_gt train_on_pred_boxes",
    "Predictor": "smooth_l1_beta box_reg_loss_type loss_weight use_fed_loss get_fed_loss_cls_weights "
    "fed_loss_num_classes input_shape",
    "RetinaNet": "anchor_matcher focal_loss_alpha focal_loss_gamma smooth_l1_beta box_reg_loss_type",
}

# Name of the whole backbone by bottom-up network and top block.
_FPN_BACKBONES = {
    "ResNet": {
        "LastLevelMaxPool": "build_resnet_fpn_backbone",
        "LastLevelP6P7": "build_retinanet_resnet_fpn_backbone",
    },
    "RegNet": {"LastLevelMaxPool": "build_regnet_fpn_backbone"},
}


def is_lazy(data: dict) -> bool:
    """Whether the mapping is a LazyConfig dump rather than ``cfg.dump()``."""
    return isinstance(data.get("model"), dict) and "_target_" in data["model"]


class _Node:
    """One mapping of the dump; `take` hands out its arguments and `done` refuses those nobody took."""

    def __init__(self, root: dict, path: tuple, value: dict) -> None:
        self.root, self.path, self.value = root, path, value
        self.left = {key for key in value if key != "_target_"}

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def target(self) -> str:
        """The class or function: the part of ``_target_`` after detectron2's modules (lower case)."""
        target = self.value.get("_target_")
        if not isinstance(target, str) or not target.startswith("detectron2."):
            raise ConfigError(
                f"{self.name}._target_ = {target!r} is not supported: only detectron2's own classes"
            )
        parts = target.split(".")
        return ".".join(parts[next((i for i, p in enumerate(parts) if p[:1].isupper()), -1) :])

    def check(self, *allowed: str) -> str:
        if self.target not in allowed:
            expected = f"expected {' or '.join(allowed)}"
            raise ConfigError(f"{self.name}._target_ = {self.target!r} is not supported: {expected}")
        return self.target

    def take(self, key: str, *default: Any) -> Any:
        self.left.discard(key)
        if key not in self.value:
            if default:
                return default[0]
            raise ConfigError(f"{self.name}.{key} is missing")
        path, value = _resolve(self.root, (*self.path, key))
        return _Node(self.root, path, value) if isinstance(value, dict) else value

    def node(self, key: str) -> _Node:
        value = self.take(key)
        if not isinstance(value, _Node):
            raise ConfigError(f"{self.name}.{key} = {value!r}: expected an object with a _target_")
        return value

    def nodes(self, key: str) -> list[_Node]:
        value = self.take(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ConfigError(f"{self.name}.{key}: expected a list of objects with a _target_")
        return [_Node(self.root, (*self.path, key, i), item) for i, item in enumerate(value)]

    def done(self, ignored: str | Iterable[str] = ()) -> None:
        names = ignored.split() if isinstance(ignored, str) else ignored
        unknown = sorted(map(str, self.left - set(names)))
        if unknown:
            raise ConfigError(f"{self.name}: the argument {unknown[0]!r} of {self.target} is not supported")


def _lookup(root: dict, path: Iterable) -> Any:
    value: Any = root
    for part in path:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and str(part).isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise KeyError(part)
    return value


def _resolve(root: dict, path: tuple) -> tuple[tuple, Any]:
    """The value at ``path`` and where it is, following OmegaConf's ``${a.b}`` and ``${..a}``."""
    for _ in range(_MAX_HOPS):
        value = _lookup(root, path)
        if not isinstance(value, str) or "${" not in value:
            return path, value
        match = _INTERPOLATION.fullmatch(value)
        if match is None or len(match[1]) > len(path):
            break
        base = path[: len(path) - len(match[1])] if match[1] else ()
        path = (*base, *match[2].split("."))
        try:
            _lookup(root, path)
        except KeyError:
            break
    raise ConfigError(
        f"{'.'.join(map(str, path))}: the reference cannot be followed; write the value instead"
    )


def _uniform(node: _Node, key: str, values: Any) -> tuple[int, Any]:
    """Number of layers and their common width, which is all the YAML keys can say."""
    if not isinstance(values, list) or len(set(map(repr, values))) > 1:
        raise ConfigError(f"{node.name}.{key} = {values!r} is not supported: expected a list of equal widths")
    return len(values), values[0] if values else None


def _set(flat: Flat, prefix: str, **values: Any) -> None:
    for name, value in values.items():
        flat[f"MODEL.{prefix}{name}"] = as_tuples(value)


def _norm(value: Any) -> Any:
    return "" if value is None else value


def _weights(node: _Node, allowed: tuple[str, ...] = ("Box2BoxTransform",)) -> Any:
    transform = node.node("box2box_transform")
    transform.check(*allowed)
    weights = transform.take("weights")
    transform.done("scale_clamp" if "scale_clamp" not in transform.value else ())
    return weights


def _resnet(node: _Node, flat: Flat) -> None:
    node.check("ResNet")
    stem, stages = node.node("stem"), node.node("stages")
    stem.check("BasicStem")
    stages.check("ResNet.make_default_stages")
    depth, groups = stages.take("depth"), stages.take("num_groups", 1)
    if type(groups) is not int or groups < 1 or 64 % groups:
        raise ConfigError(f"{stages.name}.num_groups = {groups!r} is not supported: expected a divisor of 64")
    norms = {repr(_norm(stem.take("norm", "BN"))), repr(_norm(norm := stages.take("norm", "BN")))}
    if len(norms) > 1:
        raise ConfigError(f"{node.name}: stem and stages with different norms are not supported: {norms}")
    _set(
        flat,
        "RESNETS.",
        DEPTH=depth,
        NUM_GROUPS=groups,
        WIDTH_PER_GROUP=64 // groups,
        NORM=_norm(norm),
        STRIDE_IN_1X1=stages.take("stride_in_1x1", False),
        STEM_OUT_CHANNELS=stem.take("out_channels", 64),
        RES2_OUT_CHANNELS=64 if depth in (18, 34) else 256,
        OUT_FEATURES=node.take("out_features"),
    )
    stem.done("in_channels")
    stages.done()
    node.done("freeze_at")


def _regnet(node: _Node, flat: Flat) -> None:
    for key, name in (("stem_class", "SimpleStem"), ("block_class", "ResBottleneckBlock")):
        if not (isinstance(value := node.take(key), str) and value.endswith(f".regnet.{name}")):
            raise ConfigError(f"{node.name}.{key} = {value!r} is not supported: expected {name}")
    for key, only in (("stride", 2), ("bottleneck_ratio", 1.0), ("activation_class", None)):
        if (value := node.take(key, only)) != only:
            raise ConfigError(f"{node.name}.{key} = {value!r} is not supported: expected {only!r}")
    flat["MODEL.BACKBONE.NAME"] = "build_regnet_backbone"
    _set(
        flat,
        "REGNETS.",
        DEPTH=node.take("depth"),
        W_A=node.take("w_a"),
        W_0=node.take("w_0"),
        W_M=node.take("w_m"),
        GROUP_WIDTH=node.take("group_width"),
        STEM_WIDTH=node.take("stem_width"),
        SE_RATIO=node.take("se_ratio", 0.0),
        NORM=node.take("norm", "BN"),
        OUT_FEATURES=node.take("out_features"),
    )
    node.done("freeze_at")


def _bottom_up(node: _Node, flat: Flat) -> None:
    (_regnet if node.check("ResNet", "RegNet") == "RegNet" else _resnet)(node, flat)


def _backbone(node: _Node, flat: Flat) -> None:
    if node.check("FPN", "ResNet", "RegNet") != "FPN":
        return _bottom_up(node, flat)
    bottom_up = node.node("bottom_up")
    _bottom_up(bottom_up, flat)
    top = node.node("top_block")
    names = _FPN_BACKBONES[bottom_up.target]
    flat["MODEL.BACKBONE.NAME"] = names[top.check(*names)]
    if top.target == "LastLevelP6P7" and top.take("in_feature", "res5") != "res5":
        raise ConfigError(f"{top.name}.in_feature is not supported: expected 'res5'")
    top.done("in_channels out_channels" if top.target == "LastLevelP6P7" else ())
    _set(
        flat,
        "FPN.",
        IN_FEATURES=node.take("in_features"),
        OUT_CHANNELS=node.take("out_channels"),
        NORM=_norm(node.take("norm", "")),
        FUSE_TYPE=node.take("fuse_type", "sum"),
        SQUARE_PAD=node.take("square_pad", 0),
    )
    return node.done()


def _anchors(node: _Node, flat: Flat) -> None:
    node.check("DefaultAnchorGenerator")
    _set(
        flat,
        "ANCHOR_GENERATOR.",
        SIZES=node.take("sizes"),
        ASPECT_RATIOS=node.take("aspect_ratios"),
        OFFSET=node.take("offset", 0.5),
    )
    node.done("strides")


def _second(node: _Node, key: str) -> Any:
    """The test value of a (train, test) pair."""
    pair = node.take(key)
    if not isinstance(pair, list) or len(pair) != 2:
        raise ConfigError(f"{node.name}.{key} = {pair!r}: expected [train, test]")
    return pair[1]


def _rpn(node: _Node, flat: Flat) -> None:
    node.check("RPN")
    head = node.node("head")
    head.check("StandardRPNHead")
    _anchors(node.node("anchor_generator"), flat)
    _set(
        flat,
        "RPN.",
        IN_FEATURES=node.take("in_features"),
        CONV_DIMS=head.take("conv_dims", [-1]),
        BBOX_REG_WEIGHTS=_weights(node),
        PRE_NMS_TOPK_TEST=_second(node, "pre_nms_topk"),
        POST_NMS_TOPK_TEST=_second(node, "post_nms_topk"),
        NMS_THRESH=node.take("nms_thresh", 0.7),
    )
    flat["MODEL.PROPOSAL_GENERATOR.MIN_SIZE"] = node.take("min_box_size", 0)
    head.done("in_channels num_anchors box_dim")
    node.done(_TRAINING["RPN"])


def _pooler(node: _Node, flat: Flat, head: str) -> None:
    node.check("ROIPooler")
    for key, default in (("canonical_box_size", 224), ("canonical_level", 4)):
        if node.take(key, default) != default:
            raise ConfigError(f"{node.name}.{key} is not supported: expected {default}")
    _set(
        flat,
        f"{head}.POOLER_",
        RESOLUTION=node.take("output_size"),
        SAMPLING_RATIO=node.take("sampling_ratio"),
        TYPE=node.take("pooler_type"),
    )
    node.done("scales")


def _same(node: _Node, key: str, value: Any, other: str, expected: Any) -> None:
    if value != expected:
        raise ConfigError(
            f"{node.name}.{key} = {value!r} is not supported: expected that of {other}, {expected!r}"
        )


def _predictor(node: _Node, num_classes: Any) -> Flat:
    node.check("FastRCNNOutputLayers")
    _same(node, "num_classes", node.take("num_classes"), "roi_heads", num_classes)
    values: Flat = {
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": node.take("test_score_thresh", 0.0),
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": node.take("test_nms_thresh", 0.5),
        "TEST.DETECTIONS_PER_IMAGE": node.take("test_topk_per_image", 100),
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": node.take("cls_agnostic_bbox_reg", False),
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": node.take("use_sigmoid_ce", False),
        "weights": as_tuples(_weights(node)),
    }
    node.done(_TRAINING["Predictor"])
    return values


def _box_head(node: _Node) -> Flat:
    node.check("FastRCNNConvFCHead")
    convs, conv_dim = _uniform(node, "conv_dims", node.take("conv_dims"))
    fcs, fc_dim = _uniform(node, "fc_dims", node.take("fc_dims"))
    flat: Flat = {}
    _set(flat, "ROI_BOX_HEAD.", NUM_CONV=convs, NUM_FC=fcs, NORM=_norm(node.take("conv_norm", "")))
    _set(flat, "ROI_BOX_HEAD.", CONV_DIM=conv_dim or 256, FC_DIM=fc_dim or 1024)
    node.done("input_shape")
    return flat


def _mask_head(node: _Node, flat: Flat, num_classes: Any) -> None:
    node.check("MaskRCNNConvUpsampleHead")
    count, width = _uniform(node, "conv_dims", node.take("conv_dims"))
    classes = node.take("num_classes")
    if classes != 1:
        _same(node, "num_classes", classes, "roi_heads", num_classes)
    flat["MODEL.MASK_ON"] = True
    _set(flat, "ROI_MASK_HEAD.", NUM_CONV=count - 1, CONV_DIM=width, NORM=_norm(node.take("conv_norm", "")))
    _set(flat, "ROI_MASK_HEAD.", CLS_AGNOSTIC_MASK=classes == 1 and num_classes != 1)
    node.done("input_shape loss_weight vis_period")


def _keypoint_head(node: _Node, flat: Flat) -> None:
    node.check("KRCNNConvDeconvUpsampleHead")
    flat["MODEL.KEYPOINT_ON"] = True
    _set(
        flat, "ROI_KEYPOINT_HEAD.", CONV_DIMS=node.take("conv_dims"), NUM_KEYPOINTS=node.take("num_keypoints")
    )
    node.done("input_shape loss_weight loss_normalizer")


def _extra_heads(node: _Node, flat: Flat, num_classes: Any) -> None:
    boxes = node.take("box_in_features")
    _set(flat, "ROI_HEADS.", IN_FEATURES=boxes)
    _pooler(node.node("box_pooler"), flat, "ROI_BOX_HEAD")
    for kind in ("mask", "keypoint"):
        features = node.take(f"{kind}_in_features", None)
        pooler = node.take(f"{kind}_pooler", None)
        head = node.take(f"{kind}_head", None)
        if head is None:
            continue
        _same(node, f"{kind}_in_features", features, "box_in_features", boxes)
        if not isinstance(head, _Node) or not isinstance(pooler, _Node):
            raise ConfigError(f"{node.name}: {kind}_head and {kind}_pooler must be objects with a _target_")
        _pooler(pooler, flat, f"ROI_{kind.upper()}_HEAD")
        if kind == "mask":
            _mask_head(head, flat, num_classes)
        else:
            _keypoint_head(head, flat)


def _check_res5(node: _Node, flat: Flat) -> None:
    """The stage must be the one that ``Res5ROIHeads`` builds from the YAML keys."""
    node.check("ResNet.make_stage")
    expected = {
        "num_blocks": 3,
        "stride_per_block": [2, 1, 1],
        "in_channels": 1024,
        "bottleneck_channels": 512,
        "out_channels": 2048,
        "norm": flat["MODEL.RESNETS.NORM"],
        "stride_in_1x1": flat["MODEL.RESNETS.STRIDE_IN_1X1"],
    }
    for key, value in expected.items():
        _same(node, key, node.take(key), "the res5 of a C4 model", value)
    block = str(node.take("block_class"))
    if not block.endswith(".BottleneckBlock"):
        raise ConfigError(f"{node.name}.block_class = {block!r} is not supported: expected BottleneckBlock")
    node.done()


def _res5_heads(node: _Node, flat: Flat, num_classes: Any) -> None:
    _set(flat, "ROI_HEADS.", IN_FEATURES=node.take("in_features"))
    _pooler(node.node("pooler"), flat, "ROI_BOX_HEAD")
    _check_res5(node.node("res5"), flat)
    mask = node.take("mask_head", None)
    if isinstance(mask, _Node):
        _mask_head(mask, flat, num_classes)


def _cascade(node: _Node, flat: Flat, num_classes: Any) -> None:
    heads = [_box_head(head) for head in node.nodes("box_heads")]
    predictors = [_predictor(predictor, num_classes) for predictor in node.nodes("box_predictors")]
    weights = tuple(predictor.pop("weights") for predictor in predictors)
    if not heads or len(heads) != len(predictors) or any(h != heads[0] for h in heads):
        raise ConfigError(f"{node.name}: expected as many equal box_heads as box_predictors")
    if any(p != predictors[0] for p in predictors):
        raise ConfigError(f"{node.name}.box_predictors may differ in box2box_transform only")
    flat.update({**heads[0], **predictors[0]})
    stages = len(weights)
    _set(flat, "ROI_BOX_CASCADE_HEAD.", BBOX_REG_WEIGHTS=weights, IOUS=(0.5,) * stages)


def _roi_heads(node: _Node, flat: Flat) -> None:
    name = node.check("Res5ROIHeads", "StandardROIHeads", "CascadeROIHeads")
    num_classes = node.take("num_classes")
    _set(flat, "ROI_HEADS.", NAME=name, NUM_CLASSES=num_classes)
    if name == "CascadeROIHeads":
        _cascade(node, flat, num_classes)
    else:
        predictor = _predictor(node.node("box_predictor"), num_classes)
        _set(flat, "ROI_BOX_HEAD.", BBOX_REG_WEIGHTS=predictor.pop("weights"))
        flat.update(predictor)
    if name == "Res5ROIHeads":
        _res5_heads(node, flat, num_classes)
    else:
        flat["MODEL.ROI_BOX_HEAD.NAME"] = "FastRCNNConvFCHead"
        if name == "StandardROIHeads":
            flat.update(_box_head(node.node("box_head")))
        _extra_heads(node, flat, num_classes)
    node.done(_TRAINING["ROIHeads"])


def _retinanet(node: _Node, flat: Flat) -> None:
    head = node.node("head")
    head.check("RetinaNetHead")
    convs, width = _uniform(head, "conv_dims", head.take("conv_dims"))
    _same(head, "conv_dims", width, "backbone.out_channels", flat["MODEL.FPN.OUT_CHANNELS"])
    classes = node.take("num_classes")
    _same(head, "num_classes", head.take("num_classes"), "model", classes)
    _anchors(node.node("anchor_generator"), flat)
    _set(
        flat,
        "RETINANET.",
        NUM_CLASSES=classes,
        IN_FEATURES=node.take("head_in_features"),
        NUM_CONVS=convs,
        NORM=_norm(head.take("norm", "")),
        BBOX_REG_WEIGHTS=_weights(node),
        SCORE_THRESH_TEST=node.take("test_score_thresh", 0.05),
        TOPK_CANDIDATES_TEST=node.take("test_topk_candidates", 1000),
        NMS_THRESH_TEST=node.take("test_nms_thresh", 0.5),
    )
    flat["TEST.DETECTIONS_PER_IMAGE"] = node.take("max_detections_per_image", 100)
    head.done("input_shape num_anchors prior_prob")


def _sem_seg(node: _Node, flat: Flat) -> None:
    node.check("SemSegFPNHead")
    shapes = node.node("input_shape")
    _set(
        flat,
        "SEM_SEG_HEAD.",
        IN_FEATURES=list(shapes.value),
        NUM_CLASSES=node.take("num_classes"),
        CONVS_DIM=node.take("conv_dims"),
        COMMON_STRIDE=node.take("common_stride"),
        NORM=_norm(node.take("norm", None)),
    )
    node.done("loss_weight ignore_value")


def _resize(root: dict, flat: Flat) -> None:
    """The test resize and channel order, which a LazyConfig keeps with its data loader."""
    try:
        mapper = _Node(
            root, ("dataloader", "test", "mapper"), _lookup(root, ("dataloader", "test", "mapper"))
        )
        steps = mapper.nodes("augmentations")
    except (KeyError, ConfigError) as error:
        raise ConfigError("dataloader.test.mapper.augmentations is needed: it says how to resize") from error
    if len(steps) != 1 or steps[0].check("ResizeShortestEdge") is None:
        raise ConfigError(
            "dataloader.test.mapper.augmentations is not supported: expected one ResizeShortestEdge"
        )
    short = steps[0].take("short_edge_length")
    if isinstance(short, list) and len(set(short)) == 1:
        short = short[0]
    flat["INPUT.MIN_SIZE_TEST"] = short
    flat["INPUT.MAX_SIZE_TEST"] = steps[0].take("max_size", 2**31 - 1)
    flat["INPUT.FORMAT"] = mapper.take("image_format")
    steps[0].done("sample_style interp")


def _informational(root: dict, flat: Flat) -> None:
    for path, key in (
        (("dataloader", "test", "dataset", "names"), "DATASETS.TEST"),
        (("train", "init_checkpoint"), "MODEL.WEIGHTS"),
    ):
        try:
            value = _resolve(root, path)[1]
        except (KeyError, ConfigError):
            continue
        if isinstance(value, (str, list)):
            flat[key] = (value,) if key == "DATASETS.TEST" and isinstance(value, str) else as_tuples(value)


def lazy_values(data: dict) -> Flat:
    """All configuration keys of the model in a LazyConfig dump.

    Raises:
        ConfigError: naming the object or argument that is not supported.
    """
    flat: Flat = dict(KEYS)
    model = _Node(data, ("model",), data["model"])
    meta = model.check("GeneralizedRCNN", "ProposalNetwork", "RetinaNet", "PanopticFPN", "SemanticSegmentor")
    flat["MODEL.META_ARCHITECTURE"] = meta
    _set(flat, "", PIXEL_MEAN=model.take("pixel_mean"), PIXEL_STD=model.take("pixel_std"))
    _backbone(model.node("backbone"), flat)
    if meta in ("GeneralizedRCNN", "ProposalNetwork", "PanopticFPN"):
        _rpn(model.node("proposal_generator"), flat)
    if meta in ("GeneralizedRCNN", "PanopticFPN"):
        _roi_heads(model.node("roi_heads"), flat)
    if meta in ("PanopticFPN", "SemanticSegmentor"):
        _sem_seg(model.node("sem_seg_head"), flat)
    if meta == "PanopticFPN":
        _set(
            flat,
            "PANOPTIC_FPN.COMBINE.",
            OVERLAP_THRESH=model.take("combine_overlap_thresh", 0.5),
            STUFF_AREA_LIMIT=model.take("combine_stuff_area_thresh", 4096),
            INSTANCES_CONFIDENCE_THRESH=model.take("combine_instances_score_thresh", 0.5),
        )
    if meta == "RetinaNet":
        _retinanet(model, flat)
    model.done("input_format vis_period " + _TRAINING["RetinaNet"] * (meta == "RetinaNet"))
    _resize(data, flat)
    _informational(data, flat)
    return flat
