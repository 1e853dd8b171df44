"""What we write is what torch, pickle and safetensors read, and what was asked for."""

import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import weights
from weights import writers
from weights._blocks import same_bits

RNG = np.random.default_rng(0)
STATE = {
    "a.weight": RNG.normal(size=(4, 3, 2)).astype(np.float32),
    "a.bias": RNG.normal(size=(300,)).astype(np.float16),
    "t.weight": RNG.normal(size=(4, 3)).T,
    "steps": np.array(70_000, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False]),
    "bytes": np.arange(300, dtype=np.uint8),
    "nan": np.array([np.nan, -np.inf, -0.0], np.float32),
}
WRITERS = {
    ".pkl": weights.write_detectron2_pkl,
    ".pth": weights.write_pth,
    ".safetensors": weights.write_safetensors,
}


def assert_same(found, expected=STATE):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert same_bits(np.asarray(found[key]), value), key


@pytest.mark.parametrize("suffix", WRITERS)
def test_our_reader_reads_it(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    WRITERS[suffix](path, STATE)
    assert_same(weights.read_checkpoint(path).state)
    assert os.listdir(tmp_path) == [path.name]


def test_pickle_as_detectron2_opens_it(tmp_path):
    weights.write_detectron2_pkl(tmp_path / "m.pkl", STATE, author="me", iteration=-3)
    with open(tmp_path / "m.pkl", "rb") as file:
        value = pickle.load(file, encoding="latin1")
    assert value.pop("__author__") == "me" and value.pop("iteration") == -3
    assert_same(value.pop("model"))
    assert value == {}


def test_pickle_does_not_need_numpy_2(tmp_path):
    weights.write_detectron2_pkl(tmp_path / "m.pkl", STATE)
    assert b"numpy._core" not in (tmp_path / "m.pkl").read_bytes()


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_opens_it(tmp_path, mmap):
    weights.write_pth(tmp_path / "m.pth", STATE, iteration=1 << 40)
    value = torch.load(tmp_path / "m.pth", weights_only=True, mmap=mmap)
    assert value["iteration"] == 1 << 40
    assert_same({key: tensor.numpy() for key, tensor in value["model"].items()})
    for key, tensor in value["model"].items():
        assert tensor.is_contiguous() and tensor.dtype == torch.from_numpy(np.array(STATE[key])).dtype


def test_storages_are_aligned_and_the_archive_is_sound(tmp_path):
    weights.write_pth(tmp_path / "m.pth", STATE)
    data = (tmp_path / "m.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            extra = int.from_bytes(data[info.header_offset + 28 : info.header_offset + 30], "little")
            assert (info.header_offset + 30 + len(info.filename) + extra) % 64 == 0


def test_long_entries(tmp_path, monkeypatch):
    """Entries beyond 2 GiB have another header; here they need not be that long."""
    monkeypatch.setattr(writers, "_ZIP64_FROM", 100)
    test_storages_are_aligned_and_the_archive_is_sound(tmp_path)
    value = torch.load(tmp_path / "m.pth", weights_only=True, mmap=True)
    assert_same({key: tensor.numpy() for key, tensor in value["model"].items()})
    assert_same(weights.read_checkpoint(tmp_path / "m.pth").state)


def test_safetensors_opens_it(tmp_path):
    weights.write_safetensors(tmp_path / "m.safetensors", STATE, metadata={"source": "x"})
    assert_same(load_file(tmp_path / "m.safetensors"))


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_same_state_gives_the_same_bytes(tmp_path, suffix):
    WRITERS[suffix](tmp_path / f"a{suffix}", STATE)
    WRITERS[suffix](tmp_path / f"b{suffix}", STATE)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", WRITERS)
def test_nothing_half_written_stays(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"precious")
    monkeypatch.setattr(writers, "same_bits", lambda one, other: False)
    with pytest.raises(weights.WeightsError, match="reads back differently"):
        WRITERS[suffix](path, STATE)
    assert path.read_bytes() == b"precious" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_dtypes_that_the_format_lacks(tmp_path, suffix):
    value = np.ones(2, np.uint16 if suffix == ".pth" else np.complex64)
    with pytest.raises(weights.WeightsError, match=r"x: .* cannot hold"):
        WRITERS[suffix](tmp_path / f"m{suffix}", {"x": value})
    assert os.listdir(tmp_path) == []


def test_weights_needs_no_framework():
    """The package imports, reads and writes with TensorFlow, Keras and torch out of reach."""
    code = """
import sys
for name in ("tensorflow", "keras", "torch", "tf_d2", "parity", "safetensors"):
    sys.modules[name] = None
import numpy as np, tempfile, os, weights, weights.summary
path = os.path.join(tempfile.mkdtemp(), "m.pth")
weights.write_pth(path, {"a": np.ones(3, np.float32)})
assert weights.read_checkpoint(path).state["a"].sum() == 3
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
