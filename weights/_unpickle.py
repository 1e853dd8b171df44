"""Reads pickles as data: an interpreter of pickle opcodes that can only build what a checkpoint consists of.

Nothing here imports or looks up anything by a name from the file: a global is a key of one literal table
(``_CALLS`` and the names beside it), or it becomes an inert placeholder: an optimizer, a path, a date, whatever a
training run put beside its weights. A name whose only use is to run something refuses the file. Tensor data are
never copied, they stay views of the file's buffer. The idea, not the code, follows torch's weights-only unpickler.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weights._limits import MAX_OPCODES, Budget, check_shape, check_sizes, element_count
from weights.errors import CheckpointError

_LAZY_BYTES = 4096  # strings longer than this stay views of the file
_MAX_DIGITS = 1000  # digits of a decimal integer; more would take quadratic time
_MARK = object()

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
_NUMPY_CODES = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split())

# What only a program has a use for: a file that asks for it is no checkpoint, even though nothing here would run it.
_RUNS_MODULES = frozenset(
    """os posix nt subprocess pty popen2 commands shutil socket ctypes _ctypes runpy importlib code codeop pdb bdb sys
    webbrowser timeit cProfile profile pip signal""".split()
)
_RUNS_BUILTINS = frozenset("eval exec execfile compile open file input breakpoint apply __import__".split())


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


class _Dtype:
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
class _Name:
    """A value of the allow-list that is used by identity only (a dtype, a storage class, a layout)."""

    kind: str
    name: str


class _Dict(dict):
    """An OrderedDict of the file, with what BUILD set on it (a state dict's ``_metadata``)."""

    attributes: Any = None


PersistentLoader = Callable[[Any], Any]


@dataclass
class _State:
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
        if value is _MARK:
            raise CheckpointError("The pickle uses a mark as a value: the file is damaged.")
        return value

    def pop_mark(self) -> list[Any]:
        """All values above the last mark, and the mark goes."""
        stack = self.stack
        index = len(stack) - 1
        while stack[index] is not _MARK:  # IndexError below the bottom: an error of the file
            index -= 1
            if index < 0:
                raise CheckpointError("The pickle lacks a mark: the file is damaged.")
        items = stack[index + 1 :]
        del stack[index:]
        return items


def load(
    data: memoryview,
    start: int = 0,
    *,
    persistent: PersistentLoader | None = None,
    nested: Callable[[memoryview], Any] | None = None,
) -> tuple[Any, int]:
    """Interpret one pickle.

    Args:
        data: the bytes of the file; results keep views of it.
        start: where the pickle begins.
        persistent: resolves persistent ids (torch storages); without it they are refused.
        nested: reads the bytes given to ``torch.storage._load_from_bytes``; without it that is refused.

    Returns:
        the value and the position after the pickle. Arrays come as read-only views of ``data``, torch
        tensors as :class:`TensorRef`, long strings as :class:`LongText`, objects of other classes as
        :class:`Inert`.

    Raises:
        CheckpointError: for anything that is not plain checkpoint data; the message names the offence.
    """
    budget = Budget(MAX_OPCODES, f"its pickle takes more than {MAX_OPCODES} steps")
    state = _State(data, start, persistent, nested, budget)
    state.copied = Budget(2 * len(data) + (1 << 20), "its pickle copies the same strings over and over")
    try:
        return _run(state), state.pos
    except CheckpointError as error:
        raise CheckpointError(f"{error} (pickle, byte {state.pos})") from None
    except (
        IndexError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        struct.error,
        OverflowError,
    ) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise CheckpointError(f"The pickle is damaged at byte {state.pos} ({reason}).") from None


def _run(state: _State) -> Any:
    data, size, budget = state.data, len(state.data), state.budget
    while state.pos < size:
        code = data[state.pos]
        state.pos += 1
        budget.spend(1)
        if code == 0x2E:  # STOP
            return state.pop()
        handler = _HANDLERS.get(code)
        if handler is None:
            raise CheckpointError(_refused_opcode(code))
        handler(state)
    raise CheckpointError("The pickle has no end: the file is truncated.")


def _refused_opcode(code: int) -> str:
    names = {0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x69: "INST", 0x6F: "OBJ", 0x92: "NEWOBJ_EX"}
    names |= {0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER"}
    if code in names:
        return (
            f"The pickle uses the opcode {names[code]}, which checkpoints do not need; the file was not read."
        )
    return f"The pickle has the unknown opcode 0x{code:02x}: the file is damaged or no checkpoint."


# --- plain values ---------------------------------------------------------------------------------


def _push(value: Any) -> Callable[[_State], None]:
    return lambda state: state.stack.append(value)


def _push_new(make: Callable[[], Any]) -> Callable[[_State], None]:
    return lambda state: state.stack.append(make())


def _number(code: str) -> Callable[[_State], None]:
    form = struct.Struct(code)
    return lambda state: state.stack.append(form.unpack(state.take(form.size))[0])


def _length(state: _State, code: str) -> int:
    form = struct.Struct(code)
    return form.unpack(state.take(form.size))[0]


def _text(code: str, encoding: str) -> Callable[[_State], None]:
    """A counted string. Those of Python 2 are text or raw bytes, nobody can tell: latin-1 keeps both."""

    def handler(state: _State) -> None:
        raw = state.take(_length(state, code))
        text = LongText(raw, encoding)
        state.stack.append(text if len(raw) > _LAZY_BYTES else text.text())

    return handler


def _bytes(code: str) -> Callable[[_State], None]:
    return lambda state: state.stack.append(state.take(_length(state, code)))


def _long(code: str) -> Callable[[_State], None]:
    def handler(state: _State) -> None:
        count = _length(state, code)
        if not 0 <= count <= 64:
            raise CheckpointError("The pickle has an integer of more than 512 bits.")
        state.stack.append(int.from_bytes(state.take(count), "little", signed=True))

    return handler


def _decimal(state: _State) -> None:
    digits = bytes(state.line(_MAX_DIGITS))
    if digits in (b"00", b"01"):  # how protocol 0 writes booleans
        state.stack.append(digits == b"01")
    else:
        state.stack.append(int(digits.rstrip(b"L").decode("ascii")))


def _quoted(state: _State) -> None:
    """A string of Python 2 in quotes, text or raw bytes, as in :func:`_text`; a whole tensor may be on the line."""
    raw = bytes(state.line())
    if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
        raise CheckpointError("The pickle has a string without quotes: the file is damaged.")
    value, _ = codecs.escape_decode(raw[1:-1])  # type: ignore[attr-defined]
    text = LongText(memoryview(value), "latin-1")
    state.stack.append(text if len(value) > _LAZY_BYTES else text.text())


def _unicode_line(state: _State) -> None:
    """A string of protocol 0; the data of a tensor, too, are text there, with some characters escaped."""
    raw = state.line()
    text = LongText(raw, "raw_unicode_escape")
    state.stack.append(text if len(raw) > _LAZY_BYTES else text.text())


def _protocol(state: _State) -> None:
    if state.take(1)[0] > 5:
        raise CheckpointError("The pickle declares a protocol above 5: the file is damaged or no checkpoint.")


# --- stack, memo, containers ----------------------------------------------------------------------


def _dup(state: _State) -> None:
    value = state.pop()
    state.stack += (value, value)


def _drop(value: object) -> None:
    """What was read is not needed."""


def _pop_any(state: _State) -> None:
    state.stack.pop()


def _tuple(count: int) -> Callable[[_State], None]:
    def handler(state: _State) -> None:
        items = tuple(state.stack[-count:])
        if len(items) < count or any(item is _MARK for item in items):
            raise CheckpointError(
                "The pickle makes a tuple of values that are not there: the file is damaged."
            )
        state.stack[-count:] = [items]

    return handler


def _get(code: str) -> Callable[[_State], None]:
    return lambda state: state.stack.append(state.memo[_length(state, code)])


def _put(code: str) -> Callable[[_State], None]:
    def handler(state: _State) -> None:
        index = _length(state, code)
        if state.stack[-1] is _MARK:
            raise CheckpointError("The pickle remembers a mark: the file is damaged.")
        state.memo[index] = state.stack[-1]

    return handler


def _get_text(state: _State) -> None:
    state.stack.append(state.memo[int(bytes(state.line(20)))])


def _put_text(state: _State) -> None:
    state.memo[int(bytes(state.line(20)))] = state.stack[-1]


def _memoize(state: _State) -> None:
    state.memo[len(state.memo)] = state.stack[-1]


def _append(state: _State) -> None:
    value = state.pop()
    _extend(state, [value])


def _extend(state: _State, items: list[Any]) -> None:
    target = state.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Inert):
        raise CheckpointError(f"The pickle appends to a {kind(target)}.")


def _hashable(key: Any) -> Any:
    """Flat keys as they are. Of others only the kind is kept: hashing a nested tuple can take exponential time."""
    if isinstance(key, LongText):
        raise CheckpointError(f"The pickle has a name of {len(key.raw)} bytes.")
    if type(key) is int and not -(1 << 63) <= key < 1 << 64:
        raise CheckpointError("The pickle has a huge integer as a dictionary key.")
    if key is None or type(key) in (str, int, float, bool):
        return key
    return _OddKey(kind(key))


def _set_items(state: _State, items: list[Any]) -> None:
    target = state.stack[-1]
    if len(items) % 2:
        raise CheckpointError("The pickle has a dictionary key without a value: the file is damaged.")
    if isinstance(target, Inert):
        return
    if not isinstance(target, dict):
        raise CheckpointError(f"The pickle sets items of a {kind(target)}.")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_hashable(key)] = value


