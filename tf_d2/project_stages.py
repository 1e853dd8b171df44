"""Single computations of the models of detectron2's projects: PointRend, DeepLab, Panoptic-DeepLab, TensorMask.

See `tf_d2.stages`, of which this is a part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_d2.modeling.batches import Detections
from tf_d2.modeling.mask_head import mask_inference
from tf_d2.modeling.postprocess import masks_of_segments, paste
from tf_d2.modeling.results import detection_outputs
from tf_d2.ops.elementary import sigmoid
from tf_d2.token_stages import layer_at

Arrays = Sequence[Any]
PROJECT_OPS: dict[str, Callable[[Any, tuple[Any, ...], list[np.ndarray]], Arrays]] = {}


def _op(
    function: Callable[[Any, tuple[Any, ...], list[np.ndarray]], Arrays],
) -> Callable[[Any, tuple[Any, ...], list[np.ndarray]], Arrays]:
    PROJECT_OPS[function.__name__.removeprefix("_")] = function
    return function


def _maps(model: Any, arrays: Arrays, dtype: Any = None) -> list[tf.Tensor]:
    """NCHW arrays -> NHWC tensors of the model's dtype, or of another."""
    dtype = tf.as_dtype(dtype or model.compute_dtype)
    return [tf.cast(tf.constant(np.moveaxis(np.asarray(a), 1, -1)), dtype) for a in arrays]


def _nchw(x: tf.Tensor) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x.numpy(), -1, 1))


def _size(image: np.ndarray) -> tf.Tensor:
    return tf.constant(image.shape[:2], tf.int32)


# ---- PointRend -------------------------------------------------------------------------------------------


def _boxes_on_features(
    model: Any, inputs: list[np.ndarray], after: int
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Features by name, boxes and their image, of a unit of PointRend; ``after``: inputs behind the boxes."""
    heads = model.roi_heads
    *features, boxes = inputs[: len(inputs) - after]
    named = dict(zip(heads.feature_names, _maps(model, features), strict=True))
    return named, tf.constant(np.asarray(boxes, np.float32)), tf.zeros([len(boxes)], tf.int32)


def _seen(model: Any, array: np.ndarray) -> tf.Tensor:
    if array.ndim == 4:
        return _maps(model, [array])[0]
    return tf.cast(tf.constant(array), tf.as_dtype(model.compute_dtype))


@_op
def _mask_look(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    y = model.roi_heads.mask_head.look(*_boxes_on_features(model, inputs, 0))
    return [_nchw(y) if len(y.shape) == 4 else y]


@_op
def _mask_points(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    head, seen = model.roi_heads.mask_head, _seen(model, inputs[-1])
    logits = head.first_points(*_boxes_on_features(model, inputs, 1), seen)
    return [np.moveaxis(logits.numpy(), -1, 1)]


@_op
def _mask_refine(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    *_, classes, seen = inputs
    features, boxes, index = _boxes_on_features(model, inputs, 2)
    counts, scores = tf.constant([len(boxes)]), tf.zeros([len(boxes)])
    found = Detections(boxes, scores, tf.constant(classes), index, counts)
    head = model.roi_heads.mask_head
    logits = head.refine(features, found, _seen(model, seen))
    return [mask_inference(logits[:, :, :, None], found.classes)[:, None]]


@_op
def _sem_seg_coarse(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    head = model.sem_seg_head.coarse_sem_seg_head
    names = model.config.sem_seg_head.coarse_sem_seg_head.in_features
    return [_nchw(head.predict(dict(zip(names, _maps(model, inputs), strict=True))))]


@_op
def _sem_seg_refine(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    fine, coarse = _maps(model, inputs)
    return [_nchw(model.sem_seg_head.refine(fine, coarse))]


# ---- DeepLab, Panoptic-DeepLab ---------------------------------------------------------------------------


@_op
def _decode(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    head, _, feature, _ = args[0].split(".")
    return [_nchw(layer_at(model, head).fuse(feature, *_maps(model, inputs)))]


@_op
def _enlarge(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    path, lengths = args
    head, (x,) = layer_at(model, path), _maps(model, inputs)
    return [_nchw(head.enlarge_lengths(x) if lengths else head.enlarge(x))]


@_op
def _panoptic_deeplab(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    *maps, network, image = inputs
    raw = dict(zip(("sem_seg", "center", "offset"), _maps(model, maps, tf.float32), strict=True))
    fields = {k: v.numpy() for k, v in model.to_image(raw, _size(network), _size(image)).items()}
    segments = fields.pop("panoptic_seg")
    empty = {
        "pred_boxes": np.zeros([0, 4], np.float32),
        "scores": np.zeros([0], np.float32),
        "pred_classes": np.zeros([0], np.int64),
        "pred_masks": np.zeros([0, *segments.shape], bool),
    }
    found = empty | masks_of_segments(fields, segments) if args else {}
    return [segments, *(found[name] for name in args)]


# ---- TensorMask ------------------------------------------------------------------------------------------


@_op
def _mask_fuse(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [_nchw(model.head.fuse(args[0], *_maps(model, inputs)))]


@_op
def _mask_windows(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    level, anchor = args
    return [_nchw(model.head.window_map(_maps(model, inputs)[0], level, anchor))]


@_op
def _tensor_mask_out(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    *maps, network, image = inputs
    config, count = model.config.model, len(model.config.model.in_features)
    dense = _maps(model, maps[: 2 * count], tf.float32)
    found, anchors, cells = model.decoder(dense[:count], dense[count:])
    raw = detection_outputs(found)
    if config.mask_on:
        masks, sides = _windows_at(config.largest_mask, maps[2 * count :], cells, len(config.mask_sizes))
        raw |= {"pred_masks": masks, "mask_sides": sides, "mask_boxes": anchors}
    fields = {k: v.numpy() for k, v in model.to_image(raw, _size(network), _size(image)).items()}
    fields = paste(fields, image.shape[:2])
    return [fields[name] for name in args]


def _windows_at(
    largest: int, windows: list[np.ndarray], cells: Any, each: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Masks ``[N, largest, largest]`` and their sides, read from the maps of all windows (``each`` per level)."""
    places = np.stack([c.numpy() for c in cells], axis=1)
    masks, sides = np.zeros([len(places), largest, largest], np.float32), np.zeros([len(places)], np.int32)
    for i, (level, y, x, anchor) in enumerate(places):
        logits = windows[level * each + anchor][0, :, y, x]
        sides[i] = side = round(len(logits) ** 0.5)
        probability = sigmoid(tf.constant(logits.astype(np.float32)))
        masks[i, :side, :side] = probability.numpy().reshape(side, side)
    return tf.constant(masks), tf.constant(sides)
