"""Runs maskrcnn-benchmark's own functions, from a checkout with its CPU operations built, on given arrays.

    python maskrcnn_benchmark_oracle.py CHECKOUT inputs.npz outputs.npz

Needs torch, torchvision, Pillow and OpenCV. Apex is a stand-in that changes nothing, OpenCV is given whole numbers
where it no longer takes others. Arrays are named ``function/case/argument``.
"""

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Given = dict[str, np.ndarray]


def stand_ins(checkout: str) -> None:
    """Apex, which only marks functions here, the package of data sets, old names of numpy and torch, and an OpenCV that
    takes any number as a size."""
    for name, kind in {"float": float, "int": int, "bool": bool}.items():
        if name not in np.__dict__:
            setattr(np, name, kind)
    apex: Any = types.ModuleType("apex")
    apex.amp = types.SimpleNamespace(float_function=lambda function: function)
    sys.modules["apex"] = apex
    data: Any = types.ModuleType("maskrcnn_benchmark.data")  # which would import every data set's own package
    data.__path__ = [str(Path(checkout) / "maskrcnn_benchmark" / "data")]
    sys.modules["maskrcnn_benchmark.data"] = data
    six: Any = types.ModuleType("torch._six")  # torch had it once
    six.PY3 = True
    sys.modules["torch._six"] = torch._six = six  # type: ignore[attr-defined]
    cv2: Any = importlib.import_module("cv2")
    resize = cv2.resize
    cv2.resize = lambda image, size, **how: resize(image, tuple(int(side) for side in size), **how)


def _module(name: str) -> Any:
    return importlib.import_module(f"maskrcnn_benchmark.{name}")


def _boxes(given: Given, name: str = "boxes") -> Any:
    height, width = (int(side) for side in given.get("hw", np.array([1000, 1000])))
    box_list = _module("structures.bounding_box").BoxList
    return box_list(torch.from_numpy(given[name].copy()), (width, height), mode="xyxy")


def decode(given: Given) -> Given:
    coder = _module("modeling.box_coder").BoxCoder(weights=tuple(given["weights"].tolist()))
    out = coder.decode(torch.from_numpy(given["deltas"]), torch.from_numpy(given["boxes"]))
    return {"out": out.numpy()}


def anchors(given: Given) -> Given:
    make = _module("modeling.rpn.anchor_generator").AnchorGenerator
    stride = int(given["stride"])
    made = make(tuple(given["sizes"].tolist()), tuple(given["ratios"].tolist()), (stride,))
    return {"out": made.grid_anchors([tuple(given["cells"].tolist())])[0].numpy()}


def levels(given: Given) -> Given:
    mapper = _module("modeling.poolers").LevelMapper(2, 5)
    return {"out": mapper([_boxes(given)]).numpy()}


def clipped(given: Given) -> Given:
    inside = _boxes(given).clip_to_image(remove_empty=False)
    inside.add_field("row", torch.arange(len(inside)))
    kept = _module("structures.boxlist_ops").remove_small_boxes(inside, float(given["least"]))
    return {"out": inside.bbox.numpy(), "rows": kept.get_field("row").numpy()}


def nms(given: Given) -> Given:
    boxes = _boxes(given)
    boxes.add_field("scores", torch.from_numpy(given["scores"]))
    boxes.add_field("row", torch.arange(len(boxes)))
    kept = _module("structures.boxlist_ops").boxlist_nms(boxes, float(given["thresh"]))
    return {"out": kept.get_field("row").numpy()}


def roi_align(given: Given) -> Given:
    align = _module("layers").ROIAlign((7, 7), float(given["scale"]), int(given["ratio"]))
    rois = np.concatenate([np.zeros_like(given["boxes"][:, :1]), given["boxes"]], axis=1)
    return {"out": align(torch.from_numpy(given["features"]), torch.from_numpy(rois)).numpy()}


def keypoints(given: Given) -> Given:
    found = _module("modeling.roi_heads.keypoint_head.inference").heatmaps_to_keypoints
    points, logits = found(given["maps"], given["boxes"])
    return {"out": points, "logits": logits}


def masks(given: Given) -> Given:
    paste = _module("modeling.roi_heads.mask_head.inference").paste_mask_in_image
    height, width = (int(side) for side in given["hw"])
    pairs = zip(torch.from_numpy(given["masks"]), torch.from_numpy(given["boxes"]), strict=True)
    return {"out": np.stack([paste(mask, box, height, width).numpy() for mask, box in pairs])}


def resized(given: Given) -> Given:
    from PIL import Image

    resize = _module("data.transforms.transforms").Resize(int(given["target"]), int(given["longest"]))
    boxes = types.SimpleNamespace(resize=lambda size: None)
    image, _ = resize(Image.fromarray(given["image"]), boxes)
    return {"out": np.asarray(image)}


FUNCTIONS: dict[str, Callable[[Given], Given]] = {
    f.__name__: f for f in (decode, anchors, levels, clipped, nms, roi_align, keypoints, masks, resized)
}


def main(checkout: str, source: str, target: str) -> None:
    stand_ins(checkout)
    sys.path.insert(0, checkout)
    cases: dict[tuple[str, str], Given] = {}
    with np.load(source) as file:
        for name, array in file.items():
            function, case, argument = name.split("/")
            cases.setdefault((function, case), {})[argument] = array
    answers = {
        f"{function}/{case}/{name}": array
        for (function, case), given in cases.items()
        for name, array in FUNCTIONS[function](given).items()
    }
    np.savez_compressed(Path(target), **answers)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
