"""Opens a checkpoint of any known format as numpy arrays with detectron2's names; nothing in the file is
executed.

The format is recognised by the content, not by the file's name. Tensors are read-only views of the
memory-mapped file
where the format allows, so reading costs address space rather than memory. Do not change a file while it
is in use.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from weights import _torch, _unpickle
from weights._limits import MAX_NAME, MAX_TENSORS, Budget, tensor_budget
from weights._unpickle import ArrayShell, Inert, LongText, TensorRef
from weights.errors import CheckpointError

# where training code keeps exponential moving averages (d2go, timm, common forks); never used unless
# asked for
EMA_KEYS = ("ema_state", "model_ema", "ema_model", "ema", "state_dict_ema")


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        state: tensors by detectron2 key in torch layout, usually read-only views of the file. bfloat16
        comes as
            float32 (exact); float16 stays float16.
        format: "detectron2-pkl", "torch-zip", "torch-legacy", "safetensors", "caffe2-pkl", "pycls",
        "tensorpack-npz"
            or "keras-h5".
        iteration: training step, if the file says.
        author: ``__author__`` of zoo files; "Caffe2" and "pycls" as detectron2 names them.
        matching_heuristics: names are only suffixes of the model's and must be matched
            (:func:`weights.match_heuristically`).
        config: detectron2 config (YAML text) that travels in our own ``.weights.h5``.
        ignored: other top-level entries of the file, and why tensors were left out.
        metadata: provenance and other short text that the file carries.
    """

    state: dict[str, np.ndarray]
    format: str
    iteration: int | None = None
    author: str | None = None
    matching_heuristics: bool = False
    config: str | None = None
    ignored: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    path: str = ""
    _data: memoryview = field(default=memoryview(b""), repr=False)

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the file; computed on first use."""
        return hashlib.sha256(self._data).hexdigest()


def read_checkpoint(path: str | os.PathLike[str], *, ema: bool = False) -> Checkpoint:
    """Read a checkpoint of any supported format without executing anything in it.

    Args:
        path: the file.
        ema: take the exponential moving average that some trainers store beside the model.

    Raises:
        CheckpointError: not readable, damaged, hostile, of an unknown kind, or without the EMA asked for.
    """
    name = os.fspath(path)
    data = map_file(name)
    try:
        checkpoint = _read(data, name, ema)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except (MemoryError, RecursionError) as error:
        raise CheckpointError(f"{name}: reading it needs too much memory ({type(error).__name__}).") from None
    checkpoint.path, checkpoint._data = name, data
    return checkpoint


def map_file(name: str) -> memoryview:
    """The bytes of a file, memory-mapped read-only."""
    try:
        with open(name, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError(f"{name}: the file is empty.")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise CheckpointError(f"{name}: there is no such file.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: cannot be read ({error}).") from None


def _read(data: memoryview, name: str, ema: bool) -> Checkpoint:
    head = bytes(data[:16])
    if head.startswith(_torch.LEGACY_PREFIX):
        return _from_torch(_torch.read_legacy(data), "torch-legacy", len(data), ema)
    if head.startswith(b"PK\x03\x04"):
        return _from_torch(_torch.read_zip(data), "torch-zip", len(data), ema)
    if head[:1] == b"\x80" or head[:2] in (b"(d", b"(l", b"cc"):
        return _from_pickle(data, ema)
    raise CheckpointError(f"This is no known checkpoint format (it begins with {head[:8]!r}).")


def _from_pickle(data: memoryview, ema: bool) -> Checkpoint:
    value, _ = _unpickle.load(data, nested=_torch.read_nested_storage)
    if not isinstance(value, dict):
        raise CheckpointError(
            f"The pickle holds a {type(value).__name__} where a checkpoint has a dictionary."
        )
    return _from_torch(value, "detectron2-pkl", len(data), ema)


def _from_torch(value: Any, kind: str, size: int, ema: bool) -> Checkpoint:
    """A checkpoint from the dictionary that a training run saved, or from a bare state dict."""
    if not isinstance(value, dict):
        raise CheckpointError(f"The file holds a {type(value).__name__} where a checkpoint has a dictionary.")
    wrapped = isinstance(value.get("model"), dict)
    model = value["model"] if wrapped else value
    others = {key: entry for key, entry in value.items() if key != "model"} if wrapped else {}
    budget = tensor_budget(size)
    state = strip_module(arrays_of(model, budget))
    if ema:
        state = with_ema(state, others, budget)
    author = others.get("__author__")
    return Checkpoint(
        state,
        kind,
        iteration=_iteration(others),
        author=author if isinstance(author, str) else None,
        matching_heuristics=others.get("matching_heuristics") is True,
        ignored=_ignored(others, ema),
    )


def arrays_of(model: Mapping[Any, Any], budget: Budget) -> dict[str, np.ndarray]:
    """The arrays of a state dict; a value that is none is an error, as in detectron2."""
    if len(model) > MAX_TENSORS:
        raise CheckpointError(f"The file has {len(model)} tensors; no checkpoint has that many.")
    state: dict[str, np.ndarray] = {}
    for key, value in model.items():
        if type(key) is not str or not 0 < len(key) <= MAX_NAME or not key.isprintable():
            raise CheckpointError(f"The file has a tensor with the unusable name {str(key)[:60]!r}.")
        array = _array(value, budget)
        if array is None:
            raise CheckpointError(f"{key!r} is a {_kind(value)} where a state dict has tensors.")
        state[key] = array
    if not state:
        raise CheckpointError("The file holds no tensors.")
    return state


def _array(value: Any, budget: Budget) -> np.ndarray | None:
    if isinstance(value, TensorRef):
        return _torch.tensor_array(value, budget)
    array = value.array if isinstance(value, ArrayShell) else value
    if not isinstance(array, np.ndarray):
        return None
    budget.spend(array.nbytes)
    return array


def _kind(value: Any) -> str:
    if isinstance(value, Inert):
        return value.name
    if isinstance(value, (str, LongText)):
        return "text"
    return type(value).__name__


def strip_module(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the "module." of a distributed wrapper, if every key has it (detectron2's rule)."""
    if state and all(key.startswith("module.") and len(key) > len("module.") for key in state):
        return {key[len("module.") :]: value for key, value in state.items()}
    return state


