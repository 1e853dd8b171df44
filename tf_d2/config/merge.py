"""Nested YAML and ``KEY VALUE`` options merged into the flat table of defaults, with types checked.

Source: yacs ``CfgNode.merge_from_list`` and ``_check_and_coerce_cfg_value_type``; renames of old versions:
``detectron2/config/compat.py``.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from typing import Any

from tf_d2.config.defaults import IGNORED, INFERENCE, KEYS, SECTIONS, Flat
from tf_d2.config.errors import ConfigError, did_you_mean
from tf_d2.config.safe_yaml import Unread
from tf_d2.config.unknown import is_ignored, leave_out

_MAX_LITERAL = 20_000

_RENAMED_V1 = {"MODEL.RPN_HEAD.NAME": "MODEL.RPN.HEAD_NAME"}
_RENAMED_V2 = {
    "MODEL.WEIGHT": "MODEL.WEIGHTS",
    "MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE": "MODEL.RPN.LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE": "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN.COMBINE_ON": "MODEL.PANOPTIC_FPN.COMBINE.ENABLED",
    "MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD": "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
    "MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT": "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
    "MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD": (
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
    ),
    "MODEL.ROI_HEADS.SCORE_THRESH": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD": "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "MODEL.RETINANET.INFERENCE_NMS_THRESHOLD": "MODEL.RETINANET.NMS_THRESH_TEST",
    "TEST.DETECTIONS_PER_IMG": "TEST.DETECTIONS_PER_IMAGE",
    "TEST.AUG_ON": "TEST.AUG.ENABLED",
    "TEST.AUG_MIN_SIZES": "TEST.AUG.MIN_SIZES",
    "TEST.AUG_MAX_SIZE": "TEST.AUG.MAX_SIZE",
    "TEST.AUG_FLIP": "TEST.AUG.FLIP",
}
_NULL: Flat = {"MODEL.FPN.NORM": None, "DATASETS.TRAIN": (), "DATASETS.TEST": ()}
_ANCHOR_KEYS = ("ANCHOR_SIZES", "ANCHOR_ASPECT_RATIOS")
_VERSION = INFERENCE["VERSION"]


def literal(value: Any) -> Any:
    """Strings that spell a Python literal become it, as in yacs: ``"(1, 2)"`` -> ``(1, 2)``."""
    if not isinstance(value, str) or len(value) > _MAX_LITERAL:
        return value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning of strings such as "5is"
            return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def as_tuples(value: Any) -> Any:
    """Lists become tuples, all the way down."""
    return tuple(as_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, tuple) else f"{type(value).__name__} {value!r}"[:80]


def coerce(key: str, value: Any) -> Any:
    """``value`` as the type of the default of ``key``: same type, list for tuple, int for float.

    null is what Python's None does in detectron2: false for a switch, no name for a name, no data sets; for
    ``MODEL.FPN.NORM`` it stays None, which is no norm *and* no bias there. Keys that inference ignores take any value.
    """
    value = as_tuples(literal(value))
    if key in IGNORED:
        return value
    if (unread := _unread(value)) is not None:
        raise ConfigError(f"{key}: {unread.refusal()}")
    default = INFERENCE[key]
    if type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if value is None and key in _NULL:
        return _NULL[key]
    if value is None and isinstance(default, (str, bool)):
        return type(default)()
    raise ConfigError(f"{key} = {_kind(value)}: expected a value like its default, {_kind(default)}")


def _unread(value: Any) -> Unread | None:
    """The first part of a value that is Python and was not evaluated."""
    if isinstance(value, Unread):
        return value
    if isinstance(value, tuple):
        return next((found for v in value if (found := _unread(v)) is not None), None)
    return None


def _unknown(key: str) -> str:
    return f"{key} is not a key of detectron2{did_you_mean(key, KEYS)}"


def flatten(data: dict, source: str, prefix: str = "") -> Flat:
    """``{"A": {"B": 1}}`` -> ``{"A.B": 1}``, leaving lists as they are."""
    flat: Flat = {}
    for key, value in data.items():
        if not isinstance(key, str) and (not prefix or prefix[:-1] in SECTIONS):
            raise ConfigError(f"{source}: the key {prefix}{key!r} is not a string")
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in KEYS:
            flat.update(flatten(value, source, name + "."))
        else:
            flat[name] = value
    return flat


def _rename(flat: Flat, renames: dict[str, str], source: str) -> None:
    for old, new in renames.items():
        if old in flat:
            if new in flat:
                raise ConfigError(f"{source}: has both {new} and its old name {old}; keep one")
            flat[new] = flat.pop(old)


def _upgrade(flat: Flat, source: str) -> Flat:
    """A configuration of ``VERSION`` 0 or 1 under today's names; ``VERSION`` 2 unchanged."""
    flat = dict(flat)
    old_style = "MODEL.WEIGHT" in flat or "TEST.AUG_ON" in flat
    version = flat.get("VERSION", 1 if old_style else _VERSION)
    if not isinstance(version, int) or not 0 <= version <= _VERSION:
        raise ConfigError(f"{source}: VERSION = {version!r}; supported are 0, 1 and {_VERSION}")
    flat["VERSION"] = _VERSION
    if version == _VERSION:
        return flat
    if version == 0:
        _rename(flat, _RENAMED_V1, source)
    _rename(flat, _RENAMED_V2, source)
    one_stage = flat.get("MODEL.META_ARCHITECTURE") == "RetinaNet"
    used, unused = ("RETINANET", "RPN") if one_stage else ("RPN", "RETINANET")
    for name in _ANCHOR_KEYS:
        flat.pop(f"MODEL.{unused}.{name}", None)
        new = "MODEL.ANCHOR_GENERATOR." + name.removeprefix("ANCHOR_")
        _rename(flat, {f"MODEL.{used}.{name}": new}, source)
    flat.pop("MODEL.RETINANET.ANCHOR_STRIDES", None)
    return flat


