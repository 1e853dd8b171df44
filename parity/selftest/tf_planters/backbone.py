"""Bugs in weights, norms, ResNets and feature pyramids."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from parity.selftest.tf_planters.base import (
    assigned,
    bottom_up,
    layer_output,
    planter,
    refold,
    swapped,
    variable,
)
from tf_d2.layers import conv as conv_layers
from tf_d2.layers import norm as norm_layers
from tf_d2.layers.base import walk
from tf_d2.modeling import fpn, resnet
from tf_d2.ops import interpolate


@contextlib.contextmanager
def _batch_norm_eps(p: Any, eps: float) -> Iterator[None]:
    norms = [layer for layer in walk(p.model) if isinstance(layer, norm_layers.BatchNorm)]
    with contextlib.ExitStack() as stack:
        for norm in norms:
            stack.enter_context(swapped(norm, "eps", eps))
        refold(p)
        yield
    refold(p)


@planter("bn_eps_1e-3")
def _bn_eps(p: Any) -> Iterator[None]:
    with _batch_norm_eps(p, 1e-3):
        yield


@planter("norm_eps_1.001e-5")
def _bn_eps_by_rounding(p: Any) -> Iterator[None]:
    with _batch_norm_eps(p, 1.001e-5):
        yield


@planter("bias_off_1e-6")
def _bias_off(p: Any) -> Iterator[None]:
    """In what is computed, not in the weights, whose hashes would show it."""
    bias = variable(p, "fpn_lateral4/bias").numpy()
    with layer_output(p.model.backbone.fpn_lateral4, lambda y: y + tf.cast(1e-6 * bias, y.dtype)):
        yield


@planter("gamma_beta_swapped")
def _gamma_beta(p: Any) -> Iterator[None]:
    gamma, beta = (variable(p, f"res3/0/conv2/norm/{n}") for n in ("gamma", "beta"))
    with assigned(p, (gamma, beta.numpy()), (beta, gamma.numpy())):
        yield


@planter("mean_variance_swapped")
def _mean_variance(p: Any) -> Iterator[None]:
    mean, variance = (variable(p, f"res3/0/conv2/norm/{n}") for n in ("moving_mean", "moving_variance"))
    with assigned(p, (mean, variance.numpy()), (variance, np.abs(mean.numpy()))):
        yield


@planter("kernel_rows_columns_swapped")
def _kernel_swapped(p: Any) -> Iterator[None]:
    kernel = variable(p, "res4/1/conv2/kernel")
    with assigned(p, (kernel, kernel.numpy().transpose(1, 0, 2, 3))):
        yield


@planter("fc_height_width_swapped")
def _fc_swapped(p: Any) -> Iterator[None]:
    kernel = variable(p, "box_head/fc1/kernel")
    with assigned(p, (kernel, kernel.numpy().transpose(1, 0, 2, 3))):
        yield


@planter("bias_dropped")
def _bias_dropped(p: Any) -> Iterator[None]:
    bias = variable(p, "fpn_lateral4/bias")
    with assigned(p, (bias, np.zeros_like(bias.numpy()))):
        yield


@planter("class_rows_rolled")
def _class_rolled(p: Any) -> Iterator[None]:
    kernel, bias = (variable(p, f"box_predictor/cls_score/{n}") for n in ("kernel", "bias"))
    with assigned(p, (kernel, np.roll(kernel.numpy(), 1, -1)), (bias, np.roll(bias.numpy(), 1, -1))):
        yield


@planter("same_padding")
def _same_padding(p: Any) -> Iterator[None]:
    old = conv_layers.conv2d

    def conv2d(x: Any, kernel: Any, bias: Any = None, **geometry: Any) -> Any:
        if geometry.get("stride", 1) == 1 or kernel.shape[0] == 1:
            return old(x, kernel, bias, **geometry)
        y = tf.nn.conv2d(x, kernel, geometry["stride"], "SAME")
        y = y if bias is None else tf.nn.bias_add(y, bias)
        y = y if geometry.get("add") is None else y + geometry["add"]
        return tf.nn.relu(y) if geometry.get("relu") else y

    with swapped(conv_layers, "conv2d", conv2d):
        yield


@planter("max_pool_valid")
def _max_pool_valid(p: Any) -> Iterator[None]:
    with swapped(resnet, "max_pool2d", lambda x, k, stride, pad: tf.nn.max_pool2d(x, k, stride, "SAME")):
        yield


@planter("stride_in_3x3")
def _stride(p: Any) -> Iterator[None]:
    block = bottom_up(p).res3[0]
    with swapped(block.conv1, "stride", 1), swapped(block.conv2, "stride", 2):
        yield


@planter("no_relu_after_sum")
def _no_relu(p: Any) -> Iterator[None]:
    block = bottom_up(p).res2[1]

    def call(x: Any) -> Any:
        return block.conv3(block.middle(block.conv1(x))) + x

    with swapped(block, "call", call):
        yield


@planter("dead_channel")
def _dead_channel(p: Any) -> Iterator[None]:
    def kill(y: Any) -> Any:
        alive = np.ones(y.shape[-1], np.float32)
        alive[7] = 0
        return y * tf.cast(alive, y.dtype)

    with layer_output(bottom_up(p).res4[-1], kill):
        yield


@planter("nan_in_res5")
def _nan(p: Any) -> Iterator[None]:
    def spoil(y: Any) -> Any:
        mask = np.zeros([1, *y.shape[1:]], bool)
        mask[0, 0, 0, 0] = True
        return tf.where(mask, tf.constant(np.nan, y.dtype), y)

    with layer_output(bottom_up(p).res5[-1], spoil):
        yield


@planter("bilinear_top_down")
def _bilinear_top_down(p: Any) -> Iterator[None]:
    def add(fine: Any, coarse: Any) -> Any:
        return fine + interpolate.bilinear(coarse, tf.shape(fine)[1], tf.shape(fine)[2])

    with swapped(fpn, "add_nearest2x", add):
        yield


@planter("average_fusion")
def _average(p: Any) -> Iterator[None]:
    with swapped(p.model.backbone, "average", True):
        yield


@planter("p6_by_average")
def _p6(p: Any) -> Iterator[None]:
    def pool(x: Any) -> list[Any]:
        return [tf.nn.avg_pool2d(x, 2, 2, "SAME")]

    with swapped(p.model.backbone.top_block, "call", pool):
        yield


@planter("p7_without_relu")
def _p7(p: Any) -> Iterator[None]:
    block = p.model.backbone.top_block

    def call(x: Any) -> list[Any]:
        p6 = block.p6(x)
        return [p6, block.p7(p6)]

    with swapped(block, "call", call):
        yield
