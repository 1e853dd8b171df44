"""Layers whose attribute names are detectron2's module names.

Because every variable is created under the name scope of its owner, its Keras path is its detectron2 key with other
separators: ``backbone/bottom_up/res2/0/conv1/kernel`` is ``backbone.bottom_up.res2.0.conv1.weight``. No table of names
exists anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf


def _no_values(shape: Sequence[int], dtype: str) -> tf.Tensor:
    return tf.raw_ops.Empty(shape=shape, dtype=tf.as_dtype(dtype))


_initializer: ContextVar[Any] = ContextVar("initializer", default="zeros")


@contextmanager
def unfilled() -> Iterator[None]:
    """Variables made inside hold no values yet: for models whose every variable is assigned next.

    TensorFlow keeps the memory of the zeros it would otherwise fill and drop, as much as the weights take.
    """
    token = _initializer.set(_no_values)
    try:
        yield
    finally:
        _initializer.reset(token)


class Module(keras.layers.Layer):
    """A Keras layer that makes its variables in ``__init__``: the configuration already fixes every shape."""

    def __init__(self, name: str) -> None:
        # Casting inputs to the layer's dtype behind the caller's back would turn float64 boxes into float32.
        super().__init__(name=name, autocast=False)
        self.built = True

    def scope(self) -> AbstractContextManager[Any]:
        """Children constructed inside carry this layer's name in their paths."""
        return keras.name_scope(self.name)

    def parameter(self, name: str, shape: tuple[int, ...], trainable: bool = True) -> keras.Variable:
        """A variable of zeros (see :func:`unfilled`), to be assigned from a checkpoint."""
        return self.add_weight(name=name, shape=shape, initializer=_initializer.get(), trainable=trainable)

    def value(self, parameter: keras.Variable | tf.Variable | tf.Tensor) -> tf.Tensor:
        """The tensor to compute with."""
        tensor = parameter if isinstance(parameter, (tf.Tensor, tf.Variable)) else parameter.value
        return tf.convert_to_tensor(tensor)

    def optional_value(self, parameter: keras.Variable | tf.Variable | tf.Tensor | None) -> tf.Tensor | None:
        """:meth:`value` of a parameter that a layer may lack."""
        return None if parameter is None else self.value(parameter)

    # The model writes all variables itself, under their paths (see modeling.model.D2Model); children write nothing.
    def save_own_variables(self, store: Any) -> None:
        del store

    def load_own_variables(self, store: Any) -> None:
        del store


def sequence(name: str, layers: Mapping[str, Callable[[str], Module]]) -> dict[str, Module]:
    """torch's ``nn.Sequential`` / ``ModuleList``: children named by position, constructed under ``name``."""
    with keras.name_scope(name):
        return {key: make(key) for key, make in layers.items()}


def on_levels(function: Callable[[tf.Tensor], Any], levels: Sequence[tf.Tensor]) -> list[Any]:
    """``function`` of the map ``[N, H, W, C]`` of every pyramid level, in a graph as calls of one function.

    TensorFlow would inline the calls; then the convolution of each level kept a copy of the weights in the layout that
    oneDNN wants (RetinaNet: 110 MB).
    """
    if tf.executing_eagerly():
        return [function(x) for x in levels]
    axes = zip(*(x.shape.as_list() for x in levels), strict=True)
    shape = [sizes[0] if len(set(sizes)) == 1 else None for sizes in axes]
    call = tf.function(
        function,
        input_signature=[tf.TensorSpec(shape, levels[0].dtype)],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
    return [call(x) for x in levels]


def walk(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """``layer`` and every layer below it, each once."""
    yield from layer._flatten_layers(include_self=True, recursive=True)
