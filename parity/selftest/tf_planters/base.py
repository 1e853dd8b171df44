"""What the planters of bugs are made of: changes of the TensorFlow model that are undone afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from parity.core import swap

_Planter = Callable[[Any], "contextlib.AbstractContextManager[None]"]
PLANTERS: dict[str, _Planter] = {}


def planter(name: str) -> Callable[[Callable[..., Iterator[None]]], Callable[..., Any]]:
    """Register a generator function as the planter of the bug called ``name``."""

    def register(function: Callable[..., Iterator[None]]) -> Callable[..., Any]:
        PLANTERS[name] = contextlib.contextmanager(function)
        return PLANTERS[name]

    return register


def swapped(owner: Any, name: str, value: Any) -> contextlib.AbstractContextManager[None]:
    """``owner.name`` is ``value`` for a while."""
    return swap.swapped(owner, name, value, _set)


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, tf.Module) and not isinstance(value, tf.Module):
        object.__setattr__(owner, name, value)  # Keras would track or wrap it
    else:
        setattr(owner, name, value)


@contextlib.contextmanager
def assigned(predictor: Any, *changes: tuple[Any, Any]) -> Iterator[None]:
    """Variables hold other values for a while, and the folded weights follow."""
    old = [(v, v.numpy()) for v, _ in changes]
    for variable, value in changes:
        variable.assign(value)
    refold(predictor)
    try:
        yield
    finally:
        for variable, value in old:
            variable.assign(value)
        refold(predictor)


def refold(predictor: Any) -> None:
    predictor.model.unfold_norms()
    if predictor.model.compute_dtype != "float64":
        predictor.model.fold_norms()


def bottom_up(predictor: Any) -> Any:
    backbone = predictor.model.backbone
    return getattr(backbone, "bottom_up", backbone)


def variable(predictor: Any, ending: str) -> Any:
    return next(v for v in predictor.model._all_variables() if v.path.endswith(ending))


@contextlib.contextmanager
def layer_output(layer: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    old = layer.call
    with swapped(layer, "call", lambda *a, **k: change(old(*a, **k))):
        yield


@contextlib.contextmanager
def together(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for owner, name, value in changes:
            stack.enter_context(swapped(owner, name, value))
        yield


def across_groups(module: Any) -> contextlib.AbstractContextManager[None]:
    """The ``batched_nms`` that a module calls suppresses boxes of other groups (classes or levels), too."""
    old = module.batched_nms

    def ungrouped(boxes: Any, scores: Any, groups: Any, *rest: Any) -> Any:
        return old(boxes, scores, tf.zeros_like(groups), *rest)

    return swapped(module, "batched_nms", ungrouped)


def aligned_corners(x: Any, height: Any, width: Any) -> Any:
    """Bilinear interpolation that maps corner cells onto corner cells."""

    def axis(count: int, size: int) -> tuple[Any, Any, Any]:
        at = np.linspace(0, count - 1, size) if size > 1 else np.zeros(1)
        low = np.minimum(np.floor(at).astype(int), max(count - 2, 0))
        return low, np.minimum(low + 1, count - 1), at - low

    (y0, y1, fy), (x0, x1, fx) = axis(x.shape[1], int(height)), axis(x.shape[2], int(width))
    fy, fx = tf.cast(fy[:, None, None], x.dtype), tf.cast(fx[:, None], x.dtype)
    rows = tf.gather(x, y0, axis=1) * (1 - fy) + tf.gather(x, y1, axis=1) * fy
    return tf.gather(rows, x0, axis=2) * (1 - fx) + tf.gather(rows, x1, axis=2) * fx


def nearest(x: Any, height: Any, width: Any) -> Any:
    rows = np.arange(int(height)) * x.shape[1] // int(height)
    columns = np.arange(int(width)) * x.shape[2] // int(width)
    return tf.gather(tf.gather(x, rows, axis=1), columns, axis=2)