def _set_item(state: _State) -> None:
    value = state.pop()
    key = state.pop()
    _set_items(state, [key, value])


def _add_items(state: _State) -> None:
    items = state.pop_mark()
    target = state.stack[-1]
    if isinstance(target, Inert):
        return
    if not isinstance(target, set):
        raise CheckpointError(f"The pickle adds items to a {kind(target)}.")
    target.update(_hashable(item) for item in items)


def _new_dict(state: _State) -> None:
    items = state.pop_mark()
    state.stack.append({})
    _set_items(state, items)


def _frozenset(state: _State) -> None:
    items = state.pop_mark()
    state.stack.append(frozenset(_hashable(item) for item in items))


def kind(value: Any) -> str:
    """What ``value`` is, in words for an error message."""
    if isinstance(value, (Inert, _Name)):
        return repr(value.name[:200])
    names = {_Dtype: "dtype", _Dict: "dict", str: "text", LongText: "text", memoryview: "bytes"}
    names |= {TensorRef: "tensor", ArrayShell: "array"}
    return names.get(type(value), "None" if value is None else type(value).__name__)


# --- globals: the only way a pickle can name code, and here only a key of a table -----------------


def _global(state: _State) -> None:
    module = str(state.line(1024), "utf-8")
    name = str(state.line(1024), "utf-8")
    state.stack.append(_find(module, name))


