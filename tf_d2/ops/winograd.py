"""3x3 convolutions of large maps with half of the products: Winograd's F(4, 3), down the columns.

Four rows of a 3x3 convolution need twelve products of a row of cells with a row of the kernel. Six are enough
(Winograd, Toom and Cook): of six sums of the input's rows with six sums of the kernel's, from which four rows are
summed. Along the row it stays a convolution, 1x3, by oneDNN with weights that it keeps or as TensorFlow computes one.
The sums pass over memory, so this pays for wide layers on large maps only, with AVX-512, whose products take half of
the time, on fewer of them than with AVX2. Not on a GPU, not while training (a graph asks for it with
:func:`for_answers`), and not where convolutions are not :func:`even`.

With points 0, 1, -1, 1/2, -2 and infinity, scaled by powers of two, the error is 1.4 to 1.8 times that of oneDNN's
convolution as it is written, 1.1e-6 for 6e-7 at 256 channels; without oneDNN, where TensorFlow adds in shorter sums,
6.5e-7 for 2e-7. A constant map must stay constant, as cells that are equal in detectron2 tie there, too: so the input
enters as differences of rows, which are 0 exactly, and the one sum that is not of differences alone is of point 1,
whose column of SUMS is ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from math import inf

import numpy as np
import tensorflow as tf

from tf_d2 import kernels
from tf_d2.ops import device, onednn

ROWS = 4  # of the result, made from ROWS + 2 of the input
_TILES = 2  # of ROWS rows in one step: as much as stays in the processor's cache
POINT_ONE, BASE = 1, 2  # which product takes a row of the input beside the differences, and which of the six

# Rows of the result (4) from products (6).
SUMS = np.array(
    [
        [1, 1, 1, 1, 1 / 8, 0],
        [0, 1, -1, 1 / 2, -1 / 4, 0],
        [0, 1, 1, 1 / 4, 1 / 2, 0],
        [0, 1, -1, 1 / 8, -1, 1],
    ]
)
# Products (6) from rows of the kernel (3).
OF_KERNEL = np.array(
    [
        [8, 0, 0],
        [1, 1, 1],
        [-4 / 3, 4 / 3, -4 / 3],
        [-128 / 15, -64 / 15, -32 / 15],
        [32 / 15, -64 / 15, 128 / 15],
        [0, 0, 8],
    ]
)
# Products (6) from differences of neighbouring rows of the input (5), and row BASE for product POINT_ONE.
OF_DIFFERENCES = np.array(
    [
        [-1 / 8, 1 / 16, 5 / 16, 1 / 8, 0],
        [0, 1 / 3, 7 / 6, 1 / 3, 0],
        [0, -1 / 4, 3 / 8, 1 / 4, 0],
        [0, 1 / 4, 3 / 8, 1 / 8, 0],
        [0, -1 / 8, 1 / 8, 1 / 4, 0],
        [0, -1 / 8, 1 / 16, 5 / 16, 1 / 8],
    ]
)
_PRODUCTS = len(OF_KERNEL)

_CHANNELS = 128  # with fewer, the sums cost more than the products they save
_WEIGHTS = 512 * 1024  # channels in times out; the kernels' sums take twice the memory of the kernel
_CELLS = 3000  # of one image; on fewer there are too few steps
# What the direct convolution of one step must take of each thread, in operations: below, the sums and the start of a
# dozen operations cost more. Measured with two threads of AMD's Zen 3 and Zen 5.
_WORK = {"AVX2": 100e6, "AVX512_CORE": 300e6}
# Of all threads, where nobody knows who computes the graph: two of them with AVX-512, which TensorFlow's own
# convolutions ask for, too. Where there are more, a server has more requests than one.
_WORK_ANYWHERE = 600e6

_answers: ContextVar[bool] = ContextVar("graph_is_for_answers", default=False)


@contextmanager
def for_answers(on_cpu: bool = True) -> Iterator[None]:
    """Graphs traced inside are for answers alone, not for gradients, and may compute large maps by :func:`conv3x3`;
    not those that are known to run on a GPU."""
    token = _answers.set(on_cpu)
    try:
        yield
    finally:
        _answers.reset(token)


def pays(x: tf.Tensor, kernel: tf.Tensor) -> bool:
    """Whether :func:`conv3x3` of these shapes is worth asking for here, given a map that is large enough."""
    height, width, channels_in, channels = (int(n or 0) for n in kernel.shape)
    square = (height, width) == (3, 3) and channels_in == x.shape[-1]
    wide = square and min(channels_in, channels) >= _CHANNELS and channels_in * channels <= _WEIGHTS
    asked = _answers.get() and not tf.executing_eagerly() and x.dtype == tf.float32
    return asked and wide and _columns(kernel) < inf


def large(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    """bool: whether the maps ``[N, H, W, C]`` are large enough for :func:`conv3x3` with this
    kernel ``[3, 3, C, C_out]``, where it :func:`pays`, and this is no GPU and no processor whose convolutions are
    not :func:`even`."""
    _, height, width, _ = tf.unstack(tf.shape(x))
    enough = tf.logical_and(height * width >= _CELLS, tf.cast(width, tf.float32) >= _columns(kernel))
    if onednn.active(kernel.dtype):  # on an x86-64 CPU with AVX2 or AVX-512, whose kernels are
        return enough
    enough = tf.logical_and(enough, tf.logical_not(device.on_gpu()))
    return tf.cond(enough, lambda: even(width, kernel, bias), lambda: tf.constant(False))


def even(width: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    """bool: whether the convolutions of a step give equal cells equal results wherever in their row they stand.

    Not so TensorFlow's without oneDNN where there is AVX2 only: of some blocks the last two cells are added in another
    order. In a direct convolution these lie at the end of the map, here in every step.
    """
    ones = tf.ones(tf.stack([_TILES, 1, width, kernel.shape[2]]))
    inside = _along(ones, tf.reduce_sum(kernel, 0, keepdims=True), bias)[:, :, 1:-1]
    return tf.reduce_all(tf.equal(inside, inside[:1, :, :1]))


def _columns(kernel: tf.Tensor) -> float:
    """How many a map must have for a step to be long enough; infinite where that is not known."""
    work = _WORK_ANYWHERE
    if onednn.active(kernel.dtype):
        work = _WORK.get(kernels.onednn_isa() or "", inf) * kernels.threads()
    return work / (2 * ROWS * _TILES * kernel.shape.num_elements())


def conv3x3(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None, relu: bool) -> tf.Tensor:
    """``relu(conv(x, kernel) + bias)`` of stride 1 with zeros of one cell around the map, where :func:`pays`.

    Args:
        x: float32 ``[N, H, W, C_in]``.
        kernel: ``[3, 3, C_in, C_out]``; inside :func:`onednn.keep_weights` its values at the first call are used in
            all.
        bias: ``[C_out]`` or None.
        relu: whether negative values become 0 at the end.

    Returns:
        ``[N, H, W, C_out]``.

    Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015); points after Barabasz and others,
    Error Analysis and Improving the Accuracy of Winograd Convolution (2018).
    """
    channels_in, channels = kernel.shape.as_list()[2:]
    n, height, width = tf.unstack(tf.shape(x)[:3])
    rows = tf.reshape(x, [n * height, width * channels_in])
    of_kernel = tf.constant(OF_KERNEL, tf.float32) @ tf.reshape(kernel, [3, -1])
    kernels = tf.unstack(tf.reshape(of_kernel, [_PRODUCTS, 1, 3, channels_in, channels]))
    of_differences, sums = (tf.constant(m, tf.float32) for m in _of_tiles(_TILES))
    step = ROWS * _TILES
    steps = (height + step - 1) // step  # of one image

    # Few nodes: TensorFlow keeps several copies of each in memory, and spends the start of a model on them.
    def one_step(i: tf.Tensor, done: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        image, first = i // steps * height, i % steps * step - 1
        low, high = tf.maximum(first, 0), tf.minimum(first + step + 2, height)
        # Nothing is added inside a map, and nothing copied.
        around = [[low - first, first + step + 2 - high], [0, 0]]
        read = tf.pad(rows[image + low : image + high], around)  # [step + 2, W * C_in]
        differences = onednn.matmul(of_differences, read[1:] - read[:-1])
        parts = tf.unstack(tf.reshape(differences, [_PRODUCTS, _TILES, 1, -1, channels_in]))
        base = tf.reshape(read[BASE : BASE + step], [_TILES, ROWS, 1, -1, channels_in])
        parts[POINT_ONE] += base[:, 0]
        # The bias goes with the product that every row of the result takes once.
        products = [
            _along(part, kernels[k], bias if k == POINT_ONE else None) for k, part in enumerate(parts)
        ]
        products = tf.reshape(tf.concat(products, 0), [_PRODUCTS * _TILES, -1])
        # Not TensorFlow's product with a bias and ReLU: TF_ONEDNN_ASSUME_FROZEN_WEIGHTS has it keep its second factor.
        y = tf.reshape(onednn.matmul(sums, products), [step, -1, channels])
        return i + 1, done.write(i, tf.nn.relu(y) if relu else y)

    done = tf.TensorArray(tf.float32, n * steps, element_shape=[step, None, channels])
    # Two steps at a time: one's sums run on one core beside the other's products.
    _, done = tf.while_loop(
        lambda i, _: i < n * steps, one_step, (tf.constant(0), done), parallel_iterations=2
    )
    y = tf.reshape(done.concat(), [n, steps * step, width, channels])[:, :height]
    y.set_shape([x.shape[0], x.shape[1], x.shape[2], channels])
    return y


def _along(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    """``conv(x, kernel) + bias`` for a kernel of one row, ``[1, 3, C_in, C_out]``."""
    if onednn.active(x.dtype):
        return onednn.conv2d(x, kernel, onednn.Steps(1, "SAME", 1), onednn.After(bias, None, relu=False))
    y = tf.nn.conv2d(x, kernel, 1, "SAME")
    return y if bias is None else tf.nn.bias_add(y, bias)


@cache
def _of_tiles(tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices for some tiles at once, products in front of tiles: ``[6 t, 4 t + 1]`` and ``[4 t, 6 t]``."""
    of_differences = np.zeros((_PRODUCTS, tiles, ROWS * tiles + 1))
    sums = np.zeros((tiles, ROWS, _PRODUCTS, tiles))
    for t in range(tiles):
        of_differences[:, t, ROWS * t : ROWS * t + ROWS + 1] = OF_DIFFERENCES
        sums[t, :, :, t] = SUMS
    return of_differences.reshape(_PRODUCTS * tiles, -1), sums.reshape(ROWS * tiles, -1)
