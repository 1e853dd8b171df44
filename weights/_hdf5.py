"""Reads the HDF5 files that Keras and this library write, in plain Python: a strict subset of the format.

Why not h5py here: its C library is not made for hostile input. Flipping single bits of a small weights file
made it crash the process or hang within seconds. h5py stays the writer; this is the reader, and so also an
independent check of what was written.

The subset is what h5py writes by default: superblock 0, old-style groups (B-tree, local heap), version 1
object headers, contiguous or compact datasets of plain little-endian numbers, attributes of strings and
numbers. Links to other files or places, chunked, compressed, virtual or external data, and object types are
refused by name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from weights._limits import MAX_STEPS, MAX_TENSORS, Budget, check_shape, element_count, tensor_budget
from weights._unpickle_calls import view_as
from weights.errors import CheckpointError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = (1 << 64) - 1
_MAX_DEPTH = 64
_MAX_TEXT = 1 << 24

_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL_FILES = 0x01, 0x02, 0x03, 0x06, 0x07
_LAYOUT, _FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 0x08, 0x0B, 0x0C, 0x10, 0x11

# (size, bit offset, precision, exponent position, exponent bits, mantissa position, mantissa bits, bias)
_FLOATS = {
    (2, 0, 16, 10, 5, 0, 10, 15): "<f2",
    (4, 0, 32, 23, 8, 0, 23, 127): "<f4",
    (8, 0, 64, 52, 11, 0, 52, 1023): "<f8",
}


@dataclass(frozen=True)
class Dataset:
    """One dataset: a read-only view of the file, and its attributes."""

    array: np.ndarray
    attributes: dict[str, Any]


@dataclass(frozen=True)
class _Type:
    """A datatype: ``kind`` is "number" (with ``dtype``), "text", "long text" or another, refused, class."""

    kind: str
    size: int
    dtype: str = ""


class _File:
    """The bytes of the file and the limits on what it may ask for."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.bytes_left: Budget = tensor_budget(len(data))
        self.steps = Budget(MAX_STEPS, "its groups and headers never end")
        self.text = Budget(_MAX_TEXT, "its attributes hold more than 16 MiB of text")
        self.datasets: dict[str, Dataset] = {}
        self.seen: set[int] = set()  # addresses of groups and datasets

    def at(self, address: int, size: int) -> memoryview:
        """``size`` bytes at ``address``, or CheckpointError when the file does not have them."""
        self.steps.spend(1)
        if size < 0 or not 0 <= address <= len(self.data) - size:
            raise CheckpointError(
                f"The HDF5 file refers to byte {address}, outside of it: it is truncated or damaged."
            )
        return self.data[address : address + size]


def read(data: memoryview) -> tuple[dict[str, Any], dict[str, Dataset]]:
    """The root attributes and all datasets (by path, without leading slash) of an HDF5 file.

    Raises:
        CheckpointError: damaged, or outside of the subset this module reads; the message says which.
    """
    file = _File(data)
    try:
        root = _superblock(file)
        messages = _messages(file, root)
        attributes = _attributes(file, messages)
        file.seen.add(root)
        _group(file, messages, "", 0)
    except (struct.error, UnicodeDecodeError, IndexError) as error:
        raise CheckpointError(f"The HDF5 file is damaged ({type(error).__name__}: {error}).") from None
    return attributes, file.datasets


def _superblock(file: _File) -> int:
    """Address of the root group's object header."""
    block = file.at(0, 96)
    if bytes(block[:8]) != SIGNATURE:
        raise CheckpointError("This is no HDF5 file.")
    if block[8] != 0:
        raise CheckpointError(
            f"The HDF5 file has superblock version {block[8]}; only version 0 is read, which "
            "h5py and Keras write "
            "by default. Save it again without libver='latest'."
        )
    if (block[13], block[14]) != (8, 8) or struct.unpack_from("<Q", block, 24)[0] != 0:
        raise CheckpointError("The HDF5 file has unusual address sizes or a base offset: it is damaged.")
    return struct.unpack_from("<Q", block, 64)[0]


