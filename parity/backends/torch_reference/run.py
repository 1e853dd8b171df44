"""Running a model unit by unit: one function per op of `parity.core.units`.

Every function takes the model and the unit's input arrays, in the order of the table, and returns the
unit's outputs in the order of the table. A free run feeds each unit with what the units before it returned;
a teacher-forced run feeds it with somebody else's arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from parity.core.network_size import network_size
from parity.core.units import Unit

from . import boxes as box_ops
from . import selection
from .backbone import FPN, ResNet
from .regnet import RegNet

Function = Callable[[Any, Unit, Sequence[Tensor]], Sequence[Tensor]]

OPS: dict[str, Function] = {}  # by name; see `op`


def op(function: Function) -> Function:
    """Makes a function (model, unit, inputs) -> outputs the op of its name, less the underscore."""
    OPS[function.__name__.removeprefix("_")] = function
    return function


def run_unit(
    model: Any, unit: Unit, inputs: Sequence[Tensor]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """One unit: its outputs by stage name, and the segments of a panoptic unit (else an empty list).

    inputs: in the order of `unit.inputs`, on the model's device. Floating point ones are cast as the unit's
    kind says.
    """
    dtype = model.dtype if unit.kind == "continuous" else torch.float32
    cast = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    if unit.op == "roi_pool":
        cast[-1] = inputs[-1].float()
    with torch.inference_mode():
        if unit.op == "panoptic":
            result, segments = _panoptic(model, cast)
            return {unit.outputs[0]: result}, segments
        outputs = model.ops[unit.op](model, unit, cast)
    if len(outputs) != len(unit.outputs):
        raise AssertionError(
            f"unit {unit.name} returned {len(outputs)} arrays for {len(unit.outputs)} stages"
        )
    return dict(zip(unit.outputs, outputs, strict=True)), []


@op
def _module(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return flat(model.get_submodule(unit.args[0])(inputs[0]))


@op
def _module_of_list(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return flat(model.get_submodule(unit.args[0])(list(inputs)))


def flat(value: Any) -> list[Tensor]:
    """Tensors inside nested lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value
    return [tensor for item in items for tensor in flat(item)]


# ------------------------------------------------------------------------------------------------- image