def merge_file(data: dict, source: str, ignore: Sequence[str] = ()) -> Flat:
    """All keys with their defaults, overridden by the nested mapping of a file.

    Keys detectron2 does not have are left out, with a `ConfigNotice`, where they cannot touch inference or
    ``ignore`` (keys, sections, patterns) covers them.

    Raises:
        ConfigError: naming the keys that are unknown or of the wrong type.
    """
    merged = dict(KEYS)
    unknown: Flat = {}
    for key, value in _upgrade(flatten(data, source), source).items():
        if key in KEYS:
            try:
                merged[key] = coerce(key, value)
            except ConfigError as error:
                raise ConfigError(f"{source}: {error}") from error
        elif key in SECTIONS:
            if isinstance(value, Unread):
                raise ConfigError(f"{source}: {key}: {value.refusal()}")
            if value is not None or any(known.startswith(key + ".") for known in INFERENCE):
                raise ConfigError(f"{source}: {key} = {value!r}: expected a section with keys below it")
        else:
            unknown[key] = value
    if data and not any(str(name) in SECTIONS or str(name) in KEYS for name in data):
        names = ", ".join(map(str, list(data)[:5]))
        raise ConfigError(
            f"{source}: is no configuration of detectron2: of its keys ({names}) none is detectron2's"
        )
    leave_out(unknown, merged, ignore, source)
    return merged


def merge_opts(flat: Flat, opts: Sequence, ignore: Sequence[str] = ()) -> Flat:
    """``flat`` overridden by ``["KEY", value, "KEY", value, ...]``; string values are read as literals.

    Options that detectron2 does not have are an error, as there, unless ``ignore`` covers them.
    """
    if isinstance(opts, str) or len(opts) % 2:
        raise ConfigError(f"options must be pairs of KEY and VALUE, got {list(opts)!r}")
    merged = dict(flat)
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        if isinstance(key, str) and key not in KEYS and is_ignored(key, ignore):
            continue
        if isinstance(key, str) and (name := _mapping_of(key, merged)):
            merged[name] = _with_entry(merged[name], key, len(name) + 1, literal(value))
            continue
        if not isinstance(key, str) or key not in KEYS:
            known = f"{key} is a section" if key in SECTIONS else _unknown(str(key))
            raise ConfigError(f"option {key}: {known}")
        try:
            merged[key] = coerce(key, value)
        except ConfigError as error:
            raise ConfigError(f"option {error}") from error
    return merged


def _mapping_of(key: str, merged: Flat) -> str:
    """The key whose value is a mapping in which an option sets an entry (a mesh of DensePose's EMBEDDERS); "" where
    there is none."""
    return next((n for n, held in merged.items() if isinstance(held, dict) and key.startswith(n + ".")), "")


def _with_entry(held: dict, key: str, start: int, value: Any) -> dict:
    """A copy of a mapping, with the entry that ``key`` names from ``start`` on. Only one that is there can be set."""
    name, _, rest = key[start:].partition(".")
    if name not in held:
        raise ConfigError(f"option {key}: {key[: start - 1]} has no {name}{did_you_mean(name, list(held))}")
    if rest and not isinstance(held[name], dict):
        raise ConfigError(f"option {key}: {name} is {held[name]!r}, with nothing below it")
    return held | {name: _with_entry(held[name], key, start + len(name) + 1, value) if rest else value}
