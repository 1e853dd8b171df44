"""Reads ``.npz``: a zip file of ``.npy`` arrays. Objects are refused, sizes checked before allocating."""

from __future__ import annotations

import re
import struct

import numpy as np

from weights._limits import check_shape
from weights._unpickle_calls import view_as
from weights._zip import Archive
from weights.errors import CheckpointError

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000
_DESCR = re.compile(r"[<|=](?:b1|i[1248]|u[1248]|f[248])")
# the header is a Python literal; only this spelling of it is taken, which is the one numpy writes
_HEADER = re.compile(
    r"\{'descr': '([^']{1,40})', 'fortran_order': (True|False), 'shape': \(([0-9, ]*)\), ?\}\s*", re.ASCII
)


def is_npz(archive: Archive) -> bool:
    """Whether every entry of a zip file is an array."""
    return bool(archive.entries) and all(name.endswith(".npy") for name in archive.entries)


def read(archive: Archive) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file by name, without the ``.npy``."""
    return {name[: -len(".npy")]: _array(archive.read(name), name) for name in archive.entries}


def _array(raw: memoryview, name: str) -> np.ndarray:
    where = f"The array {name[:200]!r}"
    if bytes(raw[:6]) != _MAGIC or len(raw) < 12 or raw[6] not in (1, 2, 3):
        raise CheckpointError(f"{where} is no numpy array: the file is damaged.")
    start = 10 if raw[6] == 1 else 12
    length = struct.unpack_from("<H" if raw[6] == 1 else "<I", raw, 8)[0]
    if length > min(_MAX_HEADER, len(raw) - start):
        raise CheckpointError(f"{where} has a header of {length} bytes: the file is damaged.")
    match = _HEADER.fullmatch(bytes(raw[start : start + length]).decode("latin-1"))
    if match is None:
        raise CheckpointError(f"{where} has a header that numpy does not write for plain numbers.")
    if not _DESCR.fullmatch(match[1]):
        raise CheckpointError(
            f"{where} has the dtype {match[1]!r}; only plain little-endian numbers are read."
        )
    shape = check_shape(tuple(int(part) for part in match[3].replace(" ", "").split(",") if part), where)
    return view_as(raw[start + length :], np.dtype(match[1]), shape, fortran=match[2] == "True")
