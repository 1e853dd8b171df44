"""Keys detectron2 does not have: left out where they cannot touch inference, else all refused at once."""

from contextlib import nullcontext

import pytest
import yaml

from tf_d2.config import ConfigError, load_config, load_config_text, resolve_yaml, resolve_yaml_text
from tf_d2.config.defaults import KEYS
from tf_d2.config.errors import ConfigNotice
from tf_d2.config.merge import merge_file, merge_opts
from tf_d2.config.misspelt import misspelt

PLAIN = load_config_text("VERSION: 2")


def dumped(flat: dict) -> str:
    nested: dict = {"VERSION": 2}
    for key, value in flat.items():
        node = nested
        *sections, leaf = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return yaml.safe_dump(nested)


ACCEPTED = {
    "sections of the user": {"DISTILL.ENABLE": False, "EARLY_STOPPING.PATIENCE": 5, "MUTE_HEADER": True},
    "a whole configuration in one": {"TEACHER.MODEL.ROI_HEADS.NUM_CLASSES": 3},
    "data sets": {"DATASETS.TRAIN_REPEAT_FACTOR": [["a", 2.0]], "DATASETS.VAL": ["v"], "DATASETS.TRAIN_2": "b"},
    "solver and loader": {"SOLVER.OPTIMIZER": "ADAMW", "DATALOADER.NEW.X": 1},
    "Caffe2": {"EXPORT_CAFFE2.USE_HEATMAP_MAX_KEYPOINT": False},
    "devices": {"MODEL.DEVICE_NAME": "cpu"},
    "freezing": {"MODEL.BACKBONE.FREEZE": True, "MODEL.ROI_HEADS.FREEZE_FEAT": True, "MODEL.FPN.FREEZE_AT": 1},
    "losses": {"MODEL.RPN.LOSS": "Focal", "MODEL.ROI_HEADS.LOSS": "X", "MODEL.RPN.UNSUP_LOSS_WEIGHT": 1.0},
    "augmentation": {"INPUT.POINT_SUP": True, "INPUT.COLOR_AUG_SSD": True, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0},
    "evaluation": {"TEST.EVALUATOR": "COCOeval", "TEST.AUG.ROTATION_ANGLES": [1], "TEST.VAL_LOSS": True},
    "DeepLab's defaults": {
        "MODEL.RESNETS.STEM_TYPE": "deeplab",
        "MODEL.RESNETS.RES4_DILATION": 1,
        "MODEL.RESNETS.RES5_MULTI_GRID": [1, 2, 4],
        "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 256,
        "MODEL.SEM_SEG_HEAD.PROJECT_FEATURES": ["res2"],
        "SOLVER.POLY_LR_POWER": 0.9,
    },
    "TridentNet's defaults": {"MODEL.TRIDENT.NUM_BRANCH": 3, "MODEL.TRIDENT.TEST_BRANCH_IDX": 1},
    "backbones that are not used": {"MODEL.SWIN.EMBED_DIM": 96, "MODEL.VIT.NAME": "x", "MODEL.VOVNET.NORM": "BN"},
    "AdelaiDet's defaults": {"MODEL.BACKBONE.ANTI_ALIAS": False, "MODEL.RESNETS.DEFORM_INTERVAL": 1},
    "few-shot defaults": {"MODEL.ROI_HEADS.OUTPUT_LAYER": "FastRCNNOutputLayers", "MODEL.ROI_HEADS.COSINE_SCALE": 20.0},
    "a switch that is off": {"MODEL.ROI_HEADS.USE_ATTENTION": False},
    "an empty list": {"MODEL.MODELING_HOOKS": [], "MODEL.ROI_HEADS.EXTRAS": ""},
    "a section that is off": {"MODEL.MY_HEAD.ENABLED": False, "MODEL.MY_HEAD.WIDTH": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_cannot_touch_inference_is_left_out_and_said(name):
    unknown = {key: value for key, value in ACCEPTED[name].items() if key not in KEYS}
    with pytest.warns(ConfigNotice) if unknown else nullcontext([]) as told:
        assert load_config_text(dumped(ACCEPTED[name]), source="f.yaml") == PLAIN
    if not unknown:
        return
    assert len(told) == 1
    message = str(told[0].message)
    assert message.startswith("f.yaml: ") and "\n" not in message
    sections = [word.rstrip("*,") for word in message.split() if "*" in word]
    for key in unknown:
        assert key in message or key.startswith(tuple(sections))


REFUSED = {
    "another output layer": {"MODEL.ROI_HEADS.OUTPUT_LAYER": "CosineSimOutputLayers"},
    "a new section": {"MODEL.MY_HEAD.WIDTH": 3},
    "a switch that is on": {"MODEL.ROI_HEADS.USE_ATTENTION": True},
    "a part switched off": {"MODEL.ROI_BOX_HEAD.USE_BIAS": False},
    "another input size": {"INPUT.RESIZE_MODE": "letterbox"},
    "another suppression": {"TEST.NMS_TYPE": "soft"},
    "Swin where it may be used": {"MODEL.BACKBONE.NAME": "build_my_backbone", "MODEL.SWIN.MINE": 96},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_change_the_network_is_refused(name):
    with pytest.raises(ConfigError) as error:
        merge_file(yaml.safe_load(dumped(REFUSED[name])), "f.yaml")
    key = next(key for key in REFUSED[name] if key not in KEYS)
    assert f"f.yaml: {key} " in str(error.value)
    assert "may change the network" in str(error.value)
    assert f"--ignore-keys {key} " in str(error.value)


MISSPELT = {
    "MODEL.ROI_HEADS.SCORE_TRESH_TEST": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.SCORE_THRESHOLD_TEST": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.TEST_SCORE_THRESH": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEAD.NUM_CLASSES": "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.ROI_HEADS.NUM_CLASS": "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODLE.MASK_ON": "MODEL.MASK_ON",
    "MODEL.MASKON": "MODEL.MASK_ON",
    "MODEL.Mask_On": "MODEL.MASK_ON",
    "INPUT.MIN_SZIE_TEST": "INPUT.MIN_SIZE_TEST",
    "INPUT.MIN_SIZE_TETS": "INPUT.MIN_SIZE_TEST",
    "TEST.DETECTION_PER_IMAGE": "TEST.DETECTIONS_PER_IMAGE",
    "DATASETS.TRIAN": "DATASETS.TRAIN",
    "DATASET.TEST": "DATASETS.TEST",
    "ROI_HEADS.NUM_CLASSES": "MODEL.ROI_HEADS.NUM_CLASSES",
    "MASK_ON": "MODEL.MASK_ON",
    "SCORE_THRESH_TEST": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.INPUT.FORMAT": "INPUT.FORMAT",
    "RESNETS.STEM": "MODEL.RESNETS.*",
    "SEEDS": "SEED",
}


@pytest.mark.parametrize("key", MISSPELT)
def test_a_misspelt_key_stays_an_error_that_suggests_the_right_one(key):
    with pytest.raises(ConfigError) as error:
        load_config_text(dumped({key: 1}))
    assert f"{key} is not a key of detectron2 (did you mean {MISSPELT[key]}" in str(error.value)
    assert "--ignore-keys" not in str(error.value)


@pytest.mark.parametrize(
    "key",
    (
        "DATASET.ROOT DATASETS.VAL DATASETS.TRAIN_2 DATASETS.TEST_A OUTPUT SEED2 "
        "INPUT.MIN_SIZE_VAL MODEL.DEVICE_NAME MODEL.SWIN.DEPTHS NUM_CLASSES NAME DISTILL.MODEL.WEIGHTS"
    ).split(),
)
def test_another_name_is_no_misspelling(key):
    assert misspelt(key) == []


def test_a_part_that_is_not_supported_is_said_first():
    """Its keys follow, but no advice to leave them out: that would not help."""
    keys = {
        "MODEL.META_ARCHITECTURE": "MaskFormer",
        "MODEL.MASK_FORMER.NHEADS": 8,
        "MODEL.MASK_FORMER.DEC_LAYERS": 9,
    }
    with pytest.raises(ConfigError) as error:
        load_config_text(dumped(keys), source="f")
    first, second = str(error.value).split("\n")
    assert first.startswith("f: MODEL.META_ARCHITECTURE = 'MaskFormer'") and "not supported" in first
    assert "MODEL.MASK_FORMER.* (2 keys) belongs to MaskFormer / Mask2Former" in second


def test_configurations_of_other_projects_say_whose_they_are():
    for key, project in {
        "MODEL.BACKBONE.CONV_BODY": "maskrcnn-benchmark",
        "MODEL.CONV_BODY": "Detectron",
    }.items():
        with pytest.raises(ConfigError, match=f"(?s)a configuration of {project}: .*{key} = 'VGG'"):
            load_config_text(dumped({key: "VGG"}))
        with pytest.raises(ConfigError, match=f"(?s).*MODEL.MINE is not a key of {project}"):
            load_config_text(dumped({key: "VGG", "MODEL.MINE": 1}))


def test_all_are_named_at_once():
    keys = {
        "MODEL.MY_HEAD.WIDTH": 3,
        "MODEL.MY_HEAD.DEPTH": 3,
        "MODEL.RPN.NMS_TRESH": 0.5,
        "MODEL.FPN.REPEATS": 2,
        "MINE": 1,
    }
    with pytest.raises(ConfigError) as error:
        load_config_text(dumped(keys), source="f")
    text = str(error.value)
    assert (
        "MODEL.MY_HEAD.* (2 keys)" in text
        and "MODEL.FPN.REPEATS" in text
        and "did you mean MODEL.RPN.NMS_THRESH" in text
    )
    assert "--ignore-keys MODEL.FPN.REPEATS MODEL.MY_HEAD.* (in Python" in text


@pytest.mark.parametrize("pattern", ["MODEL.MY_HEAD", "MODEL.MY_HEAD.*", "MODEL.MY_*", "MODEL.MY_HEAD.WIDTH"])
def test_one_who_knows_better_leaves_keys_out(pattern):
    text = dumped({"MODEL.MY_HEAD.WIDTH": 3})
    with pytest.warns(ConfigNotice, match="MODEL.MY_HEAD.WIDTH .--ignore-keys"):
        assert load_config_text(text, ignore_keys=[pattern]) == PLAIN
    with pytest.warns(ConfigNotice):
        assert "MY_HEAD" not in resolve_yaml_text(text, ignore_keys=[pattern])
    assert merge_opts(KEYS, ["MODEL.MY_HEAD.WIDTH", 1], [pattern]) == KEYS


def test_others_stay_refused_beside_it():
    with pytest.raises(ConfigError, match=r"MODEL.OTHER.X is not a key"):
        load_config_text(
            dumped({"MODEL.MY_HEAD.WIDTH": 3, "MODEL.OTHER.X": 1}), ignore_keys=["MODEL.MY_HEAD"]
        )


@pytest.mark.parametrize("pattern", ["MODEL.RPN.NMS_THRESH", "MODEL", "*", "MODEL.RPN"])
def test_keys_of_detectron2_cannot_be_ignored(pattern):
    with pytest.raises(ConfigError, match="is for keys that detectron2 does not have"):
        load_config_text("VERSION: 2", ignore_keys=[pattern])


def test_a_file_of_something_else():
    with pytest.raises(
        ConfigError, match=r"is no configuration of detectron2: of its keys \(services, version\)"
    ):
        load_config_text("services: {a: {image: b}}\nversion: '3'")


def test_null_where_detectron2_takes_it():
    assert (
        load_config_text("DATASETS: {TEST: , TRAIN: }\nMODEL: {MASK_ON: , KEYPOINT_ON: }\nSOLVER:\n") == PLAIN
    )
    with pytest.raises(ConfigError, match="expected a section with keys"):
        load_config_text("MODEL: {RPN: }")
    fpn = (
        "MODEL: {BACKBONE: {NAME: build_resnet_fpn_backbone}, RESNETS: {OUT_FEATURES: [res2, res3, res4, res5]}, \
FPN: {NORM: %s, IN_FEATURES: [res2, res3, res4, res5]}, RPN: {IN_FEATURES: [p2]}, \
ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2]}, ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1}}"
    )
    config = load_config_text(fpn % "null")
    assert config.backbone.norm is None
    assert load_config_text(resolve_yaml_text(fpn % "null")) == config
    plain = load_config_text(fpn % "''")
    assert plain.backbone.norm == ""


@pytest.mark.parametrize("target", ["BEiTDet", "ViTUp1", "VisionTransformerDet"])
def test_a_fork_of_vit_in_a_lazy_dump_is_named(target):
    """Its classes are imported by its configuration files, which the loader's name of a module shows."""
    data = yaml.safe_load(resolve_yaml("ViTDet/COCO/mask_rcnn_vitdet_b"))
    data["model"]["backbone"] = {"_target_": f"detectron2._cfg_loader1a2b.vit.py.{target}", "embed_dim": 768}
    with pytest.raises(ConfigError, match=rf"{target}.*detectron2_vitdet.*ViTDet/COCO/mask_rcnn_vitdet_b"):
        load_config_text(yaml.safe_dump(data))


def test_forks_of_vit_are_refused_with_what_to_use():
    text = dumped({"MODEL.BACKBONE.NAME": "build_vit_fpn_backbone", "MODEL.VIT.NAME": "dit_base_patch16"})
    with pytest.raises(ConfigError) as caught:
        load_config_text(text)
    message = str(caught.value)
    assert "DiT" in message and "MODEL.VIT" in message
    (name,) = [word for word in message.replace(",", " ").split() if "vitdet_b" in word]
    load_config(name)
