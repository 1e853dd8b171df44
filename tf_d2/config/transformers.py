"""What the transformer backbones need to know: ViT, its pyramid, MViTv2 and Swin.

Defaults are those of detectron2's constructors, which a LazyConfig leaves out.
Source: detectron2/modeling/backbone/ (vit.py, mvit.py, swin.py).
"""

from __future__ import annotations

from dataclasses import dataclass

TOKEN_NORM_EPS = 1e-5  # torch's nn.LayerNorm; ViTDet and MViTv2 configs say 1e-6


@dataclass(frozen=True)
class ViTConfig:
    """A plain vision transformer. Sizes are pixels of the network input, ``window_size`` is tokens (0 = global)."""

    img_size: int = 1024  # fixes the length of the tables of relative positions, not the size of the input
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = TOKEN_NORM_EPS
    use_abs_pos: bool = True
    use_rel_pos: bool = False
    window_size: int = 0
    window_block_indexes: tuple[int, ...] = ()
    residual_block_indexes: tuple[int, ...] = ()
    pretrain_img_size: int = 224
    pretrain_use_cls_token: bool = True
    out_feature: str = "last_feat"


@dataclass(frozen=True)
class SimpleFeaturePyramidConfig:
    """A pyramid made of one feature map, by transposed convolutions and pooling."""

    in_feature: str = "last_feat"
    out_channels: int = 256
    scale_factors: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5)
    norm: str = "LN"
    top_block: str | None = None
    top_block_in_feature: str = "p5"
    square_pad: int = 0


@dataclass(frozen=True)
class MViTConfig:
    """A multiscale vision transformer."""

    img_size: int = 224
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
    norm_eps: float = TOKEN_NORM_EPS
    use_abs_pos: bool = False
    use_rel_pos: bool = True
    pretrain_img_size: int = 224
    pretrain_use_cls_token: bool = True
    out_features: tuple[str, ...] = ("scale2", "scale3", "scale4", "scale5")


@dataclass(frozen=True)
class MViTBlock:
    """One block of the schedule. ``window`` is tokens before pooling (0 = global)."""

    dim: int
    dim_out: int
    num_heads: int
    stride_q: int
    stride_kv: int
    window: int
    table_length: int  # rows of each table of relative positions
    feature: str | None  # the output that this block ends ("scale2", ...)
    feature_stride: int


def mvit_blocks(config: MViTConfig) -> list[MViTBlock]:
    """The schedule of widths, heads, strides and windows, block by block."""
    blocks: list[MViTBlock] = []
    dim = dim_out = config.embed_dim
    heads, stride_kv, window = config.num_heads, config.adaptive_kv_stride, config.adaptive_window_size
    side, stage, stride = config.img_size // config.patch_stride, 2, config.patch_stride
    last = config.last_block_indexes
    for i in range(config.depth):
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
    return blocks


@dataclass(frozen=True)
class SwinConfig:
    """A transformer of shifted windows."""

    pretrain_img_size: int = 224
    patch_size: int = 4
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    norm_eps: float = TOKEN_NORM_EPS
    ape: bool = False
    patch_norm: bool = True
    out_indices: tuple[int, ...] = (0, 1, 2, 3)
