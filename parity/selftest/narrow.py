"""Published models at a width that a small machine runs in seconds: what to override in their configurations.

What a model is stays: its depth, groups, windows, stages and heads; what shrinks is the number of channels, the
picture, and how many boxes go on. The model is to have random weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_SMALL = {
    **{"RESNETS.STEM_OUT_CHANNELS": 8, "RESNETS.RES2_OUT_CHANNELS": 32, "FPN.OUT_CHANNELS": 32},
    **{"ROI_BOX_HEAD.FC_DIM": 64, "ROI_BOX_HEAD.CONV_DIM": 32, "ROI_MASK_HEAD.CONV_DIM": 32},
    **{"RPN.PRE_NMS_TOPK_TEST": 200, "RPN.POST_NMS_TOPK_TEST": 100, "SEM_SEG_HEAD.CONVS_DIM": 64},
    "ROI_KEYPOINT_HEAD.CONV_DIMS": "(32, 32)",
}
_SMALL_INPUT = {"INPUT.MIN_SIZE_TEST": 160, "INPUT.MAX_SIZE_TEST": 280, "TEST.DETECTIONS_PER_IMAGE": 20}

# Keys of detectron2's projects: how the names of the models begin, and what is smaller there. Later lines win.
# The pooled part of DeepLab's picture, 5 x 5 cells of stride 16, has to divide a map of 10 x 15.
_CROP = {"INPUT.CROP.SIZE": "(80, 80)", "MODEL.RESNETS.STEM_OUT_CHANNELS": 16}
_ASPP = {"MODEL.SEM_SEG_HEAD.CONVS_DIM": 24, "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 24}
_DENSE = "MODEL.ROI_DENSEPOSE_HEAD."
_DECODER = {"CONV_HEAD_DIM": 32, "DECODER_NUM_CLASSES": 32, "DECODER_CONV_DIMS": 32}
_MAPS = {"POOLER_RESOLUTION": 10, "HEATMAP_SIZE": 40}  # every person has about a hundred of these maps
_PROJECTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (r"PointRend/", {"MODEL.POINT_HEAD.FC_DIM": 24}),
    (r"pointrend_rcnn", {"MODEL.ROI_MASK_HEAD.FC_DIM": 40}),
    (r"DeepLab/", _CROP | _ASPP),
    (r"deeplab_v3_plus", {"MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": "[10]"}),
    (
        r"Panoptic-DeepLab/",
        {
            "MODEL.SEM_SEG_HEAD.HEAD_CHANNELS": 20,
            "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS": "[8, 12]",
            "MODEL.INS_EMBED_HEAD.CONVS_DIM": 12,
            "MODEL.INS_EMBED_HEAD.ASPP_CHANNELS": 12,
            "MODEL.INS_EMBED_HEAD.HEAD_CHANNELS": 8,
            "MODEL.INS_EMBED_HEAD.PROJECT_CHANNELS": "[6, 10]",
            "MODEL.PANOPTIC_DEEPLAB.STUFF_AREA": 300,
        },
    ),
    (
        r"crop_640_640",  # a picture is padded to a whole crop
        {"INPUT.CROP.SIZE": "(160, 160)", "INPUT.MIN_SIZE_TEST": 160, "INPUT.MAX_SIZE_TEST": 160}
        | {"MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY": 160, "MODEL.PANOPTIC_DEEPLAB.NMS_KERNEL": 11},
    ),
    (r"TensorMask/", {f"MODEL.TENSOR_MASK.{name}_CHANNELS": 16 for name in ("CLS", "BBOX", "MASK")}),
    (r"DensePose/", {_DENSE + name: value for name, value in (_DECODER | _MAPS).items()}),
    (r"DensePose/", {"TEST.DETECTIONS_PER_IMAGE": 8}),
    # A non-local block halves the channels before norms of 32 groups.
    (r"DensePose/.*_DL_", {"MODEL.FPN.OUT_CHANNELS": 64, _DENSE + "DECODER_NUM_CLASSES": 64}),
)


def narrow(model: str) -> list[str]:
    """Overrides, ``[KEY, VALUE, ...]``, that make a published configuration small."""
    from tf_d2.config.zoo import zoo_lazy

    data = zoo_lazy(model)
    found = _of_lazy(data) if data is not None else _of_keys(model)
    return [str(word) for pair in found.items() for word in pair]


def _of_keys(model: str) -> dict[str, Any]:
    """Of a configuration of keys; groups stay, their width shrinks."""
    found: dict[str, Any] = dict(_SMALL_INPUT)
    regnet = "regnet" in model.lower()
    norms = bool(re.search(r"_gn(_|$)", model))  # of 32 groups, so no narrower than that
    for key, value in (_SMALL | ({"RESNETS.STEM_OUT_CHANNELS": 32} if norms else {})).items():
        if not (regnet and key.startswith("RESNETS.")):
            found[f"MODEL.{key}"] = value
    for start, more in _PROJECTS:
        found |= more if re.search(start, model) else {}
    if "/cse/" in model:
        found |= _of_embedders(model)
    grouped = "X_101" in model or "X_152" in model
    width = 1 if grouped else 32 if norms else 8
    return found if regnet else found | {"MODEL.RESNETS.WIDTH_PER_GROUP": width}


def _of_embedders(model: str) -> dict[str, Any]:
    """Of DensePose's continuous embeddings: fewer vertices of each mesh, and shorter features."""
    from tf_d2.config.zoo import zoo_values

    start = _DENSE + "CSE.EMBEDDERS"
    fewer = {"NUM_VERTICES": 200, "FEATURE_DIM": 16}
    return {f"{start}.{mesh}.{key}": n for mesh in zoo_values(model)[start] for key, n in fewer.items()}


