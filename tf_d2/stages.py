"""Single computations of a model on given inputs, in detectron2's layout.

Parity runs every computation twice: in its place, and on the inputs that the other framework recorded. The
vocabulary of operations is closed and shared by all backends (it is documented where the backends are).
Feature maps are NCHW numpy arrays here, boxes xyxy pixels of the network input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_d2.config import PanopticConfig
from tf_d2.instances import Instances
from tf_d2.modeling.batches import Proposals
from tf_d2.modeling.deeplab import in_turn
from tf_d2.modeling.keypoint_head import keypoint_inference
from tf_d2.modeling.mask_head import mask_inference
from tf_d2.modeling.model import D2Model
from tf_d2.modeling.network_input import network_size, to_network
from tf_d2.modeling.postprocess import DENSEPOSE, paste, resize_sem_seg, to_image
from tf_d2.modeling.retinanet import run_tower
from tf_d2.ops.keypoints import decode_keypoints
from tf_d2.ops.padding import padded_size
from tf_d2.ops.panoptic import Things, combine_semantic_and_instance_outputs
from tf_d2.ops.resize import resize_uint8, shortest_edge_size
from tf_d2.project_stages import PROJECT_OPS
from tf_d2.token_stages import TOKEN_OPS, layer_at

Arrays = Sequence[Any]  # numpy arrays, or eager tensors that run_op turns into arrays
Operation = Callable[[Any, tuple[Any, ...], list[np.ndarray]], Arrays]

OPS: dict[str, Operation] = {**TOKEN_OPS, **PROJECT_OPS}  # by name; see `op`


def op(function: Operation) -> Operation:
    """Makes a function (model, args, inputs) -> outputs the operation of its name, less the underscore."""
    OPS[function.__name__.removeprefix("_")] = function
    return function


def combine_panoptic(
    config: PanopticConfig, instances: Instances, labels: np.ndarray
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """detectron2's panoptic map from the instances and the ``(H, W)`` semantic classes of one image."""
    return combine_semantic_and_instance_outputs(
        Things(instances.scores, instances.pred_classes, instances.pred_masks),
        labels,
        overlap_threshold=config.overlap_thresh,
        stuff_area_thresh=config.stuff_area_limit,
        instances_score_thresh=config.instances_confidence_thresh,
    )


class StageArrays(dict[str, np.ndarray]):
    """Stage name -> array. A look-up may carry the prefix "steps/" that recorded files put before stage names."""

    def __missing__(self, name: str) -> np.ndarray:
        short = name.removeprefix("steps/")
        if short != name and dict.__contains__(self, short):
            return dict.__getitem__(self, short)
        raise KeyError(f"no stage {name!r}; this trace has {', '.join(self)}")

    def __contains__(self, name: object) -> bool:
        return dict.__contains__(self, name) or (
            isinstance(name, str) and dict.__contains__(self, name.removeprefix("steps/"))
        )


# Stages that are in detectron2's layout already although they have four axes.
_CHANNEL_FIRST = ("pred_masks", "pred_keypoint_heatmaps")


def stage_array(name: str, value: np.ndarray) -> np.ndarray:
    """A recorded stage in detectron2's layout: feature maps NHWC -> NCHW, everything else as it is."""
    return value if name.endswith(_CHANNEL_FIRST) else to_nchw(value)


def to_nchw(array: np.ndarray) -> np.ndarray:
    """NHWC -> NCHW for four axes; anything else as it is."""
    return np.ascontiguousarray(np.moveaxis(array, -1, 1)) if array.ndim == 4 else array


def run_op(model: D2Model, name: str, args: Sequence[Any], inputs: Arrays) -> list[np.ndarray]:
    """Compute one operation of a model.

    Args:
        name: of :data:`OPS`.
        args: plain values the operation needs besides its inputs.
        inputs: its input arrays in the order of the parity stage table.

    Returns:
        its outputs in the order of that table.

    Raises KeyError for an unknown operation.
    """
    if name not in OPS:
        raise KeyError(f"unknown operation {name!r}; known: {', '.join(OPS)}")
    return [np.asarray(x) for x in OPS[name](model, tuple(args), list(inputs))]


def _maps(model: D2Model, arrays: Arrays) -> list[tf.Tensor]:
    """NCHW arrays -> NHWC tensors of the model's dtype."""
    dtype = tf.as_dtype(model.compute_dtype)
    return [tf.cast(tf.constant(np.moveaxis(np.asarray(a), 1, -1)), dtype) for a in arrays]


def _float32(array: np.ndarray) -> tf.Tensor:
    return tf.constant(np.asarray(array, np.float32))


def _rows(model: D2Model, array: np.ndarray) -> tf.Tensor:
    return tf.cast(tf.constant(array), tf.as_dtype(model.compute_dtype))


def _size(image: np.ndarray) -> tf.Tensor:
    """(height, width) of an HWC image."""
    return tf.constant(image.shape[:2], tf.int32)


