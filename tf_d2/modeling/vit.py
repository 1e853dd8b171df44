"""Plain vision transformer with windowed and global attention. Source: detectron2/modeling/backbone/vit.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.config.parts.mvit import MViTConfig
from tf_d2.config.parts.vit import ViTConfig
from tf_d2.layers.base import Module, sequence
from tf_d2.layers.conv import Linear
from tf_d2.layers.norm import LayerNorm
from tf_d2.layers.transformer import Mlp, PatchEmbed, ResBottleneckBlock
from tf_d2.modeling.backbone import Backbone, Features
from tf_d2.modeling.recording import Stages, Unrecorded, record_positions, record_tokens
from tf_d2.ops.attention import (
    LOGITS_BUDGET,
    Positions,
    absolute_positions,
    attend,
    decomposed_bias,
    positions_of_axes,
)
from tf_d2.ops.windows import Size, map_size, window_partition, window_unpartition


class Attention(Module):
    """Multi-head attention over all tokens of each map ``[N, H, W, C]``, with relative positions if asked for."""

    def __init__(self, config: ViTConfig, table_length: int) -> None:
        super().__init__("attn")
        dim, self.heads = config.embed_dim, config.num_heads
        self.head_dim = dim // self.heads
        self.logits_budget = LOGITS_BUDGET
        with self.scope():
            self.qkv = Linear(dim, 3 * dim, "qkv", bias=config.qkv_bias)
            self.proj = Linear(dim, dim, "proj")
        self.rel_pos_h = self.rel_pos_w = None
        if config.use_rel_pos:
            self.rel_pos_h = self.parameter("rel_pos_h", (table_length, self.head_dim))
            self.rel_pos_w = self.parameter("rel_pos_w", (table_length, self.head_dim))

    def positions(self, x: tf.Tensor) -> Positions | None:
        """Relative positions of the rows and columns of ``x``; None where the model has none."""
        if self.rel_pos_h is None or self.rel_pos_w is None:
            return None
        tables = self.value(self.rel_pos_h), self.value(self.rel_pos_w)
        return positions_of_axes(tables, map_size(x), map_size(x))

    def call(self, x: tf.Tensor, positions: Positions | None = None) -> tf.Tensor:
        """``positions``: as :meth:`positions` returns them."""
        size = map_size(x)
        q, k, v = split_heads(self.qkv(x), size, self.heads)
        bias = None if positions is None else decomposed_bias(q, positions, size, size)
        y = attend(q, k, v, self.head_dim**-0.5, bias, budget=self.logits_budget)
        return self.proj(merge_heads(y, size, self.heads))


def split_heads(qkv: tf.Tensor, size: Size, heads: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """``[N, H, W, 3 * heads * d]`` -> q, k, v, each ``[N * heads, H * W, d]``."""
    channels: int = qkv.shape[3]  # pyright: ignore[reportAssignmentType]
    head_dim = channels // (3 * heads)
    parts = tf.reshape(qkv, [-1, size[0] * size[1], 3, heads, head_dim])
    parts = tf.transpose(parts, [2, 0, 3, 1, 4])
    q, k, v = (tf.reshape(x, [-1, size[0] * size[1], head_dim]) for x in tf.unstack(parts))
    return q, k, v


def merge_heads(x: tf.Tensor, size: Size, heads: int) -> tf.Tensor:
    """``[N * heads, H * W, d]`` -> ``[N, H, W, heads * d]``."""
    head_dim: int = x.shape[2]  # pyright: ignore[reportAssignmentType]
    x = tf.transpose(tf.reshape(x, [-1, heads, size[0] * size[1], head_dim]), [0, 2, 1, 3])
    return tf.reshape(x, [-1, size[0], size[1], heads * head_dim])


class Block(Module):
    """Attention in windows or over the map, a perceptron, and where configured a residual block of convolutions."""

    def __init__(self, config: ViTConfig, index: int, name: str) -> None:
        super().__init__(name)
        dim = config.embed_dim
        self.window = config.window_size if index in config.window_block_indexes else 0
        side = self.window or config.img_size // config.patch_size
        with self.scope():
            self.norm1 = LayerNorm(dim, "norm1", config.norm_eps)
            self.attn = Attention(config, 2 * side - 1)
            self.norm2 = LayerNorm(dim, "norm2", config.norm_eps)
            self.mlp = Mlp(dim, config.mlp_ratio)
            self.residual = None
            if index in config.residual_block_indexes:
                self.residual = ResBottleneckBlock(dim, dim // 2, "residual")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.forward(x, Unrecorded(), "")

    def forward(self, x: tf.Tensor, stages: Stages, path: str) -> tf.Tensor:
        """The same, recording what parity calls the block's units. All are ``[N, H, W, C]``, of windows or the map."""
        tokens = self.norm1(x)
        record_tokens(stages, f"{path}.norm1", tokens)
        if self.window:
            # The zeros that fill the last windows take part in the attention like any token.
            tokens = window_partition(tokens, self.window)
            record_tokens(stages, f"{path}.windows", tokens)
        positions = self.attn.positions(tokens)
        record_positions(stages, f"{path}.attn", positions)
        attended = self.attn(tokens, positions=positions)
        record_tokens(stages, f"{path}.attn", attended)
        x = self.join(x, attended)
        record_tokens(stages, f"{path}.attended", x)
        x = self.finish(x)
        record_tokens(stages, path, x)
        return x

    def join(self, x: tf.Tensor, attended: tf.Tensor) -> tf.Tensor:
        """Block input plus attention, which is still in windows."""
        return x + (window_unpartition(attended, map_size(x)) if self.window else attended)

    def finish(self, x: tf.Tensor) -> tf.Tensor:
        """What follows the attention: perceptron, and convolutions where the block has them."""
        x = x + self.mlp(self.norm2(x))
        return x if self.residual is None else self.residual(x)


