"""Writes detectron2 checkpoints without torch: ``.pkl``, ``.pth`` and ``.safetensors``.

Each file is written under a temporary name, read back and compared bit by bit, and only then given its name.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from weights import _pickler as op
from weights._blocks import contiguous, same_bits
from weights._files import replacing, touched
from weights._safetensors import DTYPES
from weights._unpickle_state import STORAGE_DTYPES
from weights.checkpoint import read_as_stored
from weights.errors import WeightsError
from weights.keras_file import Progress

_AUTHOR = "tf-d2"
_ALIGNMENT = 64  # torch aligns storages so that they can be memory-mapped
_ZIP64_FROM = 1 << 31  # bytes of an entry that needs long sizes in its header
_STORAGES = {dtype: name for name, dtype in STORAGE_DTYPES.items() if name != "UntypedStorage"}
_SAFETENSORS = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}

State = Mapping[str, np.ndarray]


def write_detectron2_pkl(
    path: str | os.PathLike[str],
    state: State,
    *,
    author: str = _AUTHOR,
    iteration: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a ``.pkl`` as in detectron2's model zoo: ``{"model": {key: array}, "__author__": author}``.

    Readable by every numpy, and by detectron2's DetectionCheckpointer without renames or matching.

    Raises:
        WeightsError: cannot be written, or does not read back equal; ``path`` is then untouched.
    """

    def write(temporary: Path) -> None:
        with temporary.open("xb") as file:
            file.write(op.protocol(4) + op.EMPTY_DICT + op.MARK + op.text("model") + op.EMPTY_DICT + op.MARK)
            for key, array in state.items():
                file.write(op.text(key))
                op.write_numpy_array(file, array)
                _done(array.nbytes, progress)
            file.write(op.SET_ITEMS + op.text("__author__") + op.text(author))
            if iteration is not None:
                file.write(op.text("iteration") + op.integer(iteration))
            file.write(op.SET_ITEMS + op.STOP)

    _checked(path, state, write, progress)


def write_pth(
    path: str | os.PathLike[str],
    state: State,
    *,
    iteration: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a ``.pth`` in torch's zip format, ``{"model": {key: tensor}}``; ``weights_only=True`` loads it.

    Raises:
        WeightsError: cannot be written, or does not read back equal; ``path`` is then untouched.
    """

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as archive:
            _add_entry(archive, "archive/data.pkl", _torch_pickle(state, iteration))
            _add_entry(archive, "archive/byteorder", b"little")
            for index, array in enumerate(state.values()):
                flat = contiguous(array).reshape(-1).view(np.uint8)
                _add_entry(archive, f"archive/data/{index}", flat.data)
                _done(array.nbytes, progress)
            _add_entry(archive, "archive/version", b"3\n")

    _checked(path, state, write, progress)


def _torch_pickle(state: State, iteration: int | None) -> bytes:
    parts = [op.protocol(2), op.EMPTY_DICT, op.MARK, op.text("model"), op.EMPTY_DICT, op.MARK]
    for index, (key, array) in enumerate(state.items()):
        storage = _STORAGES.get(array.dtype.name)
        if storage is None:
            raise WeightsError(f"{key}: torch checkpoints cannot hold arrays of dtype {array.dtype}.")
        parts += [op.text(key), op.torch_tensor(storage, str(index), array.shape)]
    parts.append(op.SET_ITEMS)
    if iteration is not None:
        parts += [op.text("iteration"), op.integer(iteration)]
    return b"".join([*parts, op.SET_ITEMS, op.STOP])


def _add_entry(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """A stored entry whose data begin at a multiple of 64 bytes, and whose date is always the same."""
    info = zipfile.ZipInfo(name)
    size = len(data)
    is_long = size >= _ZIP64_FROM
    assert archive.fp is not None
    position = archive.fp.tell() + 30 + len(name) + (20 if is_long else 0) + 4
    padding = -position % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"\x00" * padding
    info.file_size = size
    with archive.open(info, "w", force_zip64=is_long) as entry:
        entry.write(data)


def write_safetensors(
    path: str | os.PathLike[str],
    state: State,
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a ``.safetensors`` file with detectron2's keys.

    Raises:
        WeightsError: cannot be written, or does not read back equal; ``path`` is then untouched.
    """

    def write(temporary: Path) -> None:
        with temporary.open("xb") as file:
            header = _safetensors_header(state, metadata or {})
            file.write(struct.pack("<Q", len(header)) + header)
            for array in state.values():
                file.write(contiguous(array).reshape(-1).view(np.uint8).data)
                _done(array.nbytes, progress)

    _checked(path, state, write, progress)


def _safetensors_header(state: State, metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for key, array in state.items():
        if array.dtype not in _SAFETENSORS:
            raise WeightsError(f"{key}: safetensors cannot hold arrays of dtype {array.dtype}.")
        end = position + array.nbytes
        header[key] = {
            "dtype": _SAFETENSORS[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(header, separators=(",", ":")).encode("utf-8")
    return raw + b" " * (-len(raw) % 8)


def _done(count: int, progress: Progress | None) -> None:
    touched(2 * count)
    if progress:
        progress(count)


def _checked(
    path: str | os.PathLike[str], state: State, write: Callable[[Path], None], progress: Progress | None
) -> None:
    """Write, read back with the reader that users have, compare, rename."""
    with replacing(path) as temporary:
        write(temporary)
        written = read_as_stored(temporary)
        if written.keys() != state.keys():
            raise WeightsError(
                f"{path}: the written file does not hold the names it should; nothing was kept."
            )
        for key, array in state.items():
            if not same_bits(array, written[key]):
                raise WeightsError(f"{path}: {key} reads back differently than written; nothing was kept.")
            _done(array.nbytes, progress)
