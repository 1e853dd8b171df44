"""Which pictures: folders, patterns, lists and TFRecord files -> one ordered list on disk.

The list lives in a file, since it may be longer than memory is large; :class:`Index` reads any part of it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from weights.errors import UsageError

# What a folder is searched for. A list or a pattern may name files of any other ending.
_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .dib .webp .tif .tiff .gif .ppm .pgm .pnm .jp2".split()
)
_LENGTH_BYTES, _CRC_BYTES = 8, 4


@dataclass(frozen=True)
class Item:
    """One picture: a file, or ``length`` bytes of a TFRecord file from ``offset`` on (a tf.train.Example)."""

    name: str
    file: str
    offset: int = -1
    length: int = -1


def items(inputs: Sequence[str]) -> Iterator[Item]:
    """All pictures of ``inputs`` in the order given; folders and patterns sorted by name.

    Args:
        inputs: folders (searched with all below them for files with the endings of pictures), patterns with ``*``,
            ``?`` or ``[``, text files ``.txt`` with a path per line (relative to the list), TFRecord files
            (``.tfrecord`` in the name), pictures.

    Raises ValueError naming every input that does not exist.
    """
    missing = [text for text in inputs if not _is_pattern(text) and not os.path.exists(text)]
    if missing:
        raise UsageError("; ".join(f"{text}: no such file or folder" for text in missing))
    for text in inputs:
        if os.path.isdir(text):
            yield from _folder(text)
        elif _is_pattern(text) and not os.path.exists(text):
            for path in sorted(glob.iglob(text, recursive=True)):
                if os.path.isfile(path):
                    yield from _file(path)
        elif text.lower().endswith(".txt"):
            yield from _listed(text)
        else:
            yield from _file(text)


def _is_pattern(text: str) -> bool:
    return any(c in text for c in "*?[")


def _folder(top: str) -> Iterator[Item]:
    for folder, below, names in os.walk(top):
        below.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in _SUFFIXES and not name.startswith("."):
                yield from _file(os.path.join(folder, name))


def _listed(path: str) -> Iterator[Item]:
    base = os.path.dirname(path)
    with open(path, encoding="utf-8") as file:
        for line in file:
            if name := line.rstrip("\r\n"):
                yield from _file(os.path.join(base, name))


def _file(path: str) -> Iterator[Item]:
    if ".tfrecord" not in os.path.basename(path).lower():
        yield Item(path, path)
        return
    size, number = os.path.getsize(path), 0
    with open(path, "rb") as file:
        offset = 0
        while offset < size:
            file.seek(offset)
            head = file.read(_LENGTH_BYTES)
            length = struct.unpack("<Q", head)[0] if len(head) == _LENGTH_BYTES else size
            begin = offset + _LENGTH_BYTES + _CRC_BYTES
            offset = begin + length + _CRC_BYTES
            if offset > size:
                raise UsageError(
                    f"{path}: not a whole TFRecord file (record {number} ends beyond it); compressed ones are not read"
                )
            yield Item(f"{path}#{number}", path, begin, length)
            number += 1


def read(item: Item) -> tuple[str, bytes]:
    """The name and the encoded picture of an item. ValueError or OSError where there is none.

    A record is a ``tf.train.Example`` with ``image/encoded``; ``image/filename`` or ``image/source_id`` is its name.
    """
    if item.offset < 0:
        with open(item.file, "rb") as file:
            return item.name, file.read()
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    with open(item.file, "rb") as file:
        file.seek(item.offset)
        data = file.read(item.length)
    try:
        features = tf.train.Example.FromString(data).features.feature
    except DecodeError as error:
        raise UsageError(f"{item.name}: not a tf.train.Example") from error
    encoded = features["image/encoded"].bytes_list.value if "image/encoded" in features else ()
    if len(encoded) != 1:
        raise UsageError(f"{item.name}: the record has no image/encoded")
    for key in ("image/filename", "image/source_id"):
        if key in features and features[key].bytes_list.value:
            return features[key].bytes_list.value[0].decode("utf-8", "replace"), encoded[0]
    return item.name, encoded[0]


def write_index(inputs: Sequence[str], path: Path) -> tuple[int, str]:
    """Write the list of :func:`items` to ``path``, one JSON line each; their number and SHA-256."""
    count, digest = 0, hashlib.sha256()
    with open(path, "wb") as file:
        for item in items(inputs):
            record = [item.name, item.file] + ([item.offset, item.length] if item.offset >= 0 else [])
            line = json.dumps(record).encode() + b"\n"
            file.write(line)
            digest.update(line)
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count, digest.hexdigest()


class Index:
    """The list that :func:`write_index` wrote, in memory only as the place of every line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places = array("q", [0])
        with open(path, "rb") as file:
            for line in file:
                self._places.append(self._places[-1] + len(line))

    def __len__(self) -> int:
        return len(self._places) - 1

    def part(self, start: int, stop: int) -> list[Item]:
        """Items ``start`` to ``stop - 1``."""
        begin, end = self._places[start], self._places[min(stop, len(self))]
        with open(self._path, "rb") as file:
            file.seek(begin)
            lines = file.read(end - begin).splitlines()
        return [Item(*json.loads(line)) for line in lines]
