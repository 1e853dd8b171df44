"""Convolution and linear layers with detectron2's names and order: convolution, norm, activation."""

from __future__ import annotations

from contextlib import nullcontext

import keras
import numpy as np
import tensorflow as tf

from tf_d2.layers.base import Module
from tf_d2.layers.norm import BatchNorm, get_norm
from tf_d2.ops.conv import conv2d, conv_transpose2d, conv_transpose_tiles
from tf_d2.ops.deform_conv import deform_conv2d
from weights.errors import UsageError


class Conv2d(Module):
    """Convolution, then norm, then ReLU if asked for. ``[N, H, W, C_in]`` -> ``[N, H', W', C_out]``.

    Variables ``kernel [k, k, C_in / groups, C_out]``, ``bias [C_out]`` and those of the child ``norm``, or, given
    ``norm_beside``, of a norm of that name in the scope around the convolution (RegNet's ``a`` and ``a_bn``).
    :meth:`fold` merges a batch norm into the kernel for inference.
    Source: detectron2/layers/wrappers.py ``Conv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        name: str,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        norm: str = "",
        norm_beside: str | None = None,
        relu: bool = False,
        large_maps: bool = False,
    ) -> None:
        super().__init__(name)
        self.large_maps = large_maps
        self.stride, self.padding, self.dilation, self.relu = stride, padding, dilation, relu
        self.in_channels, self.out_channels = in_channels, out_channels
        shape = (kernel_size, kernel_size, in_channels // groups, out_channels)
        self.kernel = self.parameter("kernel", shape)
        self.bias = self.parameter("bias", (out_channels,)) if bias else None
        with nullcontext() if norm_beside else self.scope():
            self.norm = get_norm(norm, out_channels, norm_beside or "norm")
        self._folded: tuple[keras.Variable | tf.Variable, ...] | None = None
        self.released = False

    def fold(self, release: bool = False) -> None:
        """Merge a following batch norm into kernel and bias (computed in float64, rounded once).

        The variables stay as they were loaded, unless ``release`` gives their memory to the merged kernel.
        """
        self.must_be_loaded()
        if not isinstance(self.norm, BatchNorm):
            return
        scale, shift = self.norm.scale_and_shift()
        kernel = self.kernel.value.numpy().astype(np.float64) * scale
        if self.bias is not None:
            shift = shift + self.bias.value.numpy().astype(np.float64) * scale
        dtype = tf.as_dtype(self.variable_dtype)
        merged, bias = (tf.constant(x, dtype) for x in (kernel, shift))
        if release:
            self.kernel.assign(merged)
        self._folded = (
            self.kernel if release else tf.Variable(merged, trainable=False),
            tf.Variable(bias, trainable=False),
        )
        self.released = release

    def unfold(self) -> None:
        """Compute with the kernel and the norm as they were loaded."""
        self.must_be_loaded()
        self._folded = None

    def loaded(self) -> None:
        """Forget the merged weights: the variables hold new ones."""
        self._folded = None

    def must_be_loaded(self) -> None:
        """Raise ValueError if the variables do not hold what was loaded any more."""
        if self.released:
            raise UsageError(
                f"{self.kernel.path}: this model holds kernels merged with their norms, not the weights as loaded, and "
                "takes no other weights; use tf_d2.load_model (a Predictor with fold_norms=False will do, too)"
            )

    def dilated(self, x: tf.Tensor, dilation: int) -> tf.Tensor:
        """:meth:`call` of a 3x3 convolution with another dilation, and as much padding (a branch of TridentNet)."""
        own = self.padding, self.dilation
        self.padding = self.dilation = dilation
        try:
            return self.call(x)
        finally:
            self.padding, self.dilation = own

    def call(self, x: tf.Tensor, add: tf.Tensor | None = None, relu: bool = False) -> tf.Tensor:
        """``add`` and ``relu``: a residual block's sum and what follows it, computed with the convolution."""
        relu = relu or self.relu
        if self._folded is None and self.norm is not None:
            y = self.norm(self.convolve(x, self.value(self.kernel), self.optional_value(self.bias)))
            y = y if add is None else y + add
            return tf.nn.relu(y) if relu else y
        kernel, bias = self._folded or (self.kernel, self.bias)
        return self.convolve(x, self.value(kernel), self.optional_value(bias), add, relu)

    def convolve(
        self,
        x: tf.Tensor,
        kernel: tf.Tensor,
        bias: tf.Tensor | None,
        add: tf.Tensor | None = None,
        relu: bool = False,
    ) -> tf.Tensor:
        return conv2d(
            x,
            kernel,
            bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            add=add,
            relu=relu,
            large_maps=self.large_maps,
        )


