"""Single operations of tf_d2.ops: the candidate of `--ops`. Part of the TensorFlow worker.

Inputs are NCHW numpy arrays and rows of boxes; feature maps are turned to NHWC here and back. Every operation
runs inside a tf.function whose shapes are not static, as in the model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from parity.backends import op_run

Inputs = Mapping[str, np.ndarray]
Args = Mapping[str, Any]


def _graph(function: Callable[..., Any], *arrays: Any) -> list[np.ndarray]:
    """Call a function inside a graph. The last axis of maps stays static, everything else is unknown."""
    import tensorflow as tf

    tensors: list[Any] = [tf.constant(a) for a in arrays]
    specs = [tf.TensorSpec([None] * (t.shape.rank - 1) + [t.shape[-1]], t.dtype) for t in tensors]
    result = tf.function(function, input_signature=specs)(*tensors)
    return [r.numpy() for r in (result if isinstance(result, list | tuple) else [result])]


def _nhwc(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def _nchw(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.moveaxis(a, -1, 1) for a in arrays]


def _hwio(kernel: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))


def _weights(i: Inputs) -> tuple[Any, Any]:
    import tensorflow as tf

    return tf.constant(_hwio(i["kernel"])), tf.constant(i["bias"])


def resize_uint8(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import resize

    return _graph(lambda x: resize.resize_uint8(x, a["height"], a["width"]), i["image"])


def conv2d(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import conv

    kernel, bias = _weights(i)
    geometry = {k: a[k] for k in ("stride", "padding", "dilation")}
    return _nchw(_graph(lambda x: conv.conv2d(x, kernel, bias, **geometry), _nhwc(i["x"])))


def conv_transpose2d(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import conv

    kernel, bias = _weights(i)
    geometry = {"stride": a["stride"], "padding": a["padding"]}
    if kernel.shape[0] == kernel.shape[1] == a["stride"] and not a["padding"]:  # as the mask head does it
        tiles = lambda x: conv.join_tiles(conv.conv_transpose_tiles(x, kernel, bias), a["stride"])  # noqa: E731
        return _nchw(_graph(tiles, _nhwc(i["x"])))
    return _nchw(_graph(lambda x: conv.conv_transpose2d(x, kernel, bias, **geometry), _nhwc(i["x"])))


def max_pool2d(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import conv

    return _nchw(_graph(lambda x: conv.max_pool2d(x, a["kernel"], a["stride"], a["padding"]), _nhwc(i["x"])))


def bilinear(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import interpolate

    return _nchw(_graph(lambda x: interpolate.bilinear(x, a["height"], a["width"]), _nhwc(i["x"])))


def bicubic(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import interpolate

    return _nchw(_graph(lambda x: interpolate.bicubic(x, a["height"], a["width"]), _nhwc(i["x"])))


def add_nearest2x(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import interpolate

    return _nchw(_graph(interpolate.add_nearest2x, _nhwc(i["fine"]), _nhwc(i["x"])))


def anchors(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import anchors as anchor_ops

    cells = anchor_ops.cell_anchors(a["sizes"], a["ratios"])
    size = np.array([a["height"], a["width"]], np.int32)
    return _graph(lambda s: anchor_ops.grid_anchors(cells, s[0], s[1], a["stride"], a["offset"]), size)


def apply_deltas(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import boxes

    return _graph(lambda d, b: boxes.apply_deltas(d, b, a["weights"]), i["deltas"], i["boxes"])


def clip(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import boxes

    return _graph(lambda b: boxes.clip(b, a["height"], a["width"]), i["boxes"])


def nonempty(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import boxes

    return _graph(lambda b: boxes.nonempty(boxes.clip(b, a["height"], a["width"])), i["boxes"])


def assign_levels(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import boxes

    single = i["boxes"].astype(np.float32)
    levels = _graph(lambda b: boxes.assign_levels(b, a["lowest"], a["highest"]), single)
    return [levels[0].astype(np.int64)]


def roi_align(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import roi_align as roi

    index = np.zeros(len(i["boxes"]), np.int32)
    geometry = (a["size"], a["scale"], a["ratio"], a["aligned"])
    return _nchw(
        _graph(lambda f, b, k: roi.roi_align(f, b, k, *geometry), _nhwc(i["features"]), i["boxes"], index)
    )


def roi_pool(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import roi_pool as roi

    index = np.zeros(len(i["boxes"]), np.int32)
    geometry = (a["size"], a["scale"])
    return _nchw(
        _graph(lambda f, b, k: roi.roi_pool(f, b, k, *geometry), _nhwc(i["features"]), i["boxes"], index)
    )


def nms(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import nms as nms_ops

    single = [i[k].astype(np.float32) for k in ("boxes", "scores")]
    kept = _graph(lambda b, s: nms_ops.nms(b, s, a["threshold"]), *single)
    return [kept[0].astype(np.int64)]


def batched_nms(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import nms as nms_ops

    single = [i[k].astype(np.float32) for k in ("boxes", "scores")]
    groups = i["groups"].astype(np.int32)
    kept = _graph(lambda b, s, g: nms_ops.batched_nms(b, s, g, a["threshold"]), *single, groups)
    return [kept[0].astype(np.int64)]


def paste_masks(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import mask_paste

    masks, boxes = (i[k].astype(np.float32) for k in ("masks", "boxes"))
    size = np.array([a["height"], a["width"]], np.int32)
    function = mask_paste.paste_masks
    return _graph(lambda m, b, s: function(_square(m, masks.shape[-1]), b, s[0], s[1]), masks, boxes, size)


def _square(masks: Any, side: int) -> Any:
    import tensorflow as tf

    return tf.ensure_shape(masks, [None, side, side])


def keypoints(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import keypoints as keypoint_ops

    single = [i[k].astype(np.float32) for k in ("heatmaps", "boxes")]
    return _graph(keypoint_ops.decode_keypoints, *single)


def deform_conv2d(i: Inputs, a: Args) -> list[np.ndarray]:
    from tf_d2.ops import deform_conv

    geometry = {k: a[k] for k in ("stride", "padding", "dilation")}
    geometry["deformable_groups"] = a["deform_groups"]
    kernel: Any = _hwio(i["kernel"])
    maps = [_nhwc(i[k]) for k in ("x", "offset", "mask") if k in i]

    def call(x: Any, offset: Any, mask: Any = None) -> Any:
        return deform_conv.deform_conv2d(x, offset, kernel, mask=mask, **geometry)

    return _nchw(_graph(call, *maps))


_KEPT: list[Any] = []

FUNCTIONS = {
    f.__name__: f
    for f in (
        resize_uint8,
        conv2d,
        conv_transpose2d,
        max_pool2d,
        bilinear,
        bicubic,
        add_nearest2x,
        anchors,
        apply_deltas,
        clip,
        nonempty,
        assign_levels,
        roi_align,
        roi_pool,
        nms,
        batched_nms,
        paste_masks,
        keypoints,
        deform_conv2d,
    )
}


def configure(job: Mapping[str, Any]) -> dict[str, Any]:
    """Device and flags; facts for the manifest."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    if job["device"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    import tensorflow as tf

    if job["device"] == "gpu" and not tf.config.list_physical_devices("GPU"):
        raise RuntimeError(f"device gpu: TensorFlow {tf.__version__} sees no GPU on this machine")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.experimental.enable_tensor_float_32_execution(False)
    if job.get("mutate"):
        from parity.selftest.tf_planters import plant

        planted = plant(job["mutate"])
        planted.__enter__()
        _KEPT.append(planted)  # a context manager that is collected undoes its work
    return {"backend": "tf", "versions": {"tensorflow": tf.__version__}}


if __name__ == "__main__":
    sys.exit(op_run.main(FUNCTIONS, configure))
