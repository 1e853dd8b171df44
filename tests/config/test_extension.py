"""Parts added from outside: what is refused, and the ways a file of them is found."""

import os
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import ClassVar

import pytest

import tf_d2
from tf_d2.config import ConfigError, extension, load_config, load_config_text
from tf_d2.config.defaults import IGNORED, INFERENCE, KEYS, OPTIONAL, SECTIONS
from tf_d2.config.table import PARTS, layer_of

FPN = "COCO-Detection/faster_rcnn_R_50_FPN_3x"
HEAD = """
from dataclasses import dataclass
import tf_d2

@dataclass(frozen=True)
class Config:
    width: int
    NEW_KEYS = {"MODEL.MINE.WIDTH": 5}
    @classmethod
    def from_keys(cls, keys, name, num_classes):
        return cls(keys.fields({"width": "MODEL.MINE.WIDTH"}).integer("width", 1) * num_classes)
    @classmethod
    def from_lazy(cls, node, num_classes):
        return cls(node.fields({"width": 7}).integer("width", 1))

tf_d2.extend("mask_head", ["MyMaskHead", "mine.MyMaskHead"], Config, "mine:Layer")
"""


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """The tables of parts and keys are afterwards as they were."""
    tables = [INFERENCE, IGNORED, KEYS, SECTIONS, *PARTS.values()]
    saved, optional = [table.copy() for table in tables], list(OPTIONAL)
    monkeypatch.setattr(extension, "_loaded", set())
    yield
    for table, copy in zip(tables, saved, strict=True):
        table.clear()
        table.update(copy)
    OPTIONAL[:] = optional
    sys.modules.pop("mine", None)


def test_a_file_named_by_the_environment(tmp_path, monkeypatch):
    opts = ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MyMaskHead"]
    with pytest.raises(ConfigError, match=r"MyMaskHead.*MaskRCNNConvUpsampleHead.*tf_d2.extend"):
        load_config(FPN, opts)
    file = tmp_path / "mine.py"
    file.write_text(HEAD)
    monkeypatch.setenv("TF_D2_EXTEND", os.pathsep.join(["", str(file)]))
    config = load_config(FPN, [*opts, "MODEL.MINE.WIDTH", 2])
    assert config.roi_heads.mask_head.width == 160
    assert load_config(FPN, opts).roi_heads.mask_head.width == 400
    assert "MODEL.MINE." in OPTIONAL
    with pytest.raises(ConfigError, match=r"MODEL.MINE.WIDTH = str"):
        load_config(FPN, [*opts, "MODEL.MINE.WIDTH", "wide"])


@pytest.mark.parametrize(
    ("code", "message"),
    [(None, "no such file"), ("1 / 0", "ZeroDivisionError"), ("import nothing_here", "nothing_here")],
)
def test_a_file_that_cannot_be_imported_is_named(code, message, tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    if code:
        file.write_text(code)
    monkeypatch.setenv("TF_D2_EXTEND", str(file))
    with pytest.raises(ConfigError, match=f"TF_D2_EXTEND .*mine.py cannot be imported: .*{message}"):
        load_config_text("MODEL: {}")


def test_entry_points_of_installed_packages(monkeypatch):
    class Entry:
        name = "mine"

        @staticmethod
        def load():
            exec(HEAD, {"__name__": "mine"})

    monkeypatch.setitem(sys.modules, "mine", sys)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry] if group == "tf_d2.parts" else [])
    load_config(FPN)
    assert "mine.MyMaskHead" in PARTS["mask_head"]


@dataclass(frozen=True)
class Good:
    @classmethod
    def from_keys(cls, keys, name):
        return cls()


@dataclass(frozen=True)
class Reads:
    nothing: int = 0


@dataclass
class Thawed:
    from_keys = None


@dataclass(frozen=True)
class Clashes(Good):
    NEW_KEYS: ClassVar = {"MODEL.RPN.NMS_THRESH": 0.5}


def test_what_is_refused():
    for arguments, message in {
        ("head", "A", Good): "no parts of kind 'head'; kinds are meta_architecture",
        ("backbone", "A", Thawed): "frozen",
        ("backbone", "A", Reads): "reads no configuration",
        ("backbone", "ResNet", Good): "'ResNet' is tf_d2.config.parts.resnet.ResNetConfig already",
        ("backbone", "A", Clashes): "MODEL.RPN.NMS_THRESH is a key already",
    }.items():
        with pytest.raises(ValueError, match=message):
            tf_d2.extend(*arguments, object)


def test_a_layer_is_a_class_or_its_address():
    tf_d2.extend("backbone", "A", Good, Reads)
    tf_d2.extend("backbone", "A", Good, Reads)
    assert layer_of("backbone", Good()) is Reads
    with pytest.raises(KeyError, match="no part of kind 'backbone'"):
        layer_of("backbone", Reads())