def _proposals(boxes: np.ndarray) -> Proposals:
    n = len(boxes)
    return Proposals(_float32(boxes), tf.zeros([n]), tf.zeros([n], tf.int32), tf.constant([n]))


def _tensors(value: Any) -> list[np.ndarray]:
    """Tensors inside nested lists and dicts, in order and in detectron2's layout."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [array for item in value for array in _tensors(item)]
    return [to_nchw(value.numpy())]


def _given(model: D2Model, array: np.ndarray) -> tf.Tensor:
    """A feature map (NCHW) or rows, as the model's layers take them."""
    return _maps(model, [array])[0] if array.ndim == 4 else _rows(model, array)


@op
def _module(model: D2Model, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    (x,) = inputs
    return _tensors(in_turn(layer_at(model, args[0]), _given(model, x)))  # or each of several layers


@op
def _module_of_list(model: D2Model, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return _tensors(layer_at(model, args[0])([_given(model, x) for x in inputs]))


@op
def _resize(model: D2Model, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    (image,) = inputs
    config = model.config.input
    height, width, _ = image.shape
    ordered = image[:, :, ::-1] if config.format == "RGB" else image
    if config.conventions.name != "detectron2":
        size = tf.constant(network_size(height, width, config))
        return [to_network(tf.constant(np.ascontiguousarray(ordered)), size, config).numpy()]
    height, width = shortest_edge_size(height, width, config.min_size_test, config.max_size_test)
    return [resize_uint8(tf.constant(np.ascontiguousarray(ordered)), height, width).numpy()]


@op
def _normalize(model: D2Model, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(model.prepare(tf.constant(inputs[0][None]), None).numpy())]


def _bottom_up(model: D2Model) -> Any:
    return getattr(model.backbone, "bottom_up", model.backbone)


@op
def _res(model: D2Model, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    (x,) = _maps(model, inputs)
    for stage in args:
        x = _bottom_up(model).run_stage(stage, x)
    return [to_nchw(x.numpy())]


@op
def _fpn(model: D2Model, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    backbone: Any = model.backbone
    of_one_map = hasattr(backbone, "pyramid")  # SimpleFeaturePyramid
    names = (backbone.config.in_feature,) if of_one_map else backbone.in_features
    features = dict(zip(names, _maps(model, inputs), strict=True))
    pyramid = (backbone.pyramid if of_one_map else backbone.top_down)(features)
    return [to_nchw(pyramid[name].numpy()) for name in args]


@op
def _rpn_proposals(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    head, sizes, pictures = _sizes(model, inputs)
    maps = [tf.constant(np.moveaxis(a, 1, -1).astype(np.float32)) for a in head]
    half = len(maps) // 2
    if model.config.conventions.clip_to_padded:
        padded = padded_size(sizes[:, 0], sizes[:, 1], model.size_divisibility, 0)
        arguments = tf.stack(padded, axis=1), model.factors(pictures)
    else:
        arguments = (sizes,)
    found = model.proposal_generator.predict_proposals(maps[:half], maps[half:], *arguments)
    return [found.logits, found.boxes]


def _sizes(model: Any, inputs: list[np.ndarray]) -> tuple[list[np.ndarray], tf.Tensor, tf.Tensor | None]:
    """Inputs without pictures, and (height, width) ``[1, 2]`` of the network image and, with Detectron's conventions
    alone, of the picture."""
    if model.config.conventions.boxes_in_picture:
        return inputs[:-2], _size(inputs[-2])[None], _size(inputs[-1])[None]
    return inputs[:-1], _size(inputs[-1])[None], None


@op
def _roi_pool(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    heads = model.roi_heads
    *features, boxes = inputs
    proposals = _proposals(boxes)
    pooler = heads.box_pooler if args[0] == "pooler" else getattr(heads, args[0])
    return [to_nchw(pooler(_maps(model, features), proposals.boxes, proposals.image_index).numpy())]


@op
def _cascade_boxes(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    deltas, boxes, image = inputs
    return [model.roi_heads.refine(args[0], _float32(deltas), _proposals(boxes), _size(image)[None]).boxes]


@op
def _res5(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(model.roi_heads.run_res5(_maps(model, inputs)[0]).numpy())]


@op
def _box_predictor(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return list(model.roi_heads.predict(_maps(model, inputs)[0]))


@op
def _detect(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    (*scores, deltas, boxes), sizes, pictures = _sizes(model, inputs)
    stage_scores, regions = [_float32(s) for s in scores], _proposals(boxes)
    if pictures is not None:
        sizes, regions = pictures, regions._replace(boxes=regions.boxes / model.factors(pictures))
    found = model.roi_heads.select(stage_scores, _float32(deltas), regions, sizes, batch_size=1)
    return [found.boxes, found.scores, found.classes]


@op
def _network_boxes(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    boxes, image = inputs
    return [_float32(boxes) * model.factors(_size(image)[None])]


@op
def _mask_logits(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(model.roi_heads.mask_head(_maps(model, inputs)[0]).numpy())]


@op
def _mask_select(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    logits, classes = inputs
    return [mask_inference(_maps(model, [logits])[0], tf.constant(classes))[:, None]]


@op
def _keypoint_lowres(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(model.roi_heads.keypoint_head.lowres(_maps(model, inputs)[0]).numpy())]


@op
def _keypoint_up(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(model.roi_heads.keypoint_head.upsample(_maps(model, inputs)[0]).numpy())]


@op
def _keypoints(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    heatmaps, boxes = inputs
    if model.config.conventions.name == "detectron2":
        return [decode_keypoints(_float32(heatmaps), _float32(boxes))]
    return [_decoded(model, inputs)["pred_keypoints"]]


@op
def _keypoint_logits(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [_decoded(model, inputs)["keypoint_logits"]]


def _decoded(model: Any, inputs: list[np.ndarray]) -> dict[str, tf.Tensor]:
    heatmaps, boxes = inputs
    return keypoint_inference(model.config.roi_heads.keypoint_head, _float32(heatmaps), _float32(boxes))


@op
def _sem_seg(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    names = model.config.sem_seg_head.in_features
    features = dict(zip(names, _maps(model, inputs), strict=True))
    return [to_nchw(model.sem_seg_head(features).numpy())]


def _raw(boxes: np.ndarray, **fields: np.ndarray) -> dict[str, tf.Tensor]:
    n = len(boxes)
    raw = {name: tf.constant(value) for name, value in fields.items()}
    return {
        **raw,
        "boxes": _float32(boxes),
        "image_index": tf.zeros([n], tf.int32),
        "counts": tf.constant([n]),
    }


@op
def _postprocess(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    *values, network, image = inputs
    fields = dict(zip(args, values, strict=True))
    raw = _raw(
        fields.pop("pred_boxes"),
        scores=fields.pop("scores").astype(np.float32),
        classes=fields.pop("pred_classes").astype(np.int64),
        **{name: _as_raw(name, value) for name, value in fields.items()},
    )
    done = {k: v.numpy() for k, v in model.to_image(raw, _size(network), _size(image)).items()}
    done = paste(done, image.shape[:2], model.config.conventions, model.config.mask_threshold)
    return [to_nchw(done[name]) if name.startswith(DENSEPOSE) else done[name] for name in args]


def _as_raw(name: str, value: np.ndarray) -> np.ndarray:
    """A field of detectron2's instances as a model returns it."""
    if name.startswith(DENSEPOSE):
        return np.moveaxis(value, 1, -1)
    return value[:, 0] if name == "pred_masks" else value


@op
def _proposals_out(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    logits, boxes, network, image = inputs
    if model.config.conventions.boxes_in_picture:
        boxes = _float32(boxes) / model.factors(_size(image)[None])
    done = model.to_image(_raw(boxes, objectness_logits=logits), _size(network), _size(image))
    return [done["objectness_logits"], done["proposal_boxes"]]


@op
def _retinanet_out(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    *head, network, image = inputs
    maps = [tf.constant(np.moveaxis(a, 1, -1).astype(np.float32)) for a in head]
    half = len(maps) // 2
    pictures = _size(image)[None] if model.config.conventions.boxes_in_picture else None
    limits = _size(network)[None] if pictures is None else pictures
    found = model.decoder(maps[:half], maps[half:], limits, model.factors(pictures))
    done = model.to_image(dict(found._asdict()), _size(network), _size(image))
    return [done["pred_boxes"], done["scores"], done["pred_classes"]]


@op
def _simfp(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(model.backbone.level(args[0], _maps(model, inputs)[0]).numpy())]


@op
def _tower(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    path, level = args
    return [to_nchw(run_tower(layer_at(model, path), _maps(model, inputs)[0], level).numpy())]


@op
def _fcos_out(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    *head, network, image = inputs
    maps = [tf.constant(np.moveaxis(a, 1, -1).astype(np.float32)) for a in head]
    third = len(maps) // 3
    found = model.decoder.detect(maps[:third], maps[third : 2 * third], maps[2 * third :])
    done = to_image(dict(found._asdict()), _size(network), _size(image))
    return [done["pred_boxes"], done["scores"], done["pred_classes"]]


@op
def _sem_seg_out(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    logits, network, image = inputs
    resized = resize_sem_seg(_maps(model, [logits])[0], _size(network), _size(image))
    return [np.moveaxis(resized[0].numpy(), -1, 0)]


@op
def _panoptic(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    sem_seg, scores, classes, masks = inputs
    instances = Instances(masks.shape[1:], scores=scores, pred_classes=classes, pred_masks=masks)
    segments, info = combine_panoptic(model.config.panoptic, instances, sem_seg.argmax(axis=0))
    return [segments, np.array(json.dumps(info))]
