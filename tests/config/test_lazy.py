"""LazyConfig dumps: the same models as the YAML of the same name, and nothing is imported or called."""

import copy

import pytest
import yaml

from tf_d2.config import ConfigError, load_config, load_config_text, resolve_yaml

D2 = "detectron2.modeling"


def obj(target: str, **arguments) -> dict:
    return {"_target_": target, **arguments}


def anchors(sizes, strides) -> dict:
    generator = f"{D2}.anchor_generator.DefaultAnchorGenerator"
    return obj(generator, sizes=sizes, aspect_ratios=[0.5, 1.0, 2.0], strides=strides, offset=0.0)


def transform(*weights) -> dict:
    return obj(f"{D2}.box_regression.Box2BoxTransform", weights=list(weights))


def pooler(size: int, scales=(0.25, 0.125, 0.0625, 0.03125)) -> dict:
    return obj(
        f"{D2}.poolers.ROIPooler",
        output_size=size,
        scales=list(scales),
        sampling_ratio=0,
        pooler_type="ROIAlignV2",
    )


def resnet(out_features) -> dict:
    return obj(
        f"{D2}.ResNet",
        stem=obj(f"{D2}.backbone.BasicStem", in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=obj(f"{D2}.ResNet.make_default_stages", depth=50, stride_in_1x1=True, norm="FrozenBN"),
        out_features=out_features,
        freeze_at=2,
    )


def rpn(in_features, generator) -> dict:
    return obj(
        f"{D2}.proposal_generator.RPN",
        in_features=in_features,
        head=obj(f"{D2}.proposal_generator.StandardRPNHead", in_channels=256, num_anchors=3),
        anchor_generator=generator,
        anchor_matcher=obj(f"{D2}.matcher.Matcher", thresholds=[0.3, 0.7]),
        box2box_transform=transform(1.0, 1.0, 1.0, 1.0),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=[2000, 1000],
        post_nms_topk=[1500, 1000],
        nms_thresh=0.7,
    )


def predictor(*weights, **arguments) -> dict:
    return obj(
        f"{D2}.FastRCNNOutputLayers",
        input_shape={"channels": 1024},
        test_score_thresh=0.05,
        box2box_transform=transform(*weights),
        num_classes="${..num_classes}",
        **arguments,
    )


def box_head() -> dict:
    return obj(f"{D2}.roi_heads.FastRCNNConvFCHead", input_shape={}, conv_dims=[], fc_dims=[1024, 1024])


LEVELS = ["p2", "p3", "p4", "p5"]


def lazy(model: dict) -> dict:
    """A dump: the model beside the loaders and the schedule, as LazyConfig.save writes them."""
    resize = obj("detectron2.data.transforms.ResizeShortestEdge", short_edge_length=800, max_size=1333)
    mapper = obj(
        "detectron2.data.DatasetMapper",
        is_train=False,
        augmentations=[resize],
        image_format="${...train.mapper.image_format}",
    )
    pixels = {"pixel_mean": [103.53, 116.28, 123.675], "pixel_std": [1.0, 1.0, 1.0], "input_format": "BGR"}
    return {
        "model": {**model, **pixels},
        "dataloader": {
            "test": {"mapper": mapper, "dataset": {"names": "coco_2017_val"}},
            "train": {"mapper": {"image_format": "BGR"}},
        },
        "train": {
            "init_checkpoint": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
            "amp": {"enabled": False},
        },
        "optimizer": obj("torch.optim.SGD", lr=0.02),
    }


def mask_rcnn() -> dict:
    return lazy(
        obj(
            f"{D2}.GeneralizedRCNN",
            backbone=obj(
                f"{D2}.FPN",
                bottom_up=resnet(["res2", "res3", "res4", "res5"]),
                in_features="${.bottom_up.out_features}",
                out_channels=256,
                top_block=obj(f"{D2}.backbone.fpn.LastLevelMaxPool"),
            ),
            proposal_generator=rpn(
                [*LEVELS, "p6"], anchors([[32], [64], [128], [256], [512]], [4, 8, 16, 32, 64])
            ),
            roi_heads=obj(
                f"{D2}.StandardROIHeads",
                num_classes=80,
                batch_size_per_image=512,
                positive_fraction=0.25,
                proposal_matcher=obj(f"{D2}.matcher.Matcher", thresholds=[0.5]),
                box_in_features=LEVELS,
                box_pooler=pooler(7),
                box_head=box_head(),
                box_predictor=predictor(10, 10, 5, 5),
                mask_in_features=LEVELS,
                mask_pooler=pooler(14),
                mask_head=obj(
                    f"{D2}.roi_heads.MaskRCNNConvUpsampleHead",
                    input_shape={},
                    num_classes="${..num_classes}",
                    conv_dims=[256] * 5,
                ),
            ),
        )
    )


def cascade() -> dict:
    data = mask_rcnn()
    heads = data["model"]["roi_heads"]
    for key in ("box_head", "box_predictor", "proposal_matcher"):
        del heads[key]
    heads["_target_"] = f"{D2}.roi_heads.CascadeROIHeads"
    heads["box_heads"] = [box_head() for _ in range(3)]
    heads["box_predictors"] = [
        {**predictor(*weights, cls_agnostic_bbox_reg=True), "num_classes": "${...num_classes}"}
        for weights in ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15))
    ]
    heads["proposal_matchers"] = []
    return data


