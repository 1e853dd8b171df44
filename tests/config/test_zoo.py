"""The published models: their values are those of the real detectron2, as recorded in tests/data/zoo."""

import json
from pathlib import Path

import pytest

from tf_d2.config import (
    ConfigError,
    DownloadError,
    load_config,
    resolve_weights,
    unsupported_reason,
    zoo_models,
)
from tf_d2.config.defaults import INFERENCE, KEYS
from tf_d2.config.merge import as_tuples, coerce
from tf_d2.config.zoo import weights_url, zoo_name, zoo_values

EXPECTED = json.loads((Path(__file__).parents[1] / "data/zoo/resolved.json").read_text())["models"]
HOST = "https://dl.fbaipublicfiles.com/"


@pytest.mark.parametrize("name", EXPECTED)
def test_values_are_those_of_detectron2(name):
    theirs = {**KEYS, **{key: coerce(key, as_tuples(value)) for key, value in EXPECTED[name].items()}}
    if name.startswith("new_baselines/"):
        theirs["MODEL.WEIGHTS"] = ""
    ours = zoo_values(name)
    assert {key: ours[key] for key in INFERENCE if ours[key] != theirs[key]} == {}
    load_config(name)


def test_the_table_is_complete():
    models = zoo_models()
    assert len(models) == 174
    assert len({row.url for row in models.values()}) == 174
    core = [name for name, row in models.items() if row.config_path.startswith("configs/")]
    assert len(core) == 64
    # The YAML keys of detectron2, which the recording holds, cannot express a RegNet.
    lazy_only = {name for name in core if name not in EXPECTED}
    assert len(lazy_only) == 6
    assert {models[name].family for name in lazy_only} == {"Mask R-CNN (RegNet, LSJ)"}
    assert len(EXPECTED) == 58 + 7  # seven configurations have no published weights


def test_what_the_list_says_is_so():
    reasons = {name: unsupported_reason(row) for name, row in zoo_models().items()}
    assert reasons == {name: row.no_detector for name, row in zoo_models().items()}
    core = {name for name, row in zoo_models().items() if row.config_path.startswith("configs/")}
    projects = tuple(
        f"projects/{name}/"
        for name in (
            "PointRend",
            "DensePose",
            "ViTDet",
            "MViTv2",
            "TridentNet",
            "DeepLab",
            "Panoptic-DeepLab",
            "TensorMask",
        )
    )
    ours = {name for name in zoo_models() if name.startswith(projects)}
    assert len(ours) == 47 + 29 + 3 + 2 + 3 + 2
    older = {name for name in zoo_models() if name.startswith("catalog://Caffe2Detectron/")}
    assert len(older) == 13
    assert {name for name, reason in reasons.items() if reason is None} == core | ours | older
    expected = {
        "detectron2://ImageNetPretrained/MSRA/R-50.pkl": "not a detector",
    }
    for name, word in expected.items():
        assert word in (reasons[name] or "")


def test_models_without_a_configuration_say_why():
    name = "catalog://ImageNetPretrained/FAIR/X-101-32x8d"
    with pytest.raises(ConfigError, match="not a detector"):
        load_config(name)


def test_names():
    assert zoo_name("configs/Misc/semantic_R_50_FPN_1x.yaml") == "Misc/semantic_R_50_FPN_1x"
    assert zoo_name("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py") is not None
    assert zoo_name("semantic_R_50_FPN_1x") is None


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (
            "COCO-Detection/faster_rcnn_R_50_FPN_3x",
            "detectron2/COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl",
        ),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", "detectron2/ImageNetPretrained/MSRA/R-50.pkl"),
        ("catalog://ImageNetPretrained/FAIR/R-50-GN", "detectron/ImageNetPretrained/47261647/R-50-GN.pkl"),
        ("catalog://ImageNetPretrained/MSRA/R-101", "detectron/ImageNetPretrained/MSRA/R-101.pkl"),
        (
            "catalog://ImageNetPretrained/FAIR/X-152-32x8d-IN5k",
            "detectron/ImageNetPretrained/25093814/X-152-32x8d-IN5k.pkl",
        ),
        (
            "projects/TridentNet/configs/tridentnet_fast_R_50_C4_1x.yaml",
            "detectron2/TridentNet/tridentnet_fast_R_50_C4_1x/148572687/model_final_756cda.pkl",
        ),
        (
            "catalog://Caffe2Detectron/COCO/35998355/rpn_R-50-C4_1x",
            "detectron/35998355/12_2017_baselines/rpn_R-50-C4_1x.yaml.08_00_43.njH5oD9L/output/train/"
            "coco_2014_train%3Acoco_2014_valminusminival/rpn/model_final.pkl",
        ),
    ],
)
def test_addresses(name, path):
    assert weights_url(name) == HOST + path


def test_every_initial_weight_of_the_zoo_has_an_address():
    for name in EXPECTED:
        weights = load_config(name).weights
        assert weights == "" or (weights_url(weights) or "").startswith(HOST)


def test_local_files_and_unknown_names(tmp_path):
    file = tmp_path / "model.pkl"
    file.write_bytes(b"x")
    assert resolve_weights(file) == resolve_weights(str(file)) == file
    for source, message in {
        str(tmp_path): "is a directory",
        str(tmp_path / "none.pkl"): "no such file",
        "COCO-Detection/faster_rcnn_R50_FPN_3x": "did you mean COCO-Detection/faster_rcnn_R_50_FPN_3x",
        "Misc/semantic_R_50_FPN_1x": "no weights are known",
        "catalog://ImageNetPretrained/FAIR/R-50-BN": "not in detectron2's catalogue",
        "": "directory|no such file",
    }.items():
        with pytest.raises(DownloadError, match=message):
            resolve_weights(source)


def test_models_of_detectron_go_by_their_file_and_by_the_catalogue():
    catalogue = "catalog://Caffe2Detectron/COCO/35858933/e2e_mask_rcnn_R-50-FPN_1x"
    for name in (catalogue, "Detectron/e2e_mask_rcnn_R-50-FPN_1x", "Detectron/e2e_mask_rcnn_R_50_FPN_1x"):
        assert zoo_name(name) == catalogue
        config = load_config(name)
        assert config.conventions.name == "detectron" and config.input.size_divisibility == 32
        assert weights_url(name) == zoo_models()[catalogue].url
    assert (
        load_config(catalogue, ["TEST.SCALE", 400, "MODEL.CONVENTIONS", "detectron2"]).input.min_size_test
        == 400
    )
    assert zoo_name("Detectron/e2e_mask_rcnn_R-50-FPN_2x") == "Detectron/e2e_mask_rcnn_R-50-FPN_2x"
    assert zoo_name("Detectron/e2e_mask_rcnn_R-50-DC5_1x") is None
    assert load_config("Detectron/retinanet_X-101-64x4d-FPN_1x").meta_architecture == "RetinaNet"
