"""Multiscale vision transformers, and the schedule that their few numbers stand for.

Source: detectron2/modeling/backbone/mvit.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from tf_d2.config.defaults import Flat
from tf_d2.config.lazy import Node
from tf_d2.config.parts.tokens import put_activation, put_norm_eps
from tf_d2.config.reading import Fields


class MViTBlock(NamedTuple):
    """One block of the schedule. ``window`` is tokens per side before pooling (0 = the whole map)."""

    dim: int
    dim_out: int
    num_heads: int
    stride_q: int
    stride_kv: int
    window: int
    table_length: int  # rows of each table of relative positions
    feature: str | None  # the output that this block ends ("scale2", ...)
    feature_stride: int


@dataclass(frozen=True)
class MViTConfig:
    """The arguments of detectron2's ``MViT``. Image sizes are pixels of the network input."""

    img_size: int = 224  # fixes the length of the tables of relative positions, not the size of the input
    patch_kernel: int = 7
    patch_stride: int = 4
    patch_padding: int = 3
    embed_dim: int = 96
    depth: int = 16
    num_heads: int = 1
    last_block_indexes: tuple[int, ...] = (0, 2, 11, 15)
    qkv_pool_kernel: int = 3
    adaptive_kv_stride: int = 4
    adaptive_window_size: int = 56
    residual_pooling: bool = True
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-5
    use_abs_pos: bool = False
    use_rel_pos: bool = True
    pretrain_img_size: int = 224
    pretrain_use_cls_token: bool = True
    out_features: tuple[str, ...] = ("scale2", "scale3", "scale4", "scale5")

    @cached_property
    def blocks(self) -> tuple[MViTBlock, ...]:
        """Widths, heads, strides and windows, block by block."""
        blocks: list[MViTBlock] = []
        dim = dim_out = self.embed_dim
        heads, stride_kv, window = self.num_heads, self.adaptive_kv_stride, self.adaptive_window_size
        side, stage, stride = self.img_size // self.patch_stride, 2, self.patch_stride
        last = self.last_block_indexes
        for i in range(self.depth):
            first_of_stage, ends_stage = i - 1 in last, i in last
            stride_q = 2 if first_of_stage else 1
            own_stride_kv = stride_kv * 2 if i in last[1:3] else stride_kv
            blocks.append(
                MViTBlock(
                    dim=dim,
                    dim_out=dim_out,
                    num_heads=heads,
                    stride_q=stride_q,
                    stride_kv=own_stride_kv,
                    window=0 if i in last[1:] else window,
                    table_length=2 * max(side // stride_q, side // own_stride_kv) - 1,
                    feature=f"scale{stage}" if ends_stage else None,
                    feature_stride=stride,
                )
            )
            dim = dim_out
            if ends_stage:
                dim_out, heads = dim_out * 2, heads * 2
                stride_kv, stride, stage = max(stride_kv // 2, 1), stride * 2, stage + 1
            if first_of_stage:
                window, side = window // 2, side // 2
        return tuple(blocks)

    @property
    def strides(self) -> dict[str, int]:
        """Pixels per cell of each feature, lowest level first."""
        return {
            b.feature: b.feature_stride for b in self.blocks if b.feature in self.out_features and b.feature
        }

    @property
    def tokens(self) -> dict[str, Any]:
        """What parity needs to know of the blocks: windows of queries and of keys, and the feature that each ends."""
        made = self.strides
        blocks = [
            [b.window // b.stride_q, b.window // b.stride_kv, b.feature if b.feature in made else ""]
            for b in self.blocks
        ]
        return {"KIND": "MViT", "BLOCKS": blocks, "REL_POS": self.use_rel_pos}

    @classmethod
    def _checked(cls, fields: Fields) -> MViTConfig:
        for name in ("patch_kernel", "patch_stride", "patch_padding", "qkv_pool_kernel"):
            _square(fields, name)
        last = fields.integers("last_block_indexes", 0)
        if len(last) < 3 or list(last) != sorted(set(last)):
            raise fields.fail("last_block_indexes", "expected at least three numbers that ascend")
        mvit = cls(
            **{name: fields.integer(name, 1) for name in _COUNTS},
            **{name: fields.flag(name) for name in _FLAGS},
            depth=fields.layers("depth", 1),
            patch_padding=fields.integer("patch_padding", 0),
            adaptive_window_size=fields.integer("adaptive_window_size", 0),
            last_block_indexes=last,
            mlp_ratio=fields.number("mlp_ratio"),
            norm_eps=fields.number("norm_eps"),
            out_features=(),
        )
        if mvit.embed_dim % mvit.num_heads:
            raise fields.fail("num_heads", f"expected a divisor of embed_dim, {mvit.embed_dim}")
        known = [block.feature for block in mvit.blocks if block.feature]
        return replace(mvit, out_features=fields.names("out_features", known))

    @classmethod
    def from_lazy(cls, node: Node) -> MViTConfig:
        defaults: dict[str, Any] = {
            name: getattr(cls, name) for name in cls.__dataclass_fields__ if name != "norm_eps"
        }
        fields = node.fields(defaults)
        put_norm_eps(node, fields)
        put_activation(node)
        node.only("in_chans", 3)
        node.done("drop_path_rate rel_pos_zero_init use_act_checkpoint")
        return cls._checked(fields)

    def to_keys(self) -> Flat:
        return {"MODEL.BACKBONE.NAME": "MViT"}


_COUNTS = (
    "img_size patch_kernel patch_stride embed_dim num_heads qkv_pool_kernel adaptive_kv_stride "
    "pretrain_img_size"
).split()
_FLAGS = "residual_pooling qkv_bias use_abs_pos use_rel_pos pretrain_use_cls_token".split()


def _square(fields: Fields, name: str) -> None:
    """A pair of equal numbers as one."""
    value = fields[name]
    if isinstance(value, tuple) and len(value) == 2 and value[0] == value[1]:
        fields.put(name, fields.where(name), value[0])