def _stack_global(state: _State) -> None:
    name = state.pop()
    module = state.pop()
    if type(name) is not str or type(module) is not str:
        raise CheckpointError("The pickle names a global by something that is not a string.")
    state.stack.append(_find(module, name))


def _find(module: str, name: str) -> _Name:
    full = f"{module}.{name}"
    if full in _CALLS:
        return _Name("call", full)
    if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
        return _Name("storage", name)
    if module == "torch" and name in TORCH_DTYPES:
        return _Name("dtype", name)
    if full in ("numpy.ndarray", "torch.strided", "torch.nn.parameter.Parameter"):
        return _Name("token", full)
    is_builtin = module in ("builtins", "__builtin__")
    if module.partition(".")[0] in _RUNS_MODULES or (is_builtin and name.partition(".")[0] in _RUNS_BUILTINS):
        raise CheckpointError(
            f"The pickle asks for {full[:200]!r}, which runs something and is not on the list of things a checkpoint "
            "needs. Nothing was executed. If the file is yours, save the state dict alone: "
            "torch.save({'model': model.state_dict()}, path)."
        )
    return _Name("inert", full[:_LAZY_BYTES])


def _reduce(state: _State) -> None:
    args = state.pop()
    function = state.pop()
    if not isinstance(function, (_Name, Inert)) or not isinstance(args, tuple):
        raise CheckpointError(f"The pickle calls a {kind(function)}.")
    if isinstance(function, Inert) or function.kind == "inert":
        state.stack.append(Inert(function.name))
    elif function.kind == "call":
        state.stack.append(_CALLS[function.name](state, *args))
    else:
        raise CheckpointError(f"The pickle calls {function.name}, which is not allowed.")


def _new_object(state: _State) -> None:
    state.pop()
    _make(state, state.pop(), "")


def _new_object_ex(state: _State) -> None:
    state.pop()
    state.pop()
    _make(state, state.pop(), _refused_opcode(0x92))


def _instance(state: _State) -> None:
    """INST of protocol 0: the class by name, its arguments from the mark."""
    module, name = str(state.line(1024), "utf-8"), str(state.line(1024), "utf-8")
    state.pop_mark()
    _make(state, _find(module, name), _refused_opcode(0x69))


def _object(state: _State) -> None:
    """OBJ of protocol 1: the class and its arguments from the mark."""
    items = state.pop_mark()
    _make(state, items[0], _refused_opcode(0x6F))


