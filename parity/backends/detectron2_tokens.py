"""detectron2's transformers, one unit of `parity.core.units.tokens` at a time, and what its free run shows of them.

What no module returns is seen by asking a block or layer to run and looking at what it hands to a module inside, or
at what a function of its file returns. detectron2's own code computes every value.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from parity.core.swap import swapped

Arrays = dict[str, np.ndarray]
TOKEN_OPS: dict[str, Callable[[Any, Any, Sequence[Tensor]], Sequence[Tensor]]] = {}

# Our word for what no module returns -> the module inside whose input it is, and which one of its inputs.
_INPUTS = {
    "positions": ("blocks.0", 0),
    "attended": ("norm2", 0),
    "windows": ("attn", 0),
    "mask": ("blocks.1", 1),
}
# The files, and what their functions return, by our words.
_FILES = ("vit", "mvit", "swin", "utils")
_RETURNED = {"get_rel_pos": ("rel_h", "rel_w"), "window_partition": ("windows/0", "windows/1", "windows/2")}


def _file(name: str) -> Any:
    return importlib.import_module(f"detectron2.modeling.backbone.{name}")


def _op(
    function: Callable[[Any, Any, Sequence[Tensor]], Sequence[Tensor]],
) -> Callable[..., Sequence[Tensor]]:
    TOKEN_OPS[function.__name__.removeprefix("_")] = function
    return function


# ---- what a free run shows -------------------------------------------------------------------------------


def hooked(modules: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """The modules that return arrays called `names`, in order.

    Raises ValueError for an array that no module returns and `recording` does not know either.
    """
    found, unknown = set(), []
    for name in names:
        path = name.removeprefix("steps/").split("/")[0].split("#")[0]
        if path in modules:
            found.add(path)
        elif path.rpartition(".")[2] not in (*_INPUTS, "rel_h", "rel_w"):
            unknown.append(name)
    if unknown:
        raise ValueError(f"detectron2's model has no module that returns {', '.join(unknown)}")
    return sorted(found)


@contextlib.contextmanager
def recording(model: nn.Module, names: Iterable[str], into: Arrays) -> Iterator[None]:
    """While inside, arrays called `names` that no module returns are put into `into` as the model runs."""
    modules, inside = dict(model.named_modules()), [""]
    calls: dict[tuple[str, str], int] = {}
    handles: list[Any] = []

    def look(at: str, name: str, index: int) -> None:
        def hook(module: nn.Module, inputs: Any) -> None:
            into[name] = _numpy(inputs[index])

        handles.append(modules[at].register_forward_pre_hook(hook))

    def enter(path: str) -> None:
        def hook(module: nn.Module, inputs: Any) -> None:
            inside[0] = path
            calls.clear()

        handles.append(modules[path].register_forward_pre_hook(hook))

    wanted = [name for name in names if name.startswith("steps/")]
    owners: set[str] = set()
    for name in wanted:
        path, _, word = name.removeprefix("steps/").rpartition(".")
        if path in modules and name.removeprefix("steps/") not in modules:
            inner, index = _INPUTS.get(word, ("", 0))
            if f"{path}.{inner}" in modules:
                look(f"{path}.{inner}", name, index)
            elif path not in owners and word.partition("/")[0] in ("rel_h", "rel_w", "windows"):
                owners.add(path)
                enter(path)
    with contextlib.ExitStack() as stack:
        for file, function in (
            (_file(f), n) for f in _FILES for n in _RETURNED if owners and hasattr(_file(f), n)
        ):
            stack.enter_context(swapped(file, function, _told(getattr(file, function), inside, calls, into)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _told(function: Callable[..., Any], inside: list[str], calls: dict[Any, int], into: Arrays) -> Any:
    """The function, with what it returns recorded under the module that runs now."""
    words = _RETURNED[function.__name__]

    def call(*arguments: Any) -> Any:
        answer = function(*arguments)
        key = (inside[0], function.__name__)
        number = calls[key] = calls.get(key, -1) + 1
        if number < len(words):
            into[f"steps/{inside[0]}.{words[number]}"] = _numpy(
                answer[0] if isinstance(answer, tuple) else answer
            )
        return answer

    return call


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy().copy()


# ---- units ---------------------------------------------------------------------------------------------


class _Seen(Exception):
    """Carries what was looked for out of a run that need not go on."""


def _input_of(module: nn.Module, run: Callable[[], Any], index: int = 0) -> Tensor:
    """What `module` is given when `run` runs; nothing after it is computed."""

    def hook(_: nn.Module, inputs: Any) -> None:
        raise _Seen(inputs[index])

    handle = module.register_forward_pre_hook(hook)
    try:
        run()
    except _Seen as seen:
        return seen.args[0]
    finally:
        handle.remove()
    raise AssertionError(f"{type(module).__name__} was not called")


class Answer(nn.Module):
    """Returns the same whatever it is called with."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.value


def _one_by_one(values: Sequence[Any]) -> Callable[..., Any]:
    """A function that returns one value after the other."""
    left = iter(values)
    return lambda *_, **__: next(left)


def _at(d: Any, path: str) -> Any:
    return d.model.get_submodule(path)


