"""The stage table: closed under its inputs, and the names that detectron2's recording has."""

import copy

import pytest

from parity.core.units import GIVEN, OPS, array_of, forced_name, stages, units

FPN = {"NAME": "build_resnet_fpn_backbone"}


def config(meta="GeneralizedRCNN", **changes):
    """The keys the table reads, for Mask R-CNN with an FPN unless changed."""
    model = {
        "META_ARCHITECTURE": meta,
        "BACKBONE": FPN,
        "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"]},
        "RESNETS": {"OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
        "RPN": {"IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"]},
        "PROPOSAL_GENERATOR": {"NAME": "RPN"},
        "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": ["p2", "p3", "p4", "p5"]},
        "ROI_BOX_CASCADE_HEAD": {"BBOX_REG_WEIGHTS": [[1] * 4] * 3},
        "SEM_SEG_HEAD": {"IN_FEATURES": ["p2", "p3", "p4", "p5"]},
        "RETINANET": {"IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"]},
        "MASK_ON": True,
        "KEYPOINT_ON": False,
    }
    model |= copy.deepcopy(changes)
    return {"MODEL": model}


C4 = {
    "BACKBONE": {"NAME": "build_resnet_backbone"},
    "RESNETS": {"OUT_FEATURES": ["res4"]},
    "RPN": {"IN_FEATURES": ["res4"]},
    "ROI_HEADS": {"NAME": "Res5ROIHeads", "IN_FEATURES": ["res4"]},
}
RETINA = {
    "BACKBONE": {"NAME": "build_retinanet_resnet_fpn_backbone"},
    "FPN": {"IN_FEATURES": ["res3", "res4", "res5"]},
    "RESNETS": {"OUT_FEATURES": ["res3", "res4", "res5"]},
}
REGNET = {
    "BACKBONE": {"NAME": "build_regnet_fpn_backbone"},
    "FPN": {"IN_FEATURES": ["s2", "s3", "s4"]},
    "REGNETS": {"OUT_FEATURES": ["s2", "s3", "s4"]},
    "RETINANET": {"IN_FEATURES": ["p3", "p4", "p5", "p6"]},
}
POINT_REND_SEMANTIC = {
    "SEM_SEG_HEAD": {"IN_FEATURES": ["p2", "p3", "p4", "p5"], "NAME": "PointRendSemSegHead"},
    "POINT_HEAD": {"IN_FEATURES": ["p2"]},
}
DENSEPOSE = {
    "MASK_ON": False,
    "DENSEPOSE_ON": True,
    "ROI_HEADS": {"NAME": "DensePoseROIHeads", "IN_FEATURES": ["p2", "p3", "p4", "p5"]},
    "ROI_DENSEPOSE_HEAD": {
        "DECODER_ON": True,
        "PREDICTOR_NAME": "DensePoseChartWithConfidencePredictor",
        "UV_CONFIDENCE": {"ENABLED": True, "TYPE": "indep_aniso"},
        "SEGM_CONFIDENCE": {"ENABLED": True},
    },
}
CSE = {
    **DENSEPOSE,
    "ROI_DENSEPOSE_HEAD": {
        **DENSEPOSE["ROI_DENSEPOSE_HEAD"],
        "DECODER_ON": False,
        "PREDICTOR_NAME": "DensePoseEmbeddingPredictor",
    },
}
PANOPTIC_DEEPLAB = {
    "BACKBONE": {"NAME": "build_resnet_deeplab_backbone"},
    "RESNETS": {"OUT_FEATURES": ["res2", "res3", "res5"]},
    "SEM_SEG_HEAD": {"NAME": "PanopticDeepLabSemSegHead", "IN_FEATURES": ["res2", "res3", "res5"]},
}
TENSOR_MASK = {
    "BACKBONE": {"NAME": "build_retinanet_resnet_fpn_backbone"},
    "ANCHOR_GENERATOR": {"SIZES": [[44 * 2**k, 60 * 2**k] for k in range(6)]},
    "TENSOR_MASK": {"BIPYRAMID_ON": True},
}
LEVELS = ["p2", "p3", "p4", "p5", "p6"]


def transformer(tokens, features):
    """A model on a transformer under an FPN, or under a SimpleFeaturePyramid for ViT."""
    plain = tokens["KIND"] == "ViT"
    backbone = {
        "NAME": "SimpleFeaturePyramid" if plain else "FPN",
        "OUT_FEATURES": LEVELS,
        "INNER_FEATURES": features,
        "TOKENS": tokens,
        "SCALED": LEVELS[:4] if plain else [],
    }
    return config(BACKBONE=backbone, FPN={"IN_FEATURES": features})


