"""Traces: what one backend computed for one model on one or more images, in one HDF5 file.

Layout (the same as detectron2's recordings that this project compares with):

    /                           attributes: `manifest` (JSON object), `config` (YAML text)
    [image<k>/]                 only when the trace holds several images; one image lies at the root
        input/image             uint8 (H, W, 3) BGR, the picture as read
        input/resized           uint8 (h, w, 3) BGR, the network input before normalisation
        steps/<module>[/index]  what a detectron2 module returned, NCHW or (rows, columns)
        output/instances/...    final results in pixels of the picture; beside it output/proposals/...,
                                output/sem_seg, and output/panoptic_seg, whose segments are the attribute
                                `output/segments_info` (JSON list)
        forced/<stage>          the same arrays computed from another trace's inputs
                                (`parity.core.units.forced_name`)
        steps64/<module>        recordings only: continuous modules again in float64
    weights/<key>               recordings only: the state dict

A dataset that holds only its first rows says how many there were in its attribute `rows`.
numpy and h5py only. Reading follows no soft or external link.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from parity.core.units import array_of
from parity.core.units.table import PROPOSAL_RESULTS, PROPOSALS, RESULTS
from weights.errors import UserError

_FORMAT_VERSION = 1
_EXPECTED = (
    "a trace is a file that tf-d2 parity wrote (reference.h5, candidate.h5) or a recording of detectron2, "
    "whole and unchanged"
)
_SECTIONS = ("input", "steps", "steps64", "output", "forced")


class TraceError(UserError, ValueError):
    """A file that is not a trace, or lacks what was asked for."""


class MissingArrayError(TraceError, KeyError):
    """A trace does not have an array. A KeyError, so that ``get`` of a mapping works."""

    __str__ = Exception.__str__  # a KeyError shows its message in quotes


class ImageTrace(Mapping[str, np.ndarray]):
    """The arrays of one image, by name (`steps/backbone/p2`). Read when asked for, not before."""

    def __init__(self, group: h5py.Group, source: str, recorded: bool = False) -> None:
        """recorded: from a recording of detectron2, which shortens ROI features without saying so."""
        self._recorded = recorded
        self._group = group
        self._source = source
        self._names = _dataset_names(group)
        if recorded and self._rescaled_in_place():
            for name in PROPOSALS.members:
                self._names.pop(name, None)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._dataset(name)[()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array without reading it."""
        return self._dataset(name).shape

    def dtype(self, name: str) -> np.dtype:
        """Element type of an array without reading it."""
        return self._dataset(name).dtype

    def rows(self, name: str) -> int:
        """How many rows the backend computed, of which the file may hold only the first `shape(name)[0]`."""
        dataset = self._dataset(name)
        held = dataset.shape[0] if dataset.shape else 1
        if self._recorded and len(dataset.shape) == 4 and name.startswith("steps/"):
            return max(held, self._recorded_rois(name))
        return int(dataset.attrs.get("rows", held))

    def _recorded_rois(self, name: str) -> int:
        """How many regions a recording's ROI features belong to: its proposals, or its detections."""
        counted = {
            "proposals": (PROPOSALS.boxes, "steps/input_proposals"),
            "detections": (RESULTS.scores,),
        }
        owners = counted.get(array_of(name).rows, ())
        return max((self.shape(owner)[0] for owner in owners if owner in self), default=0)

    def complete(self) -> dict[str, np.ndarray]:
        """All arrays of which every row is held."""
        return {name: self[name] for name in self if self.rows(name) == (self.shape(name) or (1,))[0]}

    def float64(self) -> dict[str, np.ndarray]:
        """A recording's float64 pass as if it were the free run: `steps64/x` under the name `steps/x`.

        With the inputs of that pass: the resized image, the first proposals. Empty where there is none.
        """
        found = {"steps/" + name[8:]: self[name] for name in self if name.startswith("steps64/")}
        # steps64/sem_seg_head holds the logits before they are enlarged, which is no stage.
        found.pop("steps/sem_seg_head", None)
        pooled = found.get("steps/roi_heads.box_pooler")
        if pooled is not None and PROPOSALS.boxes in self:
            found[PROPOSALS.boxes] = self[PROPOSALS.boxes][: len(pooled)]
        if found:
            found["input/resized"] = self["input/resized"]
        return found

    def segments_info(self) -> list[dict[str, Any]]:
        """The segments of `output/panoptic_seg`, or an empty list when the trace has none."""
        text = self._group.attrs.get("output/segments_info")
        return [] if text is None else _json_list(_text(text), f"{self._source}: output/segments_info")

    def _rescaled_in_place(self) -> bool:
        """Whether a recording's proposals were turned into the results before they were written down.

        detectron2 rescales the proposals of an RPN-only model in place, so that a recording holds its results twice
        and the boxes in pixels of the network input nowhere.
        """
        final = PROPOSAL_RESULTS.boxes
        if PROPOSALS.boxes not in self._names or final not in self._names:
            return False
        return np.array_equal(self[PROPOSALS.boxes], self[final])

    def _dataset(self, name: str) -> h5py.Dataset:
        if name not in self._names:
            raise MissingArrayError(
                f"{self._source} has no array {name!r}; it holds {len(self._names)} arrays"
            )
        return _own_dataset(self._group, name, self._source)


