"""detectron2's own modules and functions, one unit of `parity.core.units` at a time: one function per op.

detectron2 as a whole does not run in float64 (its NMS wants boxes and scores of one dtype) and has no door to put
a unit's input in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from parity.backends.detectron2_project_units import PROJECT_OPS, named, size
from parity.backends.detectron2_tokens import TOKEN_OPS, Answer
from parity.backends.torch_backend import flatten
from parity.core.swap import swapped
from parity.core.units import Unit


class _Loaded(Protocol):
    """A loaded model: `library` holds the parts of detectron2 that are used, `pixels` mean and deviation."""

    model: Any
    library: SimpleNamespace
    config: Mapping[str, Any]
    pixels: tuple[Tensor, Tensor]

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the continuous units."""
        ...

    def instances(self, resized: Tensor, **fields: Tensor) -> Any:
        """detectron2's Instances in network pixels; fields whose name ends in `boxes` become Boxes."""
        ...


Function = Callable[[_Loaded, Unit, Sequence[Tensor]], Sequence[Tensor]]

OPS: dict[str, Function] = {**TOKEN_OPS, **PROJECT_OPS}  # by name; see `op`


def op(function: Function) -> Function:
    """Makes a function (model, unit, inputs) -> outputs the op of its name, less the underscore."""
    OPS[function.__name__.removeprefix("_")] = function
    return function