_Message = tuple[int, memoryview]


def _messages(file: _File, address: int) -> list[_Message]:
    """The (type, data) messages of a version 1 object header, continuation blocks included."""
    header = file.at(address, 16)
    if header[0] != 1:
        raise CheckpointError(
            "The HDF5 file has object headers of a newer format; save it again with h5py's defaults."
        )
    blocks = [(address + 16, struct.unpack_from("<I", header, 8)[0])]
    seen = {address}
    messages: list[_Message] = []
    for start, size in blocks:  # grows while it is walked
        block = file.at(start, size)
        position = 0
        while position + 8 <= size:
            file.steps.spend(1)
            kind, length, flags = struct.unpack_from("<HHB", block, position)
            body = block[position + 8 : position + 8 + length]
            if len(body) != length:
                raise CheckpointError("The HDF5 file has an object header that ends early: it is damaged.")
            if flags & 0x02:
                raise CheckpointError("The HDF5 file has shared header messages, which are not read.")
            if kind == _CONTINUATION:
                target = struct.unpack_from("<QQ", body)
                if target[0] in seen:
                    raise CheckpointError("The HDF5 file has an object header that refers to itself.")
                seen.add(target[0])
                blocks.append(target)
            elif kind:
                messages.append((kind, body))
            position += 8 + length
    return messages


def _one(messages: list[_Message], kind: int) -> memoryview | None:
    return next((body for found, body in messages if found == kind), None)


# --- groups -----------------------------------------------------------------------------------------


def _group(file: _File, messages: list[_Message], prefix: str, depth: int) -> None:
    """Read everything below a group into ``file.datasets``."""
    if depth > _MAX_DEPTH:
        raise CheckpointError("The HDF5 file has groups nested too deeply.")
    for kind, body in messages:
        if kind == _LINK:
            raise CheckpointError(_refused_link(body))
        if kind == _LINK_INFO:
            raise CheckpointError(
                "The HDF5 file has groups of a newer format; save it again with h5py's defaults."
            )
    table = _one(messages, _SYMBOL_TABLE)
    if table is None:
        raise CheckpointError(f"The HDF5 object {prefix or '/'!r} is neither a group nor a dataset.")
    tree, heap = struct.unpack_from("<QQ", table)
    for name, address in _links(file, tree, _heap(file, heap)):
        path = f"{prefix}/{name}" if prefix else name
        if address in file.seen:  # also how a group would contain itself, or paths multiply
            raise CheckpointError(
                f"The HDF5 object {path[:200]!r} has a second name (hard link), which is not read."
            )
        file.seen.add(address)
        _object(file, address, path, depth + 1)


def _object(file: _File, address: int, path: str, depth: int) -> None:
    messages = _messages(file, address)
    if _one(messages, _LAYOUT) is None:
        _group(file, messages, path, depth)
        return
    if path in file.datasets:
        raise CheckpointError(f"The HDF5 file has two datasets named {path[:200]!r}.")
    if len(file.datasets) >= MAX_TENSORS:
        raise CheckpointError("The HDF5 file has more datasets than any checkpoint.")
    file.datasets[path] = Dataset(_dataset(file, messages, path), _attributes(file, messages))


def _refused_link(body: memoryview) -> str:
    flags = body[1] if len(body) > 2 else 0
    kind = body[2] if flags & 0x08 else 0
    if kind == 64:
        return "The HDF5 file has a link to another file (external link), which is never followed."
    if kind == 1:
        return "The HDF5 file has a soft link, which is not followed."
    return "The HDF5 file has groups of a newer format; save it again with h5py's defaults."


def _heap(file: _File, address: int) -> memoryview:
    """The data segment of a local heap, where the names of a group lie."""
    header = file.at(address, 32)
    if bytes(header[:4]) != b"HEAP":
        raise CheckpointError("The HDF5 file has a group without names: it is damaged.")
    size, _, start = struct.unpack_from("<QQQ", header, 8)
    return file.at(start, size)