@op
def _resize(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    config = model.config["INPUT"]
    if config["FORMAT"] not in ("BGR", "RGB", "L"):
        raise ValueError(f"INPUT.FORMAT {config['FORMAT']!r} is not supported; supported: BGR, RGB, L")
    image = in_format(inputs[0], config["FORMAT"])
    height, width = network_size(image.shape[:2], config["MIN_SIZE_TEST"], config["MAX_SIZE_TEST"])
    if min(height, width) < 1:
        raise ValueError(
            f"an image of {image.shape[1]}x{image.shape[0]} pixels would be resized to {width}x{height}"
        )
    if (height, width) != image.shape[:2]:
        grey = image.shape[2] == 1
        picture = Image.fromarray(np.ascontiguousarray(image[:, :, 0] if grey else image))
        image = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        image = image[:, :, None] if grey else image
    return [torch.from_numpy(np.array(image)).to(inputs[0].device)]


def in_format(image: Tensor, form: str) -> np.ndarray:
    """A BGR picture (H, W, C) in the order of channels that INPUT.FORMAT names."""
    pixels = image.cpu().numpy()
    return pixels[:, :, ::-1] if form == "RGB" else pixels


@op
def _normalize(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    node, x = model.config["MODEL"], standardised(model, inputs[0])
    height, width = x.shape[1:]
    if isinstance(model.backbone, FPN):
        # Not a key of detectron2's YAML but an argument of its LazyConfig. A larger picture is cut.
        side = node["FPN"].get("SQUARE_PAD", 0)
        height, width = (side, side) if side > 0 else (height, width)
        multiple = 2 ** model.backbone.levels[-1]
        height, width = (-(-size // multiple) * multiple for size in (height, width))
    return [on_canvas(x, height, width).to(model.dtype)]


def standardised(model: Any, image: Tensor) -> Tensor:
    """A picture (H, W, C) less the mean, over the deviation: float32 (C, H, W)."""
    x = image.permute(2, 0, 1).float()
    mean, std = (
        torch.tensor(model.config["MODEL"][key], device=x.device).view(-1, 1, 1)
        for key in ("PIXEL_MEAN", "PIXEL_STD")
    )
    return (x - mean) / std


def on_canvas(x: Tensor, height: int, width: int) -> Tensor:
    """(C, h, w) -> (1, C, height, width): zeros right and below; what is larger is cut."""
    return functional.pad(x, (0, width - x.shape[2], 0, height - x.shape[1]))[None]


def size_of(image: Tensor) -> tuple[int, int]:
    """(height, width) of a picture (H, W, C)."""
    return image.shape[0], image.shape[1]


# ---------------------------------------------------------------------------------------------- backbone


def _bottom_up(model: Any) -> ResNet | RegNet:
    return model.backbone.bottom_up if isinstance(model.backbone, FPN) else model.backbone


@op
def _res(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    x = inputs[0]
    for name in unit.args:
        x = _bottom_up(model).get_submodule(name)(x)
    return [x]


def _named(unit: Unit, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Inputs by the last part of their stage name (`res5`, `p3`)."""
    return {name.rsplit("/", 1)[-1]: x for name, x in zip(unit.inputs, inputs, strict=True)}


@op
def _fpn(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    pyramid = model.backbone(_named(unit, inputs))
    return [pyramid[name] for name in unit.args]


# --------------------------------------------------------------------------------------------------- RPN


def _anchors(model: Any, features: Sequence[str], maps: Sequence[Tensor]) -> list[Tensor]:
    generator = model.config["MODEL"]["ANCHOR_GENERATOR"]
    return [
        box_ops.level_anchors(generator, level, (x.shape[2], x.shape[3]), model.shapes[name][1]).to(x.device)
        for level, (name, x) in enumerate(zip(features, maps, strict=True))
    ]


@op
def _rpn_proposals(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    node, count = model.config["MODEL"], (len(inputs) - 1) // 2
    logits, deltas = inputs[:count], inputs[count : 2 * count]
    anchors = _anchors(model, node["RPN"]["IN_FEATURES"], logits)
    return selection.proposals(logits, deltas, anchors, size_of(inputs[-1]), node)


# --------------------------------------------------------------------------------------------- ROI heads

POOLERS = {
    "box_pooler": "ROI_BOX_HEAD",
    "pooler": "ROI_BOX_HEAD",
    "mask_pooler": "ROI_MASK_HEAD",
    "keypoint_pooler": "ROI_KEYPOINT_HEAD",
}


@op
def _roi_pool(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    node = model.config["MODEL"]
    strides = [model.shapes[name][1] for name in node["ROI_HEADS"]["IN_FEATURES"]]
    return [box_ops.pool(inputs[:-1], strides, inputs[-1], node[POOLERS[unit.args[0]]])]


def _box_weights(model: Any, stage: int) -> Sequence[float]:
    node = model.config["MODEL"]
    if node["ROI_HEADS"]["NAME"] == "CascadeROIHeads":
        return node["ROI_BOX_CASCADE_HEAD"]["BBOX_REG_WEIGHTS"][stage]
    return node["ROI_BOX_HEAD"]["BBOX_REG_WEIGHTS"]


@op
def _cascade_boxes(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    deltas, boxes, image = inputs
    moved = box_ops.decode(deltas, boxes, _box_weights(model, unit.args[0] - 1))
    return [box_ops.clip(moved, size_of(image))]


@op
def _res5(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [model.roi_heads.res5(inputs[0])]


@op
def _box_predictor(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return model.roi_heads.get_submodule(unit.args[0])(inputs[0].mean(dim=[2, 3]))


@op
def _detect(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    node, count = model.config["MODEL"], unit.args[0]
    deltas, boxes, image = inputs[count:]
    sigmoid = node["ROI_BOX_HEAD"]["USE_SIGMOID_CE"]
    scores = [selection.probabilities(x, sigmoid) for x in inputs[:count]]
    mean = scores[0] if count == 1 else sum(scores) * (1.0 / count)
    moved = box_ops.decode(deltas, boxes, _box_weights(model, count - 1))
    limit = model.config["TEST"]["DETECTIONS_PER_IMAGE"]
    return selection.detections(mean, moved, size_of(image), node, limit)


@op
def _mask_logits(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [model.roi_heads.mask_head(inputs[0])]


@op
def _mask_select(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    logits, classes = inputs
    if logits.shape[1] == 1:
        return [logits.sigmoid()]
    rows = torch.arange(len(logits), device=logits.device)
    return [logits[rows, classes[: len(logits)]][:, None].sigmoid()]


@op
def _keypoint_lowres(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [model.roi_heads.keypoint_head(inputs[0])]


@op
def _keypoint_up(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [functional.interpolate(inputs[0], scale_factor=2, mode="bilinear", align_corners=False)]


@op
def _keypoints(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [selection.keypoints(inputs[0], inputs[1][: len(inputs[0])])]


# ------------------------------------------------------------------------------- other heads and results


@op
def _retinanet_out(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    node, count = model.config["MODEL"], (len(inputs) - 2) // 2
    logits, deltas = inputs[:count], inputs[count : 2 * count]
    anchors = _anchors(model, node["RETINANET"]["IN_FEATURES"], deltas)
    limit = model.config["TEST"]["DETECTIONS_PER_IMAGE"]
    found = selection.dense_detections(logits, deltas, anchors, node, limit)
    boxes, scores, classes = found
    fields = {"pred_boxes": boxes, "scores": scores, "pred_classes": classes}
    return list(selection.instances_to_image(fields, size_of(inputs[-2]), size_of(inputs[-1])).values())


@op
def _sem_seg(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return model.sem_seg_head(_named(unit, inputs))


@op
def _sem_seg_out(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    logits, network, image = inputs
    height, width = size_of(network)
    logits = logits[:, :, :height, :width]
    return [functional.interpolate(logits, size=size_of(image), mode="bilinear", align_corners=False)[0]]


@op
def _postprocess(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    # A recorded trace may hold the first rows of the masks only; then only those detections come out.
    rows = min(len(x) for x in inputs[:-2])
    fields = {name: x[:rows] for name, x in zip(unit.args, inputs, strict=False)}
    result = selection.instances_to_image(fields, size_of(inputs[-2]), size_of(inputs[-1]))
    return [result[name] for name in unit.args]


@op
def _proposals_out(model: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    logits, boxes, network, image = inputs
    boxes, keep = selection.rescale(boxes, size_of(network), size_of(image))
    return [logits[keep], boxes[keep]]


def _panoptic(model: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, list[dict[str, Any]]]:
    semantic, scores, classes, masks = inputs
    combine: Mapping[str, Any] = model.config["MODEL"]["PANOPTIC_FPN"]["COMBINE"]
    return selection.panoptic(semantic, masks, scores, classes, combine)
