"""Single operations in PyTorch (torchvision's kernels where it is installed): the reference of `--ops`.

Inputs are NCHW numpy arrays and rows of boxes; see `parity.core.opcases` for the vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from parity.backends import op_run
from parity.backends.torch_reference import boxes as box_ops
from parity.backends.torch_reference import ops, selection

Inputs = Mapping[str, np.ndarray]
Args = Mapping[str, Any]

_DEVICE = "cpu"


def _t(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(_DEVICE)


def _n(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [t.detach().cpu().numpy() for t in tensors]


def resize_uint8(i: Inputs, a: Args) -> list[np.ndarray]:
    picture = Image.fromarray(i["image"])
    return [np.asarray(picture.resize((a["width"], a["height"]), Image.Resampling.BILINEAR))]


def conv2d(i: Inputs, a: Args) -> list[np.ndarray]:
    geometry = (a["stride"], a["padding"], a["dilation"], a["groups"])
    return _n(functional.conv2d(_t(i["x"]), _t(i["kernel"]), _t(i["bias"]), *geometry))


def conv_transpose2d(i: Inputs, a: Args) -> list[np.ndarray]:
    tensors = (_t(i[k]) for k in ("x", "kernel", "bias"))
    return _n(functional.conv_transpose2d(*tensors, stride=a["stride"], padding=a["padding"]))


def max_pool2d(i: Inputs, a: Args) -> list[np.ndarray]:
    return _n(functional.max_pool2d(_t(i["x"]), a["kernel"], a["stride"], a["padding"]))


def bilinear(i: Inputs, a: Args) -> list[np.ndarray]:
    size = (a["height"], a["width"])
    return _n(functional.interpolate(_t(i["x"]), size=size, mode="bilinear", align_corners=False))


def bicubic(i: Inputs, a: Args) -> list[np.ndarray]:
    size = (a["height"], a["width"])
    return _n(functional.interpolate(_t(i["x"]), size=size, mode="bicubic", align_corners=False))


def add_nearest2x(i: Inputs, a: Args) -> list[np.ndarray]:
    return _n(_t(i["fine"]) + functional.interpolate(_t(i["x"]), scale_factor=2, mode="nearest"))


def anchors(i: Inputs, a: Args) -> list[np.ndarray]:
    generator = {
        "NAME": "DefaultAnchorGenerator",
        "SIZES": [a["sizes"]],
        "ASPECT_RATIOS": [a["ratios"]],
        "OFFSET": a["offset"],
    }
    return _n(box_ops.level_anchors(generator, 0, (a["height"], a["width"]), a["stride"]))


def apply_deltas(i: Inputs, a: Args) -> list[np.ndarray]:
    return _n(box_ops.decode(_t(i["deltas"]), _t(i["boxes"]), a["weights"]))


def clip(i: Inputs, a: Args) -> list[np.ndarray]:
    return _n(box_ops.clip(_t(i["boxes"]), (a["height"], a["width"])))


def nonempty(i: Inputs, a: Args) -> list[np.ndarray]:
    return _n(box_ops.larger_than(box_ops.clip(_t(i["boxes"]), (a["height"], a["width"])), 0.0))


def assign_levels(i: Inputs, a: Args) -> list[np.ndarray]:
    return _n(box_ops.assign_levels(_t(i["boxes"]).float(), a["lowest"], a["highest"]))


def roi_align(i: Inputs, a: Args) -> list[np.ndarray]:
    sampling = ops.Sampling(a["size"], a["ratio"], a["aligned"])
    return _n(ops.roi_align(_t(i["features"]), _t(i["boxes"]), a["scale"], sampling))


def roi_pool(i: Inputs, a: Args) -> list[np.ndarray]:
    return _n(ops.roi_pool(_t(i["features"]), _t(i["boxes"]), a["scale"], a["size"]))


def nms(i: Inputs, a: Args) -> list[np.ndarray]:
    return _n(ops.nms(_t(i["boxes"]).float(), _t(i["scores"]).float(), a["threshold"]))


def batched_nms(i: Inputs, a: Args) -> list[np.ndarray]:
    boxes, scores = _t(i["boxes"]).float(), _t(i["scores"]).float()
    return _n(ops.batched_nms(boxes, scores, _t(i["groups"]), a["threshold"]))


def paste_masks(i: Inputs, a: Args) -> list[np.ndarray]:
    size = (a["height"], a["width"])
    return _n(ops.paste_masks(_t(i["masks"]).float(), _t(i["boxes"]).float(), size))


def keypoints(i: Inputs, a: Args) -> list[np.ndarray]:
    return _n(selection.keypoints(_t(i["heatmaps"]).float(), _t(i["boxes"]).float()))


def deform_conv2d(i: Inputs, a: Args) -> list[np.ndarray]:
    mask = _t(i["mask"]) if "mask" in i else None
    x, offset, kernel = (_t(i[k]) for k in ("x", "offset", "kernel"))
    return _n(ops.deform_conv(x, offset, kernel, ops.Steps(a["stride"], a["padding"], a["dilation"]), mask))


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
    global _DEVICE
    if job["device"] == "gpu":
        if not torch.cuda.is_available():
            raise RuntimeError(f"device gpu: torch {torch.__version__} sees no usable GPU")
        _DEVICE = "cuda"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_num_threads(1)
    library = ops.torchvision_ops()
    kernels = "torchvision" if library is not None else "own (no torchvision)"
    return {"backend": "torch", "versions": {"torch": torch.__version__}, "kernels": kernels}


if __name__ == "__main__":
    sys.exit(op_run.main(FUNCTIONS, configure))