VIT = {"KIND": "ViT", "WINDOWS": [7, 0], "REL_POS": True, "FEATURE": "last_feat"}
MVIT = {"KIND": "MViT", "BLOCKS": [[56, 14, "scale2"], [0, 0, "scale3"]], "REL_POS": True}
SWIN = {"KIND": "SwinTransformer", "DEPTHS": [2, 1], "SHIFTED": True, "OUT": [0, 1]}
FAMILIES = {
    "vit": transformer(VIT, ["last_feat"]),
    "mvit": transformer(MVIT, ["scale2", "scale3"]),
    "swin": transformer(SWIN, ["p0", "p1"]),
    "fcos": config("FCOS", **RETINA),
    "mask": config(),
    "regnet": config("RetinaNet", **REGNET),
    "keypoint": config(MASK_ON=False, KEYPOINT_ON=True),
    "cascade": config(ROI_HEADS={"NAME": "CascadeROIHeads", "IN_FEATURES": ["p2", "p3", "p4", "p5"]}),
    "c4": config(**C4),
    "fast": config(PROPOSAL_GENERATOR={"NAME": "PrecomputedProposals"}),
    "rpn": config("ProposalNetwork"),
    "retinanet": config("RetinaNet", **RETINA),
    "semantic": config("SemanticSegmentor"),
    "deeplab": config(
        "SemanticSegmentor",
        BACKBONE={"NAME": "build_resnet_deeplab_backbone"},
        RESNETS={"OUT_FEATURES": ["res2", "res5"]},
        SEM_SEG_HEAD={"NAME": "DeepLabV3PlusHead", "IN_FEATURES": ["res2", "res5"]},
    ),
    "deeplab_v3": config(
        "SemanticSegmentor",
        BACKBONE={"NAME": "build_resnet_deeplab_backbone"},
        RESNETS={"OUT_FEATURES": ["res5"]},
        SEM_SEG_HEAD={"NAME": "DeepLabV3Head", "IN_FEATURES": ["res5"]},
    ),
    "panoptic_deeplab": config("PanopticDeepLab", **PANOPTIC_DEEPLAB),
    "tensor_mask": config("TensorMask", **TENSOR_MASK),
    "trident": config(
        **{
            **C4,
            "BACKBONE": {"NAME": "build_trident_resnet_backbone"},
            "PROPOSAL_GENERATOR": {"NAME": "TridentRPN"},
            "ROI_HEADS": {"NAME": "TridentRes5ROIHeads", "IN_FEATURES": ["res4"]},
        }
    ),
    "panoptic": config("PanopticFPN"),
    "point_rend": config(ROI_MASK_HEAD={"NAME": "PointRendMaskHead"}),
    "implicit": config(ROI_MASK_HEAD={"NAME": "ImplicitPointRendMaskHead"}),
    "point_rend_semantic": config("SemanticSegmentor", **POINT_REND_SEMANTIC),
    "densepose": config(**DENSEPOSE),
    "detectron": config(CONVENTIONS="detectron", KEYPOINT_ON=True),
    "detectron_c4": config(CONVENTIONS="detectron", **C4),
    "detectron_retinanet": config("RetinaNet", CONVENTIONS="detectron", **RETINA),
    "maskrcnn_benchmark": config(CONVENTIONS="maskrcnn-benchmark", KEYPOINT_ON=True),
    "cse": config(**CSE),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_input_is_given_or_computed_before(family):
    known = set(GIVEN)
    for unit in units(FAMILIES[family]):
        assert set(unit.inputs) <= known, unit.name
        known |= set(unit.outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_unique_and_no_array_is_also_a_folder(family):
    for names in (
        [stage.name for stage in stages(FAMILIES[family])],
        [forced_name(stage.name) for stage in stages(FAMILIES[family])],
    ):
        assert len(set(names)) == len(names)
        assert not [(a, b) for a in names for b in names if b.startswith(a + "/")]


def test_mask_rcnn_in_order():
    assert [unit.name for unit in units(FAMILIES["mask"])] == (
        "resize normalize stem res2 res3 res4 res5 fpn rpn_head rpn_proposals box_pooler box_head "
        "box_predictor detect mask_pooler mask_head mask_select postprocess"
    ).split()


def test_stages_between_recorded_ones_belong_to_one_unit():
    unit = {unit.name: unit for unit in units(FAMILIES["c4"])}["res4"]
    assert unit.args == ("res2", "res3", "res4") and unit.inputs == ("steps/backbone.stem",)
    assert unit.outputs == ("steps/backbone/res4",)


def test_pyramid_levels():
    outputs = {unit.name: unit.outputs for unit in units(FAMILIES["retinanet"])}
    assert outputs["fpn"] == tuple(f"steps/backbone/p{level}" for level in range(3, 8))
    assert outputs["res3"] == ("steps/backbone.bottom_up/res3",)  # res2 is not an output of its own


def test_stages_of_a_regnet():
    table = {unit.name: unit for unit in units(FAMILIES["regnet"])}
    assert table["s2"].inputs == ("steps/backbone.bottom_up.stem",)
    assert table["s2"].args == ("s1", "s2") and table["s2"].outputs == ("steps/backbone.bottom_up/s2",)
    assert table["fpn"].inputs[-1] == "steps/backbone.bottom_up/s4"
    assert table["fpn"].outputs == tuple(f"steps/backbone/p{level}" for level in range(3, 7))
    alone = config("RetinaNet", **(REGNET | {"BACKBONE": {"NAME": "build_regnet_backbone"}}))
    assert {unit.name: unit for unit in units(alone)}["s4"].outputs == ("steps/backbone/s4",)


def test_units_of_a_plain_transformer():
    table = {unit.name: unit for unit in units(FAMILIES["vit"])}
    inside = [name for name in table if name.startswith("blocks.0")]
    assert inside == [f"blocks.0.{part}" for part in "norm1 windows positions attn join".split()] + [
        "blocks.0"
    ]
    assert "blocks.1.windows" not in table  # it attends over the whole map
    block = "steps/backbone.net.blocks.0"
    assert table["blocks.0.attn"].inputs == tuple(
        f"{block}.{name}" for name in ("windows", "attn.rel_h", "attn.rel_w")
    )
    assert table["blocks.1.norm1"].inputs == (block,)
    assert table["p3"].op == "simfp" and table["p3"].args == (1,) and table["p3"].module == "backbone.simfp_3"
    assert table["fpn"].args == ("p6",)


def test_units_of_pooled_attention():
    table = {unit.name: unit for unit in units(FAMILIES["mvit"])}
    attention = "steps/backbone.bottom_up.blocks.0.attn"
    assert table["blocks.0.windows"].args[1:] == (56, 14, 14)
    assert table["blocks.0.positions"].inputs == (f"{attention}.windows/0", f"{attention}.windows/1")
    assert len(table["blocks.0.attn"].inputs) == 9 and len(table["blocks.1.attn"].inputs) == 6
    assert table["scale2"].outputs == ("steps/backbone.bottom_up/scale2",)


def test_units_of_shifted_windows():
    table = {unit.name: unit for unit in units(FAMILIES["swin"])}
    layer = "steps/backbone.bottom_up.layers.0"
    assert table["layers.0.blocks.1.attn"].inputs == (f"{layer}.blocks.1.windows", f"{layer}.mask")
    assert table["layers.0.blocks.0.attn"].inputs == (f"{layer}.blocks.0.windows",)
    assert "layers.1.mask" not in table  # its only block is not shifted
    assert table["layers.1.blocks.0.norm1"].inputs == (f"{layer}.downsample",)


def test_units_of_a_head_on_every_level():
    table = {unit.name: unit for unit in units(FAMILIES["fcos"])}
    assert table["cls_subnet#0"].outputs == ("steps/head.cls_subnet",)
    assert table["ctrness#3"].inputs == ("steps/head.bbox_subnet#3",)  # the tower of the boxes
    assert table["ctrness#3"].outputs == ("steps/head/2/3",)
    assert len(table["postprocess"].inputs) == 3 * 5 + 2


def test_units_of_a_decoder():
    table = {unit.name: unit for unit in units(FAMILIES["deeplab"])}
    decoder = "steps/sem_seg_head.decoder"
    assert table["aspp"].outputs == (f"{decoder}.res5.project_conv",)
    fuse = table["res2.fuse_conv"]
    assert fuse.inputs == (f"{decoder}.res2.project_conv", f"{decoder}.res5.project_conv")
    assert fuse.args == ("sem_seg_head.decoder.res2.fuse_conv",)
    assert table["sem_seg_head.predictor"].inputs == fuse.outputs
    assert table["sem_seg_head/0"].args == ("sem_seg_head", False)
    alone = {unit.name: unit for unit in units(FAMILIES["deeplab_v3"])}
    assert alone["sem_seg_head.predictor"].inputs == alone["aspp"].outputs == ("steps/sem_seg_head.aspp",)


def test_units_of_panoptic_deeplab():
    table = {unit.name: unit for unit in units(FAMILIES["panoptic_deeplab"])}
    assert table["sem_seg_head.head"].inputs == ("steps/sem_seg_head.decoder.res2.fuse_conv",)
    both = [table[f"ins_embed_head.{name}"].inputs for name in ("center_head", "offset_head")]
    assert both == [("steps/ins_embed_head.decoder.res2.fuse_conv",)] * 2
    assert table["ins_embed_head/1"].args == ("ins_embed_head", True)  # offsets grow with the map
    segments = {array.name: array.judge for array in table["segments"].arrays}
    assert segments.pop("output/panoptic_seg") == segments.pop("output/instances/pred_masks") == "numbered"
    assert set(segments.values()) == {"values"} and len(segments) == 3
    without = {**PANOPTIC_DEEPLAB, "PANOPTIC_DEEPLAB": {"PREDICT_INSTANCES": False}}
    assert units(config("PanopticDeepLab", **without))[-1].outputs == ("output/panoptic_seg",)


def test_units_of_windows_around_every_cell():
    table = {unit.name: unit for unit in units(FAMILIES["tensor_mask"])}
    assert table["cls_subnet#0"].outputs == ("steps/head.cls_subnet",)
    assert table["bbox_pred#5"].inputs == ("steps/head.bbox_subnet#5",)
    fuse = table["mask_fuse#2"]
    assert fuse.inputs == ("steps/head.mask_subnet#2", "steps/head.mask_subnet") and fuse.args == (2,)
    assert table["windows.2.1"].inputs == fuse.outputs and table["windows.2.1"].args == (2, 1)
    assert len(table["postprocess"].inputs) == 6 + 6 + 12 + 2
    plain = config(
        "TensorMask", **{**TENSOR_MASK, "TENSOR_MASK": {}}
    )  # nothing written: detectron2's defaults
    table = {unit.name: unit for unit in units(plain)}
    assert "mask_fuse#0" not in table and table["windows.0.0"].inputs == ("steps/head.mask_subnet",)
    boxes = units(config("TensorMask", **{**TENSOR_MASK, "MASK_ON": False}))
    assert boxes[-1].outputs[-1] == "output/instances/pred_classes" and len(boxes[-1].inputs) == 12 + 2


def test_a_cascade_pools_what_the_stage_before_decoded():
    table = {unit.name: unit for unit in units(FAMILIES["cascade"])}
    assert table["cascade_boxes.2"].inputs[:2] == (
        "steps/roi_heads.box_predictor.1/1",
        "steps/roi_heads/cascade_boxes/1",
    )
    assert table["box_pooler#2"].inputs[-1] == "steps/roi_heads/cascade_boxes/2"
    assert table["detect"].inputs == (
        *(f"steps/roi_heads.box_predictor.{k}/0" for k in range(3)),
        "steps/roi_heads.box_predictor.2/1",
        "steps/roi_heads/cascade_boxes/2",
        "input/resized",
    )


def test_kinds_and_shortened_features():
    table = {stage.name: stage for stage in stages(FAMILIES["mask"])}
    assert table["steps/backbone/p2"].kind == "continuous"
    assert table["output/instances/pred_boxes"].kind == "discrete"
    short = {stage.name for stage in table.values() if stage.roi_features}
    assert short == {
        f"steps/roi_heads.{name}" for name in ("box_pooler", "mask_pooler", "mask_head.predictor")
    }
    c4 = {stage.name for stage in stages(FAMILIES["c4"]) if stage.roi_features}
    assert {"steps/roi_heads.res5#1", "steps/roi_heads.pooler"} <= c4


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"META_ARCHITECTURE": "DetectionTransformer"}, "META_ARCHITECTURE"),
        (
            {
                "BACKBONE": {"NAME": "build_trident_resnet_backbone"},
                "TRIDENT": {"TEST_BRANCH_IDX": -1},
            },
            "TRIDENT.TEST_BRANCH_IDX",
        ),
        ({"BACKBONE": {"NAME": "build_vit"}}, "BACKBONE.NAME"),
        ({"PROPOSAL_GENERATOR": {"NAME": "RRPN"}}, "PROPOSAL_GENERATOR.NAME"),
        ({"ROI_HEADS": {"NAME": "RROIHeads"}}, "ROI_HEADS.NAME"),
        ({**C4, "KEYPOINT_ON": True}, "KEYPOINT_ON"),
    ],
)
def test_what_the_table_does_not_cover_is_named(changes, key):
    with pytest.raises(ValueError, match=f"MODEL.{key}"):
        units(config(**changes))