def _make(state: _State, cls: Any, refusal: str) -> None:
    """A placeholder for an object of ``cls``; of the known classes only an empty OrderedDict is made so."""
    if not isinstance(cls, (_Name, Inert)):
        raise CheckpointError(f"The pickle makes an object of a {kind(cls)}.")
    if isinstance(cls, Inert) or cls.kind == "inert":
        state.stack.append(Inert(cls.name))
    elif cls.name == "collections.OrderedDict" and not refusal:
        state.stack.append(_Dict())
    else:
        raise CheckpointError(refusal or f"The pickle makes an object of {cls.name}, which is not allowed.")


def _build(state: _State) -> None:
    value = state.pop()
    target = state.stack[-1]
    if isinstance(target, ArrayShell):
        _fill(state, target, value)
    elif isinstance(target, _Dtype):
        target.problem = target.problem or _dtype_problem(value)
    elif isinstance(target, _Dict):
        target.attributes = value
    elif not isinstance(target, (Inert, TensorRef)):
        raise CheckpointError(f"The pickle sets the state of a {kind(target)}.")


def _persistent(state: _State) -> None:
    key = state.pop()
    if state.persistent is None:
        raise CheckpointError(
            "The pickle refers to data outside of itself (persistent id), which is refused here."
        )
    state.stack.append(state.persistent(key))


# --- what the allowed globals build ---------------------------------------------------------------


def _ordered_dict(state: _State, items: Any = ()) -> _Dict:
    result = _Dict()
    pairs = list(items.items()) if isinstance(items, dict) else items
    if not isinstance(pairs, (list, tuple)):
        raise CheckpointError("The pickle makes a dictionary of something that is no list of pairs.")
    state.budget.spend(len(pairs))
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise CheckpointError("The pickle makes a dictionary of something that is no list of pairs.")
        result[_hashable(pair[0])] = pair[1]
    return result


def _default_dict(state: _State, factory: Any = None, items: Any = ()) -> _Dict:
    return _ordered_dict(state, items)  # the factory is a name of the allow-list and is not used


def _make_set(state: _State, items: Any = ()) -> set[Any]:
    if not isinstance(items, (list, tuple, set, frozenset)):
        raise CheckpointError("The pickle makes a set of something that is no list.")
    state.budget.spend(len(items))
    return {_hashable(item) for item in items}


def _encode(state: _State, text: Any, encoding: Any = "latin1") -> memoryview | Inert:
    """``_codecs.encode``: how protocols 0 to 2 write bytes."""
    if encoding not in ("latin1", "latin-1"):
        return Inert("bytes", "The pickle encodes text in something other than latin-1.")
    if isinstance(text, LongText):
        state.copied.spend(len(text.raw))
        text = text.text()
    if not isinstance(text, str):
        raise CheckpointError(f"The pickle encodes a {kind(text)} as text.")
    state.copied.spend(len(text))
    return memoryview(text.encode("latin-1"))


def _raw_bytes(state: _State, *args: Any) -> memoryview | Inert:
    """``bytes()``, ``bytes(view)`` and ``bytearray(view)`` of what is already bytes; no copy."""
    if not args:
        return memoryview(b"")
    if len(args) == 2 and isinstance(args[0], (str, LongText)):
        return _encode(state, *args)
    if len(args) == 1 and isinstance(args[0], memoryview):
        return args[0]
    raise CheckpointError("The pickle makes bytes of something else.")


def _size(state: _State, items: Any = ()) -> tuple[int, ...]:
    return check_shape(items, "A torch.Size of the pickle")


def _reconstruct(state: _State, cls: Any, shape: Any = (0,), code: Any = b"b") -> ArrayShell | Inert:
    if cls != _Name("token", "numpy.ndarray"):
        return Inert(
            kind(cls).strip("'"),
            "The pickle builds an array of a class other than numpy.ndarray.",
        )
    return ArrayShell()


def _dtype(state: _State, code: Any, align: Any = False, copy: Any = True) -> _Dtype:
    if isinstance(code, memoryview) and len(code) <= 8:
        code = str(code, "latin-1")
    if not isinstance(code, str) or code.lstrip("<|=") not in _NUMPY_CODES:
        shown = str(code)[:40] if isinstance(code, str) else kind(code)
        return _Dtype(
            None,
            f"The pickle has an array of dtype {shown!r}; only plain numbers are read as tensors.",
        )
    return _Dtype(np.dtype("?" if code.endswith("b1") else code.lstrip("|")))


