"""The unit table: what a model computes, from which arrays, and how each array is compared. One table for every
backend and for the judge (`parity.core.units.table` has the vocabulary).

Rules that make a unit reproducible from its inputs alone, in any backend:
- a continuous unit computes in the profile's dtype; a small change of its inputs changes its outputs little;
- a float32 unit is continuous but rounds its inputs to float32 and computes in float32 in every profile, as
  detectron2 does when it decodes boxes;
- a discrete unit selects, sorts or thresholds; it too rounds every floating point input to float32 and
  computes in float32 in every profile (torchvision's NMS wants one dtype);
- `steps/input` is computed in float32 and then cast to the profile's dtype;
- pooling boxes are float32 values, cast to the dtype of the features;
- the unpadded network input size is that of `input/resized`, the output size that of `input/image`.

A model family adds its units in one file here and an entry in one of the dictionaries META_ARCHITECTURES,
`backbones.BACKBONES`, `rcnn.PROPOSAL_GENERATORS` or `rcnn.ROI_HEADS`. A unit that is one call of a detectron2 module
(ops `module`, `module_of_list`) needs no code in any backend. Any other op is a function of that name in
`tf_d2/stages.py`, `parity/backends/torch_reference/run.py` and `parity/backends/detectron2_units.py` (or in the files
that these put together).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from parity.core.extensions import load_extensions
from parity.core.units.backbones import backbone_units
from parity.core.units.deeplab import panoptic_deeplab_units
from parity.core.units.dense import fcos_units, panoptic_units, retinanet_units, semantic_units
from parity.core.units.rcnn import proposal_network_units, rcnn_units
from parity.core.units.table import (
    GIVEN,
    OWNERS,
    SETS,
    Array,
    SetSpec,
    Stage,
    Unit,
    forced_name,
    module_of,
    stages_of,
)
from parity.core.units.tensor_mask import tensor_mask_units
from weights.errors import UsageError

__all__ = [
    "GIVEN",
    "OPS",
    "Array",
    "SetSpec",
    "Stage",
    "Unit",
    "array_of",
    "forced_name",
    "is_harmless",
    "row_owners",
    "stages",
    "units",
]

# What an op does to its inputs (arrays NCHW or (rows, columns), boxes xyxy in network pixels).
OPS = {
    "module": "args: (module path,). One array -> what the module returns, its tensors in order",
    "module_of_list": "args: (module path,). The same with a list of all inputs as the module's only argument",
    "resize": "uint8 image of the file -> uint8 network image (Pillow's bilinear filter)",
    "normalize": "(x - mean) / std, transposed to NCHW, zero-padded at the bottom and right",
    "res": "args: consecutive residual stages to run",
    "fpn": "features of the network below -> pyramid; args: the pyramid's names",
    "simfp": "args: (index,). The map of a plain network -> one level of a SimpleFeaturePyramid",
    "patches": "args: (module,). Network input -> tokens (N, H, W, C)",
    "positions": "args: (network,). Tokens with the absolute positions added, if there are some",
    "tokens": "args: (norm,). Tokens of any layout, normalised",
    "windows": "args: (module, side of each input's windows ...). Maps (N, H, W, C), zero-padded and cut into windows",
    "relative_positions": "args: (attention,). Queries, and keys where they differ -> (Hq, Hk, d), (Wq, Wk, d)",
    "attention": "args: (attention,). Tokens, relative positions of both axes -> tokens",
    "pool": "args: (attention,). Normalised tokens -> pooled and normalised q, k, v, (N * heads, H, W, d)",
    "pooled_attention": "args: (attention, windowed). Normalised tokens, q, k, v, their windows, relative positions -> "
    "tokens",
    "join": "args: (block,). Block input, (normalised tokens,) attention -> block input or its shortcut plus attention",
    "finish": "args: (block,). What join returned -> block output",
    "token_map": "args: (network, norm or empty). Tokens -> feature map",
    "rows_of_map": "args: (network,). Swin's patches -> rows (N, H * W, C), with absolute positions if there are some",
    "shift_mask": "args: (layer, its number). Rows, patches -> what shifted windows add to their logits",
    "shifted_windows": "args: (block, layer's number). Normalised rows, patches -> windows (windows, side^2, C)",
    "window_attention": "args: (attention,). Windows, mask where they are shifted -> windows",
    "shifted_join": "args: (block, layer's number). Block input, windows, patches -> their sum",
    "merge": "args: (module, layer's number). Rows, patches -> rows of the next layer",
    "rows_to_map": "args: (norm, layer's number). Rows, patches -> feature map",
    "tower": "args: (module, level). A level's features -> those behind a tower of a dense head",
    "fcos_out": "logits, deltas, centerness of every level, network image, file image -> results in file pixels",
    "rpn_proposals": "head outputs, network image (Detectron: and file image) -> objectness_logits, proposal_boxes: "
    "decode, top-k per level, clip, size filter, NMS, top-k",
    "roi_pool": "args: (pooler,). Features, boxes -> pooled features",
    "cascade_boxes": "args: (k,). Deltas of cascade stage k-1, the boxes it pooled, network image -> boxes that "
    "stage k pools: decoded and clipped, none dropped",
    "res5": "pooled features -> res5 of the C4 heads",
    "box_predictor": "args: (module,). Features of the C4 heads -> scores, deltas of their spatial mean",
    "detect": "args: (number of box stages,). Scores of each stage, deltas and pooled boxes of the last, network "
    "image (Detectron: and file image, whose pixels it answers in) -> final boxes, scores, classes in network pixels",
    "network_boxes": "Detectron: final boxes, file image -> these in network pixels",
    "mask_look": "PointRend: features, boxes -> coarse logits (N, K, S, S), or the weights of an implicit head",
    "mask_points": "features, boxes, what mask_look returned -> logits (N, K, P) at the points of the first grid",
    "mask_refine": "features, boxes, classes, what mask_look returned -> probability of the class, (N, 1, M, M)",
    "sem_seg_coarse": "features -> logits of PointRend's coarse semantic head",
    "sem_seg_refine": "features of the point head, coarse logits -> refined logits",
    "mask_logits": "mask head up to its logits, all classes",
    "mask_select": "logits, classes -> probability of the predicted class, (N, 1, M, M)",
    "keypoint_lowres": "keypoint head up to its transposed convolution",
    "keypoint_up": "x2 bilinear",
    "keypoints": "heat maps, boxes -> (N, K, 3) x, y, score in pixels of the boxes",
    "keypoint_logits": "older conventions: heat maps, boxes -> (N, K) the enlarged map where the keypoint is",
    "decode": "args: (convolutions,). Projected feature, map from above -> both side by side, convolved",
    "enlarge": "args: (head, whether the values are lengths). Map -> map at the size of the network input",
    "panoptic_deeplab": "args: fields. Logits, heat of centers, offsets, network image, file image -> panoptic map, "
    "fields of its instances",
    "mask_fuse": "args: (level,). TensorMask: mask features of a level and of the finest -> joined at the finest size",
    "mask_windows": "args: (level, anchor). Mask features -> logits of the window around every cell",
    "tensor_mask_out": "args: fields. Logits, deltas, windows of every level and anchor, network image, file image -> "
    "results in file pixels",
    "sem_seg": "features -> logits at the padded network size",
    "postprocess": "args: field names. Network-pixel results, network image, file image -> file pixels",
    "proposals_out": "the same for an RPN-only model",
    "retinanet_out": "head outputs, network image, file image -> results in file pixels",
    "sem_seg_out": "logits, network image, file image -> logits at the file's size",
    "panoptic": "logits at the file's size, instances -> panoptic map and segments_info",
}

META_ARCHITECTURES: dict[str, Callable[[Mapping[str, Any]], list[Unit]]] = {
    "GeneralizedRCNN": rcnn_units,
    "FCOS": fcos_units,
    "PanopticDeepLab": panoptic_deeplab_units,
    "PanopticFPN": panoptic_units,
    "ProposalNetwork": proposal_network_units,
    "RetinaNet": retinanet_units,
    "SemanticSegmentor": semantic_units,
    "TensorMask": tensor_mask_units,
}

# Entries of a detectron2 checkpoint that inference does not need: constants that the configuration implies,
# counters, and buffers of training. A name is harmless when it contains one of these.
_HARMLESS = (
    "anchor_generator.cell_anchors",
    "pixel_mean",
    "pixel_std",
    "num_batches_tracked",
    "fed_loss_cls_weights",
    "relative_position_index",
    "roi_heads.embedder.",
)


def is_harmless(key: str) -> bool:
    """Whether an entry of a state dict may be there or not: see _HARMLESS."""
    return any(part in key for part in _HARMLESS)


def units(config: Mapping[str, Any]) -> tuple[Unit, ...]:
    """The ordered computations of a model, each after the ones it reads from.

    config: detectron2's configuration as a nested dict with every inference key present.
    Raises ValueError naming the key for a model that the table does not cover.
    """
    load_extensions()
    model = config["MODEL"]
    meta = model["META_ARCHITECTURE"]
    if meta not in META_ARCHITECTURES:
        known = ", ".join(META_ARCHITECTURES)
        raise UsageError(f"MODEL.META_ARCHITECTURE {meta!r} has no stage table; supported: {known}")
    return tuple(_INPUT_UNITS + backbone_units(model) + META_ARCHITECTURES[meta](model))


def stages(config: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The ordered arrays of a model, with the unit that computes each.

    config: as for `units`.
    """
    return stages_of(units(config))