def test_rows_and_judges_of_the_table():
    table = {stage.name: stage for stage in stages(FAMILIES["c4"])}
    rows = {name: stage.array.rows for name, stage in table.items()}
    assert rows["steps/roi_heads.res5"] == "proposals" and rows["steps/roi_heads.res5#1"] == "detections"
    assert rows["steps/roi_heads.box_predictor/1"] == "proposals" and rows["steps/backbone/res4"] == ""
    assert rows["output/instances/pred_masks"] == "results"
    judges = {stage.name: stage.array.judge for stage in stages(FAMILIES["panoptic"])}
    drawn = {name: judge for name, judge in judges.items() if judge != "values"}
    assert drawn == {
        "output/instances/pred_masks": "masks",
        "output/sem_seg": "sem_seg",
        "output/panoptic_seg": "panoptic",
    }


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("steps/roi_heads.mask_head.mask_fcn1", "detections"),  # a module inside a unit
        ("steps/roi_heads.res5.0.conv1", "proposals"),
        ("steps/roi_heads.res5.0.conv1#1", "detections"),  # in its second call
        ("steps/roi_heads.box_head.2.fc1", "proposals"),
        ("steps/backbone.bottom_up.res2.0.conv1", ""),
        ("output/instances/pred_boxes", "results"),
        ("output/instances/tracks", "results"),  # a field nobody knows
        ("steps/roi_heads/0/0/tracks", "detections"),
        ("output/sem_seg", ""),
        ("steps/head/0/0", ""),
        ("input/image", ""),
    ],
)
def test_rows_of_arrays_without_a_table(name, rows):
    assert array_of(name).rows == rows
    assert array_of(name).name == name