def _dtype_problem(value: Any) -> str:
    """(version, byte order, subdtype, names, fields, size, ...): "" if plain and little-endian."""
    if not isinstance(value, tuple) or not 7 <= len(value) <= 9:
        return "The pickle has a numpy dtype with an unknown state."
    order = str(value[1], "latin-1") if isinstance(value[1], memoryview) else value[1]
    if order == ">":
        return "The pickle holds big-endian arrays; convert them on the machine that wrote the file."
    if order not in ("<", "|", "=") or any(part is not None for part in value[2:5]):
        return "The pickle has a structured or object dtype; only plain numbers are read as tensors."
    return ""


def _as_bytes(state: _State, value: Any) -> memoryview:
    if isinstance(value, memoryview):
        return value
    if isinstance(value, LongText) and value.encoding == "latin-1":
        return value.raw
    encoded = _encode(state, value) if isinstance(value, (str, LongText)) else None
    if isinstance(encoded, memoryview):
        return encoded
    raise CheckpointError(f"The pickle gives a {kind(value)} as the data of an array.")


def _fill(state: _State, shell: ArrayShell, value: Any) -> None:
    """The array of a BUILD state (version, shape, dtype, is_fortran, data), a view of the file's buffer."""
    if not isinstance(value, tuple) or not 4 <= len(value) <= 5:
        raise CheckpointError("The pickle has a numpy array with an unknown state.")
    shape, dtype, fortran, raw = value[-4:]
    if not isinstance(dtype, _Dtype):
        raise CheckpointError("The pickle has a numpy array without a dtype.")
    if dtype.problem or dtype.dtype is None:
        shell.array, shell.problem = None, dtype.problem
        return
    shape = check_shape(shape, "An array of the pickle")
    shell.array = view_as(_as_bytes(state, raw), dtype.dtype, shape, bool(fortran))


def view_as(raw: memoryview, dtype: np.dtype, shape: tuple[int, ...], fortran: bool = False) -> np.ndarray:
    """``raw`` as a read-only array of exactly this dtype and shape; a size that differs is a
    CheckpointError."""
    if element_count(shape) * dtype.itemsize != len(raw):
        raise CheckpointError(
            f"An array of shape {shape} and dtype {dtype} comes with {len(raw)} bytes of data."
        )
    flat = np.frombuffer(raw, dtype=np.uint8).view(dtype) if len(raw) else np.empty(0, dtype)
    flat.flags.writeable = False
    return flat.reshape(shape, order="F" if fortran else "C")


def _frombuffer(
    state: _State, raw: Any, dtype: Any, shape: Any, order: Any = "C", axis: Any = None
) -> np.ndarray | Inert:
    """How numpy pickles contiguous arrays at protocol 5."""
    if not isinstance(dtype, _Dtype) or order not in ("C", "F"):
        raise CheckpointError("The pickle has a numpy array with an unknown state.")
    if dtype.problem or dtype.dtype is None:
        return Inert("numpy.ndarray", dtype.problem)
    shape = check_shape(shape, "An array of the pickle")
    return view_as(_as_bytes(state, raw), dtype.dtype, shape, order == "F")


def _scalar(state: _State, dtype: Any, raw: Any = b"") -> np.ndarray | Inert:
    if not isinstance(dtype, _Dtype):
        raise CheckpointError("The pickle has a numpy scalar without a dtype.")
    if dtype.problem or dtype.dtype is None:
        return Inert("numpy scalar", dtype.problem)
    return view_as(_as_bytes(state, raw), dtype.dtype, ())


def _tensor(
    state: _State, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
) -> TensorRef | Inert:
    """``_rebuild_tensor(_v2)``: requires_grad and hooks do not matter here."""
    return _tensor_ref(storage, None, offset, shape, strides)


def _tensor_v3(
    state: _State,
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    *rest: Any,
) -> TensorRef | Inert:
    if not isinstance(dtype, _Name) or dtype.kind != "dtype":
        raise CheckpointError("The pickle has a tensor without a dtype.")
    return _tensor_ref(storage, TORCH_DTYPES[dtype.name], offset, shape, strides)


