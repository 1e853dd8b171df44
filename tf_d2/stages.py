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
from tf_d2.modeling.mask_head import mask_inference
from tf_d2.modeling.model import D2Model
from tf_d2.modeling.postprocess import paste, resize_sem_seg, to_image
from tf_d2.ops.keypoints import decode_keypoints
from tf_d2.ops.panoptic import combine_semantic_and_instance_outputs
from tf_d2.ops.resize import resize_uint8, shortest_edge_size

Arrays = Sequence[Any]  # numpy arrays, or eager tensors that run_op turns into arrays


def combine_panoptic(
    config: PanopticConfig, instances: Instances, labels: np.ndarray
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """detectron2's panoptic map from the instances and the ``(H, W)`` semantic classes of one image."""
    return combine_semantic_and_instance_outputs(
        instances.scores,
        instances.pred_classes,
        instances.pred_masks,
        labels,
        overlap_threshold=config.overlap_thresh,
        stuff_area_thresh=config.stuff_area_limit,
        instances_score_thresh=config.instances_confidence_thresh,
    )


class Trace(dict[str, np.ndarray]):
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


def run_op(model: D2Model, op: str, args: Sequence[Any], inputs: Arrays) -> list[np.ndarray]:
    """Compute one operation of a model.

    Args:
        op: a name of :data:`OPS`.
        args: plain values the operation needs besides its inputs.
        inputs: its input arrays in the order of the parity stage table.

    Returns:
        its outputs in the order of that table.

    Raises KeyError for an unknown operation.
    """
    if op not in OPS:
        raise KeyError(f"unknown operation {op!r}; known: {', '.join(OPS)}")
    return [np.asarray(x) for x in OPS[op](model, tuple(args), list(inputs))]


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


def _resize(model: D2Model, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    (image,) = inputs
    config = model.config.input
    height, width, _ = image.shape
    height, width = shortest_edge_size(height, width, config.min_size_test, config.max_size_test)
    ordered = image[:, :, ::-1] if config.format == "RGB" else image
    return [resize_uint8(tf.constant(np.ascontiguousarray(ordered)), height, width).numpy()]


def _normalize(model: D2Model, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(model.prepare(tf.constant(inputs[0][None]), None).numpy())]


def _bottom_up(model: D2Model) -> Any:
    return getattr(model.backbone, "bottom_up", model.backbone)


def _stem(model: D2Model, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(_bottom_up(model).stem(_maps(model, inputs)[0]).numpy())]


def _res(model: D2Model, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    (x,) = _maps(model, inputs)
    for stage in args:
        x = _bottom_up(model).run_stage(stage, x)
    return [to_nchw(x.numpy())]


def _fpn(model: D2Model, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    backbone: Any = model.backbone
    features = dict(zip(backbone.in_features, _maps(model, inputs), strict=True))
    pyramid = backbone.top_down(features)
    return [to_nchw(pyramid[name].numpy()) for name in args]


def _rpn_head(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    logits, deltas = model.proposal_generator.rpn_head(_maps(model, inputs))
    return [to_nchw(x.numpy()) for x in (*logits, *deltas)]


def _rpn_proposals(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    *head, image = inputs
    maps = [tf.constant(np.moveaxis(a, 1, -1).astype(np.float32)) for a in head]
    half = len(maps) // 2
    found = model.proposal_generator.predict_proposals(maps[:half], maps[half:], _size(image)[None])
    return [found.logits, found.boxes]


def _roi_pool(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    heads = model.roi_heads
    *features, boxes = inputs
    proposals = _proposals(boxes)
    pooler = heads.box_pooler if args[0] == "pooler" else getattr(heads, args[0])
    return [to_nchw(pooler(_maps(model, features), proposals.boxes, proposals.image_index).numpy())]


def _cascade_boxes(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    deltas, boxes, image = inputs
    return [model.roi_heads.refine(args[0], _float32(deltas), _proposals(boxes), _size(image)[None]).boxes]


def _res5(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(model.roi_heads.run_res5(_maps(model, inputs)[0]).numpy())]


def _child(parent: Any, path: str) -> Any:
    name, _, key = path.partition(".")
    child = getattr(parent, name)
    return child[key] if key else child


def _box_head(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(_child(model.roi_heads, args[0])(_maps(model, inputs)[0]).numpy())]


def _box_predictor(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    (x,) = inputs
    if hasattr(model.roi_heads, "run_res5"):
        return list(model.roi_heads.predict(_maps(model, [x])[0]))
    rows = _maps(model, [x])[0] if x.ndim == 4 else _rows(model, x)
    return list(_child(model.roi_heads, args[0])(rows))


def _detect(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    *scores, deltas, boxes, image = inputs
    stage_scores = [_float32(s) for s in scores]
    found = model.roi_heads.select(
        stage_scores, _float32(deltas), _proposals(boxes), _size(image)[None], batch_size=1
    )
    return [found.boxes, found.scores, found.classes]


def _mask_logits(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(model.roi_heads.mask_head(_maps(model, inputs)[0]).numpy())]


def _mask_select(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    logits, classes = inputs
    return [mask_inference(_maps(model, [logits])[0], tf.constant(classes))[:, None]]


def _keypoint_lowres(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(model.roi_heads.keypoint_head.lowres(_maps(model, inputs)[0]).numpy())]


def _keypoint_up(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [to_nchw(model.roi_heads.keypoint_head.upsample(_maps(model, inputs)[0]).numpy())]


def _keypoints(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    heatmaps, boxes = inputs
    return [decode_keypoints(_float32(heatmaps), _float32(boxes))]


def _retinanet_head(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    logits, deltas = model.head(_maps(model, inputs))
    return [to_nchw(x.numpy()) for x in (*logits, *deltas)]


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


def _postprocess(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    *values, network, image = inputs
    fields = dict(zip(args, values, strict=True))
    raw = _raw(
        fields.pop("pred_boxes"),
        scores=fields.pop("scores").astype(np.float32),
        classes=fields.pop("pred_classes").astype(np.int64),
        **{name: value[:, 0] if name == "pred_masks" else value for name, value in fields.items()},
    )
    done = {k: v.numpy() for k, v in to_image(raw, _size(network), _size(image)).items()}
    done = paste(done, image.shape[:2])
    return [done[name] for name in args]


def _proposals_out(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    logits, boxes, network, image = inputs
    done = to_image(_raw(boxes, objectness_logits=logits), _size(network), _size(image))
    return [done["objectness_logits"], done["proposal_boxes"]]


def _retinanet_out(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    *head, network, image = inputs
    maps = [tf.constant(np.moveaxis(a, 1, -1).astype(np.float32)) for a in head]
    half = len(maps) // 2
    found = model.decoder(maps[:half], maps[half:])
    done = to_image(dict(found._asdict()), _size(network), _size(image))
    return [done["pred_boxes"], done["scores"], done["pred_classes"]]


def _sem_seg_out(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    logits, network, image = inputs
    resized = resize_sem_seg(_maps(model, [logits])[0], _size(network), _size(image))
    return [np.moveaxis(resized[0].numpy(), -1, 0)]


def _panoptic(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    sem_seg, scores, classes, masks = inputs
    instances = Instances(masks.shape[1:], scores=scores, pred_classes=classes, pred_masks=masks)
    segments, info = combine_panoptic(model.config.panoptic, instances, sem_seg.argmax(axis=0))
    return [segments, np.array(json.dumps(info))]


OPS: dict[str, Callable[[Any, tuple[Any, ...], list[np.ndarray]], Arrays]] = {
    "resize": _resize,
    "normalize": _normalize,
    "stem": _stem,
    "res": _res,
    "fpn": _fpn,
    "rpn_head": _rpn_head,
    "rpn_proposals": _rpn_proposals,
    "roi_pool": _roi_pool,
    "cascade_boxes": _cascade_boxes,
    "res5": _res5,
    "box_head": _box_head,
    "box_predictor": _box_predictor,
    "detect": _detect,
    "mask_logits": _mask_logits,
    "mask_select": _mask_select,
    "keypoint_lowres": _keypoint_lowres,
    "keypoint_up": _keypoint_up,
    "keypoints": _keypoints,
    "retinanet_head": _retinanet_head,
    "sem_seg": _sem_seg,
    "postprocess": _postprocess,
    "proposals_out": _proposals_out,
    "retinanet_out": _retinanet_out,
    "sem_seg_out": _sem_seg_out,
    "panoptic": _panoptic,
}
