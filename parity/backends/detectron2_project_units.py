"""What detectron2's projects compute, one unit of `parity.core.units` at a time: PointRend, DeepLab, Panoptic-DeepLab,
TensorMask."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.backends.detectron2_projects import beside
from parity.backends.detectron2_tokens import Answer
from parity.core.swap import swapped
from parity.core.units import Unit

PROJECT_OPS: dict[str, Callable[[Any, Any, Sequence[Tensor]], Sequence[Tensor]]] = {}


def _op(
    function: Callable[[Any, Any, Sequence[Tensor]], Sequence[Tensor]],
) -> Callable[..., Sequence[Tensor]]:
    PROJECT_OPS[function.__name__.removeprefix("_")] = function
    return function


def size(image: Tensor) -> tuple[int, int]:
    """(height, width) of an image (H, W, 3)."""
    return image.shape[0], image.shape[1]


def named(unit: Unit, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Inputs by the last part of their names: features."""
    return {name.rsplit("/", 1)[-1]: x for name, x in zip(unit.inputs, inputs, strict=True)}


# ---- PointRend -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _points_in(d: Any, head: Any) -> Iterator[None]:
    """PointRend's points in the dtype of the features; it makes them in torch's default or in float32."""
    modules = [beside(head, name) for name in ("mask_head", "semantic_seg")]
    name, before = "get_uncertain_point_coords_on_grid", torch.get_default_dtype()
    original = getattr(modules[0], name)

    def uncertain(*arguments: Any) -> tuple[Tensor, Tensor]:
        index, points = original(*arguments)
        return index, points.to(d.torch_dtype)

    torch.set_default_dtype(d.torch_dtype)
    try:
        with contextlib.ExitStack() as stack:
            for module in modules:
                stack.enter_context(swapped(module, name, uncertain))
            yield
    finally:
        torch.set_default_dtype(before)


def _look(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[Any]]:
    """Features by name, and the boxes, of a unit of PointRend's mask head."""
    count = next(i for i, name in enumerate(unit.inputs) if name.endswith("pred_boxes"))
    names = [name.rsplit("/", 1)[-1] for name in unit.inputs[:count]]
    return dict(zip(names, inputs[:count], strict=True)), [d.library.structures.Boxes(inputs[count])]


@_op
def _mask_look(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    head = d.model.roi_heads.mask_head
    with _points_in(d, head):
        pooled = head._roi_pooler(*_look(d, unit, inputs))
    return [getattr(head, unit.outputs[0].rsplit(".", 1)[-1])(pooled)]


@_op
def _mask_points(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    head = d.model.roi_heads.mask_head
    points = beside(head, "point_features")
    features, boxes = _look(d, unit, inputs)
    with _points_in(d, head):
        side = head.mask_point_subdivision_init_resolution
        grid = points.generate_regular_grid_point_coords(len(inputs[-1]), side, inputs[-1].device)
        fine = head._point_pooler(features, boxes, grid)
        return [head._get_point_logits(fine, grid, inputs[-1])]


@_op
def _mask_refine(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    features, (boxes,) = _look(d, unit, inputs)
    found = d.library.structures.Instances((1, 1), pred_boxes=boxes, pred_classes=inputs[-2])
    head = d.model.roi_heads.mask_head
    with _points_in(d, head):
        head._subdivision_inference(features, inputs[-1], [found])
    return [found.pred_masks]


@_op
def _sem_seg_coarse(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [d.model.sem_seg_head.coarse_sem_seg_head.layers(named(unit, inputs))]


@_op
def _sem_seg_refine(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    head = d.model.sem_seg_head
    features = {n.rsplit("/", 1)[-1]: x for n, x in zip(unit.inputs[:-1], inputs[:-1], strict=True)}
    head.coarse_sem_seg_head.layers = lambda _: inputs[-1]
    try:
        with _points_in(d, head):
            return [head(features)[0]]
    finally:
        del head.coarse_sem_seg_head.layers


# ---- DeepLab, Panoptic-DeepLab ---------------------------------------------------------------------------


@_op
def _decode(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    low, above = inputs
    above = F.interpolate(above, size=low.shape[2:], mode="bilinear", align_corners=False)
    return [d.model.get_submodule(unit.args[0])(torch.cat([low, above], dim=1))]


@_op
def _enlarge(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    path, lengths = unit.args
    stride = d.model.get_submodule(path).common_stride
    y = F.interpolate(inputs[0], scale_factor=stride, mode="bilinear", align_corners=False)
    return [y * stride if lengths else y]


@_op
def _panoptic_deeplab(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    logits, center, offset, resized, image = inputs
    model, (height, width) = d.model, size(image)
    given = {"image": resized.permute(2, 0, 1), "height": height, "width": width}
    with (
        swapped(model, "sem_seg_head", Answer((logits, {}))),
        swapped(model, "ins_embed_head", Answer((center, offset, {}, {}))),
        _without_forward(model.backbone),
    ):
        (result,) = model([given])
    found = result.get("instances")
    if found is None:  # detectron2 leaves them out where there are none
        empty = d.instances(image, pred_boxes=torch.zeros(0, 4), scores=torch.zeros(0))
        empty.pred_classes, empty.pred_masks = torch.zeros(0).long(), torch.zeros(0, height, width).bool()
        found = empty
    values = [getattr(value, "tensor", value) for value in (found.get(name) for name in unit.args)]
    return [result["panoptic_seg"][0], *values]


@contextlib.contextmanager
def _without_forward(module: Any) -> Iterator[None]:
    """The module returns no features, while its attributes stay."""
    module.forward = lambda _: {}
    try:
        yield
    finally:
        del module.forward


# ---- TensorMask ------------------------------------------------------------------------------------------


@_op
def _mask_fuse(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    (x, finest), (level,) = inputs, unit.args
    height, width = finest.shape[2:]
    if level:
        x = F.interpolate(x, scale_factor=2.0**level, mode="bilinear", align_corners=False)
    return [d.model.head.mask_fuse(x[:, :, :height, :width] + finest)]


@_op
def _mask_windows(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    head, (level, anchor) = d.model.head, unit.args
    windows = getattr(head, f"mask_pred_{head.mask_sizes[anchor]:02d}")(inputs[0])
    if not head.align_on:
        return [windows]
    align = getattr(head, f"align2nat_{level:02d}") if head.bipyramid_on else head.align2nat
    return [align(windows)]


@_op
def _tensor_mask_out(d: Any, unit: Unit, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    model, (*maps, resized, image) = d.model, inputs
    count = len(model.in_features)
    logits, deltas, windows = maps[:count], maps[count : 2 * count], maps[2 * count :]
    masks = [windows[k : k + model.num_anchors] for k in range(0, len(windows), model.num_anchors)] or None
    anchors, _, indexes = model.anchor_generator(logits)
    images = d.library.structures.ImageList(logits[0], [size(resized)])
    ((found, (its_masks, its_anchors)),) = model.inference(logits, deltas, masks, anchors, indexes, images)
    if its_anchors is not None:
        its_anchors.tensor = its_anchors.tensor.float()  # which a float64 model makes in its own dtype
    found = beside(model, "arch")._postprocess(found, (its_masks, its_anchors), *size(image))
    if "pred_masks" in unit.args and not found.has("pred_masks"):
        found.pred_masks = torch.zeros(0, *size(image)).bool()
    return [getattr(value, "tensor", value) for value in (found.get(name) for name in unit.args)]
