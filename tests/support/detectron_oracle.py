"""Runs Detectron's own functions, from a checkout that is not changed, on given arrays.

    python detectron_oracle.py CHECKOUT inputs.npz outputs.npz

Needs numpy and OpenCV; Cython with a C compiler for NMS and what follows it, pycocotools for masks. Caffe2 and the
helpers for Python 2 are stand-ins that no function below calls. Arrays are named
``function/case/argument``.
"""

import importlib
import io
import os
import pickle
import sys
import tempfile
import types
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

Given = dict[str, np.ndarray]
_OLD_NAMES = {"float": float, "int": int, "bool": bool, "object": object}  # numpy had them once


def stand_ins() -> None:
    """What the checkout imports and these functions do not use."""
    for name, value in _OLD_NAMES.items():
        if name not in np.__dict__:
            setattr(np, name, value)
    for name in (
        "caffe2",
        "caffe2.proto",
        "caffe2.python",
        "caffe2.python.modeling",
        "past",
        "past.builtins",
    ):
        sys.modules[name] = MagicMock()
    for name in ("caffe2.python.modeling.parameter_info", "caffe2.python.modeling.initializers"):
        sys.modules[name] = MagicMock()
    for name in ("pycocotools", "pycocotools.mask", "pycocotools.coco", "six", "future", "matplotlib"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = MagicMock()
    if isinstance(sys.modules["future"], MagicMock):
        utils: Any = types.ModuleType("future.utils")
        utils.iteritems = lambda table: iter(table.items())
        sys.modules["future.utils"] = utils
    if isinstance(sys.modules["six"], MagicMock):
        sys.modules["six.moves"] = moves = MagicMock()
        moves.cPickle = pickle


def compile_cython(folder: str) -> bool:
    """Compile the checkout's .pyx files into ``folder``; whether that worked."""
    try:
        pyximport = importlib.import_module("pyximport")
        pyximport.install(
            build_dir=folder, language_level=2, inplace=False, setup_args={"include_dirs": np.get_include()}
        )
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            importlib.import_module("detectron.utils.cython_nms")
    except Exception as error:
        print(f"NMS is left out: {type(error).__name__}: {error}", file=sys.stderr)
        for name in ("cython_nms", "cython_bbox"):
            sys.modules[f"detectron.utils.{name}"] = MagicMock()
        return False
    sys.modules.setdefault("detectron.utils.cython_bbox", MagicMock())
    return True


def functions(has_nms: bool) -> dict[str, Callable[[Given], Given]]:
    """By name: arrays -> arrays."""
    config = importlib.import_module("detectron.core.config").cfg
    boxes = importlib.import_module("detectron.utils.boxes")
    blob = importlib.import_module("detectron.utils.blob")
    test = importlib.import_module("detectron.core.test")
    fpn = importlib.import_module("detectron.modeling.FPN")
    points = importlib.import_module("detectron.utils.keypoints")
    anchors = importlib.import_module("detectron.modeling.generate_anchors")
    proposals = importlib.import_module("detectron.ops.generate_proposals")

    def decode(given: Given) -> Given:
        moved = boxes.bbox_transform(given["boxes"], given["deltas"], tuple(given["weights"]))
        return {"out": moved.copy(), "clipped": boxes.clip_tiled_boxes(moved, tuple(given["hw"]))}

    def cells(given: Given) -> Given:
        made = anchors.generate_anchors(int(given["stride"]), tuple(given["sizes"]), tuple(given["ratios"]))
        return {"out": made}

    def levels(given: Given) -> Given:
        return {"out": fpn.map_rois_to_fpn_levels(given["rois"], 2, 5)}

    def nms(given: Given) -> Given:
        return {"out": np.asarray(boxes.nms(given["dets"], float(given["thresh"])))}

    def results(given: Given) -> Given:
        config.MODEL.NUM_CLASSES = given["scores"].shape[1]
        config.TEST.SCORE_THRESH, config.TEST.NMS = 0.05, 0.5
        config.TEST.DETECTIONS_PER_IM = int(given["limit"])
        scores, found, classes = test.box_results_with_nms_and_limit(given["scores"], given["boxes"])
        label = np.concatenate([np.full(len(c), j) for j, c in enumerate(classes)])
        return {"scores": scores, "boxes": found, "classes": label}

    def propose(given: Given) -> Given:
        config.TEST.RPN_PRE_NMS_TOP_N, config.TEST.RPN_POST_NMS_TOP_N = 200, 60
        config.TEST.RPN_NMS_THRESH, config.TEST.RPN_MIN_SIZE = 0.7, float(given["least"])
        operator = proposals.GenerateProposalsOp(given["anchors"], 1 / float(given["stride"]), False)
        height, width = given["probs"].shape[-2:]
        at = np.meshgrid(np.arange(width) * given["stride"], np.arange(height) * given["stride"])
        shifts = np.vstack([at[0].ravel(), at[1].ravel()] * 2).transpose()
        every = (given["anchors"][None] + shifts[:, None]).reshape(-1, 4)
        rois, probs = operator.proposals_for_one_image(
            given["im_info"], every, given["deltas"][0], given["probs"][0]
        )
        return {"rois": rois, "probs": probs}

    def network_input(given: Given) -> Given:
        means = np.array([[[102.9801, 115.9465, 122.7717]]])
        image, factor = blob.prep_im_for_blob(
            given["image"].copy(), means, int(given["target"]), int(given["longest"])
        )
        return {"out": image, "factor": np.array(factor)}

    def keypoints(given: Given) -> Given:
        # Newer OpenCV takes no float sizes, which 0 would give it; a side is at least 1 in any case.
        config.KRCNN.INFERENCE_MIN_SIZE = max(int(given["least"]), 1)
        config.KRCNN.NUM_KEYPOINTS = given["maps"].shape[1]
        return {"out": points.heatmaps_to_keypoints(given["maps"], given["rois"])}

    def masks(given: Given) -> Given:
        coco = importlib.import_module("pycocotools.mask")
        config.MRCNN.RESOLUTION, config.MRCNN.THRESH_BINARIZE = given["masks"].shape[-1], 0.5
        config.MRCNN.CLS_SPECIFIC_MASK, config.MODEL.NUM_CLASSES = True, 2
        rows = np.hstack([given["boxes"], np.ones((len(given["boxes"]), 1), np.float32)])
        maps = np.stack([np.zeros_like(given["masks"]), given["masks"]], axis=1)
        size = tuple(int(v) for v in given["hw"])
        drawn = test.segm_results([[], rows], maps, given["boxes"], *size)[1]
        return {"out": np.array([coco.decode(rle) for rle in drawn]).astype(bool).reshape(-1, *size)}

    found = {"decode": decode, "anchors": cells, "levels": levels, "network_input": network_input}
    found |= {"keypoints": keypoints, "masks": masks}
    return {**found, "nms": nms, "results": results, "proposals": propose} if has_nms else found


def main(checkout: str, given: str, target: str) -> None:
    """Run every case of the file."""
    sys.path.insert(0, str(Path(checkout).resolve()))
    os.environ.setdefault("MPLBACKEND", "agg")
    stand_ins()
    cases: dict[tuple[str, str], Given] = {}
    with np.load(given) as file:
        for name in file.files:
            function, case, argument = name.split("/")
            cases.setdefault((function, case), {})[argument] = file[name]
    outputs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        known = functions(compile_cython(folder))
        for (function, case), arrays in cases.items():
            if function in known:
                made = known[function](arrays)
                outputs |= {f"{function}/{case}/{name}": array for name, array in made.items()}
    np.savez(target, **outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
