"""The published models that only LazyConfig can say, as the data that `LazyConfig.save` writes of them.

Each is a function of what sets it apart; arguments equal to the constructor's default are left out, those that it
insists on stand, also where only training reads them: detectron2 can build what stands here. The values are facts of
projects/ViTDet/configs, projects/MViTv2/configs, configs/common/models and configs/COCO-Detection/fcos_R_50_FPN_1x.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from tf_d2.config.safe_yaml import PARTIAL

Data = dict[str, Any]

_MODELING = "detectron2.modeling."
_LAYER_NORM = {PARTIAL: "python:torch.nn.modules.normalization.LayerNorm", "eps": 1e-6}
_RGB = {"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": [58.395, 57.12, 57.375]}
_BGR = {"pixel_mean": [103.53, 116.28, 123.675], "pixel_std": [1.0, 1.0, 1.0]}
_LEVELS = ["p2", "p3", "p4", "p5"]
_CASCADE = ((10, 5), (20, 10), (30, 15))


def _new(target: str, **arguments: Any) -> Data:
    return {"_target_": _MODELING + target, **arguments}


# === Backbones ===


def _vit(embed_dim: int, depth: int, num_heads: int) -> Data:
    """Every fourth part of the blocks ends with one that attends over the whole map."""
    every = depth // 4
    return _new(
        "SimpleFeaturePyramid",
        net=_new(
            "ViT",
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            window_size=14,
            norm_layer=_LAYER_NORM,
            window_block_indexes=[i for i in range(depth) if i % every != every - 1],
            use_rel_pos=True,
        ),
        in_feature="last_feat",
        out_channels=256,
        scale_factors=[4.0, 2.0, 1.0, 0.5],
        top_block=_max_pool(),
        norm="LN",
        square_pad=1024,
    )


def _mvit(embed_dim: int, depth: int, num_heads: int, last: tuple[int, ...]) -> Data:
    return _new(
        "MViT",
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        last_block_indexes=list(last),
        norm_layer=_LAYER_NORM,
    )


def _swin(embed_dim: int, num_heads: tuple[int, ...]) -> Data:
    return _new("SwinTransformer", embed_dim=embed_dim, depths=[2, 2, 18, 2], num_heads=list(num_heads))


def _fpn(bottom_up: Data, in_features: list[str], **more: Any) -> Data:
    return _new(
        "FPN",
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=256,
        **{"top_block": _max_pool(), **more},
    )


def _max_pool() -> Data:
    return _new("backbone.fpn.LastLevelMaxPool")


_VITS = {"b": (768, 12, 12), "l": (1024, 24, 16), "h": (1280, 32, 16)}
_MVITS = {
    "t": (96, 10, 1, (0, 2, 7, 9)),
    "s": (96, 16, 1, (0, 2, 13, 15)),
    "b": (96, 24, 1, (1, 4, 20, 23)),
    "l": (144, 48, 2, (1, 7, 43, 47)),
    "h": (192, 80, 3, (3, 11, 71, 79)),
}
_SWINS = {"b": (128, (4, 8, 16, 32)), "l": (192, (6, 12, 24, 48))}
_SCALES = [f"scale{i}" for i in range(2, 6)]


def _backbone(kind: str, size: str) -> Data:
    """With square padding and norms, as the ViTDet project has them."""
    if kind == "vitdet":
        return _vit(*_VITS[size])
    if kind == "swin":
        return _fpn(_swin(*_SWINS[size]), ["p0", "p1", "p2", "p3"], norm="LN", square_pad=1024)
    return _fpn(_mvit(*_MVITS[size]), _SCALES, norm="LN", square_pad=1024)


# === Models ===


def _rpn(conv_dims: list[int]) -> Data:
    return _new(
        "proposal_generator.RPN",
        in_features=[*_LEVELS, "p6"],
        head=_new("proposal_generator.StandardRPNHead", in_channels=256, num_anchors=3, conv_dims=conv_dims),
        anchor_generator=_new(
            "anchor_generator.DefaultAnchorGenerator",
            sizes=[[32], [64], [128], [256], [512]],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
            offset=0.0,
        ),
        anchor_matcher=_matcher([0.3, 0.7], [0, -1, 1], True),
        batch_size_per_image=256,
        positive_fraction=0.5,
        box2box_transform=_transform([1.0, 1.0, 1.0, 1.0]),
        pre_nms_topk=[2000, 1000],
        post_nms_topk=[1000, 1000],
        nms_thresh=0.7,
    )


def _matcher(thresholds: list[float], labels: list[int], allow_low_quality_matches: bool = False) -> Data:
    return _new(
        "matcher.Matcher",
        thresholds=thresholds,
        labels=labels,
        allow_low_quality_matches=allow_low_quality_matches,
    )


def _shape(channels: int, side: int | None = None) -> Data:
    return {"channels": channels} if side is None else {"channels": channels, "height": side, "width": side}


def _transform(weights: list[Any]) -> Data:
    return _new("box_regression.Box2BoxTransform", weights=weights)


def _pooler(size: int) -> Data:
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    return _new(
        "poolers.ROIPooler", output_size=size, scales=scales, sampling_ratio=0, pooler_type="ROIAlignV2"
    )


def _roi_heads(cascade: bool, lvis: bool, convs: int, norm: Any) -> Data:
    classes = 1203 if lvis else 80
    tests = {"test_score_thresh": 0.05}
    if lvis:
        tests = {"test_score_thresh": 0.02, "test_topk_per_image": 300, "use_sigmoid_ce": True}
    predictor = partial(_new, "FastRCNNOutputLayers", input_shape=_shape(1024), num_classes=classes, **tests)
    fcs = 1 if convs else 2
    box_head = _new(
        "roi_heads.FastRCNNConvFCHead",
        input_shape=_shape(256, 7),
        conv_dims=[256] * convs,
        fc_dims=[1024] * fcs,
        conv_norm=norm,
    )
    heads: Data = {
        "num_classes": classes,
        "batch_size_per_image": 512,
        "positive_fraction": 0.25,
        "box_in_features": _LEVELS,
        "box_pooler": _pooler(7),
        "mask_in_features": _LEVELS,
        "mask_pooler": _pooler(14),
        "mask_head": _new(
            "roi_heads.MaskRCNNConvUpsampleHead",
            input_shape=_shape(256, 14),
            conv_dims=[256] * 5,
            num_classes=classes,
            conv_norm=norm,
        ),
    }
    if not cascade:
        box_predictor = predictor(box2box_transform=_transform([10, 10, 5, 5]))
        matcher = _matcher([0.5], [0, 1])
        return _new(
            "StandardROIHeads",
            **heads,
            box_head=box_head,
            box_predictor=box_predictor,
            proposal_matcher=matcher,
        )
    predictors = [
        predictor(box2box_transform=_transform([a, a, b, b]), cls_agnostic_bbox_reg=True) for a, b in _CASCADE
    ]
    matchers = [_matcher([threshold], [0, 1]) for threshold in (0.5, 0.6, 0.7)]
    return _new(
        "roi_heads.CascadeROIHeads",
        **heads,
        box_heads=[box_head] * 3,
        box_predictors=predictors,
        proposal_matchers=matchers,
    )


def _rcnn(backbone: Data, conv_dims: list[int], roi_heads: Data) -> Data:
    return _new(
        "GeneralizedRCNN", backbone=backbone, proposal_generator=_rpn(conv_dims), roi_heads=roi_heads, **_RGB
    )


def _run(model: Data, short: int, longest: int, image_format: str, dataset: str) -> Data:
    resize = {"_target_": "detectron2.data.transforms.ResizeShortestEdge"}
    resize |= {"short_edge_length": short, "max_size": longest}
    mapper = {"augmentations": [resize], "image_format": image_format}
    return {"model": model, "dataloader": {"test": {"dataset": {"names": dataset}, "mapper": mapper}}}


def _vitdet_project(kind: str, size: str, cascade: bool, lvis: bool) -> Data:
    model = _rcnn(_backbone(kind, size), [-1, -1], _roi_heads(cascade, lvis, 4, "LN"))
    return _run(model, 1024, 1024, "RGB", "lvis_v1_val" if lvis else "coco_2017_val")


def _mvitv2_project(size: str, cascade: bool) -> Data:
    heads = _roi_heads(cascade, False, 4 if cascade else 0, "naiveSyncBN_N" if cascade else "")
    model = _rcnn(_fpn(_mvit(*_MVITS[size]), _SCALES), [-1, -1] if cascade else [-1], heads)
    return _run(model, 800, 1333, "RGB", "coco_2017_val")


def _fcos() -> Data:
    stages = _new("backbone.ResNet.make_default_stages", depth=50, stride_in_1x1=True, norm="FrozenBN")
    stem = _new("backbone.BasicStem", in_channels=3, out_channels=64, norm="FrozenBN")
    resnet = _new("backbone.ResNet", stem=stem, stages=stages, out_features=["res3", "res4", "res5"])
    top = _new("backbone.fpn.LastLevelP6P7", in_channels=256, out_channels=256, in_feature="p5")
    model = _new(
        "meta_arch.fcos.FCOS",
        backbone=_fpn(resnet, ["res3", "res4", "res5"], top_block=top),
        head=_new(
            "meta_arch.fcos.FCOSHead",
            input_shape=[_shape(256)] * 5,
            num_classes=80,
            conv_dims=[256] * 4,
            norm="GN",
        ),
        num_classes=80,
        head_in_features=["p3", "p4", "p5", "p6", "p7"],
        **_BGR,
    )
    return _run(model, 800, 1333, "BGR", "coco_2017_val")


_VITDET, _MVITV2 = "projects/ViTDet/configs", "projects/MViTv2/configs"
# kind of backbone, size, and what its file's name ends with, for COCO and for LVIS
_SCHEDULES = (
    ("vitdet", "b", "100ep", "100ep"),
    ("vitdet", "l", "100ep", "100ep"),
    ("vitdet", "h", "75ep", "100ep"),
    ("swin", "b", "in21k_50ep", "in21k_50ep"),
    ("swin", "l", "in21k_50ep", "in21k_50ep"),
    ("mvitv2", "b", "in21k_100ep", "in21k_100ep"),
    ("mvitv2", "l", "in21k_50ep", "in21k_50ep"),
    ("mvitv2", "h", "in21k_36ep", "in21k_50ep"),
)

LAZY: Mapping[str, Callable[[], Data]] = MappingProxyType(
    {
        **{
            f"{_VITDET}/{dataset}/{prefix}mask_rcnn_{kind}_{size}_{schedule}": partial(
                _vitdet_project, kind, size, bool(prefix), dataset == "LVIS"
            )
            for kind, size, *schedules in _SCHEDULES
            for dataset, schedule in zip(("COCO", "LVIS"), schedules, strict=True)
            for prefix in (("", "cascade_") if kind == "vitdet" else ("cascade_",))
        },
        f"{_MVITV2}/mask_rcnn_mvitv2_t_3x": partial(_mvitv2_project, "t", False),
        **{
            f"{_MVITV2}/cascade_mask_rcnn_mvitv2_{name}": partial(_mvitv2_project, name[0], True)
            for name in ("t_3x", "s_3x", "b_3x", "b_in21k_3x", "l_in21k_lsj_50ep", "h_in21k_lsj_3x")
        },
        "COCO-Detection/fcos_R_50_FPN_1x": _fcos,
    }
)
"""Name of a published model -> what its configuration says."""

DIGESTS: Mapping[str, str] = MappingProxyType(
    {
        "COCO-Detection/fcos_R_50_FPN_1x.py": "16af508897dd43b1",
        "COCO-Detection/retinanet_R_50_FPN_1x.py": "9b4c5fc1dbfb9ad9",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py": "ab9fc30426675b58",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py": "b65b5419ce06e00f",
        "COCO-InstanceSegmentation/mask_rcnn_regnetx_4gf_dds_fpn_1x.py": "9457b37050d4e075",
        "COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x.py": "d1c666a7d7d9eb7d",
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.py": "3a8563118a133943",
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py": "b4d4c671ff1703ae",
        "new_baselines/mask_rcnn_R_101_FPN_100ep_LSJ.py": "a97ba7c71e947e3f",
        "new_baselines/mask_rcnn_R_101_FPN_200ep_LSJ.py": "43d197ed9307b6e5",
        "new_baselines/mask_rcnn_R_101_FPN_400ep_LSJ.py": "cb0e6532af97912b",
        "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py": "5e388f636c84ad43",
        "new_baselines/mask_rcnn_R_50_FPN_200ep_LSJ.py": "7db763c56fe2fb3f",
        "new_baselines/mask_rcnn_R_50_FPN_400ep_LSJ.py": "48c67e46672cb7ca",
        "new_baselines/mask_rcnn_R_50_FPN_50ep_LSJ.py": "c4c8b1044b343e6a",
        "new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ.py": "9423bc94ca06ff3e",
        "new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_200ep_LSJ.py": "6647f4209bc69ea2",
        "new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_400ep_LSJ.py": "b8596d544e9827c3",
        "new_baselines/mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ.py": "db295046b9c52dc2",
        "new_baselines/mask_rcnn_regnety_4gf_dds_FPN_200ep_LSJ.py": "15781846eb3551c4",
        "new_baselines/mask_rcnn_regnety_4gf_dds_FPN_400ep_LSJ.py": "804ca0910179116b",
        "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_b_3x.py": "7f079b94a28c66b9",
        "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_b_in21k_3x.py": "7cae3a8c1b796918",
        "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_h_in21k_lsj_3x.py": "c6dae3455c162499",
        "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep.py": "66a9859873ed3b37",
        "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_s_3x.py": "7eb3ea064805e37d",
        "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_t_3x.py": "4880c7d9926a1341",
        "projects/MViTv2/configs/mask_rcnn_mvitv2_t_3x.py": "db0b9c0f1681d757",
        "projects/ViTDet/configs/COCO/cascade_mask_rcnn_mvitv2_b_in21k_100ep.py": "46c534e1eacbcd04",
        "projects/ViTDet/configs/COCO/cascade_mask_rcnn_mvitv2_h_in21k_36ep.py": "467fdec5ac948edf",
        "projects/ViTDet/configs/COCO/cascade_mask_rcnn_mvitv2_l_in21k_50ep.py": "6373079c7e5a0691",
        "projects/ViTDet/configs/COCO/cascade_mask_rcnn_swin_b_in21k_50ep.py": "807d8b06891db12f",
        "projects/ViTDet/configs/COCO/cascade_mask_rcnn_swin_l_in21k_50ep.py": "405d1478bc33d299",
        "projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_b_100ep.py": "dd11409db5ca9b2d",
        "projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_h_75ep.py": "4280c4a11192bac6",
        "projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_l_100ep.py": "f585a22567cc8e21",
        "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py": "c20436daa3e54b00",
        "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_h_75ep.py": "f8ae4b5c502278fd",
        "projects/ViTDet/configs/COCO/mask_rcnn_vitdet_l_100ep.py": "549b33c2108935e5",
        "projects/ViTDet/configs/LVIS/cascade_mask_rcnn_mvitv2_b_in21k_100ep.py": "a50bc08a811a9820",
        "projects/ViTDet/configs/LVIS/cascade_mask_rcnn_mvitv2_h_in21k_50ep.py": "965065e19fee8f2c",
        "projects/ViTDet/configs/LVIS/cascade_mask_rcnn_mvitv2_l_in21k_50ep.py": "c85a07b558a30b19",
        "projects/ViTDet/configs/LVIS/cascade_mask_rcnn_swin_b_in21k_50ep.py": "9f26fb7ac6eaaa55",
        "projects/ViTDet/configs/LVIS/cascade_mask_rcnn_swin_l_in21k_50ep.py": "82f1b3e0d6dfcdcc",
        "projects/ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_b_100ep.py": "22801cb765425a49",
        "projects/ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_h_100ep.py": "617fcd2692399bfb",
        "projects/ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_l_100ep.py": "f4b65c2a90df52d3",
        "projects/ViTDet/configs/LVIS/mask_rcnn_vitdet_b_100ep.py": "4e4b9b182580db73",
        "projects/ViTDet/configs/LVIS/mask_rcnn_vitdet_h_100ep.py": "23506c91b74c9c50",
        "projects/ViTDet/configs/LVIS/mask_rcnn_vitdet_l_100ep.py": "2ec7bde8d1211120",
    }
)
"""Path of a published Python file, below configs/ or as it is -> the start of its SHA-256, by which a copy of it is
known without running it.
"""
