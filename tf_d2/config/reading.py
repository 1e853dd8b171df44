"""The values of one part of a configuration, each with the place it was written at, and the checks they pass.

Both front doors end here: a part turns its yacs keys, or its LazyConfig node, into `Fields`, and one classmethod
of the part makes the frozen dataclass from them. So a check is written once and its error names what the user
wrote: ``MODEL.RPN.NMS_THRESH`` or ``model.proposal_generator.nms_thresh``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any

from tf_d2.config.defaults import Flat
from tf_d2.config.errors import ConfigError, did_you_mean
from tf_d2.config.safe_yaml import Unread

Floats = tuple[float, ...]
MAX_LAYERS = 1000

# AffineChannel is Detectron's name for a frozen batch norm without an epsilon; detectron2 has none of that kind.
NORMS = (
    "",
    "FrozenBN",
    "BN",
    "SyncBN",
    "nnSyncBN",
    "naiveSyncBN",
    "naiveSyncBN_N",
    "GN",
    "LN",
    "AffineChannel",
)
POOLERS = ("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")

_VITDET_FORK = (  # layer scale, separate queries and keys, a table of its own for relative positions
    "ronghanghu/detectron2_vitdet, whose tensors are not those of detectron2's own ViT; that one is "
    "ViTDet/COCO/mask_rcnn_vitdet_b and others"
)

# What a name elsewhere in detectron2's own tree or its projects would need, for a message that helps.
ELSEWHERE = {
    "build_hrfpn": "DensePose",
    "build_vit": "a ViT fork as those of DiT and LayoutLMv3, whose tensors are not those of detectron2's own ViT; "
    "that one is a LazyConfig model: ViTDet/COCO/mask_rcnn_vitdet_b and others, or the YAML that a run of one writes",
    "BEiTDet": _VITDET_FORK,
    "ViTUp": _VITDET_FORK,
    "VisionTransformerDet": _VITDET_FORK,
}

DOOR = "; a part of your own is added with tf_d2.extend (docs/extend.md)"

# Classes by which a LazyConfig may give a norm; at inference the batch norms are one.
_NORM_CLASSES = {
    "BatchNorm2d": "BN",
    "SyncBatchNorm": "SyncBN",
    "FrozenBatchNorm2d": "FrozenBN",
    "NaiveSyncBatchNorm": "naiveSyncBN",
    "LayerNorm": "LN",
}


def refusal(where: str, value: Any, expected: str) -> ConfigError:
    """``where = value is not supported: expected``, with the project it belongs to where that is known."""
    if isinstance(value, Unread):
        return ConfigError(f"{where}: {value.refusal()}")
    project = next((name for start, name in ELSEWHERE.items() if str(value).startswith(start)), None)
    note = f" (a setting of {project})" if project else ""
    if isinstance(value, str) and value.startswith("python:"):
        note = " (Python code, which is not run; give its value as an option)"
    return ConfigError(f"{where} = {value!r}{note} is not supported: {expected}")


def one_of(allowed: Iterable[Any]) -> str:
    return f"expected one of {', '.join(map(repr, allowed))}"


def norm_name(value: Any) -> Any:
    """A norm as LazyConfig gives it -> detectron2's name for it; what is not understood stays as it is.

    None is no norm. A class (``python:torch.nn...BatchNorm2d``) has a name. A lambda is not run: those of detectron2's
    published configurations are all ``NaiveSyncBatchNorm(c, stats_mode="N")``, and a checkpoint with another norm
    does not fit the variables of a batch norm, so that it is refused when it is loaded.
    """
    if value is None:
        return ""
    if isinstance(value, str) and value.startswith("python:"):
        if value.endswith("<lambda>"):
            return "naiveSyncBN_N"
        return _NORM_CLASSES.get(value.rpartition(".")[2], value)
    return value


class Fields:
    """Field name -> value and the place it was written at. The methods check a field and return it."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[str, Any]] = {}

    def put(self, field: str, where: str, value: Any) -> None:
        """``value`` of ``field``, written at ``where``; replaces an earlier one."""
        self._values[field] = where, value

    def __getitem__(self, field: str) -> Any:
        return self._values[field][1]

    def where(self, field: str) -> str:
        return self._values[field][0]

    def fail(self, field: str, expected: str, value: Any = None) -> ConfigError:
        """The error that refuses the field; ``value`` in place of what was written, if given."""
        return refusal(self.where(field), self[field] if value is None else value, expected)

    def overridden(self, keys: Mapping[str, str], options: Flat) -> Fields:
        """These fields with those whose yacs key is among the options replaced."""
        for field, key in keys.items():
            if key in options:
                self.put(field, key, options[key])
        return self

    # === Checks ===

    def choice(self, field: str, allowed: Sequence[Any]) -> Any:
        value = self[field]
        if not any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in allowed):
            hint = did_you_mean(str(value), [str(a) for a in allowed])
            raise self.fail(field, one_of(allowed) + hint)
        return value

    def norm(self, field: str, allowed: Sequence[str] = NORMS) -> str:
        return self.choice(field, allowed)

    def flag(self, field: str) -> bool:
        if type(self[field]) is not bool:
            raise self.fail(field, "expected True or False")
        return self[field]

    def integer(self, field: str, least: int) -> int:
        value = self[field]
        if type(value) is not int or not least <= value < 2**31:
            raise self.fail(field, f"expected a whole number, at least {least}")
        return value

    def layers(self, field: str, least: int) -> int:
        """A number of layers: of a typing error's size none are made."""
        if self.integer(field, least) > MAX_LAYERS:
            raise self.fail(field, f"expected at most {MAX_LAYERS} layers")
        return self[field]

    def integers(self, field: str, least: int = 1) -> tuple[int, ...]:
        """Any number of whole numbers, none included."""
        values = self[field]
        if not isinstance(values, tuple) or not all(type(v) is int and least <= v < 2**31 for v in values):
            raise self.fail(field, f"expected a list of whole numbers, at least {least}")
        return values

    def channels(self, field: str) -> tuple[int, ...]:
        """A list of numbers of channels, none included."""
        values = self[field]
        if not isinstance(values, tuple) or not all(type(v) is int and 0 < v < 2**31 for v in values):
            raise self.fail(field, "expected a list of channel numbers")
        return values

    def number(self, field: str) -> float:
        if not _is_number(self[field]):
            raise self.fail(field, "expected a finite number")
        return float(self[field])

    def numbers(self, field: str, lengths: Sequence[int] = ()) -> Floats:
        values = self[field]
        if not isinstance(values, tuple) or not values or not all(map(_is_number, values)):
            raise self.fail(field, "expected a list of finite numbers")
        if lengths and len(values) not in lengths:
            raise self.fail(field, f"expected {' or '.join(map(str, lengths))} numbers")
        return tuple(map(float, values))

    def nonzero(self, field: str, lengths: Sequence[int] = ()) -> Floats:
        values = self.numbers(field, lengths)
        if 0.0 in values:
            raise self.fail(field, "zero would divide by zero")
        return values

    def nms_threshold(self, field: str) -> float:
        """An IoU; above 1 nothing is suppressed."""
        value = self.number(field)
        if value < 0:
            raise self.fail(field, "a negative IoU would leave one box of each image")
        return value

    def levels(self, field: str) -> tuple[Floats, ...]:
        """One tuple per level; a flat list of numbers is one tuple (``_broadcast_params`` of detectron2)."""
        values = self[field]
        levels = (
            (values,) if isinstance(values, tuple) and values and all(map(_is_number, values)) else values
        )
        if not isinstance(levels, tuple) or not levels:
            raise self.fail(field, "expected a list of lists of numbers, one per feature level")
        for level in levels:
            if not isinstance(level, tuple) or not level or not all(map(_is_number, level)):
                raise self.fail(field, "expected a list of non-empty lists of numbers")
        return tuple(tuple(map(float, level)) for level in levels)

    def names(self, field: str, available: Iterable[str] | None = None) -> tuple[str, ...]:
        """A list of different names, all among those that a backbone makes if these are given."""
        names = self[field]
        if not isinstance(names, tuple) or not names or not all(isinstance(n, str) for n in names):
            raise self.fail(field, "expected a list of names")
        if len(set(names)) != len(names):
            raise self.fail(field, "a name occurs twice")
        known = None if available is None else tuple(available)
        if known is not None and any(n not in known for n in names):
            raise self.fail(field, f"this backbone makes only {', '.join(known)}")
        return names

    def pyramid(self, field: str, strides: Mapping[str, int]) -> tuple[str, ...]:
        """Levels in ascending order, each twice the stride of the one before, as detectron2 asserts."""
        names = self.names(field, strides)
        values = [strides[n] for n in names]
        if any(b != 2 * a for a, b in pairwise(values)):
            raise self.fail(field, f"strides must double from one to the next, they are {values}")
        return names


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)
