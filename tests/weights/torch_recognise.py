"""Files that are something else: the message says what they are and what to do."""

import gzip
import io
import json
import tarfile
import zipfile

import h5py
import pytest
import torch

import weights
from weights import CheckpointError


def zipped(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("model_final.pth")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


def traced() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/code/__torch__.py", b"class M(Module): pass")
    return buffer.getvalue()


ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:" + bytes(range(1, 80))
FILES = {
    "a web page": (b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title>", "a web page.*download the file"),
    "a web page without a head": (b"<HTML><body>quota exceeded</body></HTML>", "a web page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML.*server's error"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
    "a JSON error": (json.dumps({"error": "not found"}).encode(), "JSON.*download"),
    "gzip": (gzip.compress(b"\x80\x02}."), "gzip.*unpack"),
    "bzip2": (b"BZh91AY&SY", "bzip2.*unpack"),
    "xz": (b"\xfd7zXZ\x00\x00", "xz.*unpack"),
    "zstd": (b"\x28\xb5\x2f\xfd\x00", "zstd.*unpack"),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00", "7-Zip.*unpack"),
    "rar": (b"Rar!\x1a\x07\x00", "RAR.*unpack"),
    "tar": (tarred(), "tar archive.*unpack"),
    "a zip around a checkpoint": (zipped({"run/model_final.pth": b"abc"}), "zip archive around 'run/model_final.pth'"),
    "a TorchServe archive": (zipped({"MAR-INF/MANIFEST.json": b"{}", "m.pth": b"x"}), "TorchServe.*unpack"),
    "a .keras file": (zipped({"metadata.json": b"{}", "model.weights.h5": b"x", "config.json": b"{}"}), "save_weights"),
    "TorchScript": (traced(), "TorchScript program.*Give the .pth"),
    "YAML": (b"_BASE_: base.yaml\nMODEL:\n  MASK_ON: true\n", "YAML.*--config-file.*--weights"),
    "YAML of UTF-16": ("MODEL:\n  MASK_ON: true\n".encode("utf-16"), "YAML"),
    "ONNX": (ONNX, "ONNX model.*exported from"),
    "TFLite": (b"\x1c\x00\x00\x00TFL3\x00\x00", "TensorFlow Lite.*checkpoint of the training"),
    "PNG": (b"\x89PNG\r\n\x1a\n", "picture.*--input"),
    "zeros": (bytes(5000), "all zeros.*interrupted"),
    "an address": (b"https://example.com/model.pth\n", "address itself"),
    "words": (b"hello there", "text .'hello there'"),
    "noise": (bytes(range(140, 250)) * 30, "no known checkpoint format"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_message_says_what_the_file_is(name, tmp_path):
    data, message = FILES[name]
    path = tmp_path / "model_final.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"(?s){message}") as error:
        weights.read_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ")


def test_an_empty_file(tmp_path):
    (tmp_path / "a.pth").touch()
    with pytest.raises(CheckpointError, match="empty: an interrupted download"):
        weights.read_checkpoint(tmp_path / "a.pth")


def test_folders(tmp_path):
    (tmp_path / "model_final.pth").touch()
    with pytest.raises(CheckpointError, match=r"is a folder.*in it are model_final.pth"):
        weights.read_checkpoint(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(CheckpointError, match=r"SavedModel.*checkpoint of the training"):
        weights.read_checkpoint(tmp_path)


def test_a_pickled_configuration(tmp_path):
    evil = b"\x80\x02cdetectron2.config.config\nCfgNode\n)\x81}b."
    (tmp_path / "OD_cfg.pickle").write_bytes(evil)
    with pytest.raises(
        CheckpointError, match=r"holds a configuration \('detectron2.config.config.CfgNode'\), no weights"
    ):
        weights.read_checkpoint(tmp_path / "OD_cfg.pickle")


def test_hdf5_of_another_kind(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = [1.0]
    with pytest.raises(CheckpointError):
        weights.read_checkpoint(tmp_path / "a.h5")


def test_real_checkpoints_are_not_taken_for_something_else(tmp_path):
    for legacy in (False, True):
        path = tmp_path / "a.pth"
        torch.save({"backbone.w": torch.ones(1)}, path, _use_new_zipfile_serialization=not legacy)
        assert weights.read_checkpoint(path).state.keys() == {"backbone.w"}
