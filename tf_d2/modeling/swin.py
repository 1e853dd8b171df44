"""Transformer of shifted windows. Source: detectron2/modeling/backbone/swin.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.config.parts.swin import SwinConfig
from tf_d2.layers.base import Module, sequence
from tf_d2.layers.conv import Conv2d, Linear
from tf_d2.layers.norm import LayerNorm
from tf_d2.layers.transformer import Mlp
from tf_d2.modeling.backbone import Backbone, Features
from tf_d2.modeling.recording import Stages, Unrecorded
from tf_d2.modeling.vit import merge_heads, split_heads
from tf_d2.ops.attention import LOGITS_BUDGET, AddBias, attend, window_position_index
from tf_d2.ops.interpolate import bicubic
from tf_d2.ops.windows import (
    map_size,
    pad_to,
    padded_to,
    shift_mask,
    window_partition,
    window_unpartition,
)


class PatchEmbed(Module):
    """Strided convolution over the image padded to whole patches, then a norm if configured."""

    def __init__(self, config: SwinConfig, in_channels: int) -> None:
        super().__init__("patch_embed")
        patch = self.patch = config.patch_size
        with self.scope():
            self.proj = Conv2d(in_channels, config.embed_dim, patch, "proj", stride=patch)
            self.norm = LayerNorm(config.embed_dim, "norm", config.norm_eps) if config.patch_norm else None

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = self.proj(pad_to(x, padded_to(map_size(x), self.patch)))
        return x if self.norm is None else self.norm(x)


class WindowAttention(Module):
    """Attention in windows ``[N * windows, w, w, C]`` with a learned bias for each offset and head."""

    def __init__(self, config: SwinConfig, dim: int, heads: int) -> None:
        super().__init__("attn")
        self.heads, self.window = heads, config.window_size
        self.scale = config.qk_scale or (dim // heads) ** -0.5
        self.logits_budget = LOGITS_BUDGET
        self.relative_position_bias_table = self.parameter(
            "relative_position_bias_table", ((2 * self.window - 1) ** 2, heads)
        )
        with self.scope():
            self.qkv = Linear(dim, 3 * dim, "qkv", bias=config.qkv_bias)
            self.proj = Linear(dim, dim, "proj")

    def call(self, x: tf.Tensor, apart: tf.Tensor | None = None) -> tf.Tensor:
        """``apart``: ``[windows of one image, w^2, w^2]``, added to the logits of every head."""
        size = (self.window, self.window)
        q, k, v = split_heads(self.qkv(x), size, self.heads)
        y = attend(
            q, k, v, self.scale, self._bias(apart, q.dtype), group=self.heads, budget=self.logits_budget
        )
        return self.proj(merge_heads(y, size, self.heads))

    def _bias(self, apart: tf.Tensor | None, dtype: tf.DType) -> AddBias:
        accurate = tf.float64 if dtype == tf.float64 else tf.float32
        tokens, heads = self.window**2, self.heads
        table = tf.cast(self.value(self.relative_position_bias_table), accurate)
        bias = tf.gather(table, window_position_index(self.window))  # [w^2, w^2, heads]
        bias = tf.transpose(bias, [2, 0, 1])

        def add(logits: tf.Tensor, first: tf.Tensor | int, row: tf.Tensor | int) -> tf.Tensor:
            del row  # heads of a window stay together, so pieces are whole windows
            logits = tf.reshape(logits, [-1, heads, tokens, tokens]) + bias
            if apart is not None:
                windows = tf.range(tf.shape(logits)[0]) + first // heads
                logits = logits + tf.gather(apart, windows % tf.shape(apart)[0])[:, None]
            return tf.reshape(logits, [-1, tokens, tokens])

        return add


class SwinTransformerBlock(Module):
    """Attention in windows, shifted on every second block, and a perceptron."""

    def __init__(self, config: SwinConfig, dim: int, heads: int, shift: int, name: str) -> None:
        super().__init__(name)
        self.window, self.shift = config.window_size, shift
        with self.scope():
            self.norm1 = LayerNorm(dim, "norm1", config.norm_eps)
            self.attn = WindowAttention(config, dim, heads)
            self.norm2 = LayerNorm(dim, "norm2", config.norm_eps)
            self.mlp = Mlp(dim, config.mlp_ratio)

    def call(self, x: tf.Tensor, apart: tf.Tensor | None = None) -> tf.Tensor:
        return self.forward(x, apart, Unrecorded(), "")

    def forward(self, x: tf.Tensor, apart: tf.Tensor | None, stages: Stages, path: str) -> tf.Tensor:
        """The same, recording what parity calls the block's units: rows of tokens, of the map or of each window."""
        normalised = self.norm1(x)
        stages[f"{path}.norm1"] = _rows(normalised)
        windows = self.windows(normalised)
        stages[f"{path}.windows"] = _rows(windows)
        attended = self.attn(windows, apart=apart if self.shift else None)
        stages[f"{path}.attn"] = _rows(attended)
        x = self.join(x, attended)
        stages[f"{path}.attended"] = _rows(x)
        x = self.finish(x)
        stages[path] = _rows(x)
        return x

    def windows(self, x: tf.Tensor) -> tf.Tensor:
        """The map, padded and in a shifted block rolled, cut into windows."""
        if not self.shift:
            return window_partition(x, self.window)
        padded = padded_to(map_size(x), self.window)
        rolled = tf.roll(pad_to(x, padded), [-self.shift, -self.shift], [1, 2])
        return window_partition(rolled, self.window)

    def join(self, x: tf.Tensor, attended: tf.Tensor) -> tf.Tensor:
        """Block input plus what the windows became: put together, rolled back, cropped."""
        size = map_size(x)
        if not self.shift:
            return x + window_unpartition(attended, size)
        whole = window_unpartition(attended, padded_to(size, self.window))
        back = tf.roll(whole, [self.shift, self.shift], [1, 2])
        return x + back[:, : size[0], : size[1]]

    def finish(self, x: tf.Tensor) -> tf.Tensor:
        """What follows the attention."""
        return x + self.mlp(self.norm2(x))


