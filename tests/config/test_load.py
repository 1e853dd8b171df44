"""load_config on files, dumps, names and text; resolve_yaml reads back to an equal configuration."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from tf_d2.config import (
    ConfigError,
    load_config,
    load_config_text,
    resolve_yaml,
    resolve_yaml_text,
    zoo_models,
)
from tf_d2.config.defaults import KEYS
from tf_d2.config.zoo import unsupported_reason, zoo_values

DUMP = Path(__file__).parents[1] / "data/zoo/training_dump.yaml"
SUPPORTED = [name for name, row in zoo_models().items() if unsupported_reason(row) is None]


def nested(flat: dict) -> dict:
    tree: dict = {}
    for key, value in flat.items():
        node = tree
        *sections, leaf = key.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def test_a_training_dump():
    config = load_config(DUMP)
    assert config.input.min_size_test == 192 and config.input.max_size_test == 288
    assert config.backbone.bottom_up.stem_out_channels == 16 and config.backbone.bottom_up.norm == "BN"
    assert config.roi_heads is not None and config.roi_heads.num_classes == 3
    assert config.roi_heads.detections_per_image == 30
    assert config.roi_heads.box_predictor.bbox_reg_weights == (
        (10.0, 10.0, 5.0, 5.0),
    )  # an alias in the file
    assert config.dataset == "coco_2017_val"
    assert load_config(str(DUMP)) == config


def test_options_override_the_file():
    config = load_config(DUMP, ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.7", "INPUT.FORMAT", "RGB"])
    assert config.roi_heads is not None and config.roi_heads.box_predictor.score_thresh_test == 0.7
    assert config.input.format == "RGB"


def test_configurations_are_hashable_and_frozen():
    config = load_config(DUMP)
    assert hash(config) == hash(load_config(DUMP))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.weights = "x"  # type: ignore[misc]


@pytest.mark.parametrize("name", SUPPORTED)
def test_resolved_yaml_reads_back_equal(name):
    assert load_config_text(resolve_yaml(name)) == load_config(name)


def test_resolved_yaml_of_a_file_with_options():
    opts = ["MODEL.ANCHOR_GENERATOR.SIZES", [[1e-05], [1e20], [40.31747359663594], [3], [0.1]]]
    opts += ["MODEL.WEIGHTS", "ünïcode: 'quoted' \"path\" #1\n.pkl", "MODEL.RPN.NMS_THRESH", 1e-7]
    config = load_config(DUMP, opts)
    assert load_config_text(resolve_yaml(DUMP, opts)) == config
    assert config.rpn.anchors.sizes[0] == (1e-05,)


def test_resolved_yaml_keeps_the_number_of_cascade_stages():
    name = "Misc/cascade_mask_rcnn_R_50_FPN_1x"
    opts = ["MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", [[10, 10, 5, 5]] * 4]
    opts += ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS", [0.4, 0.5, 0.6, 0.7]]
    assert load_config_text(resolve_yaml(name, opts)) == load_config(name, opts)


def test_resolved_yaml_has_only_keys_of_detectron2():
    assert "SQUARE_PAD" not in resolve_yaml(DUMP) and "REGNETS" not in resolve_yaml(DUMP)
    assert "SOLVER" not in resolve_yaml(DUMP)


def test_resolved_yaml_of_a_regnet_has_all_its_keys():
    tree = yaml.safe_load(resolve_yaml("new_baselines/mask_rcnn_regnetx_4gf_dds_FPN_100ep_LSJ"))
    assert tree["MODEL"]["REGNETS"]["SE_RATIO"] == 0.0  # its default
    assert {f"MODEL.REGNETS.{key}" for key in tree["MODEL"]["REGNETS"]} == {
        key for key in KEYS if key.startswith("MODEL.REGNETS.")
    }


def test_dumps_of_detectron2_in_every_style():
    """cfg.dump() writes tuples as lists or as !!python/tuple, with aliases for what occurs twice."""
    name = "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv"
    tree = nested(zoo_values(name))
    for text in (yaml.dump(tree), yaml.dump(tree, default_flow_style=None), yaml.dump(tree, width=20)):
        assert "python/tuple" in text
        assert load_config_text(text) == load_config(name)


def test_a_dump_of_the_defaults_is_what_a_file_that_sets_nothing_means():
    assert load_config_text(yaml.dump(nested(KEYS))) == load_config_text("VERSION: 2")


@pytest.mark.parametrize("form", ["{}", "{}.yaml", "configs/{}.yaml", "configs/{}"])
def test_names_in_every_form(form):
    name = "COCO-Detection/faster_rcnn_R_50_FPN_3x"
    assert load_config(form.format(name)) == load_config(name)


def test_an_existing_file_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
    path = Path(name)
    path.parent.mkdir()
    path.write_text("MODEL: {ROI_HEADS: {NUM_CLASSES: 7}}")
    config = load_config(name)
    assert config.roi_heads is not None and config.roi_heads.num_classes == 7


def test_a_path_is_never_a_name():
    with pytest.raises(ConfigError, match="no such file"):
        load_config(Path("COCO-Detection/faster_rcnn_R_50_FPN_3x"))


def test_unknown_names_come_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"did you mean .*faster_rcnn_R_50_FPN_3x"):
        load_config("COCO-Detection/faster_rcnn_R50_FPN_3x.yaml")


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("MODEL: {META_ARCHITECTURE: DETR}")
    with pytest.raises(ConfigError, match=r"mine.yaml: MODEL.META_ARCHITECTURE = 'DETR'"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"mine.yaml"):
        resolve_yaml(path)
    with pytest.raises(ConfigError, match=r"model.h5: MODEL.META"):
        load_config_text(path.read_text(), source="model.h5")


def test_python_configurations_are_not_run(tmp_path):
    path = tmp_path / "mask_rcnn.py"
    path.write_text("raise SystemExit")
    with pytest.raises(ConfigError, match=r"is Python code, which is not run.*LazyConfig\.save"):
        load_config(path)


def test_resolved_yaml_of_text_has_the_options():
    text = resolve_yaml("COCO-Detection/retinanet_R_50_FPN_3x")
    opts = ["MODEL.RETINANET.NMS_THRESH_TEST", 0.3]
    assert (
        load_config_text(resolve_yaml_text(text, opts))
        == load_config_text(text, opts)
        != load_config_text(text)
    )


def test_text_cannot_name_a_base():
    with pytest.raises(ConfigError, match="_BASE_"):
        load_config_text("_BASE_: a.yaml")