def test_what_is_decoded_is_judged_as_keypoints_without_a_table():
    assert array_of("output/instances/pred_keypoints").judge == "keypoints"
    assert array_of("output/panoptic_seg").judge == "panoptic"


def test_with_detectrons_conventions_boxes_are_those_of_the_picture():
    table = {unit.name: unit for unit in units(FAMILIES["detectron"])}
    for name in ("rpn_proposals", "detect"):
        assert table[name].inputs[-2:] == ("input/resized", "input/image")
    pooled = "steps/roi_heads/network_boxes"
    assert table["network_boxes"].inputs == ("steps/roi_heads/0/0/pred_boxes", "input/image")
    assert table["mask_pooler"].inputs[-1] == table["keypoint_pooler"].inputs[-1] == pooled
    assert table["keypoints"].inputs[-1] == "steps/roi_heads/0/0/pred_boxes"
    assert array_of(pooled, {s.name: s for s in stages(FAMILIES["detectron"])}).rows == "detections"
    assert "network_boxes" not in {unit.name for unit in units(FAMILIES["maskrcnn_benchmark"])}
    logits = "output/instances/keypoint_logits"
    for family in ("detectron", "maskrcnn_benchmark"):
        assert logits in {s.name for s in stages(FAMILIES[family])}
    assert logits not in {s.name for s in stages(FAMILIES["keypoint"])}


def test_logits_of_decoded_keypoints_are_judged_in_the_float32_that_they_are_computed_in():
    """In the semantic profile they differ by a rounding of float32 on the same input (a DIFFERENT that was none)."""
    for family in ("detectron", "maskrcnn_benchmark"):
        table = {s.name: s for s in stages(FAMILIES[family])}
        assert table["steps/roi_heads/0/0/keypoint_logits"].kind == "float32"
        assert table["steps/roi_heads/0/0/pred_keypoints"].kind == "discrete"


def test_every_op_of_a_table_is_in_the_vocabulary_and_the_other_way_round():
    used = {unit.op for family in FAMILIES.values() for unit in units(family)}
    assert used == set(OPS)
