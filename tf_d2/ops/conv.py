"""Convolution and pooling with torch's padding.

torch pads symmetrically; TensorFlow's SAME pads less at the top and left when a stride of 2 meets an even size, and
then computes something else. So the padding is always spelled out. Output size:
``floor((n + 2 p - d (k - 1) - 1) / s) + 1``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_d2.kernels import weights_assumed_frozen
from tf_d2.ops import onednn, winograd


def conv2d(
    x: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    add: tf.Tensor | None = None,
    relu: bool = False,
    large_maps: bool = False,
) -> tf.Tensor:
    """2-D cross-correlation, then what may follow it: ``relu(conv(x) + bias + add)``.

    Args:
        x: ``[N, H, W, C_in]``, any float dtype.
        kernel: ``[kh, kw, C_in / groups, C_out]`` of the dtype of ``x``; fewer input channels than ``x`` has means
            grouped convolution.
        bias: ``[C_out]`` or None.
        padding: zeros added on every side, in cells.
        add: of the shape of the result, or None.
        relu: whether negative values become 0 at the end.
        large_maps: whether to look if the map is so large that :func:`tf_d2.ops.winograd.conv3x3` is faster; both ways
            are in the graph then.

    Returns:
        ``[N, H', W', C_out]``.

    Source: torch.nn.functional.conv2d.
    """
    if x.shape[0] == 0:  # TensorFlow's kernel of oneDNN gives no images the shape of its input
        one = tf.zeros(tf.concat([[1], tf.shape(x)[1:]], 0), x.dtype)
        return conv2d(one, kernel, bias, stride=stride, padding=padding, dilation=dilation)[:0]
    pads: Any = _conv_padding(kernel, stride, padding, dilation)

    def direct() -> tf.Tensor:
        if onednn.active(x.dtype):
            return onednn.conv2d(
                x, kernel, onednn.Steps(stride, pads, dilation), onednn.After(bias, add, relu)
            )
        y = _afresh(lambda x, kernel: tf.nn.conv2d(x, kernel, stride, pads, dilations=dilation), x, kernel)
        y = _with_bias(x, y, kernel, bias)
        y = y if add is None else y + add
        return tf.nn.relu(y) if relu else y

    same = (stride, pads, dilation) == (1, "SAME", 1) and add is None
    if large_maps and same and winograd.pays(x, kernel):
        return tf.cond(
            winograd.large(x, kernel, bias), lambda: winograd.conv3x3(x, kernel, bias, relu), direct
        )
    return direct()


def depthwise_conv2d(x: tf.Tensor, kernel: tf.Tensor, *, stride: int, padding: int) -> tf.Tensor:
    """2-D cross-correlation of each channel with a filter of its own.

    Args:
        x: ``[N, H, W, C]``, any float dtype.
        kernel: ``[kh, kw, C, 1]`` of the dtype of ``x``.
        padding: zeros added on every side, in cells.

    Returns:
        ``[N, H', W', C]``.

    Source: torch.nn.functional.conv2d with as many groups as channels.
    """
    strides, pads = [1, stride, stride, 1], [[0, 0], [padding, padding], [padding, padding], [0, 0]]
    return _afresh(lambda x, kernel: tf.nn.depthwise_conv2d(x, kernel, strides, pads), x, kernel)


def _afresh(
    convolution: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], x: tf.Tensor, kernel: tf.Tensor
) -> tf.Tensor:
    """``convolution(x, kernel)``, with this kernel also where TF_ONEDNN_ASSUME_FROZEN_WEIGHTS is set.

    Computing eagerly, TensorFlow takes one kernel object for all convolutions of the same attributes, and with that
    variable the object goes on using the filter it met first: another layer's. In a graph each has its own.
    """
    if tf.executing_eagerly() and weights_assumed_frozen():
        convolution = tf.function(convolution, autograph=False)
    return convolution(x, kernel)


def _with_bias(x: tf.Tensor, y: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    if bias is None:
        return y
    # Without oneDNN (TF_ENABLE_ONEDNN_OPTS=0, and by default on processors without AVX512_VNNI) the graph optimiser
    # makes one op of a convolution and a BiasAdd, also of grouped ones, for which that op has no kernel. A plain sum
    # it leaves alone there, and with oneDNN, which has the kernel, it fuses both.
    grouped = kernel.shape[2] != x.shape[-1]
    return y + bias if grouped else tf.nn.bias_add(y, bias)


def _conv_padding(kernel: tf.Tensor, stride: int, padding: int, dilation: int) -> str | list[list[int]]:
    kernel_h, kernel_w, *_ = _static_shape(kernel)
    # With stride 1 SAME is the same symmetric padding, and the form every fused kernel accepts. It also tells
    # TensorFlow that input and output are of one size, without which the sum of a residual block is not fused.
    if stride == 1 and kernel_h == kernel_w and 2 * padding == dilation * (kernel_h - 1):
        return "SAME"
    if padding == 0:
        return "VALID"
    return [[0, 0], [padding, padding], [padding, padding], [0, 0]]


def conv_transpose2d(
    x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None = None, *, stride: int, padding: int = 0
) -> tf.Tensor:
    """2-D transposed convolution without output padding.

    Args:
        x: ``[N, H, W, C_in]``.
        kernel: ``[kh, kw, C_out, C_in]`` (torch's ``[C_in, C_out, kh, kw]`` transposed by (2, 3, 1, 0), no flip).
        padding: torch's ``padding``: cells cut from every side of the full result.

    Returns:
        ``[N, (H - 1) stride - 2 padding + kh, ..., C_out]``.

    Source: torch.nn.functional.conv_transpose2d.
    """
    n, h, w = tf.unstack(tf.shape(x)[:3])
    kernel_h, kernel_w, channels, _ = _static_shape(kernel)
    out_h, out_w = (h - 1) * stride + kernel_h - 2 * padding, (w - 1) * stride + kernel_w - 2 * padding
    full = tf.stack([n, out_h, out_w, channels])
    pad: Any = [[0, 0], [padding, padding], [padding, padding], [0, 0]] if padding else "VALID"
    y = tf.nn.conv2d_transpose(x, kernel, full, stride, pad)
    return y if bias is None else tf.nn.bias_add(y, bias)


def conv_transpose_tiles(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None = None) -> tf.Tensor:
    """:func:`conv_transpose2d` with a stride as large as the kernel, where every input cell paints a tile of its own.

    Returns ``[N, H, W, kh * kw * C_out]``: the tiles, pixel by pixel, not yet joined (:func:`join_tiles`). Bias and
    what follows pixel by pixel can be fused into this convolution, or are done before a copy is made.
    """
    kernel_h, kernel_w, channels_out, channels_in = _static_shape(kernel)
    pixels = kernel_h * kernel_w
    matrix = tf.reshape(tf.transpose(kernel, [3, 0, 1, 2]), [1, 1, channels_in, pixels * channels_out])
    return conv2d(x, matrix, None if bias is None else tf.tile(bias, [pixels]))


def join_tiles(tiles: tf.Tensor, size: int) -> tf.Tensor:
    """Square tiles ``[N, H, W, size * size * C]`` -> the picture ``[N, H * size, W * size, C]``."""
    n, h, w = tf.unstack(tf.shape(tiles)[:3])
    channels: int = tiles.shape[-1]  # pyright: ignore[reportAssignmentType]
    tiles = tf.reshape(tiles, [n, h, w, size, size, channels // size**2])
    tiles = tf.transpose(tiles, [0, 1, 3, 2, 4, 5])
    return tf.reshape(tiles, [n, h * size, w * size, channels // size**2])


def max_pool2d(x: tf.Tensor, kernel_size: int, stride: int, padding: int) -> tf.Tensor:
    """Max pooling; the padding counts as -infinity. ``[N, H, W, C]`` -> ``[N, H', W', C]``.

    Source: torch.nn.functional.max_pool2d.
    """
    if padding:
        lowest = x.dtype.min
        pads = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        x = tf.pad(x, pads, constant_values=tf.constant(lowest, x.dtype))
    return tf.nn.max_pool2d(x, kernel_size, stride, "VALID")


def _static_shape(kernel: tf.Tensor) -> tuple[int, int, int, int]:
    """The shape of a kernel, which is always known."""
    return tuple(kernel.shape)  # pyright: ignore[reportReturnType]
