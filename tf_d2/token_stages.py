"""Single computations of the transformers on given inputs, for `tf_d2.stages`.

Tokens are ``[N, H, W, C]`` in ViT and MViT and rows ``[N, H * W, C]`` in Swin, where the map of the patches
``[N, C, H, W]`` tells the size. Source: detectron2/modeling/backbone/vit.py, mvit.py, swin.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_d2.ops.windows import window_partition

Arrays = Sequence[Any]
TOKEN_OPS: dict[str, Callable[[Any, tuple[Any, ...], list[np.ndarray]], Arrays]] = {}


def _op(function: Callable[[Any, tuple[Any, ...], list[np.ndarray]], Arrays]) -> Callable[..., Arrays]:
    TOKEN_OPS[function.__name__.removeprefix("_")] = function
    return function


def layer_at(model: Any, path: str) -> Any:
    """The layer at a module path of detectron2: attributes, and keys or indices where a module holds a list."""
    for part in path.split("."):
        if part == "layers" and hasattr(model, "layer_list"):
            model = model.layer_list  # Keras has an attribute of that name
        elif hasattr(model, part):
            model = getattr(model, part)
        else:
            model = model[int(part) if isinstance(model, list | tuple) else part]
    return model


def _tensors(model: Any, inputs: Arrays) -> list[tf.Tensor]:
    dtype = tf.as_dtype(model.compute_dtype)
    return [tf.cast(tf.constant(x), dtype) for x in inputs]


def _map(model: Any, array: np.ndarray) -> tf.Tensor:
    return _tensors(model, [np.moveaxis(array, 1, -1)])[0]


def _nchw(x: tf.Tensor) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x.numpy(), -1, 1))


def _grid(model: Any, inputs: list[np.ndarray], layer: int) -> tf.Tensor:
    """Rows of a layer, given with the patches, as a map; every layer before it halved the size, rounding up."""
    rows, patches = inputs
    height, width = patches.shape[2:]
    for _ in range(layer):
        height, width = -(-height // 2), -(-width // 2)
    return tf.reshape(_tensors(model, [rows])[0], [len(rows), height, width, rows.shape[2]])


def _rows(x: tf.Tensor) -> np.ndarray:
    array = x.numpy()
    return array.reshape(len(array), -1, array.shape[3])


@_op
def _patches(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [layer_at(model, args[0])(_map(model, inputs[0]))]


@_op
def _positions(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [layer_at(model, args[0]).add_positions(*_tensors(model, inputs))]


@_op
def _tokens(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [layer_at(model, args[0])(*_tensors(model, inputs))]


@_op
def _windows(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    _, *sides = args
    return [window_partition(x, side) for x, side in zip(_tensors(model, inputs), sides, strict=True)]


@_op
def _relative_positions(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return layer_at(model, args[0]).positions(*_tensors(model, inputs))


@_op
def _attention(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    x, *positions = _tensors(model, inputs)
    return [layer_at(model, args[0])(x, positions=tuple(positions) or None)]


@_op
def _pool(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return layer_at(model, args[0]).pooled(*_tensors(model, inputs))


@_op
def _pooled_attention(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    path, windowed = args
    _, *rest = _tensors(model, inputs)
    pooled, rest = rest[:3], rest[3:]
    parts, positions = (rest[:3], rest[3:]) if windowed else (pooled, rest)
    return [layer_at(model, path).attend(pooled[0], tuple(parts), tuple(positions) or None)]


@_op
def _join(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [layer_at(model, args[0]).join(*_tensors(model, inputs))]


@_op
def _finish(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    (x,) = _tensors(model, inputs)
    flat = x[:, None] if len(x.shape) == 3 else x
    return [tf.reshape(layer_at(model, args[0]).finish(flat), tf.shape(x))]


@_op
def _token_map(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    (x,) = _tensors(model, inputs)
    return [_nchw(layer_at(model, args[1])(x) if args[1] else x)]


@_op
def _rows_of_map(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [_rows(layer_at(model, args[0]).add_positions(_map(model, inputs[0])))]


@_op
def _shift_mask(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [layer_at(model, args[0]).apart(_grid(model, inputs, args[1]))]


@_op
def _shifted_windows(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [_rows(layer_at(model, args[0]).windows(_grid(model, inputs, args[1])))]


def _cut(model: Any, rows: np.ndarray, window: int) -> tf.Tensor:
    return tf.reshape(_tensors(model, [rows])[0], [len(rows), window, window, rows.shape[2]])


@_op
def _window_attention(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    layer, (windows, *mask) = layer_at(model, args[0]), inputs
    apart = _tensors(model, mask)[0] if mask else None
    return [_rows(layer(_cut(model, windows, layer.window), apart=apart))]


@_op
def _shifted_join(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    block, (x, attended, patches) = layer_at(model, args[0]), inputs
    return [_rows(block.join(_grid(model, [x, patches], args[1]), _cut(model, attended, block.window)))]


@_op
def _merge(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [_rows(layer_at(model, args[0])(_grid(model, inputs, args[1])))]


@_op
def _rows_to_map(model: Any, args: tuple[Any, ...], inputs: list[np.ndarray]) -> Arrays:
    return [_nchw(layer_at(model, args[0])(_grid(model, inputs, args[1])))]
