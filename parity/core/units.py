"""Which stages a model has, and what each one is computed from: one table for every backend and for the
comparator.

A *unit* is one computation: it reads named arrays and writes named arrays. A *stage* is one of the arrays it
writes. Both sides of a comparison run the same units in the same order, so that each stage can be judged
twice: free-running (inputs from the same backend) and teacher-forced (inputs from the other backend's trace).

Names are the paths of the arrays inside a trace: `input/image`, `steps/backbone/p2`,
`output/instances/scores`. A name below `steps/` is the path of the detectron2 module that returns the
array, followed by the index or key of the array in what the module returns. The second and third call of
the same module within one image are written `<module>#1`, `<module>#2` (the cascade's pooler, the C4 head's
pooler when it also predicts masks).

Rules that make a unit reproducible from its inputs alone, in any backend:
- a continuous unit computes in the profile's dtype; a small change of its inputs changes its outputs little;
- a float32 unit is continuous but rounds its inputs to float32 and computes in float32 in every profile, as
  detectron2 does when it decodes boxes;
- a discrete unit selects, sorts or thresholds; it too rounds every floating point input to float32 and
  computes in float32 in every profile (torchvision's NMS wants one dtype);
- `steps/input` is computed in float32 and then cast to the profile's dtype;
- pooling boxes are float32 values, cast to the dtype of the features;
- the unpadded network input size is that of `input/resized`, the output size that of `input/image`.

Plain data: nothing is imported but the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["continuous", "float32", "discrete"]

# Arrays that are given, not computed.
GIVEN = ("input/image", "steps/input_proposals")

# Entries of a detectron2 checkpoint that inference does not need: constants the configuration holds,
# counters, and buffers of training. A name is harmless when it contains one of these.
HARMLESS = (
    "anchor_generator.cell_anchors",
    "pixel_mean",
    "pixel_std",
    "num_batches_tracked",
    "fed_loss_cls_weights",
)

# Arrays of which a recorded file may hold only the first rows (one row per region of interest).
ROI_FEATURES = ("pooler", "roi_heads.res5", "roi_heads.mask_head.predictor", "score_lowres")


def is_harmless(key: str) -> bool:
    """Whether an entry of a state dict may be there or not: see HARMLESS."""
    return any(part in key for part in HARMLESS)


@dataclass(frozen=True)
class Unit:
    """One computation.

    op: what is computed, from a closed vocabulary (see `units`). args: plain numbers and names the op needs
    besides its inputs. optional: a recorded trace may lack the outputs (the golden files hold module
    outputs only).
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kind: Kind
    args: tuple[Any, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Stage:
    """One array of a trace, seen from the table. `unit` is the name of the unit that computes it."""

    name: str
    inputs: tuple[str, ...]
    kind: Kind
    unit: str
    optional: bool
    roi_features: bool


def forced_name(name: str) -> str:
    """Where a teacher-forced array is stored.

    `steps/backbone/p2` -> `forced/backbone/p2`, `input/resized` -> `forced/resized` (beside `forced/input`,
    which is `steps/input`), `output/sem_seg` -> `forced/output/sem_seg`.
    """
    return "forced/" + name.removeprefix("steps/").removeprefix("input/")


def stages(config: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The ordered stages of a model, one per array.

    config: detectron2's configuration as a nested dict with every inference key present.
    """
    return tuple(
        Stage(name, unit.inputs, unit.kind, unit.name, unit.optional, _is_roi_features(name))
        for unit in units(config)
        for name in unit.outputs
    )


def units(config: Mapping[str, Any]) -> tuple[Unit, ...]:
    """The ordered computations of a model, each after the ones it reads from.

    config: detectron2's configuration as a nested dict with every inference key present.
    Raises ValueError naming the key for a model that the table does not cover.

    The ops, and what they do to their inputs (arrays NCHW or (rows, columns), boxes xyxy in network pixels):
      resize          uint8 image of the file -> uint8 network image (Pillow's bilinear filter)
      normalize       (x - mean) / std, transposed to NCHW, zero-padded at the bottom and right
      stem            the stem: 7x7 convolution, norm, ReLU, 3x3 maximum (RegNet: 3x3 convolution, norm, ReLU)
      res             args: consecutive residual stages to run
      fpn             bottom-up features -> pyramid; args: the pyramid's names
      rpn_head        features -> logits per level, deltas per level
      rpn_proposals   head outputs, network image -> objectness_logits, proposal_boxes: decode, top-k per
                      level, clip, size filter, NMS, top-k
      roi_pool        args: (pooler,). Features, boxes -> pooled features
      cascade_boxes   args: (k,). Deltas of cascade stage k-1, the boxes it pooled, network image -> boxes
                      that stage k pools: decoded and clipped, none dropped
      res5            pooled features -> res5 of the C4 heads
      box_head        args: (module,)
      box_predictor   args: (module,). -> scores, deltas. In C4 models of the spatial mean of the input
      detect          args: (number of box stages,). Scores of each stage, deltas and pooled boxes of the
                      last, network image -> final boxes, scores, classes in network pixels
      mask_logits     mask head up to its logits, all classes
      mask_select     logits, classes -> probability of the predicted class, (N, 1, M, M)
      keypoint_lowres keypoint head up to its transposed convolution
      keypoint_up     x2 bilinear
      keypoints       heat maps, boxes -> (N, K, 3) x, y, score in network pixels
      retinanet_head  features -> class logits per level, deltas per level
      sem_seg         features -> logits at the padded network size
      postprocess     args: field names. Network-pixel results, network image, file image -> file pixels
      proposals_out   the same for an RPN-only model
      retinanet_out   head outputs, network image, file image -> results in file pixels
      sem_seg_out     logits, network image, file image -> logits at the file's size
      panoptic        logits at the file's size, instances -> panoptic map and segments_info
    """
    meta = config["MODEL"]["META_ARCHITECTURE"]
    builders = {
        "GeneralizedRCNN": _rcnn_units,
        "PanopticFPN": _panoptic_units,
        "ProposalNetwork": _proposal_network_units,
        "RetinaNet": _retinanet_units,
        "SemanticSegmentor": _semantic_units,
    }
    if meta not in builders:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {meta!r} has no stage table; supported: {', '.join(builders)}"
        )
    return tuple(_input_units() + _backbone_units(config["MODEL"]) + builders[meta](config["MODEL"]))


def feature_name(feature: str) -> str:
    """The stage that holds a backbone output, `p2` -> `steps/backbone/p2`."""
    return f"steps/backbone/{feature}"


def pyramid_levels(model: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the FPN's outputs, finest first, or () for a backbone without FPN."""
    name = model["BACKBONE"]["NAME"]
    extra = {
        "build_resnet_backbone": None,
        "build_resnet_fpn_backbone": 1,
        "build_retinanet_resnet_fpn_backbone": 2,
        "build_regnet_backbone": None,
        "build_regnet_fpn_backbone": 1,
    }
    if name not in extra:
        raise ValueError(f"MODEL.BACKBONE.NAME {name!r} has no stage table; supported: {', '.join(extra)}")
    if extra[name] is None:
        return ()
    _, prefix, first = _residual_stages(model)
    # The first residual stage has stride 4 in either network.
    numbers = [int(feature.removeprefix(prefix)) + 2 - first for feature in model["FPN"]["IN_FEATURES"]]
    numbers += [numbers[-1] + 1 + k for k in range(extra[name])]
    return tuple(f"p{number}" for number in numbers)


def _residual_stages(model: Mapping[str, Any]) -> tuple[str, str, int]:
    """Section of the bottom-up network's keys, prefix of its stages' names, number of its first stage."""
    return ("REGNETS", "s", 1) if "_regnet_" in model["BACKBONE"]["NAME"] else ("RESNETS", "res", 2)


def _is_roi_features(name: str) -> bool:
    path = name.split("#")[0].split("/")
    return path[0] == "steps" and len(path) == 2 and path[1].endswith(ROI_FEATURES)


def _input_units() -> list[Unit]:
    return [
        Unit("resize", "resize", ("input/image",), ("input/resized",), "discrete"),
        Unit("normalize", "normalize", ("input/resized",), ("steps/input",), "continuous", optional=True),
    ]


def _backbone_units(model: Mapping[str, Any]) -> list[Unit]:
    levels = pyramid_levels(model)
    prefix = "backbone.bottom_up" if levels else "backbone"
    stem = f"steps/{prefix}.stem"
    built = [Unit("stem", "stem", ("steps/input",), (stem,), "continuous")]
    source, pending = stem, []
    section, kind, first = _residual_stages(model)
    wanted = {int(name.removeprefix(kind)) for name in model[section]["OUT_FEATURES"]}
    for number in range(first, max(wanted) + 1):
        pending.append(f"{kind}{number}")
        if number in wanted:
            target = f"steps/{prefix}/{pending[-1]}"
            built.append(Unit(pending[-1], "res", (source,), (target,), "continuous", tuple(pending)))
            source, pending = target, []
    if levels:
        inputs = tuple(f"steps/{prefix}/{feature}" for feature in model["FPN"]["IN_FEATURES"])
        outputs = tuple(f"steps/backbone/{level}" for level in levels)
        built.append(Unit("fpn", "fpn", inputs, outputs, "continuous", levels))
    return built


def _rpn_units(model: Mapping[str, Any]) -> list[Unit]:
    features = tuple(feature_name(name) for name in model["RPN"]["IN_FEATURES"])
    head = "steps/proposal_generator.rpn_head"
    outputs = _paired(head, len(features))
    proposals = (
        "steps/proposal_generator/0/0/objectness_logits",
        "steps/proposal_generator/0/0/proposal_boxes",
    )
    return [
        Unit("rpn_head", "rpn_head", features, outputs, "continuous"),
        Unit(
            "rpn_proposals",
            "rpn_proposals",
            (*outputs, "input/resized"),
            proposals,
            "discrete",
        ),
    ]


def _paired(head: str, count: int) -> tuple[str, ...]:
    return tuple(f"{head}/{kind}/{level}" for kind in (0, 1) for level in range(count))


def _rcnn_units(model: Mapping[str, Any]) -> list[Unit]:
    return [*_instance_units(model), _postprocess(model)]


def _instance_units(model: Mapping[str, Any]) -> list[Unit]:
    generator = model["PROPOSAL_GENERATOR"]["NAME"]
    if generator not in ("RPN", "PrecomputedProposals"):
        raise ValueError(
            f"MODEL.PROPOSAL_GENERATOR.NAME {generator!r} has no stage table; "
            "supported: RPN, PrecomputedProposals"
        )
    if generator == "RPN":
        built, proposals = _rpn_units(model), "steps/proposal_generator/0/0/proposal_boxes"
    else:
        built, proposals = [], "steps/input_proposals"
    heads = {
        "StandardROIHeads": _standard_box_units,
        "CascadeROIHeads": _cascade_box_units,
        "Res5ROIHeads": _c4_box_units,
    }
    name = model["ROI_HEADS"]["NAME"]
    if name not in heads:
        raise ValueError(f"MODEL.ROI_HEADS.NAME {name!r} has no stage table; supported: {', '.join(heads)}")
    return built + heads[name](model, proposals) + _mask_units(model) + _keypoint_units(model)


def _roi_features(model: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(feature_name(name) for name in model["ROI_HEADS"]["IN_FEATURES"])


def _detect(scores: Iterable[str], deltas: str, boxes: str) -> Unit:
    outputs = tuple(f"steps/roi_heads/0/0/{field}" for field in ("pred_boxes", "scores", "pred_classes"))
    scores = tuple(scores)
    inputs = (*scores, deltas, boxes, "input/resized")
    return Unit("detect", "detect", inputs, outputs, "discrete", (len(scores),), optional=True)


def _standard_box_units(model: Mapping[str, Any], proposals: str) -> list[Unit]:
    pooled, head = "steps/roi_heads.box_pooler", "steps/roi_heads.box_head"
    predictions = ("steps/roi_heads.box_predictor/0", "steps/roi_heads.box_predictor/1")
    features = _roi_features(model)
    return [
        Unit("box_pooler", "roi_pool", (*features, proposals), (pooled,), "continuous", ("box_pooler",)),
        Unit("box_head", "box_head", (pooled,), (head,), "continuous", ("box_head",)),
        Unit("box_predictor", "box_predictor", (head,), predictions, "continuous", ("box_predictor",)),
        _detect(predictions[:1], predictions[1], proposals),
    ]


def _cascade_box_units(model: Mapping[str, Any], proposals: str) -> list[Unit]:
    built: list[Unit] = []
    scores: list[str] = []
    boxes, deltas = proposals, ""
    for k in range(len(model["ROI_BOX_CASCADE_HEAD"]["BBOX_REG_WEIGHTS"])):
        if k:
            target = f"steps/roi_heads/cascade_boxes/{k}"
            inputs = (deltas, boxes, "input/resized")
            built.append(
                Unit(f"cascade_boxes.{k}", "cascade_boxes", inputs, (target,), "float32", (k,), optional=True)
            )
            boxes = target
        pooled = "steps/roi_heads.box_pooler" + (f"#{k}" if k else "")
        head = f"steps/roi_heads.box_head.{k}"
        outputs = (f"steps/roi_heads.box_predictor.{k}/0", f"steps/roi_heads.box_predictor.{k}/1")
        inputs = (*_roi_features(model), boxes)
        built += [
            Unit(f"box_pooler#{k}", "roi_pool", inputs, (pooled,), "continuous", ("box_pooler",), k > 0),
            Unit(f"box_head.{k}", "box_head", (pooled,), (head,), "continuous", (f"box_head.{k}",)),
            Unit(
                f"box_predictor.{k}", "box_predictor", (head,), outputs, "continuous", (f"box_predictor.{k}",)
            ),
        ]
        scores.append(outputs[0])
        deltas = outputs[1]
    return [*built, _detect(scores, deltas, boxes)]


def _c4_box_units(model: Mapping[str, Any], proposals: str) -> list[Unit]:
    pooled, res5 = "steps/roi_heads.pooler", "steps/roi_heads.res5"
    predictions = ("steps/roi_heads.box_predictor/0", "steps/roi_heads.box_predictor/1")
    return [
        Unit("pooler", "roi_pool", (*_roi_features(model), proposals), (pooled,), "continuous", ("pooler",)),
        Unit("roi_res5", "res5", (pooled,), (res5,), "continuous"),
        Unit("box_predictor", "box_predictor", (res5,), predictions, "continuous", ("box_predictor",)),
        _detect(predictions[:1], predictions[1], proposals),
    ]


def _mask_units(model: Mapping[str, Any]) -> list[Unit]:
    if not model["MASK_ON"]:
        return []
    boxes, classes = "steps/roi_heads/0/0/pred_boxes", "steps/roi_heads/0/0/pred_classes"
    logits, features = "steps/roi_heads.mask_head.predictor", _roi_features(model)
    if model["ROI_HEADS"]["NAME"] == "Res5ROIHeads":
        pooled, res5 = "steps/roi_heads.pooler#1", "steps/roi_heads.res5#1"
        built = [
            Unit(
                "pooler#1",
                "roi_pool",
                (*features, boxes),
                (pooled,),
                "continuous",
                ("pooler",),
                optional=True,
            ),
            Unit("roi_res5#1", "res5", (pooled,), (res5,), "continuous", optional=True),
            Unit("mask_head", "mask_logits", (res5,), (logits,), "continuous"),
        ]
    else:
        pooled = "steps/roi_heads.mask_pooler"
        built = [
            Unit("mask_pooler", "roi_pool", (*features, boxes), (pooled,), "continuous", ("mask_pooler",)),
            Unit("mask_head", "mask_logits", (pooled,), (logits,), "continuous"),
        ]
    target = ("steps/roi_heads/0/0/pred_masks",)
    return [
        *built,
        Unit("mask_select", "mask_select", (logits, classes), target, "continuous", optional=True),
    ]


def _keypoint_units(model: Mapping[str, Any]) -> list[Unit]:
    if not model["KEYPOINT_ON"]:
        return []
    if model["ROI_HEADS"]["NAME"] == "Res5ROIHeads":
        raise ValueError(
            "MODEL.KEYPOINT_ON with MODEL.ROI_HEADS.NAME Res5ROIHeads does not exist in detectron2"
        )
    boxes, pooled = "steps/roi_heads/0/0/pred_boxes", "steps/roi_heads.keypoint_pooler"
    lowres = "steps/roi_heads.keypoint_head.score_lowres"
    heat, points = "steps/roi_heads/0/0/pred_keypoint_heatmaps", "steps/roi_heads/0/0/pred_keypoints"
    args = ("keypoint_pooler",)
    return [
        Unit("keypoint_pooler", "roi_pool", (*_roi_features(model), boxes), (pooled,), "continuous", args),
        Unit("keypoint_head", "keypoint_lowres", (pooled,), (lowres,), "continuous"),
        Unit("keypoint_up", "keypoint_up", (lowres,), (heat,), "continuous", optional=True),
        Unit("keypoints", "keypoints", (heat, boxes), (points,), "discrete", optional=True),
    ]


def _result_fields(model: Mapping[str, Any]) -> tuple[str, ...]:
    fields = ["pred_boxes", "scores", "pred_classes"]
    fields += ["pred_masks"] if model["MASK_ON"] else []
    fields += ["pred_keypoints", "pred_keypoint_heatmaps"] if model["KEYPOINT_ON"] else []
    return tuple(fields)


def _postprocess(model: Mapping[str, Any]) -> Unit:
    fields = _result_fields(model)
    inputs = tuple(f"steps/roi_heads/0/0/{field}" for field in fields)
    outputs = tuple(f"output/instances/{field}" for field in fields)
    sizes = ("input/resized", "input/image")
    return Unit("postprocess", "postprocess", (*inputs, *sizes), outputs, "discrete", fields)


def _proposal_network_units(model: Mapping[str, Any]) -> list[Unit]:
    fields = ("objectness_logits", "proposal_boxes")
    inputs = tuple(f"steps/proposal_generator/0/0/{field}" for field in fields)
    outputs = tuple(f"output/proposals/{field}" for field in fields)
    sizes = ("input/resized", "input/image")
    return [*_rpn_units(model), Unit("postprocess", "proposals_out", (*inputs, *sizes), outputs, "discrete")]


def _retinanet_units(model: Mapping[str, Any]) -> list[Unit]:
    features = tuple(feature_name(name) for name in model["RETINANET"]["IN_FEATURES"])
    head = _paired("steps/head", len(features))
    outputs = tuple(f"output/instances/{field}" for field in ("pred_boxes", "scores", "pred_classes"))
    inputs = (*head, "input/resized", "input/image")
    return [
        Unit("head", "retinanet_head", features, head, "continuous"),
        Unit("postprocess", "retinanet_out", inputs, outputs, "discrete"),
    ]


def _semantic_units(model: Mapping[str, Any]) -> list[Unit]:
    features = tuple(feature_name(name) for name in model["SEM_SEG_HEAD"]["IN_FEATURES"])
    logits = "steps/sem_seg_head/0"
    inputs = (logits, "input/resized", "input/image")
    return [
        Unit("sem_seg_head", "sem_seg", features, (logits,), "continuous"),
        Unit("sem_seg_out", "sem_seg_out", inputs, ("output/sem_seg",), "continuous"),
    ]


def _panoptic_units(model: Mapping[str, Any]) -> list[Unit]:
    fields = ("scores", "pred_classes", "pred_masks")
    inputs = ("output/sem_seg", *(f"output/instances/{field}" for field in fields))
    combine = Unit("panoptic", "panoptic", inputs, ("output/panoptic_seg",), "discrete")
    return [*_instance_units(model), _postprocess(model), *_semantic_units(model), combine]
