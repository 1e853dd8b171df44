"""Multiscale vision transformer with pooled attention. Source: detectron2/modeling/backbone/mvit.py."""

from __future__ import annotations

import tensorflow as tf

from tf_d2.config.parts.mvit import MViTBlock, MViTConfig
from tf_d2.layers.base import Module, sequence
from tf_d2.layers.conv import Linear
from tf_d2.layers.norm import LayerNorm
from tf_d2.layers.transformer import DepthwiseConv2d, Mlp, PatchEmbed
from tf_d2.modeling.backbone import Features
from tf_d2.modeling.recording import Stages, Unrecorded, record_positions, record_tokens
from tf_d2.modeling.vit import TokenBackbone, merge_heads
from tf_d2.ops.attention import LOGITS_BUDGET, Positions, attend, decomposed_bias, positions_of_axes
from tf_d2.ops.conv import max_pool2d
from tf_d2.ops.windows import Size, map_size, window_partition, window_unpartition

_Tokens3 = tuple[tf.Tensor, tf.Tensor, tf.Tensor]  # queries, keys, values, ``[N, h, w, d]``


class MultiScaleAttention(Module):
    """Attention whose queries, keys and values are pooled over the whole map before they are cut into windows."""

    def __init__(self, config: MViTConfig, block: MViTBlock) -> None:
        super().__init__("attn")
        self.heads, self.head_dim = block.num_heads, block.dim_out // block.num_heads
        self.residual_pooling = config.residual_pooling
        self.q_window, self.kv_window = block.window // block.stride_q, block.window // block.stride_kv
        self.logits_budget = LOGITS_BUDGET
        with self.scope():
            self.qkv = Linear(block.dim, 3 * block.dim_out, "qkv", bias=config.qkv_bias)
            self.proj = Linear(block.dim_out, block.dim_out, "proj")
            for part, stride in (("q", block.stride_q), ("k", block.stride_kv), ("v", block.stride_kv)):
                pool = DepthwiseConv2d(self.head_dim, config.qkv_pool_kernel, f"pool_{part}", stride=stride)
                setattr(self, f"pool_{part}", pool)
                setattr(self, f"norm_{part}", LayerNorm(self.head_dim, f"norm_{part}", config.norm_eps))
        self.rel_pos_h = self.rel_pos_w = None
        if config.use_rel_pos:
            self.rel_pos_h = self.parameter("rel_pos_h", (block.table_length, self.head_dim))
            self.rel_pos_w = self.parameter("rel_pos_w", (block.table_length, self.head_dim))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.forward(x, Unrecorded(), "")

    def forward(self, x: tf.Tensor, stages: Stages, path: str) -> tf.Tensor:
        """The same, recording what parity calls the units of the attention."""
        pooled = self.pooled(x)
        for name, part in zip("qkv", pooled, strict=True):
            record_tokens(stages, f"{path}.norm_{name}", part)
        parts = self.in_windows(*pooled) if self.q_window else pooled
        if self.q_window:
            for i, part in enumerate(parts):
                record_tokens(stages, f"{path}.windows/{i}", part)
        positions = self.positions(parts[0], parts[1])
        record_positions(stages, path, positions)
        y = self.attend(pooled[0], parts, positions)
        record_tokens(stages, path, y)
        return y

    def attend(self, q: tf.Tensor, parts: _Tokens3, positions: Positions | None) -> tf.Tensor:
        """From queries of the map, and queries, keys and values of its windows (or of the map), to the output."""
        size = map_size(q)
        y = self.over_map(parts, positions)
        y = window_unpartition(y, size) if self.q_window else y
        if self.residual_pooling:
            y = y + q  # normalised, not scaled
        flat = tf.reshape(y, [-1, size[0] * size[1], self.head_dim])
        return self.proj(merge_heads(flat, size, self.heads))

    def pooled(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Queries, keys and values of ``[N, H, W, C]``, pooled and normalised: ``[N * heads, H', W', d]`` each."""
        height, width = map_size(x)
        parts = tf.reshape(self.qkv(x), [-1, height, width, 3, self.heads, self.head_dim])
        parts = tf.transpose(parts, [3, 0, 4, 1, 2, 5])
        q, k, v = (tf.reshape(part, [-1, height, width, self.head_dim]) for part in tf.unstack(parts))
        return (
            self.norm_q(self.pool_q(q)),
            self.norm_k(self.pool_k(k)),
            self.norm_v(self.pool_v(v)),
        )

    def in_windows(self, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) -> _Tokens3:
        """All three in windows. What fills the last ones is zero after the norm, and takes part all the same."""
        q = window_partition(q, self.q_window)
        k, v = (window_partition(part, self.kv_window) for part in (k, v))
        return q, k, v

    def positions(self, q: tf.Tensor, k: tf.Tensor) -> Positions | None:
        """Relative positions of rows and columns between the tokens of two maps; None where the model has none."""
        if self.rel_pos_h is None or self.rel_pos_w is None:
            return None
        tables = self.value(self.rel_pos_h), self.value(self.rel_pos_w)
        return positions_of_axes(tables, map_size(q), map_size(k))

    def over_map(self, parts: _Tokens3, positions: Positions | None) -> tf.Tensor:
        """Attention over all tokens of maps ``[N, h, w, d]``; keys and values may be of another size."""
        q_size, k_size = map_size(parts[0]), map_size(parts[1])
        tokens, keys, values = (_flat(part, map_size(part)) for part in parts)
        bias = None if positions is None else decomposed_bias(tokens, positions, q_size, k_size)
        y = attend(tokens, keys, values, self.head_dim**-0.5, bias, budget=self.logits_budget)
        return tf.reshape(y, [-1, *q_size, self.head_dim])


def _flat(x: tf.Tensor, size: Size) -> tf.Tensor:
    return tf.reshape(x, [-1, size[0] * size[1], x.shape[3]])


class MultiScaleBlock(Module):
    """Pooled attention and a perceptron; the shortcut is projected and max-pooled where width or size change."""

    def __init__(self, config: MViTConfig, block: MViTBlock, name: str) -> None:
        super().__init__(name)
        self.stride = block.stride_q
        with self.scope():
            self.norm1 = LayerNorm(block.dim, "norm1", config.norm_eps)
            self.attn = MultiScaleAttention(config, block)
            self.norm2 = LayerNorm(block.dim_out, "norm2", config.norm_eps)
            self.mlp = Mlp(block.dim_out, config.mlp_ratio)
            widens = block.dim != block.dim_out
            self.proj = Linear(block.dim, block.dim_out, "proj") if widens else None

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.forward(x, Unrecorded(), "")

    def forward(self, x: tf.Tensor, stages: Stages, path: str) -> tf.Tensor:
        """The same, recording what parity calls the block's units."""
        normalised = self.norm1(x)
        record_tokens(stages, f"{path}.norm1", normalised)
        x = self.join(x, normalised, self.attn.forward(normalised, stages, f"{path}.attn"))
        record_tokens(stages, f"{path}.attended", x)
        x = self.finish(x)
        record_tokens(stages, path, x)
        return x

    def join(self, x: tf.Tensor, normalised: tf.Tensor, attended: tf.Tensor) -> tf.Tensor:
        """Shortcut plus attention."""
        # The projection starts from the normalised tokens, the plain shortcut from the raw ones.
        shortcut = x if self.proj is None else self.proj(normalised)
        if self.stride > 1:
            kernel = self.stride + 1
            shortcut = max_pool2d(shortcut, kernel, self.stride, kernel // 2)
        return shortcut + attended

    def finish(self, x: tf.Tensor) -> tf.Tensor:
        """What follows the attention."""
        return x + self.mlp(self.norm2(x))


class MViT(TokenBackbone):
    """Patches and blocks in stages; each stage's output is normalised on its way out only.

    ``call``: ``[N, H, W, 3]`` -> dict of the features asked for ("scale2" of stride 4, ...).
    """

    def __init__(self, config: MViTConfig, in_channels: int, name: str) -> None:
        super().__init__(name)
        self.config = config
        schedule = config.blocks
        self.ends = {str(i): b.feature for i, b in enumerate(schedule) if b.feature in config.out_features}
        self.out_features, self.strides = config.out_features, config.strides
        self.channels = {
            b.feature: b.dim_out for b in schedule if b.feature in config.out_features and b.feature
        }
        with self.scope():
            self.patch_embed = PatchEmbed(
                in_channels, config.embed_dim, config.patch_kernel, config.patch_stride, config.patch_padding
            )
            blocks = {
                str(i): lambda key, block=b: MultiScaleBlock(config, block, key)
                for i, b in enumerate(schedule)
            }
            self.blocks = sequence("blocks", blocks)
            for feature, channels in self.channels.items():
                norm = f"{feature}_norm"
                setattr(self, norm, LayerNorm(channels, norm, config.norm_eps))
        self.make_positions(config, config.patch_stride)

    def forward(self, x: tf.Tensor, stages: Stages, path: str) -> Features:
        """Outputs by name; patches and blocks are recorded as ``[N, H', W', C]``."""
        x = self.patch_embed(x)
        record_tokens(stages, f"{path}.patch_embed", x)
        x = self.add_positions(x)
        record_tokens(stages, f"{path}.positions", x)
        outputs: dict[str, tf.Tensor] = {}
        for key, block in self.blocks.items():
            x = block.forward(x, stages, f"{path}.blocks.{key}")
            feature = self.ends.get(key)
            if feature is not None:
                outputs[feature] = stages[f"{path}/{feature}"] = getattr(self, f"{feature}_norm")(x)
        return outputs
