"""Reads torch files (``torch.save``) without torch: the zip format, and the stream of pickles before it.

Both hold one pickle whose tensors refer to storages by persistent id
``("storage", type, key, device, count, ...)``.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import Any

import numpy as np

from weights import _unpickle
from weights._limits import MAX_PICKLE_BYTES, MAX_TENSORS, Budget, element_count
from weights._recognise import kind_of_archive
from weights._unpickle_state import STORAGE_DTYPES, Inert, Storage, TensorRef
from weights._zip import Archive
from weights.errors import CheckpointError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PREFIX = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number as torch pickles it
_LEGACY_PROTOCOL = 1001


class _Storages:
    """The storages that the pickle mentions, each once, whatever order the format puts their bytes in."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}
        self.unread: dict[str, str] = {}  # those of other types, and why

    def __call__(self, persistent_id: Any) -> Storage | Inert | Any:
        parts: list[Any] = list(persistent_id) if isinstance(persistent_id, tuple) else []
        if len(parts) > 1 and parts[0] == "module":
            if getattr(parts[1], "kind", "") == "inert":  # a class with its source, of a whole model
                return parts[1]
        if len(parts) not in (5, 6) or parts[0] != "storage":
            raise CheckpointError("The pickle refers to something other than a storage (persistent id).")
        kind, key, count = parts[1], parts[2], parts[4]
        if getattr(kind, "kind", "") == "inert" and type(key) is str:
            problem = f"The file has tensors of the storage type {kind.name[:200]!r}, which are not read."
            self.unread[key] = problem
            return Inert(kind.name, problem)
        if (
            getattr(kind, "kind", "") != "storage"
            or type(key) is not str
            or type(count) is not int
            or count < 0
        ):
            raise CheckpointError("The pickle refers to a storage in an unknown way (persistent id).")
        if len(parts) == 6 and parts[5] is not None:
            raise CheckpointError(
                "The file has storage views of torch 0.1, which are not supported; save it again."
            )
        dtype = STORAGE_DTYPES[kind.name]
        storage = self.by_key.setdefault(key, Storage(dtype, count * _item_size(dtype), key))
        if storage.nbytes != count * _item_size(dtype):
            raise CheckpointError(f"The pickle gives the storage {key[:200]!r} two different sizes.")
        if len(self.by_key) > MAX_TENSORS:
            raise CheckpointError("The pickle refers to more storages than any checkpoint has.")
        # the same bytes may be seen through two storage types
        return storage if storage.dtype == dtype else _Alias(dtype, storage)


class _Alias(Storage):
    """A storage already known under another dtype."""

    def __init__(self, dtype: str, target: Storage) -> None:
        super().__init__(dtype, target.nbytes, target.key)
        self.target = target