class Trace:
    """A trace opened for reading. Use as a context manager, or close() it.

    manifest: what the backend says about itself; for a detectron2 recording without one, made from its
    attributes. config: the YAML text, or None. images: one `ImageTrace` per image.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise TraceError(f"cannot open {self.path} as HDF5: {error}; {_EXPECTED}") from error
        try:
            self.manifest = _read_manifest(self._file, str(self.path))
            config = self._file.attrs.get("config")
            self.config = None if config is None else _text(config)
            recorded = self.manifest.get("backend") == "recorded"
            groups = self._image_groups()
            self.images = tuple(ImageTrace(group, source, recorded) for group, source in groups)
        except BaseException as error:
            self._file.close()
            # What h5py raises where bytes inside the file are wrong.
            if isinstance(error, RuntimeError | OSError | KeyError) and not isinstance(error, TraceError):
                raise TraceError(f"{self.path} is damaged: {error}; {_EXPECTED}") from error
            raise

    def precisions(self) -> frozenset[str]:
        """Which of float32 and float64 the network was run in, as far as the trace says: a backend states it, and a
        recording's steps have it. A recording may hold both (see `ImageTrace.float64`)."""
        stated = self.manifest.get("dtype")
        if stated is not None:
            return frozenset([str(stated)])
        if self.manifest.get("backend") != "recorded":
            return frozenset()
        steps = ((i, n) for i in self.images for n in i if n.startswith(("steps/", "steps64/")))
        return frozenset(str(i.dtype(n)) for i, n in steps if i.dtype(n).kind == "f")

    def _image_groups(self) -> list[tuple[h5py.Group, str]]:
        names = [name for name in self._file if name.startswith("image") and name[5:].isdigit()]  # pyright: ignore
        if not names:
            return [(self._file, str(self.path))]
        names.sort(key=lambda name: int(name[5:]))  # pyright: ignore
        if [int(name[5:]) for name in names] != list(range(len(names))):  # pyright: ignore
            raise TraceError(f"{self.path}: images are not numbered 0..{len(names) - 1}: {names}")
        return [(self._own_group(name), f"{self.path} {name}") for name in names]  # pyright: ignore

    def _own_group(self, name: str) -> h5py.Group:
        group = self._file[name] if isinstance(self._file.get(name, getlink=True), h5py.HardLink) else None
        if not isinstance(group, h5py.Group):
            raise TraceError(f"{self.path}: {name} is not a group of this file")
        return group

    def weights(self) -> dict[str, np.ndarray]:
        """The state dict inside a recording (`weights/<key>`), or an empty dict."""
        if "weights" not in self._file:
            return {}
        group = self._own_group("weights")
        source = f"{self.path} weights"
        return {key: np.asarray(_own_dataset(group, key, source)[()]) for key in _dataset_names(group, ())}

    def close(self) -> None:
        """Close the file; arrays already read stay valid."""
        self._file.close()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TraceWriter:
    """Writes a trace under a temporary name and renames it at the end, so a file with the final name is
    complete.

    Use as a context manager: leaving it normally renames, leaving it by an exception removes the temporary
    file. images: how many images the trace will hold. roi_rows: keep only that many leading rows of each
    array that `put` is told to shorten, or None for all.
    """

    def __init__(self, path: str | os.PathLike[str], images: int = 1, roi_rows: int | None = None) -> None:
        if images < 1:
            raise TraceError(f"a trace holds at least one image, not {images}")
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        self._images = images
        self._roi_rows = roi_rows
        self._file = h5py.File(self._temporary, "w")

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None:
            os.replace(self._temporary, self.path)
        else:
            self._temporary.unlink(missing_ok=True)

    def put(self, name: str, array: np.ndarray, image: int = 0, *, shorten: bool = False) -> None:
        """Store an array of one image under its name (`steps/...`). shorten: obey `roi_rows`."""
        if name.split("/")[0] not in _SECTIONS:
            raise TraceError(f"array name {name!r} does not start with one of {', '.join(_SECTIONS)}")
        array = np.asarray(array)
        kept = array[: self._roi_rows] if shorten and self._roi_rows is not None else array
        packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if kept.dtype == bool else {}
        dataset = self._group(image).create_dataset(name, data=kept, **packed)
        if len(kept) < len(array) if array.ndim else False:
            dataset.attrs["rows"] = len(array)

    def put_segments_info(self, segments: list[dict[str, Any]], image: int = 0) -> None:
        """Store the segments of `output/panoptic_seg`."""
        self._group(image).attrs["output/segments_info"] = json.dumps(segments)

    def finish(self, manifest: Mapping[str, Any], config: str) -> None:
        """Store the manifest (JSON-serialisable) and the configuration (YAML text)."""
        text = json.dumps({"format": _FORMAT_VERSION, **manifest}, sort_keys=True)
        self._file.attrs["manifest"] = text
        self._file.attrs["config"] = config

    def _group(self, image: int) -> h5py.Group:
        if not 0 <= image < self._images:
            raise TraceError(f"image {image} is not among the {self._images} of this trace")
        return self._file if self._images == 1 else self._file.require_group(f"image{image}")