class TokenBackbone(Backbone):
    """What ViT and MViT share: absolute positions, learned on the square grid of the pretraining's pictures."""

    def make_positions(self, config: ViTConfig | MViTConfig, stride: int) -> None:
        """``pos_embed`` ``[1, positions, embed_dim]`` where the configuration has it; ``stride``: pixels per patch."""
        self.pos_embed, self.has_cls_token = None, config.pretrain_use_cls_token
        if config.use_abs_pos:
            positions = (config.pretrain_img_size // stride) ** 2 + config.pretrain_use_cls_token
            self.pos_embed = self.parameter("pos_embed", (1, positions, config.embed_dim))

    def add_positions(self, x: tf.Tensor) -> tf.Tensor:
        """Patches ``[N, H, W, C]`` with the positions, resized to their map, added."""
        if self.pos_embed is None:
            return x
        return x + absolute_positions(self.value(self.pos_embed), self.has_cls_token, map_size(x))


class ViT(TokenBackbone):
    """Patches, positions, blocks: ``[N, H, W, 3]`` -> one map of stride ``patch_size``, without a final norm."""

    def __init__(self, config: ViTConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        self.config = config
        self.out_features = (config.out_feature,)
        self.strides = {config.out_feature: config.patch_size}
        self.channels = {config.out_feature: config.embed_dim}
        with self.scope():
            self.patch_embed = PatchEmbed(in_channels, config.embed_dim, config.patch_size, config.patch_size)
            blocks = {str(i): lambda key, index=i: Block(config, index, key) for i in range(config.depth)}
            self.blocks = sequence("blocks", blocks)
        self.make_positions(config, config.patch_size)

    def forward(self, x: tf.Tensor, stages: Stages, path: str) -> Features:
        """The output by name; patches and blocks are recorded as ``[N, H', W', C]``."""
        x = self.patch_embed(x)
        record_tokens(stages, f"{path}.patch_embed", x)
        x = self.add_positions(x)
        record_tokens(stages, f"{path}.positions", x)
        for key, block in self.blocks.items():
            x = block.forward(x, stages, f"{path}.blocks.{key}")
        stages[f"{path}/{self.config.out_feature}"] = x
        return {self.config.out_feature: x}
