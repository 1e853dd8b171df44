"""Reads zip archives (``.pth``, ``.npz``) strictly: names and ranges are checked before data are read.

A zip file names its entries twice and may point anywhere. What a lenient reader accepts (duplicate names,
overlapping entries, paths that leave the archive, sizes that do not fit) is refused here.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass

from weights._files import touched
from weights._limits import MAX_DIRECTORY_BYTES, MAX_TENSORS, Budget, inflation_budget
from weights.errors import CheckpointError

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_STORED, _DEFLATED = 0, 8
_PIECE = 64 << 20


@dataclass(frozen=True)
class _Entry:
    """One entry of the archive: where its bytes lie in the file and what they must become."""

    name: str
    start: int
    compressed_size: int
    size: int
    crc: int
    method: int


class Archive:
    """The entries of a zip file held in ``data``; stored entries are read as views, never copied."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.budget: Budget = inflation_budget(len(data))
        self.entries = {entry.name: entry for entry in _entries(data)}

    def read(self, name: str) -> memoryview:
        """The bytes of entry ``name``, checked against its CRC; CheckpointError if absent or damaged."""
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(
                f"The zip file lacks the entry {name[:200]!r}: it is incomplete or was edited."
            )
        raw = self.data[entry.start : entry.start + entry.compressed_size]
        if entry.method == _DEFLATED:
            raw = self._inflate(entry, raw)
        # torch.serialization.set_crc32_options(False) writes 0 instead of the checksum
        if entry.crc and _checksum(raw) != entry.crc:
            raise CheckpointError(
                f"The zip entry {name[:200]!r} does not match its checksum: the file is damaged."
            )
        return raw

    def _inflate(self, entry: _Entry, raw: memoryview) -> memoryview:
        self.budget.spend(entry.size)
        stream = zlib.decompressobj(-15)
        try:
            result = stream.decompress(raw, entry.size + 1)
        except zlib.error as error:
            raise CheckpointError(
                f"The zip entry {entry.name[:200]!r} does not decompress: {error}."
            ) from None
        if len(result) != entry.size:
            raise CheckpointError(f"The zip entry {entry.name[:200]!r} does not have its declared size.")
        return memoryview(result)


def _checksum(raw: memoryview) -> int:
    value = 0
    for start in range(0, len(raw), _PIECE):
        piece = raw[start : start + _PIECE]
        value = zlib.crc32(piece, value)
        touched(len(piece))
    return value


class _View(io.RawIOBase):
    """A buffer as a seekable file, without copying it as io.BytesIO does."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = max(0, offset + (0, self.position, len(self.data))[whence])
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:  # each of its entries takes ten times its size
            raise CheckpointError(f"The zip file has a list of contents of {size} bytes; no checkpoint has.")
        end = len(self.data) if size is None or size < 0 else self.position + size
        chunk = bytes(self.data[self.position : end])
        self.position += len(chunk)
        return chunk


def _entries(data: memoryview) -> list[_Entry]:
    try:
        with zipfile.ZipFile(_View(data)) as archive:  # type: ignore[arg-type]
            infos = archive.infolist()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        struct.error,
        OSError,
        OverflowError,
    ) as error:
        raise CheckpointError(f"The zip file is truncated or damaged: {error}.") from None
    if len(infos) > MAX_TENSORS:
        raise CheckpointError(f"The zip file has {len(infos)} entries; no checkpoint has that many.")
    entries = [_entry(data, info) for info in infos if not info.orig_filename.endswith("/")]
    _check_disjoint(entries)
    return entries


def _entry(data: memoryview, info: zipfile.ZipInfo) -> _Entry:
    name = info.orig_filename
    parts = name.replace("\\", "/").split("/")
    if not name:
        raise CheckpointError("The zip file has an entry without a name: it is damaged.")
    if name.startswith("/") or ".." in parts or "\x00" in name or "\\" in name or ":" in parts[0]:
        raise CheckpointError(f"The zip entry {name[:200]!r} has a path that leaves the archive.")
    if info.flag_bits & 0x1:
        raise CheckpointError(f"The zip entry {name[:200]!r} is encrypted.")
    if info.compress_type not in (_STORED, _DEFLATED):
        raise CheckpointError(f"The zip entry {name[:200]!r} is compressed in an unknown way.")
    if info.compress_type == _STORED and info.compress_size != info.file_size:
        raise CheckpointError(f"The zip entry {name[:200]!r} declares two different sizes.")
    start = _data_start(data, info, name)
    if start + info.compress_size > len(data):
        raise CheckpointError(f"The zip entry {name[:200]!r} ends outside of the file: it is truncated.")
    return _Entry(name, start, info.compress_size, info.file_size, info.CRC, info.compress_type)


def _data_start(data: memoryview, info: zipfile.ZipInfo, name: str) -> int:
    header = (
        bytes(data[info.header_offset : info.header_offset + _LOCAL_HEADER.size])
        if info.header_offset >= 0
        else b""
    )
    if len(header) < _LOCAL_HEADER.size:
        raise CheckpointError(f"The zip entry {name[:200]!r} begins outside of the file.")
    signature, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = info.header_offset + _LOCAL_HEADER.size
    local_name = bytes(data[start : start + name_length])
    if signature != b"PK\x03\x04" or local_name != name.encode(
        "utf-8" if info.flag_bits & 0x800 else "cp437"
    ):
        raise CheckpointError(
            f"The zip entry {name[:200]!r} has another name in its own header: the file was edited."
        )
    return start + name_length + extra_length


def _check_disjoint(entries: list[_Entry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise CheckpointError(f"The zip file has two entries named {entry.name[:200]!r}.")
        seen.add(entry.name)
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.start):
        if entry.start < end:
            raise CheckpointError(f"The zip entry {entry.name[:200]!r} overlaps another one.")
        end = entry.start + entry.compressed_size
