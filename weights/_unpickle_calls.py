"""What the globals that a checkpoint may name build: containers of numpy and torch, arrays, tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from weights._limits import check_shape, check_sizes, element_count
from weights._unpickle_state import (
    NUMPY_CODES,
    TORCH_DTYPES,
    ArrayShell,
    Dict,
    Dtype,
    Inert,
    LongText,
    Name,
    State,
    Storage,
    TensorRef,
    hashable,
    kind,
)
from weights.errors import CheckpointError


# --- what the allowed globals build ---------------------------------------------------------------
def _ordered_dict(state: State, items: Any = ()) -> Dict:
    result = Dict()
    pairs = list(items.items()) if isinstance(items, dict) else items
    if not isinstance(pairs, (list, tuple)):
        raise CheckpointError("The pickle makes a dictionary of something that is no list of pairs.")
    state.budget.spend(len(pairs))
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise CheckpointError("The pickle makes a dictionary of something that is no list of pairs.")
        result[hashable(pair[0])] = pair[1]
    return result


def _default_dict(state: State, factory: Any = None, items: Any = ()) -> Dict:
    return _ordered_dict(state, items)  # the factory is a name of the allow-list and is not used


def _make_set(state: State, items: Any = ()) -> set[Any]:
    if not isinstance(items, (list, tuple, set, frozenset)):
        raise CheckpointError("The pickle makes a set of something that is no list.")
    state.budget.spend(len(items))
    return {hashable(item) for item in items}


def _encode(state: State, text: Any, encoding: Any = "latin1") -> memoryview | Inert:
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


def _raw_bytes(state: State, *args: Any) -> memoryview | Inert:
    """``bytes()``, ``bytes(view)`` and ``bytearray(view)`` of what is already bytes; no copy."""
    if not args:
        return memoryview(b"")
    if len(args) == 2 and isinstance(args[0], (str, LongText)):
        return _encode(state, *args)
    if len(args) == 1 and isinstance(args[0], memoryview):
        return args[0]
    raise CheckpointError("The pickle makes bytes of something else.")


def _size(state: State, items: Any = ()) -> tuple[int, ...]:
    return check_shape(items, "A torch.Size of the pickle")


def _reconstruct(state: State, cls: Any, shape: Any = (0,), code: Any = b"b") -> ArrayShell | Inert:
    if cls != Name("token", "numpy.ndarray"):
        return Inert(
            kind(cls).strip("'"),
            "The pickle builds an array of a class other than numpy.ndarray.",
        )
    return ArrayShell()


def _dtype(state: State, code: Any, align: Any = False, copy: Any = True) -> Dtype:
    if isinstance(code, memoryview) and len(code) <= 8:
        code = str(code, "latin-1")
    if not isinstance(code, str) or code.lstrip("<|=") not in NUMPY_CODES:
        shown = str(code)[:40] if isinstance(code, str) else kind(code)
        return Dtype(
            None,
            f"The pickle has an array of dtype {shown!r}; only plain numbers are read as tensors.",
        )
    return Dtype(np.dtype("?" if code.endswith("b1") else code.lstrip("|")))


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


def _as_bytes(state: State, value: Any) -> memoryview:
    if isinstance(value, memoryview):
        return value
    if isinstance(value, LongText) and value.encoding == "latin-1":
        return value.raw
    encoded = _encode(state, value) if isinstance(value, (str, LongText)) else None
    if isinstance(encoded, memoryview):
        return encoded
    raise CheckpointError(f"The pickle gives a {kind(value)} as the data of an array.")


def fill(state: State, shell: ArrayShell, value: Any) -> None:
    """The array of a BUILD state (version, shape, dtype, is_fortran, data), a view of the file's buffer."""
    if not isinstance(value, tuple) or not 4 <= len(value) <= 5:
        raise CheckpointError("The pickle has a numpy array with an unknown state.")
    shape, dtype, fortran, raw = value[-4:]
    if not isinstance(dtype, Dtype):
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
    state: State, raw: Any, dtype: Any, shape: Any, order: Any = "C", *rest: Any
) -> np.ndarray | Inert:
    """How numpy pickles contiguous arrays at protocol 5; newer ones say more, which matters to other orders only."""
    if not isinstance(dtype, Dtype) or order not in ("C", "F"):
        raise CheckpointError("The pickle has a numpy array with an unknown state.")
    if dtype.problem or dtype.dtype is None:
        return Inert("numpy.ndarray", dtype.problem)
    shape = check_shape(shape, "An array of the pickle")
    return view_as(_as_bytes(state, raw), dtype.dtype, shape, order == "F")


def _scalar(state: State, dtype: Any, raw: Any = b"") -> np.ndarray | Inert:
    if not isinstance(dtype, Dtype):
        raise CheckpointError("The pickle has a numpy scalar without a dtype.")
    if dtype.problem or dtype.dtype is None:
        return Inert("numpy scalar", dtype.problem)
    return view_as(_as_bytes(state, raw), dtype.dtype, ())


def _tensor(
    state: State, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
) -> TensorRef | Inert:
    """``_rebuild_tensor(_v2)``: requires_grad and hooks do not matter here."""
    return _tensor_ref(storage, None, offset, shape, strides)


def _tensor_v3(
    state: State, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
) -> TensorRef | Inert:
    """``_rebuild_tensor_v3``: behind requires_grad and hooks stands the dtype, since the storage has none."""
    dtype = rest[2] if len(rest) > 2 else None
    if not isinstance(dtype, Name) or dtype.kind != "dtype":
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


def _typed_tensor(state: State, function: Any, cls: Any, args: Any, attributes: Any = None) -> Any:
    """A tensor of a subclass or with attributes of its own: the tensor inside."""
    rebuild = TENSORS.get(function.name) if isinstance(function, Name) else None
    if rebuild is None or not isinstance(args, tuple):
        return Inert("torch._tensor._rebuild_from_type_v2")
    return rebuild(state, *args)


def _parameter(state: State, data: Any, *rest: Any) -> TensorRef | Inert:
    if isinstance(data, Inert):
        return data
    if not isinstance(data, TensorRef):
        raise CheckpointError("The pickle has a parameter without a tensor.")
    return data


def _nested_storage(state: State, raw: Any) -> Storage:
    """``torch.storage._load_from_bytes``: a torch file inside the pickle that holds one storage."""
    if state.nested is None or not isinstance(raw, memoryview):
        raise CheckpointError("The pickle has a torch file inside a torch file, which is refused.")
    return state.nested(raw)


def _ignored(state: State, *args: Any) -> Inert:
    return Inert("a device, layout or type")


TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}


CALLS: dict[str, Callable[..., Any]] = {
    **TENSORS,
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
