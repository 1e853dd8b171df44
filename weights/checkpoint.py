"""Opens a checkpoint of any known format as numpy arrays with detectron2's names; executes nothing in it.

The format is recognised by the content, not by the file's name. Tensors are read-only views of the
memory-mapped file where the format allows, so reading costs address space rather than memory. Do not change
a file while it is in use.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from weights import _hdf5, _npz, _safetensors, _torch, _unpickle, legacy, unwrap
from weights._files import map_file
from weights._limits import MAX_NAME, MAX_TENSORS, Budget, tensor_budget
from weights._recognise import kind_of_file
from weights._types import Checkpoint
from weights._unpickle_state import ArrayShell, Inert, TensorRef, kind
from weights._zip import Archive
from weights.errors import CheckpointError, CheckpointNotice
from weights.maskrcnn_benchmark import from_maskrcnn_benchmark, is_maskrcnn_benchmark


def read_checkpoint(
    path: str | os.PathLike[str],
    *,
    ema: bool = False,
    prefix: str | None = None,
    several: bool = False,
) -> Checkpoint:
    """Read a checkpoint of any supported format without executing anything in it.

    A state dict inside wrappers, or under a prefix that all its names have, is found where exactly one reading fits;
    a `CheckpointNotice` (a warning) says what was done.

    Args:
        path: the file.
        ema: take the exponential moving average that some trainers store beside the model.
        prefix: which of several models to read: an entry of the file ("teacher") or the start of the names
            ("modelTeacher.").
        several: read the tensors of a file that holds several models under their full names, to look at them,
            instead of refusing it.

    Raises:
        CheckpointError: not readable, damaged, hostile, of an unknown kind, with several models and no ``prefix``, or
            without the EMA asked for.
    """
    name = os.fspath(path)
    data = map_file(name)
    try:
        checkpoint = _read(data, _Choice(ema, prefix, several))
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except (MemoryError, RecursionError) as error:
        raise CheckpointError(f"{name}: reading it needs too much memory ({type(error).__name__}).") from None
    checkpoint.path, checkpoint._data = name, data
    if checkpoint.notes:
        warnings.warn(f"{name}: {'; '.join(checkpoint.notes)}", CheckpointNotice, stacklevel=2)
    return checkpoint


def read_as_stored(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint under the names that the file has, with all prefixes."""
    return _read(map_file(os.fspath(path)), _Choice(as_stored=True)).state


def _read(data: memoryview, choice: _Choice) -> Checkpoint:
    head = bytes(data[:16])
    if head.startswith(_torch.LEGACY_PREFIX):
        return _from_torch(_torch.read_legacy(data), "torch-legacy", len(data), choice)
    if head.startswith(b"PK\x03\x04"):
        return _from_zip(Archive(data), len(data), choice)
    if head.startswith(_hdf5.SIGNATURE):
        return _plain(_from_keras(data), choice)
    if _safetensors.looks_like(data):
        return _plain(_from_safetensors(data, choice), choice)
    if (head[:1] == b"\x80" and head[1:2] <= b"\x05") or head[:2] in (
        b"(d",
        b"}q",
        b"cc",
    ):
        return _from_pickle(data, choice)
    what = kind_of_file(bytes(data[:4096]))
    if what:
        raise CheckpointError(f"This is {what}.")
    raise CheckpointError(f"This is no known checkpoint format (it begins with {head[:8]!r}).")


@dataclass(frozen=True)
class _Choice:
    """What of a file is wanted; see `read_checkpoint`."""

    ema: bool = False
    prefix: str | None = None
    several: bool = False
    as_stored: bool = False  # names as the file has them, with all prefixes

    def named(self, state: dict[str, np.ndarray], notes: list[str]) -> dict[str, np.ndarray]:
        """``state`` under the names of the model."""
        return state if self.as_stored else unwrap.plain_names(state, notes, several=self.several)


