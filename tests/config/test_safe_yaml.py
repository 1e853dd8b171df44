"""YAML stays data: every hostile file gives one ConfigError, nothing runs, and quickly."""

import os
import time

import pytest
import yaml

from tf_d2.config import ConfigError, load_config, load_config_text
from tf_d2.config.errors import ConfigNotice
from tf_d2.config.safe_yaml import MAX_BYTES, Unread, anchor_sizes, parse_yaml, read_with_bases


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines)


TAGS = {
    "os.system": (
        "!!python/object/apply:os.system ['touch pwned']",
        "python/object/apply:os.system.*not executed .line 2",
    ),
    "subprocess": ("!!python/object/new:subprocess.Popen [[touch, pwned]]", "Popen.*line 2"),
    "eval of code": (
        "!!python/object/apply:eval [\"__import__('os').mkdir('pwned')\"]",
        "not evaluated.*line 2",
    ),
    "eval of sizes and code": (
        "!!python/object/apply:eval [\"[[x, open('pwned', 'w')] for x in [32, 64]]\"]",
        "not evaluated",
    ),
    "eval of two arguments": ('!!python/object/apply:eval ["1", {}]', "python/object/apply:eval"),
    "eval of a scalar": ('!!python/object/apply:eval "1"', "python/object/apply:eval"),
    "module": ("!!python/module:antigravity ''", "python/module"),
    "object": ("!!python/object:builtins.dict {}", "python/object:builtins.dict"),
    "made-up tag": ("!mine 3", "'!mine'.*line 2"),
    "tuple of a mapping": ("!!python/tuple {a: 1}", "python/tuple"),
    "partial": (
        "!!python/object/apply:functools.partial\n   args: [!!python/name:os.system '']\n   state: [touch pwned]",
        "functools.partial",
    ),
    "inside a list": (
        "[1.0, !!python/object/apply:os.system ['touch pwned'], 1.0]",
        "os.system.*not executed",
    ),
}
HOSTILE = {
    "alias bomb": (bomb(12), "aliases expand to more than"),
    "merge bomb": ("a: &a {k: 1}\nb: &b\n  <<: [*a, *a]\n" + bomb(12), "aliases expand"),
    "recursive alias": ("A: &a [*a]", "contains itself"),
    "deep nesting": ("A: " + "[" * 200 + "]" * 200, "nested"),
    "very deep nesting": ("A: " + "[" * 50_000, "nested|not valid YAML"),
    "nothing": ("", "is empty or holds comments only"),
    "comments": ("# a config\n---\n# of nothing\n", "is empty or holds comments only"),
    "null": ("null", "is empty or holds comments only"),
    "two documents": ("A: 1\n---\nB: 2", "not valid YAML"),
    "unclosed": ("A: [1, 2", "not valid YAML"),
    "tab": ("A:\n\tB: 1", "not valid YAML"),
    "undefined alias": ("A: *nowhere", "not valid YAML"),
    "list": ("- 1\n- 2", "a list, not the mapping"),
    "scalar": ("just words", "a str, not the mapping"),
    "bad date": ("A: 2020-13-45", "not valid YAML"),
    "bad binary": ("A: !!binary 'a'", "not valid YAML"),
    "bad integer": ("A: !!int abc", "not valid YAML"),
    "empty integer": ("A: !!int", "not valid YAML"),
    "bad boolean": ("A: !!bool maybe", "not valid YAML"),
    "bad time": ("A: !!timestamp x", "not valid YAML"),
    "bad merge": ("A: {<<: 3}", "not valid YAML"),
    "unhashable key": ("? [a, b]\n: 1", "not valid YAML|not a string"),
    "control character": ("A: \x00", "not valid YAML"),
    "huge number": ("A: " + "1:" * 60_000 + "1", "a number of more than"),
    "many values": ("A: [" + "1," * 100_000 + "]", "more than 20000 values"),
    "huge": ("A: " + "x" * MAX_BYTES, "larger than"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused(name, tmp_path, monkeypatch):
    text, message = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "file.yaml")
    assert time.monotonic() - start < 10  # a second on an idle machine
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", TAGS)
def test_python_where_inference_reads_is_refused(name, tmp_path, monkeypatch):
    text, message = TAGS[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"MODEL.PIXEL_MEAN: .*{message}"):
        load_config_text(f"MODEL:\n  PIXEL_MEAN: {text}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", TAGS)
def test_python_where_only_training_reads_is_not_evaluated_and_does_no_harm(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = load_config_text("VERSION: 2")
    assert load_config_text(f"INPUT:\n  MIN_SIZE_TRAIN: {TAGS[name][0]}") == plain
    with pytest.warns(ConfigNotice, match="SOLVER.MINE"):
        assert load_config_text(f"SOLVER:\n  MINE: {TAGS[name][0]}") == plain
    assert os.listdir(tmp_path) == []


def test_a_whole_section_of_python_is_refused():
    for text in ("MODEL: !!python/object/apply:os.system [ls]", "!!python/object/new:yacs.config.CfgNode {}"):
        with pytest.raises(ConfigError, match="not executed"):
            load_config_text(text)


def test_hostile_text_would_have_run(tmp_path, monkeypatch):
    """The check above can fail: the unsafe loader, which detectron2 uses, does run the first file."""
    monkeypatch.chdir(tmp_path)
    yaml.load(f"A: {TAGS['os.system'][0]}", yaml.UnsafeLoader)
    assert os.listdir(tmp_path) == ["pwned"]


def test_harmless_python_tags_are_data():
    text = "a: !!python/tuple [1, 2]\nb: !!python/unicode text\nc: !!python/name:os.system ''"
    assert parse_yaml(text, "f") == {"a": [1, 2], "b": "text", "c": "python:os.system"}


def test_python_of_plain_values_is_data():
    text = "a: !!python/none ''\nb: !!python/bool true\nc: !!python/long 3\nd: !!python/dict {x: 1}"
    assert parse_yaml(text, "f") == {"a": None, "b": True, "c": 3, "d": {"x": 1}}


def test_what_stands_behind_a_tag_is_kept_as_data():
    call = "!!python/object/apply:functools.partial"
    text = f"a: {call} {{args: [!!python/name:torch.nn.LayerNorm ''], state: {{eps: 1.0e-06}}}}"
    value = parse_yaml(text, "f")["a"]
    assert isinstance(value, Unread)
    assert value.tag == call
    assert value.data == {"args": ["python:torch.nn.LayerNorm"], "state": {"eps": 1e-6}}


def test_of_a_key_that_occurs_twice_the_last_value_wins():
    """As in PyYAML: a section is replaced as a whole, and both lines are told."""
    with pytest.warns(ConfigNotice, match=r"f: .*MASK_ON .line 2 and line 3."):
        assert parse_yaml("MODEL:\n  MASK_ON: true\n  MASK_ON: false", "f") == {"MODEL": {"MASK_ON": False}}
    text = "SOLVER:\n  STEPS: (1,)\nSOLVER:\n  MAX_ITER: 3"
    with pytest.warns(ConfigNotice, match="SOLVER .line 1 and line 3"):
        assert parse_yaml(text, "f") == yaml.safe_load(text) == {"SOLVER": {"MAX_ITER": 3}}


def test_anchor_sizes_of_base_retinanet():
    sizes = anchor_sizes("[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]")
    expected = [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in [32, 64, 128, 256, 512]]
    assert sizes == expected
    assert sizes[0] == [32, 40.31747359663594, 50.79683366298238]


def test_anchor_sizes_of_other_lists():
    assert anchor_sizes("[[x,x*2] for x in [8,16.5,]]") == [[8, 16], [16.5, 33.0]]
    assert anchor_sizes("[[x, x * 2 ** (1 / 2)] for x in [1]]") == [[1, 2**0.5]]


@pytest.mark.parametrize(
    "expression",
    [
        "[[x] for y in [1]]",
        "[[x] for x in range(3)]",
        "[[x, x ** 99999999] for x in [9]]",
        "[[x * 2**(1/0)] for x in [9]]",
        "[[x * 2**(99999/1)] for x in [9.0]]",
        "[[] for x in [9]]",
        "[[x] for x in []]",
        "[[x] for x in [1]] + [print()]",
        "[[x for x in [1]]",
        "1" * 5000,
    ],
)
def test_other_expressions_are_refused(expression):
    with pytest.raises(ConfigError, match="not evaluated"):
        anchor_sizes(expression)


def test_retinanet_expression_through_a_file():
    text = """
MODEL:
  META_ARCHITECTURE: RetinaNet
  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res3, res4, res5]}
  FPN: {IN_FEATURES: [res3, res4, res5]}
  ANCHOR_GENERATOR:
    SIZES: !!python/object/apply:eval ["[[x, x * 2**(1.0/3)] for x in [8, 16, 32, 64, 128]]"]
"""
    config = load_config_text(text)
    assert config.model.anchors.sizes[1] == (16.0, 16 * 2 ** (1 / 3))
    assert len(config.model.anchors.sizes) == 5


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_bases_nest_and_later_values_win(tmp_path):
    write(tmp_path / "a.yaml", "MODEL: {MASK_ON: true, WEIGHTS: a}\nSEED: 1")
    write(tmp_path / "sub/b.yaml", "_BASE_: ../a.yaml\nMODEL: {WEIGHTS: b}")
    write(tmp_path / "sub/c.yaml", f"_BASE_: {tmp_path}/sub/b.yaml\nSEED: 3")
    assert read_with_bases(tmp_path / "sub/c.yaml") == {"MODEL": {"MASK_ON": True, "WEIGHTS": "b"}, "SEED": 3}


def test_base_below_home_and_lists_of_bases(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "home/a.yaml", "A: 1\nB: 1")
    write(tmp_path / "b.yaml", "B: 2\nC: 2")
    file = write(tmp_path / "c.yaml", "_BASE_: ['~/a.yaml', b.yaml]\nC: 3")
    assert read_with_bases(file) == {"A": 1, "B": 2, "C": 3}


BAD_FILES = {
    "missing base": ("_BASE_: nowhere.yaml", "nowhere.yaml' does not exist at .*Copy that file too"),
    "itself": ("_BASE_: file.yaml", "back to the same file"),
    "a URL": ("_BASE_: https://example.com/a.yaml", "is a URL"),
    "not a name": ("_BASE_: 3", "must name a file"),
    "a directory": ("_BASE_: .", "is a directory"),
    "a section in one, a value in the other": ("_BASE_: other.yaml\nA: {B: 1}", "A is a section here"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_bases(name, tmp_path):
    text, message = BAD_FILES[name]
    write(tmp_path / "other.yaml", "A: 1")
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path / "file.yaml", text))


def test_a_circle_of_bases(tmp_path):
    write(tmp_path / "a.yaml", "_BASE_: b.yaml")
    write(tmp_path / "b.yaml", "_BASE_: ./a.yaml")
    with pytest.raises(ConfigError, match="back to the same file"):
        load_config(tmp_path / "a.yaml")


def test_a_long_chain_of_bases(tmp_path):
    write(tmp_path / "0.yaml", "SEED: 1")
    for i in range(1, 40):
        write(tmp_path / f"{i}.yaml", f"_BASE_: {i - 1}.yaml")
    with pytest.raises(ConfigError, match="more than 20 levels"):
        load_config(tmp_path / "39.yaml")


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "garbage.yaml").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "gbk.yaml").write_bytes("MODEL:\n  MASK_ON: true\n# 训练配置\n".encode("gbk"))
    (tmp_path / "long.yaml").write_bytes("MODEL:\n  MASK_ON: true\n# 训练配置\n".encode("gbk") * 900)
    (tmp_path / "latin.yaml").write_bytes(b"# " + b"x" * 5000 + b"\n# \xe9t\xe9\nVERSION: 2")
    (tmp_path / "page.yaml").write_bytes(b"<!DOCTYPE html><html>Sign in</html>")
    (tmp_path / "lfs.yaml").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n")
    (tmp_path / "cfg.pickle").write_bytes(b"\x80\x04\x95cdetectron2.config.config\nCfgNode\n)\x81}b.")
    (tmp_path / "model.pkl").write_bytes(b"\x80\x02}X\x05\x00\x00\x00model}s.")
    (tmp_path / "model.pth").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "gzip.yaml").write_bytes(b"\x1f\x8b\x08\x00" + bytes(range(100)))
    (tmp_path / "error.yaml").write_bytes(b'{"error": "not found"}')
    (tmp_path / "utf16.yaml").write_bytes("VERSION: 2".encode("utf-16"))
    (tmp_path / "huge.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, message in {
        "garbage.yaml": "is not text",
        "utf16.yaml": "is text in UTF-16: save it as UTF-8",
        "gbk.yaml": "is text in another encoding .GBK.*save it as UTF-8",
        "long.yaml": "is text in another encoding",
        "latin.yaml": "is not text in UTF-8 throughout",
        "page.yaml": "is a web page",
        "lfs.yaml": "git lfs pull",
        "cfg.pickle": r"pickled configuration.*cfg.dump\(\)",
        "model.pkl": "a checkpoint, perhaps: it goes to --weights",
        "model.pth": "a checkpoint, perhaps: it goes to --weights",
        "gzip.yaml": "is a gzip file: unpack it",
        "error.yaml": "is no configuration of detectron2",
        "huge.yaml": "larger than",
        "pipe.yaml": "not a regular file",
        "none.yaml": "no such file",
        ".": "is a directory",
        "garbage.yaml/x.yaml": "no such file|Not a directory",
        "nul\0.yaml": "not a usable path",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / name)


def test_links_in_a_circle_and_unknown_users(tmp_path):
    (tmp_path / "a.yaml").symlink_to(tmp_path / "b.yaml")
    (tmp_path / "b.yaml").symlink_to(tmp_path / "a.yaml")
    with pytest.raises(ConfigError):
        load_config(tmp_path / "a.yaml")
    for source in ("~no-such-user-here/a.yaml", "nul\0"):
        with pytest.raises(ConfigError, match="no such file"):
            load_config(source)


def test_byte_order_mark_and_line_ends(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfMODEL:\r\n  MASK_ON: true\r\n")
    assert read_with_bases(tmp_path / "a.yaml") == {"MODEL": {"MASK_ON": True}}
