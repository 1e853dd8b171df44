"""Finds the one state dict in what a training run saved, and takes wrappers' prefixes from its names.

People put a state dict under ``model``, ``state_dict``, ``model_state_dict``, ``module``, ``net``, beside optimizers
and a teacher; DistributedDataParallel, torch.compile, FSDP and Lightning put a prefix before its names. Where exactly
one reading fits it is taken, and a note says which. Where several fit the error names them.

detectron2's models keep their features in ``backbone``; that is how a prefix before the names is recognised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from weights._limits import MAX_NAME
from weights.errors import CheckpointError

_Value = TypeVar("_Value")
Names = tuple[str, ...]

# where training code keeps moving averages (d2go, timm, common forks); never used unless asked for
EMA_KEYS = ("ema_state", "model_ema", "ema_model", "ema", "state_dict_ema")
_ANCHOR = "backbone"
_MAX_DEPTH = 4
_SHOWN = 8

# Entries of a checkpoint that hold tensors and are no model: optimizers, schedulers, averages, loops, statistics.
_BESIDE = re.compile(
    r"optim|sched|scaler|(^|_)amp($|_)|rng|random|callback|loop|hook|trainer|iterator|data_?loader|sampler|logger|"
    r"metric|(^|_)ema($|_)|average|(^|_)swa($|_)|criterion|loss|buffer_names|param_shapes|ds_config|hyper_param|"
    r"(^|_)args($|_)|(^|_)cfg($|_)|config|history|meta$|blobs",
    re.IGNORECASE,
)
_OPTIMIZER = {
    "step",
    "exp_avg",
    "exp_avg_sq",
    "momentum_buffer",
    "max_exp_avg_sq",
    "square_avg",
    "sum",
}
# Segments that torch's own wrappers insert anywhere in a name.
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning Fabric",
}


@dataclass
class Reading:
    """One state dict of a file: where it was, its entries as stored, what else the file holds, what was done."""

    path: Names
    model: Mapping[Any, Any]
    others: Mapping[Any, Any]
    notes: list[str] = field(default_factory=list)


def find(value: Mapping[Any, Any], prefix: str | None, is_tensor: Callable[[Any], bool]) -> Reading:
    """The state dict in the dictionary that a file holds.

    Args:
        value: what was saved.
        prefix: which one, as a path of entries or the start of its names; None = the only one.
        is_tensor: whether a value of the file is a tensor.

    Raises:
        CheckpointError: several fit, or none does that ``prefix`` names.
    """
    if prefix is not None:
        return _named(value, list(_states(value, (), is_tensor, everything=True)), prefix)
    found = list(_states(value, (), is_tensor))
    model = value.get("model")
    if isinstance(model, dict) and (_is_state(model, is_tensor) or not found):
        return Reading(("model",), model, _without(value, "model"))
    if len(found) > 1:
        found = [path for path in found if _has_anchor(_at(value, path))] or found
    if len(found) > 1:
        raise CheckpointError(_several({".".join(path) + ".": len(_at(value, path)) for path in found}))
    if not found or found == [()]:
        return Reading((), value, {})
    path = found[0]
    note = f"the state dict was taken from its entry {'.'.join(path)!r}"
    return Reading(path, _at(value, path), _without(value, path[0]), [note])


def all_states(value: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> dict[Any, Any]:
    """The tensors of all state dicts of a file, each under the path to it."""
    result: dict[Any, Any] = {}
    for path in _states(value, (), is_tensor):
        for name, entry in _at(value, path).items():
            result[".".join((*path, name)) if type(name) is str else name] = entry
    return result


def _named(value: Mapping[Any, Any], found: list[Names], prefix: str) -> Reading:
    """The state dict or the names that ``prefix`` means."""
    start = prefix.rstrip(".") + "."
    readings = []
    for path in found:
        model, place = _at(value, path), "".join(f"{part}." for part in path)
        rest = "" if place.startswith(start) else start.removeprefix(place)
        inner = (
            {n[len(rest) :]: v for n, v in model.items() if type(n) is str and n.startswith(rest)}
            if rest
            else model
        )
        if inner:
            readings.append((path, inner, len(model) - len(inner)))
    if len(readings) != 1:
        known = [".".join(path) for path in found if path]
        also = f"; its state dicts are {', '.join(known[:_SHOWN])}" if known else ""
        many = "several state dicts have" if readings else "no state dict is called that and none has"
        raise CheckpointError(f"--prefix {prefix}: {many} tensors whose names begin with {start!r}{also}.")
    path, inner, left = readings[0]
    notes = [
        f"only what is below {start!r} was read (--prefix)"
        + (f", {left} other tensors left out" if left else "")
    ]
    return Reading(path, inner, _without(value, path[0]) if path else {}, notes)


def _states(
    value: Mapping[Any, Any],
    path: Names,
    is_tensor: Callable[[Any], bool],
    everything: bool = False,
) -> Iterable[Names]:
    """Where there are state dicts, outermost first; nothing inside of one. ``everything``: averages, too."""
    if _is_state(value, is_tensor):
        yield path
        return
    if len(path) < _MAX_DEPTH:
        for key, entry in value.items():
            if not (type(key) is str and len(key) <= MAX_NAME and isinstance(entry, dict)):
                continue
            if everything or not _BESIDE.search(key):
                yield from _states(entry, (*path, key), is_tensor, everything)


def _is_state(value: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> bool:
    """Mostly tensors under names, and not what an optimizer keeps of one."""
    names = [key for key, entry in value.items() if is_tensor(entry)]
    return 2 * len(names) > len(value) and not _OPTIMIZER.issuperset(map(str, names))


def _at(value: Any, path: Names) -> Any:
    for key in path:
        value = value[key]
    return value


def _without(value: Mapping[Any, Any], key: str) -> dict[Any, Any]:
    return {name: entry for name, entry in value.items() if name != key}


def _has_anchor(state: Mapping[Any, Any]) -> bool:
    return any(type(name) is str and _ANCHOR in name.split(".") for name in state)


def _several(readings: Mapping[str, int]) -> str:
    listed = ", ".join(f"{name!r} ({count} tensors)" for name, count in list(readings.items())[:_SHOWN])
    return (
        f"The file holds {len(readings)} models: {listed}. Say which one to read, for example "
        f"--prefix {next(iter(readings))} (in Python prefix={next(iter(readings))!r})."
    )


# --- names ------------------------------------------------------------------------------------------


def plain_names(state: Mapping[str, _Value], notes: list[str], *, several: bool = False) -> dict[str, _Value]:
    """``state`` under the names of the model: without what wrappers put before or into them.

    Args:
        state: tensors by name.
        notes: what was done is appended, one sentence each.
        several: leave the names of a file with several models as they are instead of refusing it.

    Raises:
        CheckpointError: several prefixes fit, or two names become one.
    """
    names = {name: name for name in state}
    for segment, who in _WRAPPERS.items():
        if any(segment in name.split(".") for name in names.values()):
            names = {
                old: ".".join(part for part in new.split(".") if part != segment)
                for old, new in names.items()
            }
            notes.append(f"{segment + '.'!r} in the names, which {who} puts there, was left out")
    names = {
        old: new for (old, _), new in zip(names.items(), _without_module(list(names.values())), strict=True)
    }
    prefixes = prefixes_of(names.values())
    if len(prefixes) > 1 and not several:
        raise CheckpointError(_several(prefixes))
    if len(prefixes) > 1:
        notes.append(f"it holds {len(prefixes)} models, of which --prefix reads one: {', '.join(prefixes)}")
    if len(prefixes) == 1 and (prefix := next(iter(prefixes))):
        names = {old: new.removeprefix(prefix) for old, new in names.items()}
        notes.append(f"its names begin with {prefix!r}, which was left out")
    result: dict[str, _Value] = {}
    for old, new in names.items():
        if new in result or not new:
            raise CheckpointError(f"Without the prefixes of wrappers two tensors would be called {new!r}.")
        result[new] = state[old]
    return result


def _without_module(names: list[str]) -> list[str]:
    """Without the "module." of a distributed wrapper, if every name has it (detectron2's rule)."""
    while names and all(name.startswith("module.") and len(name) > len("module.") for name in names):
        names = [name[len("module.") :] for name in names]
    return names


def prefixes_of(names: Iterable[str]) -> dict[str, int]:
    """What stands before ``backbone`` in the names -> number of tensors under it; only "" for plain names.

    A prefix inside of another one (a model that is a part of the model) does not count; no prefix wins over any.
    """
    names = list(names)
    found = sorted(
        {match[1] for name in names if (match := re.match(r"((?:[^.]+\.)*?)backbone\.", name))},
        key=lambda prefix: (len(prefix), prefix),
    )
    outer: list[str] = []
    for prefix in found:
        if not any(prefix.startswith(other) for other in outer):
            outer.append(prefix)
    return {prefix: sum(name.startswith(prefix) for name in names) for prefix in outer}