def _item_size(dtype: str) -> int:
    """Bytes of one element of a storage ``dtype``."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def read_zip(archive: Archive) -> Any:
    """The value of a zip-format torch file; tensors are :class:`TensorRef`."""
    pickles = [name for name in archive.entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 and (what := kind_of_archive(list(archive.entries))):
        raise CheckpointError(f"This is {what}.")
    if len(pickles) != 1:
        raise CheckpointError("The zip file is no torch checkpoint: it lacks one 'NAME/data.pkl'.")
    root = pickles[0][: -len("data.pkl")]
    if any(name.startswith((root + "code/", root + "constants.pkl")) for name in archive.entries):
        raise CheckpointError(
            "The file is a TorchScript program (torch.jit.save), not a checkpoint; its code is not read. "
            "Give the .pth that it was made from."
        )
    if root + "byteorder" in archive.entries and bytes(archive.read(root + "byteorder")) != b"little":
        raise CheckpointError("The file holds big-endian tensors; save it again on a little-endian machine.")
    if archive.entries[pickles[0]].size > MAX_PICKLE_BYTES:
        raise CheckpointError(
            "The pickle inside the torch file is too large for one that only refers to tensors."
        )
    storages = _Storages()
    value, _ = _unpickle.load(archive.read(pickles[0]), persistent=storages)
    for storage in storages.by_key.values():  # those of an optimizer are never read
        storage.fetch = partial(_zip_storage, archive, root)
    return value


def _zip_storage(archive: Archive, root: str, storage: Storage) -> memoryview:
    raw = archive.read(f"{root}data/{storage.key}")
    if len(raw) != storage.nbytes:
        raise CheckpointError(
            f"The storage {storage.key[:200]!r} should have {storage.nbytes} bytes and has {len(raw)}."
        )
    return raw


def read_legacy(data: memoryview) -> Any:
    """The value of an old-format torch file (magic, protocol, system info, pickle, keys, storages)."""
    storages = _Storages()
    value, pos = _legacy_header(data, storages)
    keys, pos = _unpickle.load(data, pos)
    if storages.unread:
        raise CheckpointError(next(iter(storages.unread.values())))
    if (
        not isinstance(keys, list)
        or any(type(key) is not str for key in keys)
        or set(keys) != set(storages.by_key)
    ):
        raise CheckpointError(
            "The list of storages in the file is not that of its pickle: the file is damaged."
        )
    for key in keys:
        pos = _legacy_storage(data, pos, storages.by_key[key])
    if pos != len(data):
        raise CheckpointError(f"The file has {len(data) - pos} bytes after its last storage: it is damaged.")
    return value


def _legacy_header(data: memoryview, storages: _Storages) -> tuple[Any, int]:
    magic, pos = _unpickle.load(data)
    protocol, pos = _unpickle.load(data, pos)
    system, pos = _unpickle.load(data, pos)
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL or not isinstance(system, dict):
        raise CheckpointError(
            "The file begins like a torch file of the old format, but its header is damaged."
        )
    if system.get("little_endian") is not True:
        raise CheckpointError("The file holds big-endian tensors; save it again on a little-endian machine.")
    return _unpickle.load(data, pos, persistent=storages)


def _legacy_storage(data: memoryview, pos: int, storage: Storage) -> int:
    """Attach the bytes of ``storage``, which begin with the element count; returns the position after."""
    start = pos + 8
    end = start + storage.nbytes
    if end > len(data):
        raise CheckpointError(f"The storage {storage.key[:200]!r} ends outside of the file: it is truncated.")
    if struct.unpack("<q", data[pos:start])[0] * _item_size(storage.dtype) != storage.nbytes:
        raise CheckpointError(f"The storage {storage.key[:200]!r} has another size than the pickle says.")
    storage.buffer = data[start:end]
    return end


def read_nested_storage(data: memoryview) -> Storage:
    """The one storage that ``torch.storage._load_from_bytes`` receives (tensors in a plain pickle)."""
    is_legacy = bytes(data[: len(LEGACY_PREFIX)]) == LEGACY_PREFIX
    value = read_legacy(data) if is_legacy else read_zip(Archive(data))
    if not isinstance(value, Storage):
        raise CheckpointError("The pickle has a nested torch file that is no storage.")
    return value


def tensor_array(ref: TensorRef, budget: Budget) -> np.ndarray:
    """The array of a tensor: a read-only view of the file, except bfloat16, which becomes float32 (exact).

    ``budget`` counts the bytes the tensors would take, because views may overlap or repeat the same bytes.
    """
    storage = ref.storage.target if isinstance(ref.storage, _Alias) else ref.storage
    if storage.buffer is None and storage.fetch is not None:
        storage.buffer = storage.fetch(storage)
    if storage.buffer is None:
        raise CheckpointError(f"The storage {storage.key[:200]!r} is not in the file.")
    size = _item_size(ref.dtype)
    count = element_count(ref.shape)
    last = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.strides, strict=True)) if count else 0
    if (last + 1) * size > storage.nbytes and count:
        raise CheckpointError(f"A tensor reaches outside of its storage {storage.key[:200]!r}.")
    budget.spend(count * max(size, 4 if ref.dtype == "bfloat16" else 0))
    stored = np.dtype("uint16" if ref.dtype == "bfloat16" else ref.dtype)
    if not count:
        array = np.empty(ref.shape, stored)
    else:
        flat = np.frombuffer(storage.buffer, np.uint8, count=storage.nbytes // size * size).view(stored)
        strides = tuple(size * stride for stride in ref.strides)
        array = np.lib.stride_tricks.as_strided(flat[ref.offset :], ref.shape, strides, writeable=False)
    return widen_bfloat16(array) if ref.dtype == "bfloat16" else array


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 ``bits`` (uint16), exactly: bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