def with_ema(
    state: dict[str, np.ndarray], others: Mapping[Any, Any], budget: Budget
) -> dict[str, np.ndarray]:
    """``state`` with the tensors replaced that the file keeps a moving average of."""
    found = next((key for key in EMA_KEYS if isinstance(others.get(key), dict)), None)
    if found is None:
        raise CheckpointError(f"There are no EMA weights in the file (looked for {', '.join(EMA_KEYS)}).")
    average = others[found]
    for inner in ("state", "state_dict", "model", "module"):
        if isinstance(average.get(inner), dict):
            average = average[inner]
            break
    arrays = {key: value for key, value in average.items() if _is_tensor(value)}
    averaged = strip_module(arrays_of(arrays, budget))
    strange = sorted(
        key for key, value in averaged.items() if key not in state or state[key].shape != value.shape
    )
    if strange:
        raise CheckpointError(f"The EMA weights are not those of the model: {', '.join(strange[:5])} differ.")
    return {**state, **averaged}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (TensorRef, ArrayShell, np.ndarray))


def _iteration(others: Mapping[Any, Any]) -> int | None:
    """``iteration`` of the file, or of its trainer's state."""
    for holder in (others, others.get("trainer")):
        value = holder.get("iteration") if isinstance(holder, dict) else None
        if type(value) is int:
            return value
    return None


def _ignored(others: Mapping[Any, Any], ema: bool) -> list[str]:
    known = {"__author__", "matching_heuristics", "iteration"}
    notes = {key: " (EMA weights; --ema takes them)" for key in EMA_KEYS if not ema}
    return sorted(str(key)[:MAX_NAME] + notes.get(key, "") for key in others if key not in known)


def file_name(path: str | os.PathLike[str]) -> str:
    """The last part of ``path``, as written into provenance."""
    return Path(path).name
