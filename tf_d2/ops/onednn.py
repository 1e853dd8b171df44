"""oneDNN's operations asked for directly: convolutions with weights that do not change, and batches of products.

TensorFlow computes convolutions with oneDNN where that is switched on, and oneDNN is fastest with the filter in a
layout of its own. A filter that TensorFlow does not know to be constant, and a variable never is, is handed over as it
lies: on AVX2 that leaves oneDNN only the slow way by a matrix of patches. ``TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1`` mends
it, for every model of the process, also those that are being trained; constants in the graph mend it, at several times
the memory. So inside :func:`keep_weights` the operation that TensorFlow's own optimiser would put in the place of a
convolution, its bias, a sum and its ReLU is asked for directly, with its attribute ``is_filter_const``: the kernel lays
the filter out in its first call and keeps it. It does not matter then whether TensorFlow was started with oneDNN.

These operations have no public name: a graph that holds them is for the process that made it and is not to be saved.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import tensorflow as tf

from tf_d2.kernels import ONEDNN, X86_64

_KERNEL = tf.compat.v1.AttrValue(s=b"MklNameChangeOp")  # under which label TensorFlow registers these kernels

_constant: ContextVar[bool] = ContextVar("weights_are_constant", default=False)


@contextmanager
def keep_weights(keep: bool = True) -> Iterator[None]:
    """Convolutions traced inside keep the weights of their first call, where :func:`available` says that they can."""
    token = _constant.set(keep)
    try:
        yield
    finally:
        _constant.reset(token)


def active(dtype: tf.DType) -> bool:
    """Whether what is traced here and now in this dtype is computed by the operations of this module."""
    return _constant.get() and not tf.executing_eagerly() and available(dtype)


@cache
def available(dtype: tf.DType) -> bool:
    """Whether this process can compute :func:`conv2d` in ``dtype``: an x86-64 CPU without a GPU beside it, and a build
    of TensorFlow with the kernels. Not where TF_ENABLE_ONEDNN_OPTS=0 asks for computation without oneDNN."""
    if platform.machine() not in X86_64 or tf.config.get_visible_devices("GPU"):
        return False
    if os.environ.get(ONEDNN, "").lower() in ("0", "false") or dtype not in (tf.float32, tf.bfloat16):
        return False

    def tried() -> tf.Tensor:
        x = tf.zeros([1, 2, 2, 1], dtype)
        weights = tf.zeros([1, 1, 1, 1], dtype)
        y = conv2d(x, weights, Steps(1, "SAME", 1), After(None, x, relu=True))
        return _batch_matmul(y, x, transpose_b=True)

    try:
        with tf.init_scope():
            # A graph, also where functions run eagerly (tf.config.run_functions_eagerly).
            tf.function(tried, autograph=False).get_concrete_function()()
    except (
        tf.errors.OpError,
        ValueError,
        RuntimeError,
    ):  # an unknown operation, or one without a kernel here
        return False
    return True


class Steps(NamedTuple):
    """Of a convolution, in cells: ``padding`` "SAME", "VALID" or ``[[0, 0], [top, bottom], [left, right], [0, 0]]``."""

    stride: int
    padding: str | list[list[int]]
    dilation: int


class After(NamedTuple):
    """What one operation computes behind its convolution: ``relu(y + bias + add)``.

    ``bias``: ``[C_out]``; ``add``: of the shape of the result.
    """

    bias: tf.Tensor | None
    add: tf.Tensor | None
    relu: bool


def conv2d(x: tf.Tensor, kernel: tf.Tensor, steps: Steps, after: After) -> tf.Tensor:
    """``relu(conv(x, kernel) + bias + add)`` in one operation, in a graph only.

    Args:
        x: ``[N, H, W, C_in]``, float32 or bfloat16, with N > 0: oneDNN's kernels give an empty batch back as it came,
            in TensorFlow's own graphs, too.
        kernel: ``[kh, kw, C_in / groups, C_out]``; its values at the first call are used in all.

    Returns:
        ``[N, H', W', C_out]`` of the dtype of ``x``. The fused ReLU makes 0 of NaN, as it does in every model that
        TensorFlow's optimiser fuses where oneDNN is on.

    Source: TensorFlow's kernel `_MklNativeFusedConv2D`, what its optimiser puts in the place of these operations.
    """
    dtype = x.dtype.as_datatype_enum
    stride, padding, dilation = steps
    bias, add, relu = after
    explicit = [] if isinstance(padding, str) else [n for pair in padding for n in pair]
    attributes = {
        "T": _attr(type=dtype),
        "strides": _integers(1, stride, stride, 1),
        "dilations": _integers(1, dilation, dilation, 1),
        "padding": _attr(s=(padding if isinstance(padding, str) else "EXPLICIT").encode()),
        "explicit_paddings": _integers(*explicit),
        "data_format": _attr(s=b"NHWC"),
        "is_filter_const": _attr(b=True),
        "_kernel": _KERNEL,
    }
    rest = [tf.zeros([kernel.shape[3]], x.dtype) if bias is None else bias, *([] if add is None else [add])]
    fused = [b"BiasAdd", *([] if add is None else [b"Add"]), *([b"Relu"] if relu else [])]
    attributes |= {
        "TArgs": _attr(list=tf.compat.v1.AttrValue.ListValue(type=[dtype] * len(rest))),
        "num_args": _attr(i=len(rest)),
        "num_host_args": _attr(i=0),
        "fused_ops": _attr(list=tf.compat.v1.AttrValue.ListValue(s=fused)),
    }
    graph: Any = tf.compat.v1.get_default_graph()
    y = graph.create_op(
        "_MklNativeFusedConv2D", [x, kernel, *rest], [x.dtype], name="conv2d", attrs=attributes
    ).outputs[0]
    # TensorFlow infers nothing of the fused operation's result.
    y.set_shape([*_inferred(x, kernel, steps), kernel.shape[3]])
    return y


def matmul(a: tf.Tensor, b: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    """``tf.matmul`` of stacks of matrices, ``[..., m, k]`` and ``[..., k, n]``; by oneDNN where :func:`active`, which
    computes many small products in less than half of the time."""
    if not active(a.dtype):
        return tf.matmul(a, b, transpose_b=transpose_b)
    return _batch_matmul(a, b, transpose_b)


def _batch_matmul(a: tf.Tensor, b: tf.Tensor, transpose_b: bool) -> tf.Tensor:
    attributes = {
        "T": _attr(type=a.dtype.as_datatype_enum),
        "adj_x": _attr(b=False),
        "adj_y": _attr(b=transpose_b),
        "_kernel": _KERNEL,
    }
    graph: Any = tf.compat.v1.get_default_graph()
    return graph.create_op("_MklBatchMatMulV2", [a, b], [a.dtype], name="matmul", attrs=attributes).outputs[0]


def _inferred(x: tf.Tensor, kernel: tf.Tensor, steps: Steps) -> list[int | None]:
    """N, H', W', as far as they are known."""
    stride, padding, dilation = steps
    sizes: list[int | None] = [x.shape[0]]
    for axis in (1, 2):
        size: int | None = x.shape[axis]
        reach = dilation * (int(kernel.shape[axis - 1]) - 1)  # pyright: ignore[reportArgumentType]
        if size is not None:
            around = sum(padding[axis]) if not isinstance(padding, str) else reach if padding == "SAME" else 0
            size = (size + around - reach - 1) // stride + 1
        sizes.append(size)
    return sizes


def _attr(**value: Any) -> tf.compat.v1.AttrValue:
    return tf.compat.v1.AttrValue(**value)


def _integers(*values: int) -> tf.compat.v1.AttrValue:
    return _attr(list=tf.compat.v1.AttrValue.ListValue(i=values))
