"""Transformers of shifted windows. Source: detectron2/modeling/backbone/swin.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tf_d2.config.defaults import Flat
from tf_d2.config.lazy import Node
from tf_d2.config.parts.tokens import put_norm_eps
from tf_d2.config.reading import MAX_LAYERS, Fields


@dataclass(frozen=True)
class SwinConfig:
    """The arguments of detectron2's ``SwinTransformer``."""

    pretrain_img_size: int = 224
    patch_size: int = 4
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_scale: float | None = None  # None (and 0): the width of a head to the power -1/2
    norm_eps: float = 1e-5
    ape: bool = False  # absolute positions
    patch_norm: bool = True
    out_indices: tuple[int, ...] = (0, 1, 2, 3)

    @property
    def strides(self) -> dict[str, int]:
        """Pixels per cell of each feature, lowest level first."""
        return {f"p{i}": 2 ** (i + 2) for i in self.out_indices}

    @property
    def tokens(self) -> dict[str, Any]:
        """What parity needs to know of the blocks: how many each layer has, and which layers have an output."""
        shifted = self.window_size > 1
        depths, out = list(self.depths), list(self.out_indices)
        return {"KIND": "SwinTransformer", "DEPTHS": depths, "SHIFTED": shifted, "OUT": out}

    @classmethod
    def _checked(cls, fields: Fields) -> SwinConfig:
        for name in ("pretrain_img_size", "patch_size"):
            value = fields[name]
            if isinstance(value, tuple) and len(set(value)) == 1:
                fields.put(name, fields.where(name), value[0])
        swin = cls(
            pretrain_img_size=fields.integer("pretrain_img_size", 1),
            patch_size=fields.integer("patch_size", 1),
            embed_dim=fields.integer("embed_dim", 1),
            depths=fields.integers("depths"),
            num_heads=fields.integers("num_heads"),
            window_size=fields.integer("window_size", 1),
            mlp_ratio=fields.number("mlp_ratio"),
            qkv_bias=fields.flag("qkv_bias"),
            qk_scale=None if fields["qk_scale"] is None else fields.number("qk_scale"),
            norm_eps=fields.number("norm_eps"),
            ape=fields.flag("ape"),
            patch_norm=fields.flag("patch_norm"),
            out_indices=fields.integers("out_indices", 0),
        )
        if sum(swin.depths) > MAX_LAYERS:
            raise fields.fail("depths", f"expected at most {MAX_LAYERS} blocks together")
        if len(swin.num_heads) < len(swin.depths):
            raise fields.fail("num_heads", f"expected one number for each of depths {swin.depths}")
        for i in range(len(swin.depths)):
            if swin.embed_dim * 2**i % swin.num_heads[i]:
                raise fields.fail("num_heads", f"stage {i} has {swin.embed_dim * 2**i} channels")
        stages = range(len(swin.depths))
        if any(i not in stages for i in swin.out_indices) or list(swin.out_indices) != sorted(
            set(swin.out_indices)
        ):
            raise fields.fail("out_indices", f"expected numbers from 0 to {len(swin.depths) - 1} that ascend")
        return swin

    @classmethod
    def from_lazy(cls, node: Node) -> SwinConfig:
        fields = node.fields({n: getattr(cls, n) for n in cls.__dataclass_fields__ if n != "norm_eps"})
        put_norm_eps(node, fields)
        node.only("in_chans", 3)
        node.done("drop_rate attn_drop_rate drop_path_rate frozen_stages use_checkpoint")
        return cls._checked(fields)

    def to_keys(self) -> Flat:
        return {"MODEL.BACKBONE.NAME": "SwinTransformer"}
