"""Units of the two-stage models: proposals, box, mask and keypoint heads (`GeneralizedRCNN`, `ProposalNetwork`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from parity.core.units.backbones import feature_name
from parity.core.units.densepose import densepose_fields, densepose_names, densepose_on, densepose_units
from parity.core.units.point_rend import MASK_HEADS, point_rend_mask_units
from parity.core.units.table import (
    DETECTIONS,
    MASK_LOGITS,
    NETWORK_BOXES,
    PROPOSAL_RESULTS,
    PROPOSALS,
    RESULTS,
    RPN_HEAD,
    Array,
    Judge,
    Unit,
    arrays,
    conventions_of,
)
from weights.errors import UsageError

SIZES = ("input/resized", "input/image")  # what rescales results to the picture
_PREDICTIONS = ("steps/roi_heads.box_predictor/0", "steps/roi_heads.box_predictor/1")


def rcnn_units(model: Mapping[str, Any]) -> list[Unit]:
    """A `GeneralizedRCNN` behind its backbone."""
    return [*instance_units(model), postprocess(model)]


def proposal_network_units(model: Mapping[str, Any]) -> list[Unit]:
    """A `ProposalNetwork` behind its backbone."""
    inputs = (PROPOSALS.scores, PROPOSALS.boxes, *SIZES)
    outputs = arrays(PROPOSAL_RESULTS.scores, PROPOSAL_RESULTS.boxes)
    return [*_rpn_units(model), Unit("postprocess", "proposals_out", inputs, outputs, "discrete")]


def instance_units(model: Mapping[str, Any]) -> list[Unit]:
    """From features to detections in pixels of the network input.

    Raises ValueError for a proposal generator or ROI heads without units.
    """
    generator = model["PROPOSAL_GENERATOR"]["NAME"]
    if generator not in PROPOSAL_GENERATORS:
        known = ", ".join(PROPOSAL_GENERATORS)
        raise UsageError(
            f"MODEL.PROPOSAL_GENERATOR.NAME {generator!r} has no stage table; supported: {known}"
        )
    built, proposals = PROPOSAL_GENERATORS[generator](model)
    name = model["ROI_HEADS"]["NAME"]
    if name not in ROI_HEADS:
        known = ", ".join(ROI_HEADS)
        raise UsageError(f"MODEL.ROI_HEADS.NAME {name!r} has no stage table; supported: {known}")
    instances = _mask_units(model) + _keypoint_units(model) + densepose_units(model)
    return built + ROI_HEADS[name](model, proposals) + instances


def paired(head: str, count: int) -> tuple[Array, ...]:
    """Arrays of a dense head: logits of every level, then deltas of every level."""
    return arrays(*(f"{head}/{kind}/{level}" for kind in (0, 1) for level in range(count)))


def _rpn_units(model: Mapping[str, Any]) -> list[Unit]:
    features = tuple(feature_name(name) for name in model["RPN"]["IN_FEATURES"])
    outputs = paired(RPN_HEAD, len(features))
    module = (RPN_HEAD.removeprefix("steps/"),)
    inputs = (*(a.name for a in outputs), "input/resized", *_picture(model))
    found = arrays(PROPOSALS.scores, PROPOSALS.boxes, rows="proposals")
    return [
        Unit("rpn_head", "module_of_list", features, outputs, "continuous", module),
        Unit("rpn_proposals", "rpn_proposals", inputs, found, "discrete"),
    ]


def _rpn(model: Mapping[str, Any]) -> tuple[list[Unit], str]:
    return _rpn_units(model), PROPOSALS.boxes


def _precomputed(model: Mapping[str, Any]) -> tuple[list[Unit], str]:
    return [], "steps/input_proposals"


def _roi_features(model: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(feature_name(name) for name in model["ROI_HEADS"]["IN_FEATURES"])


def _picture(model: Mapping[str, Any]) -> tuple[str, ...]:
    """What Detectron's conventions take besides: its least size and its final boxes are the picture's."""
    return ("input/image",) if conventions_of(model) == "detectron" else ()


def _detect(model: Mapping[str, Any], scores: Iterable[str], deltas: str, boxes: str) -> list[Unit]:
    scores = tuple(scores)
    inputs = (*scores, deltas, boxes, "input/resized", *_picture(model))
    outputs = arrays(*DETECTIONS.members, rows="detections")
    built = [Unit("detect", "detect", inputs, outputs, "discrete", (len(scores),), optional=True)]
    if _picture(model) and (model["MASK_ON"] or model["KEYPOINT_ON"]):
        made, given = arrays(NETWORK_BOXES, rows="detections"), (DETECTIONS.boxes, *_picture(model))
        built.append(Unit("network_boxes", "network_boxes", given, made, "float32", optional=True))
    return built


def _instance_boxes(model: Mapping[str, Any]) -> str:
    """The final boxes in pixels of the network input."""
    return NETWORK_BOXES if _picture(model) else DETECTIONS.boxes


def _standard_box_units(model: Mapping[str, Any], proposals: str) -> list[Unit]:
    pooled, head = "steps/roi_heads.box_pooler", "steps/roi_heads.box_head"
    predictions = arrays(*_PREDICTIONS, rows="proposals")
    return [
        _pool("box_pooler", pooled, (*_roi_features(model), proposals)),
        _module_unit("box_head", (pooled,), arrays(head, rows="proposals"), "roi_heads.box_head"),
        _module_unit("box_predictor", (head,), predictions, "roi_heads.box_predictor"),
        *_detect(model, _PREDICTIONS[:1], _PREDICTIONS[1], proposals),
    ]


def _module_unit(name: str, inputs: tuple[str, ...], outputs: tuple[Array, ...], module: str) -> Unit:
    """A unit that is one call of a module: its only input is passed as it is."""
    return Unit(name, "module", inputs, outputs, "continuous", (module,))


def _pool(name: str, target: str, inputs: tuple[str, ...], optional: bool = False) -> Unit:
    """Features and boxes -> features of every box; `name` without its call is the pooler's."""
    of_detections = inputs[-1] in (DETECTIONS.boxes, NETWORK_BOXES)
    pooled = arrays(target, rows="detections" if of_detections else "proposals", cut=True)
    return Unit(name, "roi_pool", inputs, pooled, "continuous", (name.split("#")[0],), optional)