def keypoint_rcnn() -> dict:
    data = mask_rcnn()
    heads = data["model"]["roi_heads"]
    for key in ("mask_in_features", "mask_pooler", "mask_head"):
        del heads[key]
    heads.update(num_classes=1, keypoint_in_features=LEVELS, keypoint_pooler=pooler(14))
    target = f"{D2}.roi_heads.KRCNNConvDeconvUpsampleHead"
    heads["keypoint_head"] = obj(
        target, input_shape={}, num_keypoints=17, conv_dims=[512] * 8, loss_normalizer="x"
    )
    data["dataloader"]["test"]["dataset"]["names"] = "keypoints_coco_2017_val"
    return data


def panoptic_fpn() -> dict:
    data = mask_rcnn()
    data["model"]["_target_"] = f"{D2}.PanopticFPN"
    shapes = {level: {"channels": "${....backbone.out_channels}"} for level in LEVELS}
    data["model"]["sem_seg_head"] = obj(
        f"{D2}.meta_arch.semantic_seg.SemSegFPNHead",
        input_shape=shapes,
        num_classes=54,
        conv_dims=128,
        common_stride=4,
        loss_weight=0.5,
        norm="GN",
    )
    data["dataloader"]["test"]["dataset"]["names"] = "coco_2017_val_panoptic_separated"
    return data


def mask_rcnn_c4() -> dict:
    data = mask_rcnn()
    model = data["model"]
    model["backbone"] = resnet(["res4"])
    model["proposal_generator"] = rpn(["res4"], anchors([[32, 64, 128, 256, 512]], [16]))
    model["proposal_generator"]["pre_nms_topk"] = [12000, 6000]
    model["roi_heads"] = obj(
        f"{D2}.roi_heads.Res5ROIHeads",
        num_classes=80,
        in_features=["res4"],
        pooler=pooler(14, [0.0625]),
        res5=obj(
            f"{D2}.ResNet.make_stage",
            block_class="python:detectron2.modeling.backbone.resnet.BottleneckBlock",
            num_blocks=3,
            stride_per_block=[2, 1, 1],
            in_channels=1024,
            bottleneck_channels=512,
            out_channels=2048,
            norm="FrozenBN",
            stride_in_1x1=True,
        ),
        box_predictor=predictor(10, 10, 5, 5),
        mask_head=obj(
            f"{D2}.roi_heads.MaskRCNNConvUpsampleHead", num_classes="${..num_classes}", conv_dims=[256]
        ),
    )
    return data


