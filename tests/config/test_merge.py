"""Merging follows yacs and detectron2's renames; the defaults are detectron2's."""

import json
from pathlib import Path

import pytest

from tf_d2.config import ConfigError, load_config_text
from tf_d2.config.defaults import IGNORED, INFERENCE, KEYS, OPTIONAL
from tf_d2.config.merge import as_tuples, literal, merge_file, merge_opts

EXPECTED = json.loads((Path(__file__).parents[1] / "data/zoo/resolved.json").read_text())


def same(a, b) -> bool:
    return a == b and repr(a) == repr(b)  # 1 and 1.0 and True differ


def test_defaults_are_those_of_detectron2():
    theirs = {key: as_tuples(value) for key, value in EXPECTED["defaults"].items()}
    ours = {key: KEYS[key] for key in KEYS if key in theirs or not key.startswith(tuple(OPTIONAL))}
    assert set(ours) == set(theirs)
    assert [key for key in ours if not same(ours[key], theirs[key])] == []
    assert not set(INFERENCE) & set(IGNORED)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-4", 0.0001),
        ("(1, 2)", (1, 2)),
        ("[[1], 2]", [[1], 2]),
        ("True", True),
        ("None", None),
        ("'quoted'", "quoted"),
        ("build_resnet_backbone", "build_resnet_backbone"),
        ("a/b.pkl", "a/b.pkl"),
        ("./output", "./output"),
        ("5is", "5is"),
        ("", ""),
        ("__import__('os')", "__import__('os')"),
        ("(" * 3000, "(" * 3000),
        ("-" * 3000 + "1", "-" * 3000 + "1"),
        ("1," * 20_000, "1," * 20_000),
        ("\x00", "\x00"),
        (3, 3),
    ],
)
def test_literals_of_yacs(text, value):
    assert same(literal(text), value)


def test_values_are_coerced_to_the_type_of_the_default():
    flat = merge_opts(
        KEYS,
        [
            *("MODEL.RPN.NMS_THRESH", 1),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1e-4"),
            *("MODEL.RPN.IN_FEATURES", ["p2", "p3"]),
            *("MODEL.PIXEL_STD", "(1.0, 2.0, 3.0)"),
            *("MODEL.RETINANET.NORM", None),
            *("SOLVER.BASE_LR", "anything"),
        ],
    )
    assert same(flat["MODEL.RPN.NMS_THRESH"], 1.0)
    assert flat["MODEL.ROI_HEADS.SCORE_THRESH_TEST"] == 1e-4
    assert flat["MODEL.RPN.IN_FEATURES"] == ("p2", "p3")
    assert flat["MODEL.PIXEL_STD"] == (1.0, 2.0, 3.0)
    assert flat["MODEL.RETINANET.NORM"] == ""
    assert flat["SOLVER.BASE_LR"] == "anything"
    assert KEYS["MODEL.RPN.NMS_THRESH"] == 0.7


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.MASK_ON", 1),
        ("MODEL.MASK_ON", "yes"),
        ("MODEL.RESNETS.DEPTH", 50.0),
        ("MODEL.RESNETS.DEPTH", True),
        ("MODEL.RESNETS.DEPTH", None),
        ("MODEL.RPN.NMS_THRESH", "high"),
        ("MODEL.RPN.NMS_THRESH", False),
        ("MODEL.RPN.IN_FEATURES", "p2"),
        ("MODEL.META_ARCHITECTURE", 3),
        ("MODEL.META_ARCHITECTURE", ["RetinaNet"]),
        ("MODEL.ROI_HEADS.NUM_CLASSES", {"a": 1}),
        ("MODEL.PIXEL_MEAN", b"abc"),
    ],
)
def test_wrong_types_name_key_and_value(key, value):
    with pytest.raises(ConfigError, match=f"{key} = .*expected a value like its default"):
        merge_opts(KEYS, [key, value])


