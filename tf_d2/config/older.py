"""The third front door: YAML files of Detectron (Caffe2) and of maskrcnn-benchmark, as detectron2's flat keys.

Each project's file (`detectron.py`, `maskrcnn_benchmark.py`) holds its defaults and says what they are in
detectron2's keys, with ``MODEL.CONVENTIONS`` for how they are computed; the tree is then built as for any
other model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tf_d2.config.defaults import KEYS, Flat
from tf_d2.config.errors import ConfigError, did_you_mean
from tf_d2.config.merge import as_tuples, literal
from tf_d2.config.reading import MAX_LAYERS, one_of, refusal
from tf_d2.config.safe_yaml import Unread

# What detectron2, run on the weights of an older project, would leave as it has it.
OWN_KEYS = ("MODEL.SIZE_DIVISIBILITY", "MODEL.RPN.POST_NMS_TOPK_PER_LEVEL")
RESNET = ("res2", "res3", "res4", "res5")


@dataclass
class Older:
    """A project: its keys with defaults, those that inference ignores, and those with one value that is supported."""

    project: str
    conventions: str
    defaults: Flat
    ignored: tuple[str, ...]  # keys, or the start of keys (with a dot at the end)
    fixed: Flat
    translate: Callable[[Values], Flat]


@dataclass
class Values:
    """The merged keys of a file. Problems are collected, so that all are told at once."""

    flat: Flat
    problems: list[str] = field(default_factory=list)

    def __getitem__(self, key: str) -> Any:
        return self.flat[key]

    def refuse(self, key: str, expected: str) -> None:
        self.problems.append(str(refusal(key, self[key], expected)))

    def count(self, key: str, least: int = 1, most: int = MAX_LAYERS) -> int:
        """The value of ``key`` where it is ``least`` to ``most``; the nearest that is allowed, and noted, otherwise."""
        if not least <= self[key] <= most:
            self.refuse(key, f"expected {least} to {most}")
        return min(max(self[key], least), most)

    def choice(self, key: str, allowed: dict[Any, Any]) -> Any:
        """What the value of ``key`` stands for; the first if it is not allowed, which is noted."""
        value = self[key]
        if value not in allowed:
            self.refuse(key, one_of(allowed) + did_you_mean(str(value), [str(a) for a in allowed]))
            return next(iter(allowed.values()))
        return allowed[value]


def flatten(data: dict, prefix: str = "") -> Flat:
    """``{"A": {"B": 1}}`` -> ``{"A.B": 1}``, strings that spell a literal read, lists as tuples."""
    flat: Flat = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = as_tuples(literal(value))
    return flat


def keys_of(data: dict, opts: Sequence, source: str, older: Older) -> tuple[Flat, list]:
    """detectron2's keys with their defaults for a file of an older project, and the options that are detectron2's.

    Options may be of either project; ``MODEL.CONVENTIONS`` may turn the older conventions off.

    Raises:
        ConfigError: all keys that are unknown, of another type, or not supported.
    """
    if isinstance(opts, str) or len(opts) % 2:
        raise ConfigError(f"options must be pairs of KEY and VALUE, got {list(opts)!r}")
    given, rest = flatten(data), []
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        if key in older.defaults or _ignored(str(key), older):
            given[str(key)] = as_tuples(literal(value))
        else:
            rest += [key, value]
    values = Values(dict(older.defaults))
    for key, value in given.items():
        if key in older.defaults:
            values.flat[key] = _typed(key, value, older.defaults[key], values.problems)
        elif not _ignored(key, older) and key not in ("VERSION", "MODEL.CONVENTIONS"):
            hint = did_you_mean(key, list(older.defaults))
            values.problems.append(f"{key} is not a key of {older.project}{hint}")
    for key, value in older.fixed.items():
        if values[key] != value:
            values.refuse(key, f"expected {value!r}")
    flat = older.translate(values)
    if values.problems:
        lines = values.problems
        raise ConfigError(f"{source}: a configuration of {older.project}: " + "\n".join(lines))
    return {**KEYS, "MODEL.CONVENTIONS": older.conventions, **flat}, rest


def _ignored(key: str, older: Older) -> bool:
    return any(key == start or (start.endswith(".") and key.startswith(start)) for start in older.ignored)


def _typed(key: str, value: Any, default: Any, problems: list[str]) -> Any:
    if isinstance(value, Unread):
        problems.append(f"{key}: {value.refusal()}")
        return default
    if isinstance(default, float) and type(value) is int:
        return float(value)
    while (
        isinstance(default, tuple)
        and isinstance(value, tuple)
        and len(value) == 1
        and type(value[0]) is tuple
    ):
        value = value[0]  # Detectron writes PIXEL_MEANS as a list in lists of one
    if (
        isinstance(default, tuple)
        and isinstance(value, str)
        and key.endswith((".DATASETS", ".TRAIN", ".TEST"))
    ):
        return (value,)
    if isinstance(default, str) and value is None:
        return ""
    if not _alike(value, default):
        problems.append(f"{key} = {value!r}: expected a value like its default, {default!r}")
        return default
    return value


def _alike(value: Any, default: Any) -> bool:
    """Whether a value is of its default's type; so must the values of a list be, where any number is a number."""
    if type(value) is not type(default):
        return False
    if not isinstance(default, tuple) or not default:
        return True
    kinds = (int, float) if type(default[0]) in (int, float) else (type(default[0]),)
    return all(type(v) in kinds for v in value)


def pyramid(lowest: int, highest: int) -> tuple[str, ...]:
    """Names of the levels of a feature pyramid."""
    return tuple(f"p{level}" for level in range(lowest, highest + 1))