def _tensor_ref(storage: Any, dtype: str | None, offset: Any, shape: Any, strides: Any) -> TensorRef | Inert:
    if isinstance(storage, Inert):
        return storage
    if not isinstance(storage, Storage):
        raise CheckpointError("The pickle has a tensor without a storage.")
    shape = check_shape(shape, "A tensor of the pickle")
    strides = check_sizes(strides, "The stride list of a tensor of the pickle")
    if type(offset) is not int or not 0 <= offset < 1 << 48 or len(strides) != len(shape):
        raise CheckpointError("The pickle has a tensor with an invalid offset or stride list.")
    return TensorRef(storage, dtype or storage.dtype, offset, shape, strides)


def _typed_tensor(state: _State, function: Any, cls: Any, args: Any, attributes: Any = None) -> Any:
    """A tensor of a subclass or with attributes of its own: the tensor inside."""
    rebuild = _TENSORS.get(function.name) if isinstance(function, _Name) else None
    if rebuild is None or not isinstance(args, tuple):
        return Inert("torch._tensor._rebuild_from_type_v2")
    return rebuild(state, *args)


def _parameter(state: _State, data: Any, *rest: Any) -> TensorRef | Inert:
    if isinstance(data, Inert):
        return data
    if not isinstance(data, TensorRef):
        raise CheckpointError("The pickle has a parameter without a tensor.")
    return data


def _nested_storage(state: _State, raw: Any) -> Storage:
    """``torch.storage._load_from_bytes``: a torch file inside the pickle that holds one storage."""
    if state.nested is None or not isinstance(raw, memoryview):
        raise CheckpointError("The pickle has a torch file inside a torch file, which is refused.")
    return state.nested(raw)


def _ignored(state: _State, *args: Any) -> Inert:
    return Inert("a device, layout or type")


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_CALLS: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _typed_tensor,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _ordered_dict,
    "builtins.dict": _ordered_dict,
    "__builtin__.dict": _ordered_dict,
    "builtins.set": _make_set,
    "__builtin__.set": _make_set,
    "builtins.bytearray": _raw_bytes,
    "__builtin__.bytearray": _raw_bytes,
    "builtins.bytes": _raw_bytes,
    "__builtin__.bytes": _raw_bytes,
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
    "torch.Size": _size,
    "torch.device": _ignored,
    "torch.serialization._get_layout": _ignored,
    "torch.storage._load_from_bytes": _nested_storage,
}

_HANDLERS: dict[int, Callable[[_State], None]] = {
    ord("("): _push(_MARK),
    ord("0"): _pop_any,
    ord("1"): lambda state: _drop(state.pop_mark()),
    ord("2"): _dup,
    ord("N"): _push(None),
    0x88: _push(True),
    0x89: _push(False),
    ord("I"): _decimal,
    ord("L"): _decimal,
    ord("F"): lambda state: state.stack.append(float(bytes(state.line(_MAX_DIGITS)))),
    ord("J"): _number("<i"),
    ord("K"): _number("<B"),
    ord("M"): _number("<H"),
    ord("G"): _number(">d"),
    0x8A: _long("<B"),
    0x8B: _long("<i"),
    ord("S"): _quoted,
    ord("T"): _text("<I", "latin-1"),
    ord("U"): _text("<B", "latin-1"),
    ord("V"): _unicode_line,
    ord("X"): _text("<I", "utf-8"),
    0x8C: _text("<B", "utf-8"),
    0x8D: _text("<Q", "utf-8"),
    ord("B"): _bytes("<I"),
    ord("C"): _bytes("<B"),
    0x8E: _bytes("<Q"),
    0x96: _bytes("<Q"),
    ord("}"): _push_new(dict),
    ord("]"): _push_new(list),
    ord(")"): _push(()),
    0x8F: _push_new(set),
    ord("d"): _new_dict,
    ord("l"): lambda state: state.stack.append(state.pop_mark()),
    ord("t"): lambda state: state.stack.append(tuple(state.pop_mark())),
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    ord("a"): _append,
    ord("e"): lambda state: _extend(state, state.pop_mark()),
    ord("s"): _set_item,
    ord("u"): lambda state: _set_items(state, state.pop_mark()),
    0x90: _add_items,
    0x91: _frozenset,
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _new_object,
    0x92: _new_object_ex,
    ord("i"): _instance,
    ord("o"): _object,
    ord("b"): _build,
    ord("Q"): _persistent,
    ord("q"): _put("<B"),
    ord("r"): _put("<I"),
    ord("p"): _put_text,
    0x94: _memoize,
    ord("h"): _get("<B"),
    ord("j"): _get("<I"),
    ord("g"): _get_text,
    0x80: _protocol,
    0x95: lambda state: _drop(state.take(8)),  # FRAME: lengths are checked value by value
}
