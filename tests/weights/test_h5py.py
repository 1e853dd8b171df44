"""Errors while HDF5 writes come out as what they are, wherever they happen, and the process lives on."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest

from weights import _h5py
from weights._h5py import in_hdf5


def write_much(file):
    """More groups and names than HDF5 keeps in memory, so that it reads back what it wrote."""
    for index in range(1500):
        file.create_dataset(f"group{index % 30}/{index}/kernel", data=np.full(40, index))
    return "done"


class Full:
    """Stands for the open file: from its ``left``-th change on, the disk is full."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def __getattr__(self, name):
        return getattr(self.file, name)

    def changed(self):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, data):
        self.changed()
        return self.file.write(data[:5000])  # a part at a time, as systems may

    def truncate(self, size):
        self.changed()
        return self.file.truncate(size)


def test_what_was_written_is_there(tmp_path, monkeypatch):
    original = _h5py._Unfailing
    monkeypatch.setattr(_h5py, "_Unfailing", lambda file: original(Full(file, 1 << 30)))
    assert in_hdf5(tmp_path / "x.h5", "x", write_much) == "done"
    in_hdf5(tmp_path / "x.h5", "r+", lambda file: file.attrs.update({"a": "b" * 100_000}))
    with h5py.File(tmp_path / "x.h5") as file:
        assert file.attrs["a"] == "b" * 100_000
        for index in range(1500):
            assert np.array_equal(file[f"group{index % 30}/{index}/kernel"], np.full(40, index))


@pytest.mark.parametrize("left", [0, 1, 2, 3, 10, 100, 1500, 1520, 2000, 4000])
def test_a_disk_that_is_full(tmp_path, monkeypatch, left):
    original = _h5py._Unfailing
    monkeypatch.setattr(_h5py, "_Unfailing", lambda file: original(Full(file, left)))
    with pytest.raises(OSError, match="No space left on device"):
        in_hdf5(tmp_path / "x.h5", "x", write_much)


def test_the_last_change_counts(tmp_path, monkeypatch):
    """Closing the file is where HDF5 by itself would crash."""
    original, files = _h5py._Unfailing, []

    def full(file):
        files.append(Full(file, 1 << 30 if len(files) == 0 else (1 << 30) - files[0].left - 1))
        return original(files[-1])

    monkeypatch.setattr(_h5py, "_Unfailing", full)
    in_hdf5(tmp_path / "x.h5", "x", write_much)
    with pytest.raises(OSError, match="No space left on device"):
        in_hdf5(tmp_path / "y.h5", "x", write_much)


def test_errors_of_the_work_come_out(tmp_path):
    def fails(file):
        raise KeyError("a")

    with pytest.raises(KeyError):
        in_hdf5(tmp_path / "x.h5", "x", fails)
    with pytest.raises(FileExistsError):
        in_hdf5(tmp_path / "x.h5", "x", write_much)


def test_a_signal_waits_for_the_file(tmp_path):
    """Its exception must not come out of a method that HDF5 calls."""
    complete = []

    def interrupted(file):
        assert threading.current_thread() is not threading.main_thread()
        time.sleep(0.2)  # the main thread is waiting by then
        os.kill(os.getpid(), signal.SIGINT)
        complete.append(write_much(file))

    # a shell starts jobs in the background with this signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_hdf5(tmp_path / "x.h5", "x", interrupted)
    finally:
        signal.signal(signal.SIGINT, before)
    assert complete == ["done"]
    with h5py.File(tmp_path / "x.h5") as file:
        assert len(file) == 30


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on the size of files")
@pytest.mark.parametrize("size", [0, 96, 5000, 120_000, 300_000, 557_000])
def test_a_limit_on_the_size_of_files(tmp_path, size):
    """In a process of its own, which must end as it should. The file would take 557,672 bytes."""
    code = """
import resource, sys, weights, numpy as np
arrays = {f"layer{index}/kernel": np.ones((10, 10), np.float32) for index in range(300)}
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
try:
    weights.write_keras_h5(sys.argv[2], arrays, provenance={}, config_yaml="a" * 10_000)
except weights.WeightsError as error:
    print(error)
"""
    path = str(tmp_path / "x.weights.h5")
    done = subprocess.run(
        [sys.executable, "-c", code, str(size), path], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"{path}: cannot be written (File too large).\n"
    assert (done.returncode, done.stderr, os.listdir(tmp_path)) == (0, "", [])