def _cascade_box_units(model: Mapping[str, Any], proposals: str) -> list[Unit]:
    built: list[Unit] = []
    scores: list[str] = []
    boxes, deltas = proposals, ""
    for k in range(len(model["ROI_BOX_CASCADE_HEAD"]["BBOX_REG_WEIGHTS"])):
        if k:
            target = f"steps/roi_heads/cascade_boxes/{k}"
            refined = arrays(target, rows="proposals")
            inputs = (deltas, boxes, "input/resized")
            name = f"cascade_boxes.{k}"
            built.append(Unit(name, "cascade_boxes", inputs, refined, "float32", (k,), optional=True))
            boxes = target
        pooled = "steps/roi_heads.box_pooler" + (f"#{k}" if k else "")
        head, predictor = f"roi_heads.box_head.{k}", f"roi_heads.box_predictor.{k}"
        predictions = arrays(f"steps/{predictor}/0", f"steps/{predictor}/1", rows="proposals")
        built += [
            _pool(f"box_pooler#{k}", pooled, (*_roi_features(model), boxes), k > 0),
            _module_unit(f"box_head.{k}", (pooled,), arrays(f"steps/{head}", rows="proposals"), head),
            _module_unit(f"box_predictor.{k}", (f"steps/{head}",), predictions, predictor),
        ]
        scores.append(predictions[0].name)
        deltas = predictions[1].name
    return [*built, *_detect(model, scores, deltas, boxes)]


_C4 = ("Res5ROIHeads", "TridentRes5ROIHeads")  # masks and boxes share what res5 makes of the same pooler


def _c4_box_units(model: Mapping[str, Any], proposals: str) -> list[Unit]:
    pooled, res5 = "steps/roi_heads.pooler", "steps/roi_heads.res5"
    features = arrays(res5, rows="proposals", cut=True)
    predictions = arrays(*_PREDICTIONS, rows="proposals")
    return [
        _pool("pooler", pooled, (*_roi_features(model), proposals)),
        Unit("roi_res5", "res5", (pooled,), features, "continuous"),
        Unit("box_predictor", "box_predictor", (res5,), predictions, "continuous", ("box_predictor",)),
        *_detect(model, _PREDICTIONS[:1], _PREDICTIONS[1], proposals),
    ]