_INPUT_UNITS = [
    Unit("resize", "resize", ("input/image",), ("input/resized",), "discrete"),
    Unit("normalize", "normalize", ("input/resized",), ("steps/input",), "continuous", optional=True),
]


# ---- arrays of any trace, with a table or without --------------------------------------------------------


def row_owners(name: str, table: Mapping[str, Stage] | None = None) -> tuple[SetSpec, ...]:
    """The sets whose order an array's rows follow, the nearest first; () for arrays without such rows."""
    return OWNERS[array_of(name, table).rows]


def array_of(name: str, table: Mapping[str, Stage] | None = None) -> Array:
    """What is known of an array: from the model's table, or where there is none (traces without a configuration,
    arrays of modules inside a unit) from the table of all models."""
    for known in (table or {}, _all_stages()):
        if name in known:
            return known[name].array
    for spec in SETS:
        if name.startswith(f"{spec.name}/") and spec.rules == "detect":
            return Array(name, "results" if name.startswith("output/") else "detections")
    inside = _unit_around(name, table or _all_stages()) if name.startswith("steps/") else None
    return Array(name, inside.rows if inside else "")


def _unit_around(name: str, table: Mapping[str, Stage]) -> Stage | None:
    """The first array of the unit whose module holds the module of an array, in the same call of it."""
    module, call = module_of(name)
    # A container (roi_heads, backbone) says nothing of what is inside.
    around = [s for s in table.values() if "." in s.module and (module + ".").startswith(s.module + ".")]
    same = [s for s in around if s.name.startswith("steps/") and module_of(s.name)[1] == call]
    return max(same or around, key=lambda s: len(s.module), default=None)


