"""The machine that reads a pickle, and the things it builds that are no plain Python values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weights._limits import Budget
from weights.errors import CheckpointError

LAZY_BYTES = 4096  # strings longer than this stay views of the file


MARK = object()


# name of a torch storage class -> its dtype; "bfloat16" is no numpy dtype and is handled by name
STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


TORCH_DTYPES = {
    **{name: name for name in STORAGE_DTYPES.values()},
    **{"uint16": "uint16", "uint32": "uint32", "uint64": "uint64"},
    **{"double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32"},
}


NUMPY_CODES = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())


class Inert:
    """Stands for an object that a checkpoint carries and inference does not need; holds nothing.

    ``problem`` says why it could not be a tensor, should it stand where one is needed.
    """

    __slots__ = ("name", "problem")

    def __init__(self, name: str, problem: str = "") -> None:
        self.name = name
        self.problem = problem

    def __repr__(self) -> str:
        return f"<{self.name}, not read>"


class LongText:
    """A long string of the file, not decoded: ``raw`` are its bytes, in ``encoding``."""

    __slots__ = ("encoding", "raw")

    def __init__(self, raw: memoryview, encoding: str) -> None:
        self.raw = raw
        self.encoding = encoding

    def text(self) -> str:
        """The decoded string."""
        return str(self.raw, self.encoding, "surrogatepass" if self.encoding == "utf-8" else "strict")


class ArrayShell:
    """A numpy array that is being built: created empty by ``_reconstruct``, filled by BUILD.

    ``problem`` says why it has no array: its values are no plain little-endian numbers.
    """

    __slots__ = ("array", "problem")

    def __init__(self) -> None:
        self.array: np.ndarray | None = None
        self.problem = ""


class Dtype:
    """A numpy dtype, or why arrays of it are not read; BUILD may still find it to be such a one."""

    __slots__ = ("dtype", "problem")

    def __init__(self, dtype: np.dtype | None, problem: str = "") -> None:
        self.dtype = dtype
        self.problem = problem


class _OddKey:
    """A dictionary key that no state dict has; each is itself, whatever it stood for."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"


@dataclass
class Storage:
    """One torch storage: ``dtype`` by name and its bytes, which ``fetch`` gets when a tensor needs them."""

    dtype: str
    nbytes: int
    key: str
    buffer: memoryview | None = None
    fetch: Callable[[Storage], memoryview] | None = None


@dataclass(frozen=True)
class TensorRef:
    """A torch tensor as stored: a strided view of a storage (offset and strides in elements)."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """A value of the allow-list that is used by identity only (a dtype, a storage class, a layout)."""

    kind: str
    name: str


class Dict(dict):
    """An OrderedDict of the file, with what BUILD set on it (a state dict's ``_metadata``)."""

    attributes: Any = None


PersistentLoader = Callable[[Any], Any]


@dataclass
class State:
    """What the handlers share: the buffer, the position, the stack and the limits."""

    data: memoryview
    pos: int
    persistent: PersistentLoader | None
    nested: Callable[[memoryview], Any] | None
    budget: Budget
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    copied: Budget = field(default_factory=lambda: Budget(0, "copied strings"))

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes as a view."""
        end = self.pos + count
        if count < 0 or end > len(self.data):
            raise CheckpointError(
                "The pickle ends in the middle of a value: the file is truncated or damaged."
            )
        view = self.data[self.pos : end]
        self.pos = end
        return view

    def line(self, limit: int | None = None) -> memoryview:
        """The bytes up to the next newline, without it; at most ``limit``."""
        end = len(self.data) if limit is None else min(self.pos + limit, len(self.data))
        start, size = self.pos, 256  # most lines are short
        while start < end:
            piece = bytes(self.data[start : min(start + size, end)])
            newline = piece.find(b"\n")
            if newline >= 0:
                view = self.data[self.pos : start + newline]
                self.pos = start + newline + 1
                return view
            start, size = start + size, 1 << 20
        raise CheckpointError("The pickle has a text line without an end: the file is truncated or damaged.")

    def pop(self) -> Any:
        """The top value; a mark or an empty stack is an error."""
        value = self.stack.pop()
        if value is MARK:
            raise CheckpointError("The pickle uses a mark as a value: the file is damaged.")
        return value

    def pop_mark(self) -> list[Any]:
        """All values above the last mark, and the mark goes."""
        stack = self.stack
        index = len(stack) - 1
        while stack[index] is not MARK:  # IndexError below the bottom: an error of the file
            index -= 1
            if index < 0:
                raise CheckpointError("The pickle lacks a mark: the file is damaged.")
        items = stack[index + 1 :]
        del stack[index:]
        return items


def hashable(key: Any) -> Any:
    """Flat keys as they are. Of others only the kind is kept: hashing a nested tuple can take exponential time."""
    if isinstance(key, LongText):
        raise CheckpointError(f"The pickle has a name of {len(key.raw)} bytes.")
    if type(key) is int and not -(1 << 63) <= key < 1 << 64:
        raise CheckpointError("The pickle has a huge integer as a dictionary key.")
    if key is None or type(key) in (str, int, float, bool):
        return key
    return _OddKey(kind(key))


def kind(value: Any) -> str:
    """What ``value`` is, in words for an error message."""
    if isinstance(value, (Inert, Name)):
        return repr(value.name[:200])
    names = {Dtype: "dtype", Dict: "dict", str: "text", LongText: "text", memoryview: "bytes"}
    names |= {TensorRef: "tensor", ArrayShell: "array"}
    return names.get(type(value), "None" if value is None else type(value).__name__)