def _mask_units(model: Mapping[str, Any]) -> list[Unit]:
    if not model["MASK_ON"]:
        return []
    if model.get("ROI_MASK_HEAD", {}).get("NAME") in MASK_HEADS:
        return point_rend_mask_units(model)
    boxes, features = _instance_boxes(model), _roi_features(model)
    if model["ROI_HEADS"]["NAME"] in _C4:
        pooled, source = "steps/roi_heads.pooler#1", "steps/roi_heads.res5#1"
        shared = arrays(source, rows="detections", cut=True)
        built = [
            _pool("pooler#1", pooled, (*features, boxes), optional=True),
            Unit("roi_res5#1", "res5", (pooled,), shared, "continuous", optional=True),
        ]
    else:
        source = "steps/roi_heads.mask_pooler"
        built = [_pool("mask_pooler", source, (*features, boxes))]
    logits = arrays(MASK_LOGITS, rows="detections", cut=True)
    selected = arrays(f"{DETECTIONS.name}/pred_masks", rows="detections")
    inputs = (MASK_LOGITS, str(DETECTIONS.classes))
    return [
        *built,
        Unit("mask_head", "mask_logits", (source,), logits, "continuous", module="roi_heads.mask_head"),
        Unit("mask_select", "mask_select", inputs, selected, "continuous", optional=True),
    ]


def _keypoint_units(model: Mapping[str, Any]) -> list[Unit]:
    if not model["KEYPOINT_ON"]:
        return []
    if model["ROI_HEADS"]["NAME"] in _C4:
        raise UsageError(
            "MODEL.KEYPOINT_ON with MODEL.ROI_HEADS.NAME Res5ROIHeads does not exist in detectron2"
        )
    boxes, pooled = DETECTIONS.boxes, "steps/roi_heads.keypoint_pooler"
    module = "roi_heads.keypoint_head"
    lowres = arrays(f"steps/{module}.score_lowres", rows="detections", cut=True)
    heat = arrays(f"{DETECTIONS.name}/pred_keypoint_heatmaps", rows="detections")
    points = arrays(f"{DETECTIONS.name}/pred_keypoints", rows="detections", judge="keypoints")
    source, decoded = (lowres[0].name,), (heat[0].name, boxes)
    built = [
        _pool("keypoint_pooler", pooled, (*_roi_features(model), _instance_boxes(model))),
        Unit("keypoint_head", "keypoint_lowres", (pooled,), lowres, "continuous", module=module),
        Unit("keypoint_up", "keypoint_up", source, heat, "continuous", optional=True),
        Unit("keypoints", "keypoints", decoded, points, "discrete", optional=True),
    ]
    if conventions_of(model) != "detectron2":
        # Read from the enlarged map in float32 whatever the profile, and judged so.
        logits = arrays(f"{DETECTIONS.name}/keypoint_logits", rows="detections")
        built.append(Unit("keypoint_logits", "keypoint_logits", decoded, logits, "float32", optional=True))
    return built


def postprocess(model: Mapping[str, Any]) -> Unit:
    """Detections -> results in pixels of the picture."""
    fields = ["pred_boxes", "scores", "pred_classes"]
    fields += ["pred_masks"] if model["MASK_ON"] else []
    fields += ["pred_keypoints", "pred_keypoint_heatmaps"] if model["KEYPOINT_ON"] else []
    if model["KEYPOINT_ON"] and conventions_of(model) != "detectron2":
        fields.append("keypoint_logits")
    inputs = tuple(f"{DETECTIONS.name}/{field}" for field in fields)
    if densepose_on(model):
        inputs += tuple(densepose_names(model))
        fields += [f"pred_densepose/{field}" for field in densepose_fields(model)]
    return Unit("postprocess", "postprocess", (*inputs, *SIZES), results(*fields), "discrete", tuple(fields))


def results(*fields: str) -> tuple[Array, ...]:
    """Fields of the resulting instances."""
    return tuple(Array(f"{RESULTS.name}/{f}", "results", _DRAWN.get(f, "values")) for f in fields)


_DRAWN: dict[str, Judge] = {"pred_masks": "masks", "pred_keypoints": "keypoints"}


PROPOSAL_GENERATORS: dict[str, Callable[[Mapping[str, Any]], tuple[list[Unit], str]]] = {
    "RPN": _rpn,
    "TridentRPN": _rpn,
    "PrecomputedProposals": _precomputed,
}
ROI_HEADS: dict[str, Callable[[Mapping[str, Any], str], list[Unit]]] = {
    "StandardROIHeads": _standard_box_units,
    "PointRendROIHeads": _standard_box_units,
    "DensePoseROIHeads": _standard_box_units,
    "CascadeROIHeads": _cascade_box_units,
    "TridentStandardROIHeads": _standard_box_units,
    **dict.fromkeys(_C4, _c4_box_units),
}