def _plain(checkpoint: Checkpoint, choice: _Choice) -> Checkpoint:
    if choice.ema:
        raise CheckpointError(f"A {checkpoint.format} file holds no EMA weights beside the model.")
    return checkpoint


def _from_zip(archive: Archive, size: int, choice: _Choice) -> Checkpoint:
    if not _npz.is_npz(archive):
        return _from_torch(_torch.read_zip(archive), "torch-zip", size, choice)
    arrays = legacy.from_tensorpack(_npz.read(archive))
    return _plain(Checkpoint(arrays, "tensorpack-npz", author="tensorpack"), choice)


def _from_keras(data: memoryview) -> Checkpoint:
    from weights.keras_file import keras_weights  # imports h5py, which no other format needs

    stored = keras_weights(data)
    return Checkpoint(
        stored.state_dict(),
        "keras-h5",
        config=stored.config,
        ignored=stored.ignored,
        metadata=stored.provenance,
    )


def _from_safetensors(data: memoryview, choice: _Choice) -> Checkpoint:
    tensors, metadata = _safetensors.read(data)
    reading = unwrap.find(tensors, choice.prefix, _is_tensor)
    arrays = arrays_of(reading.model, tensor_budget(len(data)))
    state = choice.named(arrays, reading.notes)
    return Checkpoint(state, "safetensors", metadata=metadata, notes=reading.notes)


def _from_pickle(data: memoryview, choice: _Choice) -> Checkpoint:
    value, _ = _unpickle.load(data, nested=_torch.read_nested_storage)
    if not isinstance(value, dict):
        raise CheckpointError(_no_dictionary(value, "pickle"))
    blobs = isinstance(value.get("blobs"), dict) or not _has_state(value)
    if not blobs or isinstance(value.get("model"), dict) or "model_state" in value:
        return _from_torch(value, "detectron2-pkl", len(data), choice)
    return _plain(_from_caffe2(value, len(data)), choice)


def _no_dictionary(value: Any, what: str) -> str:
    """Why a file that holds something else is no checkpoint."""
    if isinstance(value, Inert):
        if value.problem:
            return value.problem
        if value.name.endswith((".CfgNode", ".DictConfig", ".Namespace")):
            return f"The {what} holds a configuration ({kind(value)}), no weights."
        return (
            f"The {what} holds an object of {kind(value)}, perhaps a whole model as torch.save(model) "
            "writes it, where a checkpoint has a dictionary. Its code is not run; where that code is installed, save "
            "the state dict: torch.save({'model': model.state_dict()}, path)."
        )
    return f"The {what} holds a {kind(value)} where a checkpoint has a dictionary."


def _has_state(value: dict[Any, Any]) -> bool:
    """Whether there is a state dict somewhere: module paths have dots, Caffe2 blobs never do."""
    if _has_dotted_names(value):
        return True
    nested = [entry for entry in value.values() if isinstance(entry, dict)]
    return any(_has_dotted_names(entry) or _has_state(entry) for entry in nested)


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


def _from_torch(value: Any, kind: str, size: int, choice: _Choice) -> Checkpoint:
    """A checkpoint from the dictionary that a training run saved, or from a bare state dict."""
    if not isinstance(value, dict):
        raise CheckpointError(_no_dictionary(value, "file"))
    pycls = value.get("model_state")
    if isinstance(pycls, dict) and "model" not in value and not unwrap.prefixes_of(filter(_is_text, pycls)):
        return _plain(_from_pycls(value, size), choice)
    if isinstance(value.get("model"), Inert):
        raise CheckpointError(_no_dictionary(value["model"], "entry 'model' of the file"))
    try:
        reading = unwrap.find(value, choice.prefix, _is_tensor)
    except CheckpointError:
        if not choice.several or choice.prefix is not None:
            raise
        reading = unwrap.Reading((), unwrap.all_states(value, _is_tensor), {})
    others, budget = reading.others, tensor_budget(size)
    state = choice.named(arrays_of(reading.model, budget), reading.notes)
    if choice.ema:
        state = _with_ema(state, others, budget)
    author, heuristics = others.get("__author__"), others.get("matching_heuristics") is True
    if not choice.as_stored and is_maskrcnn_benchmark(state):
        state, author = from_maskrcnn_benchmark(state), "maskrcnn-benchmark"
    return Checkpoint(
        legacy.from_caffe2(state) if heuristics and author == "Caffe2" else state,
        kind,
        iteration=_iteration(others),
        author=author if isinstance(author, str) else None,
        matching_heuristics=heuristics,
        ignored=_ignored(others, choice.ema),
        notes=reading.notes,
    )