def retinanet() -> dict:
    sizes = [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in [32, 64, 128, 256, 512]]
    return lazy(
        obj(
            f"{D2}.RetinaNet",
            backbone=obj(
                f"{D2}.FPN",
                bottom_up=resnet(["res3", "res4", "res5"]),
                in_features=["res3", "res4", "res5"],
                out_channels=256,
                top_block=obj(
                    f"{D2}.backbone.fpn.LastLevelP6P7", in_channels=2048, out_channels="${..out_channels}"
                ),
            ),
            head=obj(
                f"{D2}.meta_arch.retinanet.RetinaNetHead",
                input_shape=[{}] * 5,
                num_classes="${..num_classes}",
                conv_dims=[256] * 4,
                prior_prob=0.01,
                num_anchors=9,
            ),
            anchor_generator=anchors(sizes, [8, 16, 32, 64, 128]),
            box2box_transform=transform(1.0, 1.0, 1.0, 1.0),
            anchor_matcher={},
            num_classes=80,
            head_in_features=["p3", "p4", "p5", "p6", "p7"],
            focal_loss_alpha=0.25,
            focal_loss_gamma=2.0,
        )
    )


def regnet() -> dict:
    """The Y-4GF one of detectron2's RegNet baselines, as LazyConfig.save writes it."""
    data = mask_rcnn()
    model = data["model"]
    model["pixel_std"] = [57.375, 57.12, 58.395]
    model["backbone"]["norm"] = "SyncBN"
    model["backbone"]["bottom_up"] = obj(
        f"{D2}.backbone.RegNet",
        stem_class="python:detectron2.modeling.backbone.regnet.SimpleStem",
        stem_width=32,
        block_class="python:detectron2.modeling.backbone.regnet.ResBottleneckBlock",
        depth=22,
        w_a=31.41,
        w_0=96,
        w_m=2.24,
        group_width=64,
        se_ratio=0.25,
        norm="SyncBN",
        out_features=["s1", "s2", "s3", "s4"],
    )
    model["proposal_generator"]["head"]["conv_dims"] = [-1, -1]
    model["roi_heads"]["box_head"].update(conv_dims=[256] * 4, fc_dims=[1024], conv_norm="naiveSyncBN_N")
    model["roi_heads"]["mask_head"]["conv_norm"] = "naiveSyncBN_N"
    data["train"]["init_checkpoint"] = ""
    return data


@pytest.mark.parametrize(
    ("dump", "name"),
    [
        (regnet, "new_baselines/mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ"),
        (mask_rcnn, "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"),
        (mask_rcnn_c4, "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x"),
        (cascade, "Misc/cascade_mask_rcnn_R_50_FPN_1x"),
        (keypoint_rcnn, "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x"),
        (panoptic_fpn, "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"),
        (retinanet, "COCO-Detection/retinanet_R_50_FPN_1x"),
    ],
)
def test_a_dump_is_the_model_of_the_yaml_of_its_name(dump, name, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.dump(dump(), default_flow_style=None))
    assert load_config(path) == load_config(name)
    assert load_config_text(resolve_yaml(path)) == load_config(name)


def test_python_objects_that_dumps_contain_are_data():
    text = yaml.dump(mask_rcnn())
    text = text.replace(
        "input_shape: {}",
        "input_shape: !!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: 256}",
    )
    assert "ShapeSpec" in text
    assert load_config_text(text) == load_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x")


def test_defaults_of_constructors_differ_from_those_of_the_keys():
    data = mask_rcnn()
    del data["model"]["proposal_generator"]["anchor_generator"]["offset"]
    del data["model"]["roi_heads"]["box_predictor"]["test_score_thresh"]
    del data["model"]["backbone"]["bottom_up"]["stages"]["stride_in_1x1"]
    config = load_config_text(yaml.dump(data))
    assert config.rpn.anchors.offset == 0.5
    assert config.roi_heads is not None and config.roi_heads.box_predictor.score_thresh_test == 0.0
    assert config.backbone.bottom_up.stride_in_1x1 is False