# ---- Configurations in Python ------------------------------------------------------------------------------

_WIDTH, _FC = 32, 64
_PICTURE = 256  # of the models that pad to a square; a multiple of all strides, no multiple of a window


def _of_lazy(data: Mapping[str, Any]) -> dict[str, Any]:
    """Of a LazyConfig."""
    found = dict(_walk(data["model"], ("model",)))
    square = "model.backbone.square_pad" in found
    resize = "dataloader.test.mapper.augmentations.0."
    short, longest = (_PICTURE, _PICTURE) if square else (160, 280)
    return found | {resize + "short_edge_length": short, resize + "max_size": longest}


def _walk(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The overrides of a part of a model and of all parts in it."""
    if isinstance(node, Sequence) and not isinstance(node, str):
        for k, item in enumerate(node):
            yield from _walk(item, (*path, str(k)))
    if not isinstance(node, Mapping):
        return
    kind = str(node.get("_target_", "")).rsplit(".", 1)[-1]
    yield from ((".".join((*path, key)), value) for key, value in _of_part(kind, node).items())
    for key, item in node.items():
        yield from _walk(item, (*path, key))


def _of_part(kind: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of one part by the name of its class."""
    if kind == "ViT":  # as many heads as it has, of 8 channels
        return {"embed_dim": 8 * node["num_heads"], "img_size": _PICTURE}
    if kind == "SwinTransformer":
        return {"embed_dim": 4 * node["num_heads"][0]}
    if kind == "MViT":
        return {"embed_dim": 8 * node.get("num_heads", 1)}
    if kind in ("FPN", "SimpleFeaturePyramid"):
        return {"out_channels": _WIDTH} | ({"square_pad": _PICTURE} if "square_pad" in node else {})
    if kind == "RPN":
        return {"pre_nms_topk": [2000, 200], "post_nms_topk": [1000, 100]}
    if kind == "StandardRPNHead":
        return {"in_channels": _WIDTH}
    if kind == "FastRCNNOutputLayers":
        return {"input_shape.channels": _FC, "test_topk_per_image": 20}
    if kind in ("FastRCNNConvFCHead", "MaskRCNNConvUpsampleHead"):
        dims = {"conv_dims": [_WIDTH] * len(node["conv_dims"]), "input_shape.channels": _WIDTH}
        return dims | ({"fc_dims": [_FC] * len(node["fc_dims"])} if "fc_dims" in node else {})
    return {}