def _is_text(name: Any) -> bool:
    return type(name) is str


def _from_pycls(value: dict[Any, Any], size: int) -> Checkpoint:
    """A classification model trained with pycls; its names need matching, as in detectron2."""
    arrays = arrays_of(value["model_state"], tensor_budget(size))
    state = {key: array for key, array in arrays.items() if not key.endswith("num_batches_tracked")}
    ignored = sorted(str(key)[:MAX_NAME] for key in value if key != "model_state")
    names = unwrap.plain_names(state, [])
    return Checkpoint(names, "pycls", author="pycls", matching_heuristics=True, ignored=ignored)


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
            raise CheckpointError(_no_tensor(key, value))
        state[key] = array
    if not state:
        raise CheckpointError("The file holds no tensors.")
    return state


def _no_tensor(key: str, value: Any) -> str:
    problem = getattr(value, "problem", "")
    if problem:
        return f"{key!r}: {problem}"
    text = f"{key!r} is a {kind(value)} where a state dict has tensors."
    if isinstance(value, Inert):
        text += " If the file is yours, save the state dict alone: torch.save({'model': model.state_dict()}, path)."
    return text


def _array(value: Any, budget: Budget) -> np.ndarray | None:
    if isinstance(value, TensorRef):
        return _torch.tensor_array(value, budget)
    array = value.array if isinstance(value, ArrayShell) else value
    if not isinstance(array, np.ndarray):
        return None
    budget.spend(array.nbytes)
    return array


def _with_ema(
    state: dict[str, np.ndarray], others: Mapping[Any, Any], budget: Budget
) -> dict[str, np.ndarray]:
    """``state`` with the tensors replaced that the file keeps a moving average of."""
    found = next((key for key in unwrap.EMA_KEYS if isinstance(others.get(key), dict)), None)
    if found is None:
        raise CheckpointError(
            f"There are no EMA weights in the file (looked for {', '.join(unwrap.EMA_KEYS)})."
        )
    average = others[found]
    for inner in ("state", "state_dict", "model", "module"):
        if isinstance(average.get(inner), dict):
            average = average[inner]
            break
    arrays = {key: value for key, value in average.items() if _is_tensor(value)}
    averaged = unwrap.plain_names(arrays_of(arrays, budget), [])
    strange = sorted(
        key for key, value in averaged.items() if key not in state or state[key].shape != value.shape
    )
    if strange:
        raise CheckpointError(f"The EMA weights are not those of the model: {', '.join(strange[:5])} differ.")
    return {**state, **averaged}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (TensorRef, ArrayShell, np.ndarray))


def _iteration(others: Mapping[Any, Any]) -> int | None:
    """The training step: ``iteration`` of the file or of its trainer's state, Lightning's ``global_step``."""
    for holder in (others, others.get("trainer")):
        for key in ("iteration", "global_step"):
            value = holder.get(key) if isinstance(holder, dict) else None
            if isinstance(value, ArrayShell):
                value = value.array
            if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "iu":
                value = int(value.reshape(()))
            if type(value) is int:
                return value
    return None


def _ignored(others: Mapping[Any, Any], ema: bool) -> list[str]:
    known = {"__author__", "matching_heuristics", "iteration"}
    notes = {key: " (EMA weights; --ema takes them)" for key in unwrap.EMA_KEYS if not ema}
    return sorted(str(key)[:MAX_NAME] + notes.get(key, "") for key in others if key not in known)