class PatchMerging(Module):
    """Each 2x2 cells become one of twice the channels: ``[N, H, W, C]`` -> ``[N, ceil(H/2), ceil(W/2), 2 C]``."""

    def __init__(self, config: SwinConfig, dim: int) -> None:
        super().__init__("downsample")
        with self.scope():
            self.reduction = Linear(4 * dim, 2 * dim, "reduction", bias=False)
            self.norm = LayerNorm(4 * dim, "norm", config.norm_eps)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x = pad_to(x, padded_to(map_size(x), 2))
        # Rows before columns: (0, 0), (1, 0), (0, 1), (1, 1) as (row, column).
        cells = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(tf.concat(cells, axis=3)))


class BasicLayer(Module):
    """One stage of blocks, and the merging that leads to the next."""

    def __init__(self, config: SwinConfig, index: int, name: str) -> None:
        super().__init__(name)
        dim, heads = config.embed_dim * 2**index, config.num_heads[index]
        self.window, self.shift = config.window_size, config.window_size // 2
        with self.scope():
            blocks = {
                str(i): lambda key, shift=(self.shift if i % 2 else 0): SwinTransformerBlock(
                    config, dim, heads, shift, key
                )
                for i in range(config.depths[index])
            }
            self.blocks = sequence("blocks", blocks)
            last = index == len(config.depths) - 1
            self.downsample = None if last else PatchMerging(config, dim)

    def apart(self, x: tf.Tensor) -> tf.Tensor | None:
        """What shifted blocks add to the logits; of every map, also one that fits into a window."""
        if not self.shift or len(self.blocks) < 2:
            return None
        dtype = tf.float64 if x.dtype == tf.float64 else tf.float32
        return shift_mask(padded_to(map_size(x), self.window), self.window, self.shift, dtype)


class SwinTransformer(Backbone):
    """Patches and four stages, of strides 4, 8, 16, 32; outputs "p0" to "p3", each normalised on its way out only."""

    def __init__(self, config: SwinConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        self.config = config
        self.out_features, self.strides = tuple(config.strides), config.strides
        self.channels = {f"p{i}": config.embed_dim * 2**i for i in config.out_indices}
        with self.scope():
            self.patch_embed = PatchEmbed(config, in_channels)
            layers = {
                str(i): lambda key, index=i: BasicLayer(config, index, key) for i in range(len(config.depths))
            }
            self.layer_list = sequence("layers", layers)
            for i in config.out_indices:
                setattr(self, f"norm{i}", LayerNorm(config.embed_dim * 2**i, f"norm{i}", config.norm_eps))
        self.absolute_pos_embed = None
        if config.ape:
            side = config.pretrain_img_size // config.patch_size
            shape = (1, config.embed_dim, side, side)  # channels first, as in the checkpoint
            self.absolute_pos_embed = self.parameter("absolute_pos_embed", shape)

    def add_positions(self, x: tf.Tensor) -> tf.Tensor:
        if self.absolute_pos_embed is None:
            return x
        grid = tf.transpose(self.value(self.absolute_pos_embed), [0, 2, 3, 1])
        return x + bicubic(grid, *map_size(x))

    def forward(self, x: tf.Tensor, stages: Stages, path: str) -> Features:
        """Outputs by name; recorded are patches ``[N, H', W', C]`` and blocks ``[N, H' W', C]``."""
        x = stages[f"{path}.patch_embed"] = self.patch_embed(x)
        x = self.add_positions(x)
        stages[f"{path}.pos_drop"] = _rows(x)
        outputs: dict[str, tf.Tensor] = {}
        for key, layer in self.layer_list.items():
            apart = layer.apart(x)
            if apart is not None:
                stages[f"{path}.layers.{key}.mask"] = apart
            for number, block in layer.blocks.items():
                x = block.forward(x, apart, stages, f"{path}.layers.{key}.blocks.{number}")
            feature = f"p{key}"
            if feature in self.channels:
                outputs[feature] = stages[f"{path}/{feature}"] = getattr(self, f"norm{key}")(x)
            if layer.downsample is not None:
                x = layer.downsample(x)
                stages[f"{path}.layers.{key}.downsample"] = _rows(x)
        return outputs


def _rows(x: tf.Tensor) -> tf.Tensor:
    """``[N, H, W, C]`` -> ``[N, H * W, C]``, the layout in which detectron2 hands tokens on here."""
    height, width = map_size(x)
    return tf.reshape(x, [-1, height * width, x.shape[3]])