@_op
def _patches(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [_at(d, unit.args[0])(inputs[0])]


@_op
def _positions(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    network = _at(d, unit.args[0])

    def run() -> Any:
        with swapped(network, "patch_embed", Answer(inputs[0])):
            return network(inputs[0])

    return [_input_of(network.blocks[0], run)]


@_op
def _tokens(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [_at(d, unit.args[0])(inputs[0])]


@_op
def _windows(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    partition = _file("utils").window_partition
    return [partition(x, side)[0] for x, side in zip(inputs, unit.args[1:], strict=True)]


@_op
def _relative_positions(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    attention, q, k = _at(d, unit.args[0]), inputs[0], inputs[-1]
    tables = (attention.rel_pos_h, attention.rel_pos_w)
    return [
        _file("utils").get_rel_pos(q.shape[1 + i], k.shape[1 + i], table) for i, table in enumerate(tables)
    ]


@_op
def _attention(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    x, *positions = inputs
    with swapped(_file("utils"), "get_rel_pos", _one_by_one(positions)):
        return [_at(d, unit.args[0])(x)]


@_op
def _pool(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    attention, found = _at(d, unit.args[0]), []
    norms = [attention.norm_q, attention.norm_k, attention.norm_v]
    handles = [norm.register_forward_hook(lambda *call: found.append(call[2])) for norm in norms]
    try:
        attention(inputs[0])
    finally:
        for handle in handles:
            handle.remove()
    return found


@_op
def _pooled_attention(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    path, windowed = unit.args
    attention, (x, *rest) = _at(d, path), inputs
    pooled, rest = rest[:3], rest[3:]
    parts, positions = (rest[:3], rest[3:]) if windowed else ([], rest)
    file, partition = _file("mvit"), _file("utils").window_partition
    sides = (attention.q_win_size, attention.kv_win_size, attention.kv_win_size) if windowed else ()
    padded = [partition(part, side)[1] for part, side in zip(pooled, sides, strict=False)]
    cut = _one_by_one(list(zip(parts, padded, strict=True)))
    with (
        swapped(file, "attention_pool", _one_by_one(pooled)),
        swapped(file, "window_partition", cut),
        swapped(_file("utils"), "get_rel_pos", _one_by_one(positions)),
    ):
        return [attention(x)]


@_op
def _join(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    block, (x, *normed, attended) = _at(d, unit.args[0]), inputs
    with contextlib.ExitStack() as stack:
        stack.enter_context(swapped(block, "attn", Answer(attended)))
        for value in normed:
            stack.enter_context(swapped(block, "norm1", Answer(value)))
        return [_input_of(block.norm2, lambda: block(x))]


@_op
def _finish(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    block, (x,) = _at(d, unit.args[0]), inputs
    x = x + block.mlp(block.norm2(x))
    if getattr(block, "use_residual_block", False):
        x = block.residual(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return [x]


@_op
def _token_map(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    x = _at(d, unit.args[1])(inputs[0]) if unit.args[1] else inputs[0]
    return [x.permute(0, 3, 1, 2)]


def _size(patches: Tensor, layer: int) -> tuple[int, int]:
    """Height and width of the map of a layer of Swin."""
    height, width = patches.shape[2:]
    for _ in range(layer):
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


@_op
def _rows_of_map(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    network = _at(d, unit.args[0])

    def run() -> Any:
        with swapped(network, "patch_embed", Answer(inputs[0])):
            return network(inputs[0])

    return [_input_of(network.pos_drop, run)]


@_op
def _shift_mask(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    (x, patches), (path, number) = inputs, unit.args
    layer = _at(d, path)
    mask = _input_of(layer.blocks[0], lambda: layer(x, *_size(patches, number)), 1)
    return [mask.to(d.torch_dtype)]  # made in float32 whatever the model's dtype; only 0 and -100


def _sized(d: Any, unit: Any, patches: Tensor) -> Any:
    """A block of Swin that knows the size of its map, as its layer tells it."""
    block = _at(d, unit.args[0])
    block.H, block.W = _size(patches, unit.args[1])
    return block


@_op
def _shifted_windows(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    normed, patches = inputs
    block = _sized(d, unit, patches)
    with swapped(block, "norm1", Answer(normed)):
        return [_input_of(block.attn, lambda: block(normed, None))]


@_op
def _window_attention(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    windows, *mask = inputs
    return [_at(d, unit.args[0])(windows, mask=mask[0] if mask else None)]


@_op
def _shifted_join(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    x, attended, patches = inputs
    block = _sized(d, unit, patches)
    with swapped(block, "attn", Answer(attended)):
        return [_input_of(block.norm2, lambda: block(x, None))]


@_op
def _merge(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    x, patches = inputs
    return [_at(d, unit.args[0])(x, *_size(patches, unit.args[1]))]


@_op
def _rows_to_map(d: Any, unit: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    x, patches = inputs
    y = _at(d, unit.args[0])(x)
    height, width = _size(patches, unit.args[1])
    return [y.reshape(-1, height, width, y.shape[2]).permute(0, 3, 1, 2)]