def test_unknown_keys_come_with_a_suggestion():
    with pytest.raises(
        ConfigError, match=r"MODEL.RPN.NMS_TRESH is not a key.*did you mean MODEL.RPN.NMS_THRESH"
    ):
        merge_opts(KEYS, ["MODEL.RPN.NMS_TRESH", 0.5])
    with pytest.raises(ConfigError, match=r"f.yaml: MODEL.ROI_HEAD.NUM_CLASSES is not a key"):
        merge_file({"MODEL": {"ROI_HEAD": {"NUM_CLASSES": 3}}}, "f.yaml")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.MASK_ON"], "pairs of KEY and VALUE"),
        ("MODEL.MASK_ON", "pairs of KEY and VALUE"),
        (["MODEL", 3], "option MODEL: MODEL is a section"),
        ([3, 3], "option 3: 3 is not a key"),
        (["_BASE_", "x.yaml"], "not a key"),
        (["SOLVER.UNKNOWN", 3], "not a key"),
    ],
)
def test_bad_options(opts, message):
    with pytest.raises(ConfigError, match=message):
        merge_opts(KEYS, opts)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"MODEL": 3}, "MODEL = 3: expected a section"),
        ({"MODEL": {"RPN": [1]}}, "MODEL.RPN = .*expected a section"),
        ({"MODEL": {"MASK_ON": {"X": 1}}}, "MODEL.MASK_ON = dict"),
        ({3: 4}, "the key 3 is not a string"),
        ({"MODEL": {None: 4}}, "the key MODEL.None is not a string"),
    ],
)
def test_bad_shapes_of_files(data, message):
    with pytest.raises(ConfigError, match=message):
        merge_file(data, "f")


def test_strings_of_tuples_in_yaml():
    """detectron2's own files write ("coco_2017_train",), which YAML reads as a string and yacs as a tuple."""
    assert load_config_text('DATASETS:\n  TEST: ("coco_2017_val",)').dataset == "coco_2017_val"


def test_version_1_is_upgraded():
    old = {
        "VERSION": 1,
        "MODEL": {
            "WEIGHT": "w.pkl",
            "ROI_HEADS": {"NMS": 0.4, "SCORE_THRESH": 0.1},
            "RPN": {"ANCHOR_SIZES": [[32], [64]], "ANCHOR_ASPECT_RATIOS": [[1.0]]},
            "RETINANET": {"ANCHOR_SIZES": [[1]], "ANCHOR_STRIDES": [8], "INFERENCE_NMS_THRESHOLD": 0.3},
            "PANOPTIC_FPN": {"COMBINE_STUFF_AREA_LIMIT": 5},
        },
        "TEST": {"DETECTIONS_PER_IMG": 7, "AUG_ON": True},
    }
    flat = merge_file(old, "f")
    changed = {key: value for key, value in flat.items() if value != KEYS[key]}
    assert changed == {
        "MODEL.WEIGHTS": "w.pkl",
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1,
        "MODEL.ANCHOR_GENERATOR.SIZES": ((32,), (64,)),
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ((1.0,),),
        "MODEL.RETINANET.NMS_THRESH_TEST": 0.3,
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 5,
        "TEST.DETECTIONS_PER_IMAGE": 7,
        "TEST.AUG.ENABLED": True,
    }


def test_version_1_of_retinanet_takes_its_own_anchors():
    old = {
        "MODEL": {
            "WEIGHT": "",  # no VERSION: this key tells
            "META_ARCHITECTURE": "RetinaNet",
            "RPN": {"ANCHOR_SIZES": [[32]]},
            "RETINANET": {"ANCHOR_SIZES": [[5]]},
        }
    }
    assert merge_file(old, "f")["MODEL.ANCHOR_GENERATOR.SIZES"] == ((5,),)


def test_version_0_renames_the_rpn_head():
    old = {"VERSION": 0, "MODEL": {"RPN_HEAD": {"NAME": "Other"}}}
    assert merge_file(old, "f")["MODEL.RPN.HEAD_NAME"] == "Other"


@pytest.mark.parametrize("version", [3, -1, "two", None, 1.5])
def test_unknown_versions(version):
    with pytest.raises(ConfigError, match="VERSION"):
        merge_file({"VERSION": version}, "f")


def test_old_and_new_name_together():
    data = {"VERSION": 1, "MODEL": {"WEIGHT": "a", "WEIGHTS": "b"}}
    with pytest.raises(ConfigError, match=r"both MODEL.WEIGHTS and its old name"):
        merge_file(data, "f")
