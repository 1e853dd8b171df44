"""Plants the bugs of `parity.selftest.mutations` in transformers and in FCOS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from parity.selftest.tf_planters.base import planter, swapped, together
from tf_d2 import token_stages
from tf_d2.layers import transformer
from tf_d2.layers.base import walk
from tf_d2.layers.norm import LayerNorm
from tf_d2.modeling import fcos, mvit, simple_feature_pyramid, swin, vit
from tf_d2.modeling import model as models
from tf_d2.ops import attention, interpolate, windows

# ---- attention and its positions -------------------------------------------------------------------------


@planter("relative_term_scaled")
def _scaled_term(p: Any) -> Iterator[None]:
    old = vit.decomposed_bias
    with swapped(vit, "decomposed_bias", lambda q, *rest: old(q * q.shape[2] ** -0.5, *rest)):
        yield


@planter("query_not_scaled")
def _not_scaled(p: Any) -> Iterator[None]:
    old = mvit.attend
    with swapped(mvit, "attend", lambda q, k, v, scale, *rest, **more: old(q, k, v, 1.0, *rest, **more)):
        yield


def _nearest(table: Any, length: Any) -> Any:
    old = int(table.shape[0])
    return tf.gather(table, np.arange(int(length)) * old // int(length))


@planter("relative_positions_nearest")
def _positions_nearest(p: Any) -> Iterator[None]:
    with swapped(attention, "linear", _nearest):
        yield


@planter("relative_positions_aligned")
def _positions_aligned(p: Any) -> Iterator[None]:
    def aligned(table: Any, length: Any) -> Any:
        at = np.linspace(0, table.shape[0] - 1, int(length))
        low = np.minimum(at.astype(int), table.shape[0] - 2)
        part = tf.cast((at - low)[:, None], table.dtype)
        return tf.gather(table, low) * (1 - part) + tf.gather(table, low + 1) * part

    with swapped(attention, "linear", aligned):
        yield


@planter("relative_positions_reversed")
def _positions_reversed(p: Any) -> Iterator[None]:
    old = attention.relative_positions
    with swapped(attention, "relative_positions", lambda table, q, k: old(table[::-1], q, k)):
        yield


@planter("rows_for_columns")
def _rows_for_columns(p: Any) -> Iterator[None]:
    old = vit.positions_of_axes
    with swapped(vit, "positions_of_axes", lambda tables, *sizes: old(tables[::-1], *sizes)):
        yield


@planter("padding_masked")
def _padding_masked(p: Any) -> Iterator[None]:
    call, attend = vit.Attention.call, vit.attend

    def masked_call(self: Any, x: Any, positions: Any = None) -> Any:
        empty = tf.reshape(tf.reduce_all(x == 0, axis=-1), [tf.shape(x)[0], 1, -1])
        empty = tf.repeat(empty, self.heads, axis=0)

        def masked(q: Any, k: Any, v: Any, scale: float, bias: Any, **more: Any) -> Any:
            def add(logits: Any, first: Any, row: Any) -> Any:
                logits = logits if bias is None else bias(logits, first, row)
                return tf.where(empty[first : first + logits.shape[0]], tf.cast(-1e9, logits.dtype), logits)

            return attend(q, k, v, scale, add, **more)

        with swapped(vit, "attend", masked):
            return call(self, x, positions)

    with swapped(vit.Attention, "call", masked_call):
        yield


@planter("windows_by_columns")
def _windows_by_columns(p: Any) -> Iterator[None]:
    def partition(x: Any, window: int) -> Any:
        other = windows.window_partition(tf.transpose(x, [0, 2, 1, 3]), window)
        return tf.transpose(other, [0, 2, 1, 3])

    with together((vit, "window_partition", partition), (token_stages, "window_partition", partition)):
        yield


@planter("windows_joined_by_columns")
def _joined_by_columns(p: Any) -> Iterator[None]:
    def unpartition(x: Any, size: Any) -> Any:
        other = windows.window_unpartition(tf.transpose(x, [0, 2, 1, 3]), size[::-1])
        return tf.transpose(other, [0, 2, 1, 3])

    with swapped(vit, "window_unpartition", unpartition):
        yield


@planter("qkv_bias_dropped")
def _qkv_bias(p: Any) -> Iterator[None]:
    call = vit.Attention.call

    def without(self: Any, x: Any, positions: Any = None) -> Any:
        linear = self.qkv
        with swapped(self, "qkv", lambda y: linear(y) - linear.value(linear.bias)):
            return call(self, x, positions)

    with swapped(vit.Attention, "call", without):
        yield


@planter("heads_before_qkv")
def _heads_first(p: Any) -> Iterator[None]:
    old = vit.split_heads

    def split(qkv: Any, size: Any, heads: int) -> Any:
        shape = tf.shape(qkv)
        parts = tf.reshape(qkv, [*tf.unstack(shape[:3]), heads, 3, -1])
        return old(tf.reshape(tf.transpose(parts, [0, 1, 2, 4, 3, 5]), shape), size, heads)

    with swapped(vit, "split_heads", split):
        yield


# ---- tokens ----------------------------------------------------------------------------------------------


@planter("gelu_tanh")
def _gelu_tanh(p: Any) -> Iterator[None]:
    with swapped(transformer, "gelu", lambda x: tf.nn.gelu(x, approximate=True)):
        yield


@planter("layer_norm_eps_1e-5")
def _layer_norm_eps(p: Any) -> Iterator[None]:
    norms = [layer for layer in walk(p.model.backbone) if isinstance(layer, LayerNorm)]
    with together(*((norm, "eps", 1e-5) for norm in norms)):
        yield


def _absolute(change: Any) -> Any:
    old = vit.absolute_positions
    return swapped(vit, "absolute_positions", lambda table, token, size: change(old, table, token, size))


@planter("class_token_last")
def _class_token_last(p: Any) -> Iterator[None]:
    with _absolute(lambda old, table, token, size: old(table[:, :-1] if token else table, False, size)):
        yield


@planter("class_token_kept")
def _class_token_kept(p: Any) -> Iterator[None]:
    """The first position is that of the class token, all others follow; what is over at the end is left out."""

    def change(old: Any, table: Any, token: bool, size: Any) -> Any:
        height, width = (int(s) for s in size)
        grid = old(table, token, size)
        first = tf.concat([table[:, :1], tf.reshape(grid, [1, height * width, -1])[:, :-1]], axis=1)
        return tf.reshape(first, tf.shape(grid))

    with _absolute(change):
        yield


@planter("positions_transposed")
def _positions_transposed(p: Any) -> Iterator[None]:
    with _absolute(lambda old, t, token, size: tf.transpose(old(t, token, size[::-1]), [0, 2, 1, 3])):
        yield


@planter("positions_bicubic_half")
def _positions_half(p: Any) -> Iterator[None]:
    outer = interpolate._cubic_outer
    with together(
        (interpolate, "_cubic_outer", lambda d: outer(d) * (0.5 / 0.75)),
        (interpolate, "_cubic_inner", lambda d: (1.5 * d - 2.5) * d * d + 1),
    ):
        yield


@planter("square_pad_ignored")
def _square_pad(p: Any) -> Iterator[None]:
    old = models.padded_size
    with swapped(models, "padded_size", lambda h, w, divisibility, square=0: old(h, w, divisibility)):
        yield


@planter("pyramid_without_gelu")
def _pyramid_gelu(p: Any) -> Iterator[None]:
    with swapped(simple_feature_pyramid, "gelu", lambda x: x):
        yield


# ---- pooled attention ------------------------------------------------------------------------------------


@planter("residual_pooling_missing")
def _residual_pooling(p: Any) -> Iterator[None]:
    attentions = [block.attn for block in p.model.backbone.bottom_up.blocks.values()]
    with together(*((layer, "residual_pooling", False) for layer in attentions)):
        yield


@planter("shortcut_from_raw")
def _shortcut_raw(p: Any) -> Iterator[None]:
    old = mvit.MultiScaleBlock.join
    with swapped(mvit.MultiScaleBlock, "join", lambda self, x, normed, attended: old(self, x, x, attended)):
        yield


@planter("shortcut_zero_padding")
def _shortcut_padding(p: Any) -> Iterator[None]:
    def pool(x: Any, kernel: int, stride: int, padding: int) -> Any:
        pads = [[0, 0], [padding, padding], [padding, padding], [0, 0]]
        return tf.nn.max_pool2d(tf.pad(x, pads), kernel, stride, "VALID")

    with swapped(mvit, "max_pool2d", pool):
        yield


@planter("pooled_values_not_normed")
def _values_raw(p: Any) -> Iterator[None]:
    old = mvit.MultiScaleAttention.pooled

    def pooled(self: Any, x: Any) -> Any:
        with swapped(self, "norm_v", lambda y: y):
            return old(self, x)

    with swapped(mvit.MultiScaleAttention, "pooled", pooled):
        yield


# ---- shifted windows -------------------------------------------------------------------------------------


@planter("shift_without_mask")
def _no_mask(p: Any) -> Iterator[None]:
    old = swin.WindowAttention._bias
    with swapped(swin.WindowAttention, "_bias", lambda self, apart, dtype: old(self, None, dtype)):
        yield


@planter("mask_of_unshifted_labels")
def _labels_unshifted(p: Any) -> Iterator[None]:
    old = swin.shift_mask
    with swapped(swin, "shift_mask", lambda size, window, shift, dtype: old(size, window, window, dtype)):
        yield


@planter("shift_missing")
def _no_shift(p: Any) -> Iterator[None]:
    old = swin.SwinTransformerBlock.windows

    def cut(self: Any, x: Any) -> Any:
        with swapped(self, "shift", 0):
            return old(self, x)

    with swapped(swin.SwinTransformerBlock, "windows", cut):
        yield


@planter("shift_not_undone")
def _not_undone(p: Any) -> Iterator[None]:
    old = swin.SwinTransformerBlock.join

    def join(self: Any, x: Any, attended: Any) -> Any:
        with swapped(self, "shift", 0):
            return old(self, x, attended)

    with swapped(swin.SwinTransformerBlock, "join", join):
        yield


@planter("merge_by_rows")
def _merge_rows(p: Any) -> Iterator[None]:
    old = swin.PatchMerging.call

    def call(self: Any, x: Any) -> Any:
        # Cells (0, 1) and (1, 0) change places where rows and columns of every 2x2 do.
        x = windows.pad_to(x, windows.padded_to(windows.map_size(x), 2))
        n, height, width, channels = x.shape
        cells = tf.reshape(x, [n, height // 2, 2, width // 2, 2, channels])
        return old(self, tf.reshape(tf.transpose(cells, [0, 1, 4, 3, 2, 5]), x.shape))

    with swapped(swin.PatchMerging, "call", call):
        yield


@planter("offsets_reversed")
def _offsets_reversed(p: Any) -> Iterator[None]:
    old = swin.window_position_index
    with swapped(swin, "window_position_index", lambda window: old(window).T):
        yield


# ---- FCOS ------------------------------------------------------------------------------------------------


@planter("centerness_not_in_score")
def _no_centerness(p: Any) -> Iterator[None]:
    old = fcos.FCOSDecoder.detect

    def detect(self: Any, logits: Any, deltas: Any, centerness: Any) -> Any:
        return old(self, logits, deltas, [tf.ones_like(c) * 50 for c in centerness])

    with swapped(fcos.FCOSDecoder, "detect", detect):
        yield


@planter("score_without_root")
def _no_root(p: Any) -> Iterator[None]:
    old = fcos.FCOSDecoder.__call__

    def call(self: Any, scores: Any, deltas: Any) -> Any:
        return old(self, [tf.square(s) for s in scores], deltas)

    with swapped(fcos.FCOSDecoder, "__call__", call):
        yield


@planter("distances_in_pixels")
def _in_pixels(p: Any) -> Iterator[None]:
    old = fcos.box_ops.apply_linear_deltas

    def apply(deltas: Any, boxes: Any) -> Any:
        size = boxes[:, 2:3] - boxes[:, 0:1]
        return old(deltas / size, boxes)

    with swapped(fcos.box_ops, "apply_linear_deltas", apply):
        yield


@planter("distances_not_rectified")
def _not_rectified(p: Any) -> Iterator[None]:
    def apply(deltas: Any, boxes: Any) -> Any:
        size, centre = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
        return tf.concat([centre - deltas[:, :2] * size, centre + deltas[:, 2:] * size], axis=1)

    with swapped(fcos.box_ops, "apply_linear_deltas", apply):
        yield


@planter("locations_at_corners")
def _at_corners(p: Any) -> Iterator[None]:
    with swapped(p.model.decoder, "offset", 0.0):
        yield


@planter("tower_norm_missing")
def _tower_norm(p: Any) -> Iterator[None]:
    tower = p.model.head.bbox_subnet
    norm = tower["1"]
    tower["1"] = lambda x: x
    try:
        yield
    finally:
        tower["1"] = norm