@op
def _module(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [tensor for _, tensor in flatten(d.model.get_submodule(unit.args[0])(inputs[0]))]


@op
def _module_of_list(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [tensor for _, tensor in flatten(d.model.get_submodule(unit.args[0])(list(inputs)))]


@op
def _resize(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    node, image = d.config["INPUT"], inputs[0].cpu().numpy()
    image = image[:, :, ::-1] if node["FORMAT"] == "RGB" else image
    shortest, longest = node["MIN_SIZE_TEST"], node["MAX_SIZE_TEST"]
    transform = d.library.transforms.ResizeShortestEdge([shortest, shortest], longest).get_transform(image)
    return [torch.from_numpy(np.array(transform.apply_image(image)))]


@op
def _normalize(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    mean, std = d.pixels
    x = (inputs[0].permute(2, 0, 1).float() - mean) / std
    backbone = d.model.backbone
    # Panoptic-DeepLab may pad to another multiple than its backbone wants.
    multiple = max(getattr(d.model, "size_divisibility", 0), 0) or backbone.size_divisibility
    images = d.library.structures.ImageList.from_tensors(
        [x], multiple, padding_constraints=backbone.padding_constraints
    )
    return [images.tensor.to(d.torch_dtype)]


def _bottom_up(d: _Loaded) -> Any:
    return getattr(d.model.backbone, "bottom_up", d.model.backbone)


@op
def _res(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    x = inputs[0]
    for name in unit.args:
        x = getattr(_bottom_up(d), name)(x)
    return [x]


@op
def _fpn(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    below = "net" if hasattr(d.model.backbone, "net") else "bottom_up"
    with swapped(d.model.backbone, below, Answer(named(unit, inputs))):
        pyramid = d.model.backbone(inputs[0])
    return [pyramid[name] for name in unit.args]


@op
def _simfp(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [d.model.backbone.stages[unit.args[0]](inputs[0])]


@op
def _tower(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    path, level = unit.args
    tower = d.model.get_submodule(path)
    for module in tower:
        if hasattr(module, "_pos"):  # statistics of its own for every level, taken in turn
            module._pos = level
    return [tower(inputs[0])]


@op
def _fcos_out(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    head, (resized, image) = list(inputs[:-2]), inputs[-2:]
    count = len(head) // 3
    predictions = [head[:count], head[count : 2 * count], head[2 * count :]]
    (found,) = d.model.forward_inference(_image_list(d, head[0], resized), head[:count], predictions)
    found = d.library.postprocessing.detector_postprocess(found, *size(image))
    return [found.pred_boxes.tensor, found.scores, found.pred_classes]


def _image_list(d: _Loaded, like: Tensor, resized: Tensor) -> Any:
    return d.library.structures.ImageList(like, [size(resized)])


@op
def _rpn_proposals(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    count = (len(inputs) - 1) // 2
    logits, deltas = list(inputs[:count]), list(inputs[count : 2 * count])
    generator = d.model.proposal_generator
    # Of the features it reads the sizes only, which are those of the logits.
    features = dict(zip(generator.in_features, logits, strict=True))
    with swapped(generator, "rpn_head", Answer((logits, deltas))):
        (found,), _ = generator(_image_list(d, logits[0], inputs[-1]), features, None)
    return [found.objectness_logits, found.proposal_boxes.tensor]


@op
def _roi_pool(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    pooler = getattr(d.model.roi_heads, unit.args[0])
    return [pooler(list(inputs[:-1]), [d.library.structures.Boxes(inputs[-1])])]


@op
def _cascade_boxes(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    deltas, boxes, resized = inputs
    predictor, heads = d.model.roi_heads.box_predictor[unit.args[0] - 1], d.model.roi_heads
    moved = predictor.predict_boxes((None, deltas), [d.instances(resized, proposal_boxes=boxes)])
    (proposals,) = heads._create_proposals_from_boxes(moved, [size(resized)])
    return [proposals.proposal_boxes.tensor]


@op
def _res5(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [d.model.roi_heads.res5(inputs[0])]


@op
def _box_predictor(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return d.model.roi_heads.get_submodule(unit.args[0])(inputs[0].mean(dim=[2, 3]))


@op
def _detect(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    count, predictor = unit.args[0], d.model.roi_heads.box_predictor
    deltas, boxes, resized = inputs[count:]
    proposals = [d.instances(resized, proposal_boxes=boxes)]
    if not isinstance(predictor, nn.ModuleList):
        (found,), _ = predictor.inference((inputs[0], deltas), proposals)
    else:
        stages = zip(predictor, inputs[:count], strict=True)
        scores = [stage.predict_probs((logits, deltas), proposals)[0] for stage, logits in stages]  # pyright: ignore
        last = predictor[-1]
        moved = last.predict_boxes((inputs[count - 1], deltas), proposals)  # pyright: ignore
        limits = (last.test_score_thresh, last.test_nms_thresh, last.test_topk_per_image)
        mean = sum(scores) * (1.0 / count)
        (found,), _ = d.library.fast_rcnn.fast_rcnn_inference(moved, [mean], [size(resized)], *limits)
    return [found.pred_boxes.tensor, found.scores, found.pred_classes]


@op
def _mask_logits(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [d.model.roi_heads.mask_head.layers(inputs[0])]


@op
def _mask_select(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    found = d.library.structures.Instances((1, 1), pred_classes=inputs[1])
    d.library.mask_head.mask_rcnn_inference(inputs[0], [found])
    return [found.pred_masks]


@op
def _keypoint_lowres(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    x = inputs[0]
    for layer in d.model.roi_heads.keypoint_head:
        x = layer(x)
    return [x]


@op
def _keypoint_up(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    factor = d.model.roi_heads.keypoint_head.up_scale
    up = d.library.layers.interpolate
    return [up(inputs[0], scale_factor=factor, mode="bilinear", align_corners=False)]


@op
def _keypoints(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [d.library.keypoints.heatmaps_to_keypoints(inputs[0], inputs[1])[:, :, [0, 1, 3]]]


@op
def _retinanet_out(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    count, (resized, image) = (len(inputs) - 2) // 2, inputs[-2:]
    logits, deltas = list(inputs[:count]), list(inputs[count : 2 * count])
    images = _image_list(d, logits[0], resized)
    (found,) = d.model.forward_inference(images, deltas, [logits, deltas])
    found = d.library.postprocessing.detector_postprocess(found, *size(image))
    return [found.pred_boxes.tensor, found.scores, found.pred_classes]


@op
def _sem_seg(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [d.model.sem_seg_head(named(unit, inputs), None)[0]]


@op
def _sem_seg_out(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    logits, resized, image = inputs
    return [d.library.postprocessing.sem_seg_postprocess(logits[0], size(resized), *size(image))]


@op
def _postprocess(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    found = d.instances(inputs[-2], **dict(zip(unit.args, inputs, strict=False)))
    found = d.library.postprocessing.detector_postprocess(found, *size(inputs[-1]))
    return [getattr(value, "tensor", value) for value in (found.get(name) for name in unit.args)]


@op
def _proposals_out(d: _Loaded, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    logits, boxes, resized, image = inputs
    found = d.instances(resized, objectness_logits=logits, proposal_boxes=boxes)
    found = d.library.postprocessing.detector_postprocess(found, *size(image))
    return [found.objectness_logits, found.proposal_boxes.tensor]


def panoptic(d: _Loaded, inputs: Sequence[Tensor]) -> tuple[Tensor, list[dict[str, Any]]]:
    """The panoptic map of an image and its segments."""
    semantic, scores, classes, masks = inputs
    found = d.library.structures.Instances(
        semantic.shape[1:], scores=scores, pred_classes=classes, pred_masks=masks
    )
    combine = d.library.panoptic.combine_semantic_and_instance_outputs
    limits = (
        d.model.combine_overlap_thresh,
        d.model.combine_stuff_area_thresh,
        d.model.combine_instances_score_thresh,
    )
    return combine(found, semantic.argmax(dim=0), *limits)
