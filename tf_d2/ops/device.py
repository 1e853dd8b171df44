"""Computations that have one form for a GPU and another for a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import tensorflow as tf

_Result = TypeVar("_Result")

_here: ContextVar[bool] = ContextVar("runs_here", default=False)


@contextmanager
def runs_here() -> Iterator[None]:
    """Graphs traced inside run in this process only: where it has no GPU, the form for one is left out, which takes a
    second and more to trace and optimise."""
    token = _here.set(True)
    try:
        yield
    finally:
        _here.reset(token)


def on_gpu() -> bool | tf.Tensor:
    """Whether the graph runs on a GPU: known while it is traced, or a bool that is computed when it runs, since an
    export is often made on one kind of machine and served on another."""
    if _here.get() and not tf.config.get_visible_devices("GPU"):
        return False
    return tf.equal(tf.raw_ops.DeviceIndex(device_names=["GPU"]), 0)


def either(chosen: bool | tf.Tensor, first: Callable[[], _Result], second: Callable[[], _Result]) -> _Result:
    """``first()`` if ``chosen``, else ``second()``; both are traced where that is known only when the graph runs."""
    if isinstance(chosen, bool):
        return first() if chosen else second()
    return tf.cond(chosen, first, second)  # pyright: ignore[reportReturnType]