def test_settings_only_a_lazy_config_has(tmp_path):
    data = mask_rcnn()
    data["model"]["backbone"]["square_pad"] = 1024
    config = load_config_text(yaml.dump(data))
    assert config.backbone.square_pad == 1024
    path = tmp_path / "a.yaml"
    path.write_text(yaml.dump(data))
    assert load_config_text(resolve_yaml(path)) == config


@pytest.mark.parametrize(
    ("dump", "path", "values"),
    [
        (mask_rcnn, "model.backbone.bottom_up.stages.norm", ("BN", "FrozenBN")),
        (mask_rcnn, "model.backbone.bottom_up.stem.norm", ("FrozenBN", "GN")),
        (mask_rcnn_c4, "model.roi_heads.res5.norm", ("FrozenBN", "FrozenBN", "BN")),
    ],
)
def test_norms_of_stem_stages_and_res5_are_written_apart(dump, path, values, tmp_path):
    """`stages.norm = "BN"` in a run's configuration leaves the stem as it was."""
    data = change(dump(), path, next(v for v in values if v != "FrozenBN"))
    config = load_config_text(yaml.dump(data))
    backbone = getattr(config.backbone, "bottom_up", config.backbone)
    found = [backbone.norm, backbone.stem_norm]
    found += [config.roi_heads.res5.norm] if dump is mask_rcnn_c4 else []
    assert tuple(found) == values
    (tmp_path / "a.yaml").write_text(yaml.dump(data))
    assert load_config_text(resolve_yaml(tmp_path / "a.yaml")) == config
    option = load_config_text(yaml.dump(data), ["MODEL.RESNETS.NORM", "SyncBN"])
    backbone = getattr(option.backbone, "bottom_up", option.backbone)
    assert {backbone.norm, backbone.stem_norm} == {"SyncBN"}
    assert dump is not mask_rcnn_c4 or option.roi_heads.res5.norm == "SyncBN"


def test_the_last_box_predictor_of_a_cascade_says_what_becomes_a_detection():
    data = cascade()
    for stage, predictor in enumerate(data["model"]["roi_heads"]["box_predictors"]):
        predictor.update(
            test_score_thresh=0.1 * stage, test_nms_thresh=0.4 + 0.1 * stage, test_topk_per_image=stage + 5
        )
    found = load_config_text(yaml.dump(data)).roi_heads.box_predictor
    assert (found.score_thresh_test, found.detections_per_image) == (0.2, 7)
    assert found.nms_thresh_test == pytest.approx(0.6)


NORMS = {
    "!!python/name:detectron2._cfg_loaderbf68.mask_rcnn_fpn.py.%3Clambda%3E ''": "naiveSyncBN_N",
    "!!python/name:None.%3Clambda%3E ''": "naiveSyncBN_N",
    "!!python/name:torch.nn.modules.batchnorm.BatchNorm2d ''": "BN",
    "!!python/name:detectron2.layers.batch_norm.NaiveSyncBatchNorm ''": "naiveSyncBN",
    "!!python/name:detectron2.layers.batch_norm.FrozenBatchNorm2d ''": "FrozenBN",
    "'GN'": "GN",
    "null": "",
}


@pytest.mark.parametrize("written", NORMS)
def test_forms_of_a_norm(written):
    """A name, a class, or the lambda of a configuration file, of which detectron2's own mean one thing."""
    text = yaml.dump(mask_rcnn()).replace("conv_dims: []", f"conv_dims: []\n      conv_norm: {written}")
    assert load_config_text(text).roi_heads.box_head.norm == NORMS[written]


