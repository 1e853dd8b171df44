"""Builds the model of a LazyConfig dump in the real detectron2, from the plain data that `tf_d2` wrote of it.

What the dump held as Python is text there: ``python:module.Class`` for a class, ``_partial_`` for a
``functools.partial``, mappings for ShapeSpecs, and lambdas, which in published configurations are all one norm.
"""

from __future__ import annotations

import functools
import pydoc
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

# Where classes may come from: detectron2 and torch, and nothing a file could misuse.
_MODULES = ("detectron2.", "torch.nn.")
_LAMBDA_NORM = "naiveSyncBN_N"
_SHAPES = ("input_shape", "input_shapes")
_TRAINING = ("get_fed_loss_cls_weights", "loss_normalizer")


def is_lazy(data: Mapping[str, Any]) -> bool:
    """Whether a configuration is a LazyConfig dump."""
    return isinstance(data.get("model"), Mapping) and "_target_" in data["model"]


def build_model(library: SimpleNamespace, data: Mapping[str, Any]) -> Any:
    """The torch module that ``data["model"]`` describes.

    Raises ValueError for a class that is neither detectron2's nor torch's.
    """
    return library.config.instantiate(_objects(library, data["model"]))


def _objects(library: SimpleNamespace, value: Any, key: str = "") -> Any:
    if isinstance(value, str) and value.startswith("python:"):
        return _LAMBDA_NORM if value.endswith("<lambda>") else _located(value.removeprefix("python:"))
    if isinstance(value, list):
        return [_objects(library, item, key) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "_partial_" in value:
        arguments = {name: item for name, item in value.items() if name != "_partial_"}
        return functools.partial(_located(value["_partial_"].removeprefix("python:")), **arguments)
    if "_target_" in value:
        _located(value["_target_"])
    elif key in _SHAPES and set(value) <= {"channels", "height", "width", "stride"}:
        return library.layers.ShapeSpec(**value)
    # Computing a loss needs more than data; nothing at inference asks for it.
    kept = {name: item for name, item in value.items() if name not in _TRAINING or isinstance(item, str)}
    return {
        name: _objects(library, item, key if key in _SHAPES else name)
        for name, item in kept.items()
        if name != "get_fed_loss_cls_weights"
    } | ({"use_fed_loss": False} if "use_fed_loss" in kept else {})


def _located(name: str) -> Any:
    found = pydoc.locate(name) if name.startswith(_MODULES) else None
    if found is None:
        raise ValueError(f"{name}: not a class of detectron2 or torch")
    return found
