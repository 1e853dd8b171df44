"""The record of what a checkpoint holds, apart from the code that reads it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from weights._files import touched


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        state: tensors by detectron2 key in torch layout, usually read-only views of the file. bfloat16 comes
            as float32 (exact); float16 stays float16.
        format: "detectron2-pkl", "torch-zip", "torch-legacy", "safetensors", "caffe2-pkl", "pycls",
            "tensorpack-npz" or "keras-h5".
        iteration: training step, if the file says.
        author: ``__author__`` of zoo files; "Caffe2" and "pycls" as detectron2 names them.
        matching_heuristics: names are only suffixes of the model's and must be matched
            (:func:`weights.match_heuristically`).
        config: detectron2 config (YAML text) that travels in our own ``.weights.h5``.
        ignored: other top-level entries of the file, and why tensors were left out.
        notes: how it was unwrapped, a sentence each.
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
    notes: list[str] = field(default_factory=list)
    path: str = ""
    _data: memoryview = field(default=memoryview(b""), repr=False)

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the file; computed on first use."""
        digest, piece = hashlib.sha256(), 64 << 20
        for start in range(0, len(self._data), piece):
            digest.update(self._data[start : start + piece])
            touched(piece)
        return digest.hexdigest()
