"""Names and layouts of weights: a Keras variable path and array, and the key and tensor of detectron2 that they are."""

from __future__ import annotations

import re

import numpy as np

Shape = tuple[int, ...]

_LEAF_TO_TORCH = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def path_to_key(path: str) -> str:
    """The detectron2 state-dict key of the Keras variable ``path``."""
    *modules, leaf = path.split("/")
    return ".".join([*modules, _LEAF_TO_TORCH.get(leaf, leaf)])


def keras_layout(array: np.ndarray, shape: Shape, leaf: str) -> np.ndarray | None:
    """``array`` (torch layout) as the variable ``leaf`` of ``shape``, a view; None if it does not fit."""
    if leaf == "kernel" and len(shape) == 4 and array.ndim == 2:
        height, width, channels, out = shape
        if array.shape != (out, channels * height * width):
            return None
        return array.reshape(out, channels, height, width).transpose(2, 3, 1, 0)
    if leaf == "kernel" and array.ndim >= 2:
        array = array.transpose(*range(2, array.ndim), 1, 0)
    return array if array.shape == shape else None


def torch_layout(array: np.ndarray, path: str, shape: Shape | None = None) -> np.ndarray:
    """Inverse of :func:`keras_layout`: the variable ``path`` as detectron2 stores it, a view where possible.

    ``shape`` is the torch shape if known. Without it a 4-D kernel of a layer named ``fc<number>`` is a
    linear layer after a flatten, as in all of detectron2's box heads, and any other one a convolution.
    """
    *_, layer, leaf = ("", *path.split("/"))
    if leaf != "kernel" or array.ndim < 2:
        return array
    result = array.transpose(array.ndim - 1, array.ndim - 2, *range(array.ndim - 2))
    is_linear = len(shape) == 2 if shape is not None else re.fullmatch(r"fc\d+", layer) is not None
    if array.ndim == 4 and is_linear:
        return result.reshape(result.shape[0], -1)
    return result


def torch_shape(shape: Shape, leaf: str) -> Shape:
    """The torch shape of a Keras variable (a linear layer after a flatten shows as its convolution)."""
    return (shape[-1], shape[-2], *shape[:-2]) if leaf == "kernel" and len(shape) >= 2 else shape
