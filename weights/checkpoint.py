"""Opens a checkpoint of any known format as numpy arrays with detectron2's names; executes nothing in it.

The format is recognised by the content, not by the file's name. Tensors are read-only views of the
memory-mapped file where the format allows, so reading costs address space rather than memory. Do not change
a file while it is in use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from weights import _hdf5, _npz, _safetensors, _torch, _unpickle, legacy
from weights._files import map_file
from weights._limits import MAX_NAME, MAX_TENSORS, Budget, tensor_budget
from weights._types import Checkpoint
from weights._unpickle import ArrayShell, TensorRef
from weights._zip import Archive
from weights.errors import CheckpointError
from weights.keras_file import keras_weights

# where training code keeps moving averages (d2go, timm, common forks); never used unless asked for
EMA_KEYS = ("ema_state", "model_ema", "ema_model", "ema", "state_dict_ema")


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
        checkpoint = _read(data, ema)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except (MemoryError, RecursionError) as error:
        raise CheckpointError(f"{name}: reading it needs too much memory ({type(error).__name__}).") from None
    checkpoint.path, checkpoint._data = name, data
    return checkpoint


def _read(data: memoryview, ema: bool) -> Checkpoint:
    head = bytes(data[:16])
    if head.startswith(_torch.LEGACY_PREFIX):
        return _from_torch(_torch.read_legacy(data), "torch-legacy", len(data), ema)
    if head.startswith(b"PK\x03\x04"):
        return _from_zip(Archive(data), len(data), ema)
    if head.startswith(_hdf5.SIGNATURE):
        return _plain(_from_keras(data), ema)
    if _safetensors.looks_like(data):
        return _plain(_from_safetensors(data), ema)
    if head[:1] == b"\x80" or head[:2] in (b"(d", b"}q", b"cc"):
        return _from_pickle(data, ema)
    raise CheckpointError(f"This is no known checkpoint format (it begins with {head[:8]!r}).")


def _plain(checkpoint: Checkpoint, ema: bool) -> Checkpoint:
    if ema:
        raise CheckpointError(f"A {checkpoint.format} file holds no EMA weights beside the model.")
    return checkpoint


def _from_zip(archive: Archive, size: int, ema: bool) -> Checkpoint:
    if not _npz.is_npz(archive):
        return _from_torch(_torch.read_zip(archive), "torch-zip", size, ema)
    arrays = legacy.from_tensorpack(_npz.read(archive))
    return _plain(Checkpoint(arrays, "tensorpack-npz", author="tensorpack"), ema)


def _from_keras(data: memoryview) -> Checkpoint:
    stored = keras_weights(data)
    return Checkpoint(
        stored.state_dict(),
        "keras-h5",
        config=stored.config,
        ignored=stored.ignored,
        metadata=stored.provenance,
    )


def _from_safetensors(data: memoryview) -> Checkpoint:
    tensors, metadata = _safetensors.read(data)
    arrays = arrays_of(tensors, tensor_budget(len(data)))
    return Checkpoint(strip_module(arrays), "safetensors", metadata=metadata)


def _from_pickle(data: memoryview, ema: bool) -> Checkpoint:
    value, _ = _unpickle.load(data, nested=_torch.read_nested_storage)
    if not isinstance(value, dict):
        raise CheckpointError(
            f"The pickle holds a {_unpickle.kind(value)} where a checkpoint has a dictionary."
        )
    if isinstance(value.get("model"), dict) or "model_state" in value or _has_dotted_names(value):
        return _from_torch(value, "detectron2-pkl", len(data), ema)
    return _plain(_from_caffe2(value, len(data)), ema)


def _has_dotted_names(value: dict[Any, Any]) -> bool:
    """A bare state dict: module paths have dots, Caffe2 blobs never do."""
    return bool(value) and all(type(key) is str and "." in key for key in value)


def _from_caffe2(value: dict[Any, Any], size: int) -> Checkpoint:
    """A Caffe2 file: ``blobs`` beside the config (Detectron), or the blobs alone (ImageNet models)."""
    nested = isinstance(value.get("blobs"), dict)
    blobs = value["blobs"] if nested else value
    kept = {key: blob for key, blob in blobs.items() if not (type(key) is str and key.endswith("_momentum"))}
    ignored = [str(key)[:MAX_NAME] for key in value if key != "blobs"] if nested else []
    if len(kept) < len(blobs):
        ignored.append(f"{len(blobs) - len(kept)} momentum blobs of the optimizer")
    arrays = arrays_of(kept, tensor_budget(size))
    if "conv1_b" in arrays and not arrays["conv1_b"].any():
        del arrays["conv1_b"]  # Detectron's stem has a bias, always zero, before its norm
        ignored.append("conv1_b (all zero)")
    return Checkpoint(
        legacy.from_caffe2(arrays),
        "caffe2-pkl",
        author="Caffe2",
        matching_heuristics=True,
        ignored=sorted(ignored),
    )


def _from_torch(value: Any, kind: str, size: int, ema: bool) -> Checkpoint:
    """A checkpoint from the dictionary that a training run saved, or from a bare state dict."""
    if not isinstance(value, dict):
        raise CheckpointError(
            f"The file holds a {_unpickle.kind(value)} where a checkpoint has a dictionary."
        )
    if isinstance(value.get("model_state"), dict) and "model" not in value:
        return _plain(_from_pycls(value, size), ema)
    wrapped = isinstance(value.get("model"), dict)
    model = value["model"] if wrapped else value
    others = {key: entry for key, entry in value.items() if key != "model"} if wrapped else {}
    budget = tensor_budget(size)
    state = strip_module(arrays_of(model, budget))
    if ema:
        state = with_ema(state, others, budget)
    author, heuristics = others.get("__author__"), others.get("matching_heuristics") is True
    return Checkpoint(
        legacy.from_caffe2(state) if heuristics and author == "Caffe2" else state,
        kind,
        iteration=_iteration(others),
        author=author if isinstance(author, str) else None,
        matching_heuristics=heuristics,
        ignored=_ignored(others, ema),
    )


def _from_pycls(value: dict[Any, Any], size: int) -> Checkpoint:
    """A classification model trained with pycls; its names need matching, as in detectron2."""
    arrays = arrays_of(value["model_state"], tensor_budget(size))
    state = {key: array for key, array in arrays.items() if not key.endswith("num_batches_tracked")}
    ignored = sorted(str(key)[:MAX_NAME] for key in value if key != "model_state")
    return Checkpoint(strip_module(state), "pycls", author="pycls", matching_heuristics=True, ignored=ignored)


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
            raise CheckpointError(f"{key!r} is a {_unpickle.kind(value)} where a state dict has tensors.")
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
