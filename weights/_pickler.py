"""Writes the pickles that detectron2 and torch read, opcode by opcode.

Not Python's pickle module, because that writes whatever module path the installed numpy has (numpy 2's
``numpy._core`` is unknown to the numpy 1 of many detectron2 installations) and copies every array once.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from weights._blocks import contiguous

MARK, STOP, EMPTY_DICT, SET_ITEMS, SET_ITEM = b"(", b".", b"}", b"u", b"s"
TUPLE, _REDUCE, BUILD, PERSISTENT = b"t", b"R", b"b", b"Q"
FALSE, TRUE = b"\x89", b"\x88"


def protocol(number: int) -> bytes:
    """The opcode that begins a pickle."""
    return bytes([0x80, number])


def text(value: str) -> bytes:
    """A string."""
    raw = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    """A non-negative or small negative integer."""
    if 0 <= value < 1 << 16:
        return (b"K" + struct.pack("<B", value)) if value < 256 else (b"M" + struct.pack("<H", value))
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def integers(values: Sequence[int]) -> bytes:
    """A tuple of integers."""
    return MARK + b"".join(integer(value) for value in values) + TUPLE


def name(module: str, attribute: str) -> bytes:
    """A reference to a global of the reading program."""
    return f"c{module}\n{attribute}\n".encode("ascii")


def call(function: bytes, *arguments: bytes) -> bytes:
    """``function(*arguments)``."""
    return function + MARK + b"".join(arguments) + TUPLE + _REDUCE


def numpy_dtype(dtype: np.dtype) -> bytes:
    """A little-endian plain numpy dtype."""
    order = "|" if dtype.itemsize == 1 else "<"
    state = MARK + integer(3) + text(order) + b"NNN" + integer(-1) + integer(-1) + integer(0) + TUPLE
    return call(name("numpy", "dtype"), text(dtype.str[1:]), FALSE, TRUE) + state + BUILD


def write_numpy_array(file: BinaryIO, array: np.ndarray) -> None:
    """An array, its data straight from memory (contiguous input is not copied)."""
    array = contiguous(array)
    shell = call(
        name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), integers([0]), b"C\x01b"
    )
    file.write(shell + MARK + integer(1) + integers(array.shape) + numpy_dtype(array.dtype) + FALSE)
    file.write(b"\x8e" + struct.pack("<Q", array.nbytes))
    file.write(array.reshape(-1).view(np.uint8).data)
    file.write(TUPLE + BUILD)


def torch_tensor(storage: str, key: str, shape: Sequence[int]) -> bytes:
    """A contiguous torch tensor whose data are the storage ``key`` of the zip file."""
    count = int(np.prod(shape, dtype=np.int64))
    strides = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    reference = (
        MARK + text("storage") + name("torch", storage) + text(key) + text("cpu") + integer(count) + TUPLE
    )
    hooks = call(name("collections", "OrderedDict"))
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        reference + PERSISTENT,
        integer(0),
        integers(shape),
        integers(strides),
        FALSE,
        hooks,
    )
