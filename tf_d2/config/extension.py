"""The door for a part of your own: see docs/extend.md and examples/vovnet.py."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import is_dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from tf_d2.config.errors import ConfigError
from tf_d2.config.table import PARTS, Part, add_part_keys
from weights.errors import UsageError

_ENTRY_POINTS = "tf_d2.parts"
_VARIABLE = "TF_D2_EXTEND"
"""Files or modules to import before a configuration is read, separated as in PATH."""

_loaded: set[str] = set()


def extend(kind: str, names: str | Sequence[str], config: type, layer: Any) -> None:
    """Make a part of your own known, so that configurations can name it.

    Call it when your module is imported; the same call twice does nothing.

    Args:
        kind: what it is: "backbone", "mask_head", "roi_heads", "meta_architecture", ... (`tf_d2.config.table.PARTS`,
            whose docstring says what each kind is given and how its layer is made).
        names: what configurations call it: the name in detectron2's registry ("build_vovnet_fpn_backbone") for yacs,
            the whole ``_target_`` ("vovnet.VoVNet") for LazyConfig.
        config: a frozen dataclass with ``from_keys(keys, name, *context)`` for yacs, ``from_lazy(node, *context)`` for
            LazyConfig, or both. Its ``NEW_KEYS`` and ``IGNORED_KEYS`` (key -> default) become known keys.
        layer: the Keras class that computes it, or ``"module:Class"``, imported only when a model is built.

    Raises:
        ValueError: no such kind, a name that is taken, a class that is no frozen dataclass or reads neither form.
    """
    if kind not in PARTS:
        raise UsageError(f"no parts of kind {kind!r}; kinds are {', '.join(PARTS)}")
    if not is_dataclass(config) or not config.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UsageError(f"{config.__name__} must be a frozen dataclass: @dataclass(frozen=True)")
    methods = {"yacs": "from_keys", "lazy": "from_lazy"}
    doors = tuple(door for door, method in methods.items() if hasattr(config, method))
    if not doors:
        raise UsageError(f"{config.__name__} reads no configuration: it needs from_keys or from_lazy")
    part = Part(config, layer, doors)
    names = [names] if isinstance(names, str) else names
    for name in names:
        taken = PARTS[kind].get(name)
        if taken is not None and _identity(taken) != _identity(part):
            raise UsageError(f"{kind} {name!r} is {taken.config.__module__}.{taken.config.__name__} already")
    add_part_keys(config)
    PARTS[kind].update(dict.fromkeys(names, part))


def _identity(part: Part) -> tuple[str, str]:
    """A module that is imported again makes the same class anew."""
    return part.config.__module__, part.config.__qualname__


def load_extensions() -> None:
    """Import what installed packages and ``TF_D2_EXTEND`` name, once; called before a configuration is read.

    Raises:
        ConfigError: one of them cannot be imported.
    """
    for entry in metadata.entry_points(group=_ENTRY_POINTS) if _ENTRY_POINTS not in _loaded else ():
        _import(f"{entry.name} of {_ENTRY_POINTS}", entry.load)
    _loaded.add(_ENTRY_POINTS)
    for source in os.environ.get(_VARIABLE, "").split(os.pathsep):
        if source and source not in _loaded:
            _import(f"{_VARIABLE} {source}", lambda source=source: _import_source(source))
            _loaded.add(source)


def _import(what: str, load: Any) -> None:
    try:
        load()
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error


def _import_source(source: str) -> None:
    path = Path(source)
    if path.suffix != ".py":
        import_module(source)
        return
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