def _dataset_names(group: h5py.Group, sections: tuple[str, ...] = _SECTIONS) -> dict[str, None]:
    """Names of the datasets below `group`, in file order, following hard links only (visititems does)."""
    found: dict[str, None] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and (not sections or name.split("/")[0] in sections):
            found[name] = None

    group.visititems(visit)
    return found


def _own_dataset(group: h5py.Group, name: str, source: str) -> h5py.Dataset:
    dataset = group[name]
    assert isinstance(dataset, h5py.Dataset)
    if dataset.external:
        raise TraceError(f"{source}: {name!r} keeps its values in another file; a trace holds its own")
    return dataset


def _read_manifest(file: h5py.File, source: str) -> dict[str, Any]:
    text = file.attrs.get("manifest")
    if text is None:
        return _recording_manifest(file, source)
    try:
        manifest = json.loads(_text(text))
    except ValueError as error:
        raise TraceError(f"{source}: the manifest is not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise TraceError(f"{source}: the manifest is a {type(manifest).__name__}, not an object")
    if manifest.get("format") != _FORMAT_VERSION:
        raise TraceError(
            f"{source}: trace format {manifest.get('format')!r}; this version reads {_FORMAT_VERSION}"
        )
    return manifest


def _recording_manifest(file: h5py.File, source: str) -> dict[str, Any]:
    """The manifest of a recording of detectron2 that holds only `detectron2` and `torch` versions."""
    if "detectron2" not in file.attrs or "config" not in file.attrs:
        raise TraceError(
            f"{source} is not a trace: it has neither a manifest nor detectron2's recording attributes; "
            + _EXPECTED
        )
    versions = {name: _text(file.attrs[name]) for name in ("detectron2", "torch") if name in file.attrs}
    model = _text(file.attrs.get("source", ""))
    return {"format": _FORMAT_VERSION, "backend": "recorded", "versions": versions, "source": model}


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _json_list(text: str, where: str) -> list[dict[str, Any]]:
    """A list written as JSON, or as a Python literal, which is what recordings hold."""
    try:
        value = json.loads(text) if text.startswith('[{"') else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise TraceError(f"{where} is neither JSON nor a Python literal: {error}") from error
    if not isinstance(value, list):
        raise TraceError(f"{where} is not a list")
    return value
