"""Any text at all gives a configuration or a ConfigError: never another exception, never anything run."""

import warnings
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tf_d2.config import ConfigError, load_config_text, resolve_yaml
from tf_d2.config.defaults import KEYS
from tf_d2.config.detectron_defaults import DEFAULTS as DETECTRON
from tf_d2.config.errors import ConfigNotice
from tf_d2.config.load import to_yaml
from tf_d2.config.maskrcnn_benchmark import DEFAULTS as BENCHMARK
from tf_d2.config.merge import coerce, merge_opts

DUMP = (Path(__file__).parents[1] / "data/zoo/training_dump.yaml").read_text()
TOKENS = [
    *(
        "&a",
        "*a",
        "!!python/tuple",
        "!!python/object/apply:eval",
        "!!int",
        "!!binary",
        "!!set",
        "<<:",
        "? ",
        "- ",
    ),
    *(
        "[",
        "]",
        "{",
        "}",
        ": ",
        "\n",
        "  ",
        "|",
        ">",
        "'",
        '"',
        "#",
        "---",
        "...",
        "%YAML 1.1",
        "~",
        "null",
        "_BASE_",
    ),
    *(
        "-1",
        "0",
        "1e400",
        ".nan",
        ".inf",
        "0x",
        "1:2",
        "2001-01-01",
        "true",
        "model",
        "_target_",
        "${..a}",
        "\x00",
    ),
    *(
        "MODEL",
        "VERSION",
        "META_ARCHITECTURE",
        "RetinaNet",
        "res2",
        "p2",
        "[[x] for x in [1]]",
        "(" * 50,
        "é",
        "\t",
    ),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(TOKENS),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)


def accepts_or_refuses(text: str, opts=()) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigNotice)
            load_config_text(text, opts)
    except ConfigError as error:
        assert str(error)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(TOKENS) | st.text(max_size=5), max_size=30))
def test_yaml_of_random_tokens(tokens):
    accepts_or_refuses("".join(tokens))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(DUMP) - 1), st.integers(0, 30), st.lists(st.sampled_from(TOKENS), max_size=3))
def test_damaged_dumps(start, length, tokens):
    accepts_or_refuses(DUMP[:start] + "".join(tokens) + DUMP[start + length :])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(KEYS)), VALUES)
def test_any_value_for_any_key(key, value):
    accepts_or_refuses("VERSION: 2", [key, value])


_CONVOLUTIONS = "FPN.add_fpn_ResNet50_conv5_body"
_REGIONS = "fast_rcnn_heads.add_roi_2mlp_head"
OLDER = [
    *(
        (f"MODEL: {{CONV_BODY: {_CONVOLUTIONS}, NUM_CLASSES: 3, {kind}}}\nFPN: {{FPN_ON: True, MULTILEVEL_ROIS: True, "
         f"MULTILEVEL_RPN: True}}\nFAST_RCNN: {{ROI_BOX_HEAD: {_REGIONS}}}\n", DETECTRON)
        for kind in ("RETINANET_ON: True", "KEYPOINTS_ON: True")
    ),
    *((f"MODEL:\n  WEIGHT: a\n  {kind}: True\n", BENCHMARK) for kind in ("RETINANET_ON", "KEYPOINT_ON")),
]  # fmt: skip
OLDER_KEYS = [(text, key) for text, defaults in OLDER for key in sorted(defaults)]
LARGE = [
    10**9,
    2**70,
    [2**70],
    [["a"]],
    [[]],
    ["a"],
    [None],
    -1,
    0,
    [1, 2, 3],
    [True] * 4,
    [float("inf")] * 4,
]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(OLDER_KEYS), VALUES | st.sampled_from(LARGE))
def test_any_value_for_any_key_of_an_older_project(text_and_key, value):
    text, key = text_and_key
    accepts_or_refuses(text, [key, value])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(KEYS)), VALUES)
def test_what_is_accepted_is_written_and_read_back(key, value):
    try:
        flat = merge_opts(KEYS, [key, value])
        text = to_yaml(flat)
        config = load_config_text("VERSION: 2", [key, value])
    except ConfigError:
        return
    assert load_config_text(text) == config
    assert coerce(key, value) == flat[key] or value != value
    assert resolve_yaml  # the public form of `to_yaml`
