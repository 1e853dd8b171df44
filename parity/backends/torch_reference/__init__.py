"""A compact PyTorch reference of detectron2's inference: detectron2's module names, numbers and selection
rules.

For machines without detectron2, and for the conventions that detectron2 does not have: those of Detectron and of
maskrcnn-benchmark (`older`, `older_run`). It reads the same configuration and loads the same state dict; each
computation is one unit of `parity.core.units`, so every named stage of a run can be recorded or computed from
given inputs.

    model = build(config)                   # nested dict of a resolved detectron2 configuration
    load_state(model, state)                # dict of numpy arrays with detectron2's keys
    result = predict(model, image)          # BGR uint8 (H, W, 3)

Depends on torch, numpy and Pillow; uses torchvision's operations where torchvision is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.core import units as stages

from . import older_run, run
from .backbone import feature_shapes, make_backbone
from .heads import RetinaNetHead, ROIHeads, RPNHead, SemSegHead, anchors_per_cell
from .run import run_unit

__all__ = ["Model", "StateError", "build", "load_state", "predict", "run_forced", "run_free"]


class StateError(ValueError):
    """A state dict that does not fit the model."""


class Model(nn.Module):
    """The weights of a model under detectron2's names, with what the units need to know beside them.

    config: the configuration. units: its computations. ops: what computes them. shapes: (channels, stride) per
    backbone output.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.units = stages.units(config)
        is_older = config["MODEL"].get("CONVENTIONS", "detectron2") != "detectron2"
        self.ops = {**run.OPS, **older_run.OPS} if is_older else run.OPS  # by name
        node = older_run.with_own_norm(config["MODEL"]) if is_older else config["MODEL"]
        self.backbone = make_backbone(node)
        self.shapes = feature_shapes(self.backbone)
        ops = {unit.op for unit in self.units}
        if "rpn_proposals" in ops:
            self.proposal_generator = nn.Module()
            self.proposal_generator.rpn_head = self._rpn_head(node)
        if "detect" in ops:
            self.roi_heads = ROIHeads(node, self.shapes)
        if "sem_seg" in ops:
            self.sem_seg_head = SemSegHead(node["SEM_SEG_HEAD"], self.shapes)
        if "retinanet_out" in ops:
            self.head = self._retinanet_head(node)

    def _rpn_head(self, node: Mapping[str, Any]) -> RPNHead:
        if node["RPN"]["HEAD_NAME"] != "StandardRPNHead":
            raise ValueError(f"MODEL.RPN.HEAD_NAME {node['RPN']['HEAD_NAME']!r} is not supported")
        channels = self.shapes[node["RPN"]["IN_FEATURES"][0]][0]
        return RPNHead(channels, anchors_per_cell(node["ANCHOR_GENERATOR"]), node["RPN"]["CONV_DIMS"])

    def _retinanet_head(self, node: Mapping[str, Any]) -> RetinaNetHead:
        retina = node["RETINANET"]
        channels = self.shapes[retina["IN_FEATURES"][0]][0]
        anchors = anchors_per_cell(node["ANCHOR_GENERATOR"])
        return RetinaNetHead(channels, anchors, retina, len(retina["IN_FEATURES"]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the continuous units."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


def build(config: Mapping[str, Any]) -> Model:
    """The model of a configuration, with random weights, in float32 on the CPU.

    config: nested dict of a resolved detectron2 configuration (`yaml.safe_load` of a full dump).
    Raises ValueError naming the key for a setting that is not supported, KeyError for a missing key.
    """
    return Model(config).eval().requires_grad_(False)


def load_state(model: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Copy every array of `state` (detectron2's keys and layouts) into the model.

    Raises StateError listing all missing, unexpected and misshapen entries; entries that inference does not
    need (`parity.core.units.is_harmless`) may be present.
    """
    targets = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    given = {key: value for key, value in state.items() if not stages.is_harmless(key)}
    problems = [f"missing {key} {tuple(target.shape)}" for key, target in targets.items() if key not in given]
    problems += [f"unexpected {key} {np.shape(value)}" for key, value in given.items() if key not in targets]
    problems += [
        f"shape of {key} is {np.shape(given[key])}, the model has {tuple(target.shape)}"
        for key, target in targets.items()
        if key in given and np.shape(given[key]) != tuple(target.shape)
    ]
    if problems:
        text = "\n  ".join(sorted(problems))
        raise StateError(
            f"the state dict does not fit the configuration ({len(problems)} entries):\n  {text}"
        )
    with torch.no_grad():
        for key, target in targets.items():
            target.copy_(torch.from_numpy(np.array(given[key])))


def predict(
    model: Model,
    image: np.ndarray,
    proposals: np.ndarray | None = None,
    *,
    record: MutableMapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """What detectron2's DefaultPredictor returns for one picture, as numpy arrays.

    image: BGR uint8 (H, W, 3). proposals: for models with precomputed proposals, float (N, 4) xyxy in
    pixels of the network input, best first. record: filled with every stage under its name (`steps/...`,
    `output/...`). Returns "instances" (pred_boxes, scores, pred_classes, pred_masks, pred_keypoints, ...),
    "proposals", "sem_seg", "panoptic_seg" (map, list of segments), whichever the model has, in pixels of
    the picture.
    """
    values, segments = run_free(model, image, proposals)
    # On a GPU copying every stage would take longer than computing them.
    wanted = [name for name in values if record is not None or name.startswith("output/")]
    arrays = {name: values[name].cpu().numpy() for name in wanted}
    if record is not None:
        record.update(arrays)
    result: dict[str, Any] = {}
    for name in [name for name in arrays if name.startswith("output/")]:
        kind, *field = name.removeprefix("output/").split("/")
        if field:
            result.setdefault(kind, {})[field[0]] = arrays[name]
        else:
            result[kind] = (arrays[name], segments) if kind == "panoptic_seg" else arrays[name]
    return result


def _given_arrays(model: Model, image: np.ndarray, proposals: np.ndarray | None) -> dict[str, Tensor]:
    """The arrays that no unit computes, checked."""
    channels = len(model.config["MODEL"]["PIXEL_MEAN"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels or 0 in image.shape:
        raise ValueError(
            f"the image must be uint8 (H, W, {channels}) and not empty, not {image.dtype} {image.shape}"
        )
    values = {"input/image": torch.from_numpy(np.array(image)).to(model.device)}
    wanted = any("steps/input_proposals" in unit.inputs for unit in model.units)
    if wanted != (proposals is not None):
        text = "needs proposals" if wanted else "computes its own proposals; pass none"
        raise ValueError(f"MODEL.PROPOSAL_GENERATOR.NAME says that this model {text}")
    if proposals is not None:
        limit = model.config["DATASETS"]["PRECOMPUTED_PROPOSAL_TOPK_TEST"]
        boxes = torch.from_numpy(np.array(proposals, dtype=np.float32)).reshape(-1, 4)
        values["steps/input_proposals"] = boxes[:limit].to(model.device)
    return values


def run_free(
    model: Model, image: np.ndarray, proposals: np.ndarray | None = None
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Every stage by name, each unit fed with the results of the units before it; and the panoptic
    segments."""
    values = _given_arrays(model, image, proposals)
    segments: list[dict[str, Any]] = []
    for unit in model.units:
        outputs, found = run_unit(model, unit, [values[name] for name in unit.inputs])
        values.update(outputs)
        segments = found or segments
    return values, segments


def run_forced(
    model: Model, feed: Mapping[str, np.ndarray]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Every unit computed from another trace's arrays.

    feed: arrays by stage name. Where it lacks a stage, that is computed from the arrays that it has.
    Returns the stages by name, and for each stage that needed computed inputs their names. A unit whose
    inputs can neither be read nor computed is left out.
    """
    computed: dict[str, Tensor] = {}
    derived: dict[str, list[str]] = {}
    for unit in model.units:
        inputs = [_fed(model, feed, computed, name) for name in unit.inputs]
        if any(x is None for x in inputs):
            continue
        outputs, _ = run_unit(model, unit, [x for x in inputs if x is not None])
        computed.update(outputs)
        lacking = [name for name in unit.inputs if name not in feed]
        derived.update({name: lacking for name in outputs if lacking})
    return computed, derived


def _fed(
    model: Model, feed: Mapping[str, np.ndarray], computed: Mapping[str, Tensor], name: str
) -> Tensor | None:
    if name in feed:
        return torch.from_numpy(np.array(feed[name])).to(model.device)
    return computed.get(name)
