"""Units added from outside: a file that the environment names."""

import os

import pytest

from parity.core import extensions
from parity.core.units import units
from parity.core.units.backbones import BACKBONES

FILE = """
from parity.core.units.backbones import BACKBONES, residual_units
BACKBONES["build_mine"] = residual_units("MINE", "block", 3)
"""
CONFIG = {
    "MODEL": {
        "META_ARCHITECTURE": "SemanticSegmentor",
        "BACKBONE": {"NAME": "build_mine"},
        "MINE": {"OUT_FEATURES": ["block3", "block5"]},
        "SEM_SEG_HEAD": {"NAME": "SemSegFPNHead", "IN_FEATURES": ["block3", "block5"]},
    }
}


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(extensions, "_loaded", {})
    before = dict(BACKBONES)
    yield
    BACKBONES.clear()
    BACKBONES.update(before)


def test_units_of_a_file(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'build_mine' has no stage table"):
        units(CONFIG)
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    monkeypatch.setenv("PARITY_EXTEND", os.pathsep.join([str(file), ""]))
    found = {unit.name: unit for unit in units(CONFIG)}
    assert found["block3"].args == ("block3",) and found["block5"].args == ("block4", "block5")
    assert found["block5"].inputs == ("steps/backbone/block3",)


@pytest.mark.parametrize(("code", "message"), [(None, "no such file"), ("1 / 0", "ZeroDivisionError")])
def test_a_file_that_cannot_be_imported_is_named(code, message, tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    if code:
        file.write_text(code)
    monkeypatch.setenv("PARITY_EXTEND", str(file))
    with pytest.raises(ValueError, match=f"PARITY_EXTEND .*mine.py cannot be imported: .*{message}"):
        units(CONFIG)