def test_a_norm_that_is_any_function_needs_an_option():
    text = yaml.dump(mask_rcnn()).replace(
        "conv_dims: []", "conv_dims: []\n      conv_norm: !!python/name:my.norms.make ''"
    )
    message = r"model.roi_heads.box_head.conv_norm = 'python:my.norms.make'.*give its value as an option"
    with pytest.raises(ConfigError, match=message):
        load_config_text(text)
    for key in ("MODEL.ROI_BOX_HEAD.NORM", "model.roi_heads.box_head.conv_norm"):
        assert load_config_text(text, [key, "naiveSyncBN_N"]).roi_heads.box_head.norm == "naiveSyncBN_N"


def test_options_in_either_vocabulary(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(yaml.dump(mask_rcnn()))
    opts = ["model.roi_heads.num_classes", "7", "TEST.DETECTIONS_PER_IMAGE", 5, "SOLVER.BASE_LR", 1.0]
    opts += ["model.backbone.bottom_up.stages.depth", 101, "INPUT.MIN_SIZE_TEST", 640]
    opts += ["MODEL.WEIGHTS", "a.pkl", "DATASETS.TEST", ["mine"]]
    config = load_config(path, opts)
    assert config.roi_heads.num_classes == 7 and config.roi_heads.detections_per_image == 5
    assert config.backbone.bottom_up.depth == 101 and config.input.min_size_test == 640
    assert (config.weights, config.dataset) == ("a.pkl", "mine")
    assert load_config_text(resolve_yaml(path, opts)) == config
    for bad, message in {
        "MODEL.RETINANET.NUM_CONVS": "LazyConfig without that setting",
        "model.roi_head.num_classes": "has no 'roi_head'",
        "model.pixel_mean.9": "no such value",
        "models.a": "models.a",
    }.items():
        with pytest.raises(ConfigError, match=f"option {bad}.*{message}|{message}"):
            load_config(path, [bad, 3])


def test_what_keys_cannot_say_is_written_as_a_dump(tmp_path):
    data = mask_rcnn()
    data["model"]["roi_heads"]["box_head"]["fc_dims"] = [1024, 512]
    data["model"]["roi_heads"]["box_pooler"]["canonical_box_size"] = 112
    path = tmp_path / "a.yaml"
    path.write_text(yaml.dump(data))
    config = load_config(path, ["MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.4])
    assert config.roi_heads.box_head.fc_dims == (1024, 512)
    assert config.roi_heads.box_pooler.canonical_box_size == 112
    text = resolve_yaml(path, ["MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.4])
    assert "_target_" in text and "${" not in text and "optimizer" not in text
    assert load_config_text(text) == config


def change(data: dict, path: str, value) -> dict:
    data = copy.deepcopy(data)
    *parents, leaf = path.split(".")
    node = data
    for parent in parents:
        node = node[int(parent) if isinstance(node, list) else parent]
    if value is None:
        del node[leaf]
    else:
        node[int(leaf) if isinstance(node, list) else leaf] = value
    return data


REFUSED = [
    (mask_rcnn, "model._target_", "detectron2.modeling.YOLOF", "model._target_ = 'YOLOF'.*tf_d2.extend"),
    (mask_rcnn, "model._target_", "os.system", "model._target_ = 'os.system' is not supported"),
    (mask_rcnn, "model._target_", 3, "expected the name of a class"),
    (mask_rcnn, "model.surprise", 1, "model: the argument 'surprise' of GeneralizedRCNN"),
    (mask_rcnn, "model.backbone", 3, "model.backbone = 3: expected an object"),
    (mask_rcnn, "model.backbone", None, "model.backbone is missing"),
    (
        mask_rcnn,
        "model.backbone.bottom_up._target_",
        "detectron2.modeling.ConvNeXt",
        "'ConvNeXt'.*ResNet or RegNet.*tf_d2.extend",
    ),
    (regnet, "model.backbone.bottom_up.stem_class", "python:a.regnet.ResStem", "expected SimpleStem"),
    (regnet, "model.backbone.bottom_up.block_class", "python:a.VanillaBlock", "expected ResBottleneckBlock"),
    (regnet, "model.backbone.bottom_up.bottleneck_ratio", 0.5, "expected 1.0"),
    (regnet, "model.backbone.bottom_up.stride", 4, "expected 2"),
    (regnet, "model.backbone.bottom_up.w_m", None, "w_m is missing"),
    (regnet, "model.backbone.bottom_up.width", 8, "argument 'width' of RegNet"),
    (mask_rcnn, "model.backbone.bottom_up.num_classes", 5, "argument 'num_classes' of ResNet"),
    (mask_rcnn, "model.backbone.bottom_up.stem.norm", "XN", "stem.norm = 'XN'"),
    (mask_rcnn, "model.backbone.bottom_up.stages.num_groups", 3, "divisor of 64"),
    (mask_rcnn, "model.backbone.bottom_up.stages.dilation", 2, "argument 'dilation'"),
    (mask_rcnn, "model.backbone.in_features", "${.bottom_up.nothing}", "cannot be followed"),
    (mask_rcnn, "model.backbone.in_features", "${.in_features}", "cannot be followed"),
    (mask_rcnn, "model.backbone.in_features", "${oc.env:HOME}", "cannot be followed"),
    (mask_rcnn, "model.backbone.in_features", "${" + "." * 30 + "a}", "cannot be followed"),
    (mask_rcnn, "model.proposal_generator.pre_nms_topk", 1000, "expected .train, test."),
    (mask_rcnn, "model.proposal_generator.box2box_transform.scale_clamp", 9.0, "'scale_clamp'"),
    (mask_rcnn, "model.roi_heads.box_predictor.num_classes", 3, "expected that of roi_heads"),
    (mask_rcnn, "model.roi_heads.box_head.fc_dims", [1024, 0], "box_head.fc_dims = .*channel numbers"),
    (mask_rcnn, "model.roi_heads.box_head.fc_dims", [], "NUM_CONV or NUM_FC above 0"),
    (mask_rcnn, "model.roi_heads.box_pooler.canonical_level", 0, "canonical_level = 0.*at least 1"),
    (mask_rcnn, "model.roi_heads.box_pooler.scales", [0.25], "expected 1 / stride of p2, p3, p4, p5"),
    (mask_rcnn, "model.roi_heads.mask_in_features", ["p2"], "expected that of box_in_features"),
    (mask_rcnn, "model.roi_heads.mask_pooler", 3, "must be objects"),
    (mask_rcnn, "model.roi_heads.mask_head.conv_dims", [], "mask_head.conv_dims = .*at least one"),
    (mask_rcnn, "dataloader.test.mapper.augmentations", [], "expected one ResizeShortestEdge"),
    (
        mask_rcnn,
        "dataloader.test.mapper.augmentations.0.short_edge_length",
        [640, 800],
        "short_edge_length = .*whole number",
    ),
    (mask_rcnn, "dataloader", None, "dataloader.test.mapper.augmentations is needed"),
    (mask_rcnn_c4, "model.roi_heads.res5.norm", "XN", "res5.norm = 'XN'"),
    (mask_rcnn_c4, "model.roi_heads.res5.stride_in_1x1", False, "the res5 of a C4 model"),
    (
        mask_rcnn_c4,
        "model.roi_heads.res5.block_class",
        "python:DeformBottleneckBlock",
        "expected BottleneckBlock",
    ),
    (
        cascade,
        "model.roi_heads.box_predictors.1.use_sigmoid_ce",
        True,
        "must be equal in cls_agnostic_bbox_reg and use_sigmoid_ce",
    ),
    (cascade, "model.roi_heads.box_heads", [], "as many equal box_heads"),
    (cascade, "model.roi_heads.box_heads", [3], "expected a list of objects"),
    (retinanet, "model.backbone.top_block.in_feature", "p9", "in_feature = 'p9'"),
]


@pytest.mark.parametrize(("dump", "path", "value", "message"), REFUSED)
def test_refused(dump, path, value, message):
    with pytest.raises(ConfigError, match=message):
        load_config_text(yaml.dump(change(dump(), path, value)))