class DeformConv2d(Conv2d):
    """Deformable convolution v1 or, with a mask, v2: the offsets are a second input.

    Source: detectron2/layers/deform_conv.py ``DeformConv``, ``ModulatedDeformConv``.
    """

    def __init__(self, *args: int, name: str, deformable_groups: int, **kwargs: int | bool | str) -> None:
        super().__init__(*args, name=name, bias=False, **kwargs)
        self.deformable_groups = deformable_groups

    def call(self, x: tf.Tensor, offset: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        kernel, bias = self._folded or (self.kernel, None)
        y = deform_conv2d(
            x,
            offset,
            self.value(kernel),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            deformable_groups=self.deformable_groups,
            mask=mask,
        )
        if bias is not None:
            y = tf.nn.bias_add(y, self.value(bias))
        elif self.norm is not None:
            y = self.norm(y)
        return tf.nn.relu(y) if self.relu else y


class ConvTranspose2d(Module):
    """Transposed convolution of stride 2 with bias, which doubles height and width (kernels of even size).

    Variables ``kernel [k, k, C_out, C_in]``, ``bias [C_out]``.
    """

    stride = 2

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, name: str, *, relu: bool = False
    ) -> None:
        super().__init__(name)
        self.padding, self.relu = int(kernel_size / 2 - 1), relu
        self.kernel = self.parameter("kernel", (kernel_size, kernel_size, out_channels, in_channels))
        self.bias = self.parameter("bias", (out_channels,))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        kernel, bias = self.value(self.kernel), self.value(self.bias)
        y = conv_transpose2d(x, kernel, bias, stride=self.stride, padding=self.padding)
        return tf.nn.relu(y) if self.relu else y

    def tiles(self, x: tf.Tensor) -> tf.Tensor:
        """The result in tiles that are not yet joined (see :func:`tf_d2.ops.conv.conv_transpose_tiles`)."""
        assert self.kernel.shape[0] == self.kernel.shape[1] == self.stride and not self.padding
        y = conv_transpose_tiles(x, self.value(self.kernel), self.value(self.bias))
        return tf.nn.relu(y) if self.relu else y


class Linear(Module):
    """``x @ kernel + bias`` over the last axis, any axes before it.

    With ``spatial`` set the input is ``[N, H, W, C]`` and the kernel ``[H, W, C, out]``: the layer that detectron2
    applies to features flattened as (C, H, W), its weight permuted once when it is loaded.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        name: str,
        *,
        spatial: int | None = None,
        bias: bool = True,
        relu: bool = False,
    ) -> None:
        super().__init__(name)
        self.relu, self.in_features, self.out_features = relu, in_features, out_features
        self.flat = spatial is not None
        if spatial is None:
            shape: tuple[int, ...] = (in_features, out_features)
        else:
            shape = (spatial, spatial, in_features // spatial**2, out_features)
        self.kernel = self.parameter("kernel", shape)
        self.bias = self.parameter("bias", (out_features,)) if bias else None

    def call(self, x: tf.Tensor) -> tf.Tensor:
        kernel = tf.reshape(self.value(self.kernel), [self.in_features, self.out_features])
        y = tf.matmul(tf.reshape(x, [-1, self.in_features]), kernel)
        if self.bias is not None:
            # The two axes keep the bias from being fused into the product: for the tall matrices after ROI pooling the
            # fused kernel is a third slower than the plain one.
            y = tf.nn.bias_add(tf.reshape(y, [-1, 1, 1, self.out_features]), self.value(self.bias))
        leading = [] if self.flat or x.shape.rank == 2 else tf.unstack(tf.shape(x)[:-1])
        y = tf.reshape(y, [*(leading or [-1]), self.out_features])
        if leading:
            y = tf.ensure_shape(y, [*x.shape[:-1], self.out_features])
        return tf.nn.relu(y) if self.relu else y
