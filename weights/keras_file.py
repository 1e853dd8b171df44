"""Keras ``.weights.h5`` files: written so that stock ``model.load_weights`` reads them, read without h5py.

Layout: ``vars/<variable path>`` holds every variable (the top-level model owns them all); the root
attributes hold the provenance and the detectron2 config (YAML); ``extra_state/<detectron2 key>`` keeps
tensors that no variable needs, so that the way back to detectron2 is bit-exact. Datasets carry an attribute
``torch_shape`` or ``torch_dtype`` only where these cannot be told from the variable.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from weights import _hdf5
from weights._blocks import contiguous, same_bits
from weights._files import map_file, replacing, touched
from weights._h5py import in_hdf5
from weights._threads import Rows, each_part
from weights.errors import CheckpointError, WeightsError
from weights.layouts import Shape, path_to_key
from weights.mapping import to_state_dict

_FORMAT_VERSION = "1"
_CONFIG_ATTRIBUTE = "detectron2_config"
_VARS, _EXTRA = "vars", "extra_state"
_MAX_ATTRIBUTE = 60_000  # bytes; HDF5 object headers cannot hold 64 KiB or more

Progress = Callable[[int], None]  # called with the number of bytes just done


@dataclass
class KerasWeights:
    """What a ``.weights.h5`` file holds; arrays are read-only views of the file.

    Attributes:
        arrays: variable path -> array in Keras layout.
        torch_shapes: variable path -> shape in detectron2, where the variable does not tell it.
        torch_dtypes: variable path -> dtype in the original file, where it was narrower.
        extra_state: tensors by detectron2 key without a variable.
        provenance: source name, SHA-256, versions.
        config: detectron2 config (YAML), or None.
        ignored: other groups of the file (an optimizer's, say).
    """

    arrays: dict[str, np.ndarray]
    torch_shapes: dict[str, Shape] = field(default_factory=dict)
    torch_dtypes: dict[str, str] = field(default_factory=dict)
    extra_state: dict[str, np.ndarray] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    config: str | None = None
    ignored: list[str] = field(default_factory=list)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The detectron2 state dict, bit for bit as it was converted."""
        return to_state_dict(
            self.arrays, shapes=self.torch_shapes, dtypes=self.torch_dtypes, extra=self.extra_state
        )


def write_keras_h5(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    *,
    provenance: Mapping[str, str] | Callable[[], Mapping[str, str]],
    config_yaml: str | None = None,
    extra_state: Mapping[str, np.ndarray] | None = None,
    source: Mapping[str, np.ndarray] | None = None,
    progress: Progress | None = None,
) -> None:
    """Write ``arrays`` as a Keras weights file, read it back, compare bit by bit, then give it its name.

    Args:
        path: the file, by convention ``*.weights.h5``; replaced if it exists.
        arrays: variable path -> array in Keras layout (:func:`weights.to_keras_arrays`).
        provenance: short text, written as root attributes; or a function that is asked for it once the
            arrays are written.
        config_yaml: the detectron2 config, so that the file alone makes a predictor.
        extra_state: tensors by detectron2 key that no variable needs (``num_batches_tracked``, ...).
        source: the detectron2 state dict, for the shapes and dtypes that the variables do not tell.
        progress: called with the bytes done; the total is twice the size of the arrays (writing, comparing).

    Raises:
        WeightsError: cannot be written, or what was written does not compare equal; ``path`` is then
            untouched.
    """
    extra = dict(extra_state or {})

    def lay_out(file: h5py.File) -> dict[str, int]:
        return _lay_out(file, arrays, extra, source or {})

    with replacing(path) as temporary:
        places = in_hdf5(temporary, "x", lay_out)
        _fill(temporary, arrays, places, progress)
        attributes = {**(provenance() if callable(provenance) else provenance)}
        attributes["weights_format"] = _FORMAT_VERSION
        if config_yaml is not None:
            attributes[_CONFIG_ATTRIBUTE] = config_yaml
        # as strings of variable length, which may be of any size
        in_hdf5(temporary, "r+", lambda file: file.attrs.update(attributes))
        _compare(read_keras_h5(temporary), arrays, extra, progress)


def _lay_out(
    file: h5py.File,
    arrays: Mapping[str, np.ndarray],
    extra: Mapping[str, np.ndarray],
    source: Mapping[str, np.ndarray],
) -> dict[str, int]:
    """Everything but the data of ``arrays``: the places in the file where these belong."""
    group = file.create_group(_VARS)
    places: dict[str, int] = {}
    for name, array in arrays.items():
        dataset = _new_dataset(group, name, array, _torch_notes(name, array, source))
        place = dataset.id.get_offset()
        if place is None:  # a scalar or empty
            dataset[...] = _storable(array)
        else:
            places[name] = place
    for key, array in extra.items():
        _new_dataset(file.require_group(_EXTRA), key, array, {})[...] = _storable(array)
    return places


def _torch_notes(path: str, array: np.ndarray, source: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The attributes from which :func:`weights.to_state_dict` restores the original tensor exactly."""
    original = source.get(path_to_key(path))
    if original is None:
        return {}
    notes: dict[str, Any] = {}
    if original.ndim != array.ndim:
        notes["torch_shape"] = np.array(original.shape, np.int64)
    if original.dtype != array.dtype and original.dtype.itemsize < array.dtype.itemsize:
        notes["torch_dtype"] = original.dtype.name
    return notes


def _new_dataset(group: h5py.Group, name: str, array: np.ndarray, notes: Mapping[str, Any]) -> h5py.Dataset:
    """A dataset for ``array`` without its data; unless it is a scalar, its place in the file is known."""
    if array.dtype == np.bool_:
        notes = {**notes, "torch_dtype": "bool"}
    elif array.dtype.kind not in "fiu":
        raise WeightsError(f"{name}: arrays of dtype {array.dtype} cannot be written to a weights file.")
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    options.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    dataset = group.create_dataset(name, array.shape, _storable(array).dtype, dcpl=options)
    for key, value in notes.items():
        dataset.attrs[key] = value
    return dataset


def _storable(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint8) if array.dtype == np.bool_ else array  # HDF5 has no booleans


def _fill(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    places: Mapping[str, int],
    progress: Progress | None,
) -> None:
    """Write the data to their places in the file; h5py would let one thread wait for the other."""

    def write(name: str, rows: Rows, part: np.ndarray) -> None:
        if name in places:
            before = rows.start * part[0].nbytes if isinstance(rows, slice) else 0
            with path.open("r+b") as file:
                file.seek(places[name] + before)
                file.write(contiguous(part).reshape(-1).view(np.uint8).data)

    for count in each_part(write, arrays):
        touched(count)
        if progress:
            progress(count)


def _compare(
    written: KerasWeights,
    arrays: Mapping[str, np.ndarray],
    extra: Mapping[str, np.ndarray],
    progress: Progress | None,
) -> None:
    if written.arrays.keys() != arrays.keys() or written.extra_state.keys() != extra.keys():
        raise WeightsError("The written file does not hold the names it should; nothing was kept.")
    for expected, found in ((arrays, written.arrays), (extra, written.extra_state)):
        for name, array in expected.items():
            if found[name].shape != array.shape:
                raise WeightsError(f"{name} reads back with another shape than written; nothing was kept.")

        def compare(name: str, rows: Rows, part: np.ndarray, found: Mapping[str, np.ndarray] = found) -> None:
            if not same_bits(part, found[name][rows]):
                raise WeightsError(f"{name} reads back differently than written; nothing was kept.")

        for count in each_part(compare, expected):
            touched(2 * count)
            if progress:
                progress(count)


def read_keras_h5(path: str | os.PathLike[str]) -> KerasWeights:
    """Read a Keras weights file of a model of this library, whether it or Keras wrote it.

    Raises:
        CheckpointError: damaged, hostile, or not the weights of a model of this library.
    """
    name = os.fspath(path)
    try:
        return keras_weights(map_file(name))
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(name) else f"{name}: {text}") from None


def keras_weights(data: memoryview) -> KerasWeights:
    """:func:`read_keras_h5` of a file's bytes."""
    attributes, datasets = _hdf5.read(data)
    texts = {key: value for key, value in attributes.items() if isinstance(value, str)}
    result = KerasWeights({}, provenance=texts, config=texts.pop(_CONFIG_ATTRIBUTE, None))
    ignored: set[str] = set()
    for path, dataset in datasets.items():
        top, _, rest = path.partition("/")
        if top == _VARS and rest:
            _take_variable(result, rest, dataset)
        elif top == _EXTRA and rest:
            result.extra_state[rest] = _original_dtype(dataset)
        else:
            ignored.add(top)
    result.ignored = sorted(ignored)
    if not result.arrays:
        raise CheckpointError(
            "The HDF5 file has no 'vars' group: it is not the weights file of a model of this library."
        )
    return result


def _take_variable(result: KerasWeights, path: str, dataset: _hdf5.Dataset) -> None:
    shape, dtype = dataset.attributes.get("torch_shape"), dataset.attributes.get("torch_dtype")
    array = dataset.array
    if isinstance(shape, np.ndarray) and shape.ndim == 1 and shape.dtype.kind == "i":
        torch_shape = tuple(int(size) for size in shape)
        if len(torch_shape) != 2 or array.ndim != 4 or torch_shape[0] != array.shape[-1]:
            raise CheckpointError(f"The torch_shape of {path[:200]!r} does not fit the variable.")
        result.torch_shapes[path] = torch_shape
    if dtype == "bool":
        array = _original_dtype(dataset)
    elif dtype in ("float16", "float32"):
        result.torch_dtypes[path] = dtype
    result.arrays[path] = array


def _original_dtype(dataset: _hdf5.Dataset) -> np.ndarray:
    is_bool = dataset.attributes.get("torch_dtype") == "bool"
    return dataset.array.astype(np.bool_) if is_bool else dataset.array
