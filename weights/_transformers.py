"""Which transformer a backbone is, told from names and shapes. Source: detectron2/modeling/backbone/vit.py, mvit.py,
swin.py and the configurations of its ViTDet and MViTv2 projects."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

State = Mapping[str, np.ndarray]

# Width and blocks of the published sizes.
_SWIN: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "T",
    (96, (2, 2, 18, 2)): "S",
    (128, (2, 2, 18, 2)): "B",
    (192, (2, 2, 18, 2)): "L",
}
_MVIT = {(96, 10): "T", (96, 16): "S", (96, 24): "B", (144, 48): "L", (192, 80): "H"}
_VIT = {(384, 12): "S", (768, 12): "B", (1024, 24): "L", (1280, 32): "H"}

_SWIN_BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$")
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.attn\.qkv\.weight$")


def transformer_name(state: State) -> str | None:
    """ "ViT-H", "MViTv2-T", "Swin-B", with width and blocks for a size of one's own; None for no transformer.

    One that attends otherwise than these three (a fork) is "transformer".
    """
    attention = [key for key in state if re.search(r"(^|\.)(blocks|layers)\.\d+\..*attn\.", key)]
    if not attention and not any(re.search(r"\.attn\.(qkv|rel_pos)", key) for key in state):
        return None
    width = _width(state)
    shifted = [(int(match[1]), int(match[2])) for key in state if (match := _SWIN_BLOCK.search(key))]
    if width and shifted:
        depths = tuple(sum(layer == i for layer, _ in shifted) for i in range(max(shifted)[0] + 1))
        blocks = "-".join(map(str, depths))
        return f"Swin-{_SWIN.get((width, depths), '')}".rstrip("-") + _own(
            (width, depths) in _SWIN, width, blocks
        )
    depth = len({match[1] for key in state if (match := _BLOCK.search(key))})
    # Layer scale and a table of biases per head are BEiT's and those of its followers.
    other = any(
        re.search(r"blocks\.\d+\.(gamma_1|ls1\.|attn\.relative_position_bias_table)", k) for k in state
    )
    if not width or not depth or other:
        return "transformer"
    pooled = any(re.search(r"(^|\.)blocks\.\d+\.attn\.pool_q\.weight$", key) for key in state)
    kind, sizes = ("MViTv2", _MVIT) if pooled else ("ViT", _VIT)
    return f"{kind}-{sizes.get((width, depth), '')}".rstrip("-") + _own((width, depth) in sizes, width, depth)


def _own(published: bool, width: int, blocks: int | str) -> str:
    return "" if published else f" (width {width}, blocks {blocks})"


def _width(state: State) -> int:
    """Channels of a patch; 0 where no patches are made."""
    for key, value in state.items():
        if re.search(r"(^|\.)patch_embed\.proj\.weight$", key) and value.ndim == 4:
            return value.shape[0]
    return 0
