"""Units inside the transformers: patches, positions, windows, attention and what follows it, block by block.

`MODEL.BACKBONE.TOKENS` says what there is (`tf_d2.config.build.description` writes it). Tokens of ViT and MViT are
arrays (N, H, W, C); those of Swin are rows (N, H * W, C), as detectron2 hands them on, and the patches' map tells the
size. What no module of detectron2 returns has the name of the module around it, a dot, and a word of ours: `windows`
(what the attention reads), `rel_h` and `rel_w`, `mask`, `attended` (block input plus attention), `positions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parity.core.units.table import Unit


def token_units(kind: str, network: str, tokens: Mapping[str, Any], out: str) -> list[Unit]:
    """From the network's input to its features.

    kind: "ViT", "MViT" or "SwinTransformer". network: path of its module. tokens: the node TOKENS. out: what the names
    of the features' arrays begin with.
    """
    return _KINDS[kind](network, tokens, out)


def _unit(name: str, op: str, inputs: Sequence[str], outputs: Sequence[str], args: tuple[Any, ...]) -> Unit:
    """A continuous unit that belongs to the module that its name says."""
    return Unit(name, op, tuple(inputs), tuple(outputs), "continuous", args, module=args[0])


def _start(network: str, tokens: Mapping[str, Any]) -> tuple[list[Unit], str]:
    """Patches with their positions, and the array that holds them."""
    patches = f"steps/{network}.patch_embed"
    module = f"{network}.patch_embed"
    built = [_unit("patch_embed", "patches", ("steps/input",), (patches,), (module,))]
    target = f"steps/{network}.positions"
    built.append(_unit("positions", "positions", (patches,), (target,), (network,)))
    return built, target


def _relative(attention: str, name: str, inputs: Sequence[str], there: bool) -> tuple[list[Unit], list[str]]:
    arrays = [f"steps/{attention}.rel_h", f"steps/{attention}.rel_w"]
    if not there:
        return [], []
    return [_unit(f"{name}.positions", "relative_positions", inputs, arrays, (attention,))], arrays


def _vit(network: str, tokens: Mapping[str, Any], out: str) -> list[Unit]:
    built, x = _start(network, tokens)
    for i, window in enumerate(tokens["WINDOWS"]):
        name, block = f"blocks.{i}", f"{network}.blocks.{i}"
        attention, target = f"{block}.attn", f"steps/{block}"
        source = f"{target}.norm1"
        built.append(_unit(f"{name}.norm1", "tokens", (x,), (source,), (f"{block}.norm1",)))
        if window:
            cut = f"{target}.windows"
            built.append(_unit(f"{name}.windows", "windows", (source,), (cut,), (block, window)))
            source = cut
        relative, arrays = _relative(attention, name, (source,), tokens["REL_POS"])
        attended = f"steps/{attention}"
        built += [
            *relative,
            _unit(f"{name}.attn", "attention", (source, *arrays), (attended,), (attention,)),
            *_ending(name, block, (x, attended)),
        ]
        x = target
    feature = f"{out}/{tokens['FEATURE']}"
    return [*built, _unit(tokens["FEATURE"], "token_map", (x,), (feature,), (network, ""))]


def _ending(name: str, block: str, inputs: Sequence[str]) -> list[Unit]:
    joined = f"steps/{block}.attended"
    return [
        _unit(f"{name}.join", "join", inputs, (joined,), (block,)),
        _unit(name, "finish", (joined,), (f"steps/{block}",), (block,)),
    ]


def _mvit(network: str, tokens: Mapping[str, Any], out: str) -> list[Unit]:
    built, x = _start(network, tokens)
    for i, (q_window, kv_window, feature) in enumerate(tokens["BLOCKS"]):
        name, block = f"blocks.{i}", f"{network}.blocks.{i}"
        attention, target = f"{block}.attn", f"steps/{block}"
        normed = f"{target}.norm1"
        parts = pooled = [f"steps/{attention}.norm_{part}" for part in "qkv"]
        built.append(_unit(f"{name}.norm1", "tokens", (x,), (normed,), (f"{block}.norm1",)))
        built.append(_unit(f"{name}.pool", "pool", (normed,), pooled, (attention,)))
        if q_window:
            parts = [f"steps/{attention}.windows/{k}" for k in range(3)]
            sides = (attention, q_window, kv_window, kv_window)
            built.append(_unit(f"{name}.windows", "windows", pooled, parts, sides))
        relative, arrays = _relative(attention, name, parts[:2], tokens["REL_POS"])
        inputs = (normed, *pooled, *(parts if q_window else ()), *arrays)
        attended, args = f"steps/{attention}", (attention, bool(q_window))
        built += [
            *relative,
            _unit(f"{name}.attn", "pooled_attention", inputs, (attended,), args),
            *_ending(name, block, (x, normed, attended)),
        ]
        x = target
        if feature:
            norm = f"{network}.{feature}_norm"
            built.append(_unit(feature, "token_map", (x,), (f"{out}/{feature}",), (network, norm)))
    return built


def _swin(network: str, tokens: Mapping[str, Any], out: str) -> list[Unit]:
    patches, x = f"steps/{network}.patch_embed", f"steps/{network}.pos_drop"
    built = [
        _unit("patch_embed", "module", ("steps/input",), (patches,), (f"{network}.patch_embed",)),
        _unit("positions", "rows_of_map", (patches,), (x,), (network,)),
    ]
    for j, depth in enumerate(tokens["DEPTHS"]):
        layer, mask = f"{network}.layers.{j}", f"steps/{network}.layers.{j}.mask"
        shifted = tokens["SHIFTED"] and depth > 1
        if shifted:
            built.append(_unit(f"layers.{j}.mask", "shift_mask", (x, patches), (mask,), (layer, j)))
        for i in range(depth):
            name, block = f"layers.{j}.blocks.{i}", f"{layer}.blocks.{i}"
            normed, windows, joined = (f"steps/{block}.{part}" for part in ("norm1", "windows", "attended"))
            attention, attended = f"{block}.attn", f"steps/{block}.attn"
            read = (windows, mask) if shifted and i % 2 else (windows,)
            built += [
                _unit(f"{name}.norm1", "tokens", (x,), (normed,), (f"{block}.norm1",)),
                _unit(f"{name}.windows", "shifted_windows", (normed, patches), (windows,), (block, j)),
                _unit(f"{name}.attn", "window_attention", read, (attended,), (attention,)),
                _unit(f"{name}.join", "shifted_join", (x, attended, patches), (joined,), (block, j)),
                _unit(name, "finish", (joined,), (f"steps/{block}",), (block,)),
            ]
            x = f"steps/{block}"
        if j in tokens["OUT"]:
            feature, norm = f"p{j}", f"{network}.norm{j}"
            built.append(_unit(feature, "rows_to_map", (x, patches), (f"{out}/{feature}",), (norm, j)))
        if j + 1 < len(tokens["DEPTHS"]):
            merged = f"{layer}.downsample"
            built.append(_unit(f"layers.{j}.merge", "merge", (x, patches), (f"steps/{merged}",), (merged, j)))
            x = f"steps/{merged}"
    return built


_KINDS = {"ViT": _vit, "MViT": _mvit, "SwinTransformer": _swin}