def _links(file: _File, tree: int, names: memoryview) -> Iterator[tuple[str, int]]:
    """(name, object header address) of a group, from the leaves of its B-tree."""
    nodes = [(tree, -1)]  # address, and the level it must have (-1: any, for the root)
    while nodes:
        address, expected = nodes.pop()
        header = file.at(address, 24)
        level, used = header[5], struct.unpack_from("<H", header, 6)[0]
        if bytes(header[:4]) != b"TREE" or header[4] != 0 or (expected >= 0 and level != expected):
            raise CheckpointError("The HDF5 file has a damaged group index.")
        body = file.at(address + 24, used * 16 + 8)
        children = [struct.unpack_from("<Q", body, 8 + 16 * index)[0] for index in range(used)]
        if level:
            nodes += [(child, level - 1) for child in reversed(children)]
        else:
            for child in children:
                yield from _symbols(file, child, names)


def _symbols(file: _File, address: int, names: memoryview) -> Iterator[tuple[str, int]]:
    header = file.at(address, 8)
    if bytes(header[:4]) != b"SNOD":
        raise CheckpointError("The HDF5 file has a damaged group index.")
    count = struct.unpack_from("<H", header, 6)[0]
    body = file.at(address + 8, 40 * count)
    for index in range(count):
        file.steps.spend(1)
        offset, target, cache = struct.unpack_from("<QQI", body, 40 * index)
        if cache == 2:
            raise CheckpointError("The HDF5 file has a soft link, which is not followed.")
        raw = bytes(names[offset : offset + 1024])
        name = raw.partition(b"\x00")[0].decode("utf-8")
        if b"\x00" not in raw or not name or "/" in name or not name.isprintable():
            raise CheckpointError("The HDF5 file has a damaged name.")
        yield name, target


# --- datasets and attributes ------------------------------------------------------------------------


def _dataset(file: _File, messages: list[_Message], path: str) -> np.ndarray:
    where = f"The HDF5 dataset {path[:200]!r}"
    if _one(messages, _EXTERNAL_FILES) is not None:
        raise CheckpointError(f"{where} keeps its data in another file, which is never opened.")
    if _one(messages, _FILTERS) is not None:
        raise CheckpointError(
            f"{where} is compressed; Keras weights are not. Save it again without compression."
        )
    space, kind, layout = (_one(messages, code) for code in (_DATASPACE, _DATATYPE, _LAYOUT))
    if space is None or kind is None or layout is None:
        raise CheckpointError(f"{where} lacks its type, shape or layout: the file is damaged.")
    shape, dtype = _shape(space, where), _datatype(kind, where)
    if dtype.kind != "number":
        raise CheckpointError(
            f"{where} holds {dtype.kind}; only plain little-endian numbers are read as tensors."
        )
    size = element_count(shape) * dtype.size
    file.bytes_left.spend(size)
    return view_as(_raw_data(file, layout, size, where), np.dtype(dtype.dtype), shape)


def _raw_data(file: _File, layout: memoryview, size: int, where: str) -> memoryview:
    version, kind = layout[0], layout[1]
    if version not in (3, 4):
        raise CheckpointError(f"{where} has a layout of version {version}, which is not read.")
    if kind == 0:  # compact: the data lie in the header
        count = struct.unpack_from("<H", layout, 2)[0]
        raw = layout[4 : 4 + count]
    elif kind == 1:
        address, count = struct.unpack_from("<QQ", layout, 2)
        if address == _UNDEFINED and size:
            raise CheckpointError(f"{where} declares a shape, but its data were never written.")
        raw = file.at(address, count) if size else memoryview(b"")
    else:
        name = {2: "chunked", 3: "virtual"}.get(kind, "unknown")
        raise CheckpointError(f"{where} has a {name} layout; Keras weights are contiguous.")
    if len(raw) != size:
        raise CheckpointError(f"{where} should have {size} bytes and has {len(raw)}.")
    return raw


def _shape(space: memoryview, where: str) -> tuple[int, ...]:
    version, rank, _, kind = space[0], space[1], space[2], space[3]
    if version not in (1, 2) or (version == 2 and kind == 2):
        raise CheckpointError(f"{where} has no shape that can be read.")
    start = 8 if version == 1 else 4
    return check_shape(struct.unpack_from(f"<{rank}Q", space, start), where)