@lru_cache(maxsize=1)
def _all_stages() -> dict[str, Stage]:
    """Arrays of every model that the table covers, by name."""
    found: dict[str, Stage] = {}
    for model in _EXAMPLES:
        found |= {s.name: s for s in stages({"MODEL": model}) if s.name not in found}
    return found


_LEVELS = ["p2", "p3", "p4", "p5", "p6"]
_EXAMPLE: dict[str, Any] = {
    "META_ARCHITECTURE": "PanopticFPN",
    "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
    "RESNETS": {"OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
    "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"]},
    "PROPOSAL_GENERATOR": {"NAME": "RPN"},
    "RPN": {"IN_FEATURES": _LEVELS},
    "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": _LEVELS[:4]},
    "ROI_BOX_CASCADE_HEAD": {"BBOX_REG_WEIGHTS": [0, 1, 2]},
    "MASK_ON": True,
    "KEYPOINT_ON": True,
    "SEM_SEG_HEAD": {"IN_FEATURES": _LEVELS[:4]},
    "RETINANET": {"IN_FEATURES": _LEVELS},
}
# One model for every family whose arrays have rows or are not judged as plain values.
_EXAMPLES = (
    _EXAMPLE,
    _EXAMPLE | {"ROI_HEADS": {"NAME": "CascadeROIHeads", "IN_FEATURES": _LEVELS[:4]}},
    _EXAMPLE | {"ROI_HEADS": {"NAME": "Res5ROIHeads", "IN_FEATURES": ["res4"]}, "KEYPOINT_ON": False},
    _EXAMPLE | {"META_ARCHITECTURE": "ProposalNetwork"},
)