def _datatype(body: memoryview, where: str) -> _Type:
    """The datatype in ``body``; numbers in other than little-endian order are refused here."""
    kind, flags, size = (
        body[0] & 0x0F,
        int.from_bytes(body[1:4], "little"),
        struct.unpack_from("<I", body, 4)[0],
    )
    if kind in (0, 1) and flags & 0x41:
        raise CheckpointError(f"{where} is big-endian; write it again on a little-endian machine.")
    if kind == 0:
        if struct.unpack_from("<HH", body, 8) != (0, 8 * size) or size not in (1, 2, 4, 8):
            return _Type("integers of an unusual width", size)
        return _Type("number", size, f"<{'i' if flags & 0x08 else 'u'}{size}")
    if kind == 1:
        dtype = _FLOATS.get((size, *struct.unpack_from("<HHBBBBI", body, 8)))
        return _Type("number", size, dtype) if dtype else _Type("floats of an unusual format", size)
    if kind == 3:
        return _Type("text", size)
    if kind == 9 and flags & 0x0F == 1:
        return _Type("long text", size)
    names = {2: "times", 4: "bit fields", 5: "opaque objects", 6: "compound objects", 7: "references"}
    return _Type(
        {**names, 8: "enumerations", 9: "variable-length objects", 10: "arrays"}.get(kind, "?"), size
    )


def _attributes(file: _File, messages: list[_Message]) -> dict[str, Any]:
    """Attributes that are text (str) or numbers (array); others are left out."""
    found: dict[str, Any] = {}
    for kind, body in messages:
        if kind == _ATTRIBUTE:
            name, value = _attribute(file, body)
            if value is not None:
                found[name] = value
    return found


def _attribute(file: _File, body: memoryview) -> tuple[str, Any]:
    version = body[0]
    if version not in (1, 2, 3) or (version > 1 and body[1]):
        raise CheckpointError("The HDF5 file has an attribute of an unknown kind.")
    sizes = struct.unpack_from("<HHH", body, 2)
    position = 9 if version == 3 else 8
    parts: list[memoryview] = []
    for size in sizes:
        parts.append(body[position : position + size])
        position += (size + 7) // 8 * 8 if version == 1 else size
    name = bytes(parts[0]).partition(b"\x00")[0].decode("utf-8")
    where = f"The HDF5 attribute {name[:200]!r}"
    dtype, shape = _datatype(parts[1], where), _shape(parts[2], where)
    count = element_count(shape)
    raw = body[position : position + min(count * dtype.size, len(body))]
    return name, _attribute_value(file, dtype, shape, raw, where)


def _attribute_value(file: _File, dtype: _Type, shape: tuple[int, ...], raw: memoryview, where: str) -> Any:
    if dtype.kind == "number":
        return view_as(raw, np.dtype(dtype.dtype), shape)
    if shape not in ((), (1,)) or dtype.kind not in ("text", "long text"):
        return None
    text = _heap_object(file, raw) if dtype.kind == "long text" else raw
    file.text.spend(len(text))
    return bytes(text).rstrip(b"\x00").decode("utf-8")


def _heap_object(file: _File, reference: memoryview) -> memoryview:
    """A variable-length value: (length, address of a global heap collection, index in it)."""
    length, address, wanted = struct.unpack("<IQI", reference)
    if length == 0:
        return memoryview(b"")
    header = file.at(address, 16)
    if bytes(header[:4]) != b"GCOL":
        raise CheckpointError("The HDF5 file has a damaged text attribute.")
    end = address + struct.unpack_from("<Q", header, 8)[0]
    position = address + 16
    while position + 16 <= end:
        index, _, size = struct.unpack("<HH4xQ", file.at(position, 16))
        if index == wanted and index:
            return file.at(position + 16, size)[:length]
        if index == 0:
            break
        position += 16 + (size + 7) // 8 * 8
    raise CheckpointError("The HDF5 file has a damaged text attribute.")
