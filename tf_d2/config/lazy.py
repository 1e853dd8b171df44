"""The LazyConfig door: the YAML that a training saves (``_target_:`` keys), read as data, part by part.

Nothing is imported or called: the class named by ``_target_`` only selects the part that reads the node. Every
argument of an object that inference uses is translated, known to matter to training alone, or an error. Missing
arguments take the defaults of detectron2's constructors, which differ from the yacs keys (anchor offset 0.5, score
threshold 0). Source: ``configs/common/models``, ``detectron2/config/lazy.py`` and the constructors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from tf_d2.config.defaults import Flat
from tf_d2.config.errors import ConfigError, did_you_mean
from tf_d2.config.keys import Table
from tf_d2.config.merge import as_tuples
from tf_d2.config.reading import DOOR, ELSEWHERE, Fields, norm_name

_INTERPOLATION = re.compile(r"\$\{(\.*)([A-Za-z0-9_.]+)\}")
_MAX_HOPS = 20

REQUIRED = object()
"""In place of a default: the constructor has none."""


OPTIONS = "tf_d2_options"
"""Top-level mapping of a dump that `dump` wrote: yacs keys that override what the model says."""


def is_lazy(data: dict) -> bool:
    """Whether the mapping is a LazyConfig dump rather than ``cfg.dump()``."""
    return isinstance(data.get("model"), dict) and "_target_" in data["model"]


class LazyFile:
    """A whole dump, the overrides given with it, and the table of parts.

    ``options``: yacs keys and values, which replace the field that a part reads from the key (`Fields.overridden`).
    """

    def __init__(self, root: dict, options: Flat, table: Table) -> None:
        self.root, self.options, self.table = root, options, table
        self.used: set[str] = set()

    def node(self, *path: str) -> Node:
        """The mapping at a path from the root; raises ConfigError where there is none."""
        try:
            path_of, value = resolve(self.root, path)
        except KeyError:
            raise ConfigError(f"{'.'.join(path)} is missing") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{'.'.join(path)} = {value!r}: expected a mapping")
        return Node(self, path_of, value)

    def value(self, *path: str) -> Any:
        """The value at a path, or None."""
        try:
            return resolve(self.root, path)[1]
        except (KeyError, ConfigError):
            return None


class Node:
    """One mapping of the dump; `take` hands out its arguments and `done` refuses those nobody took."""

    def __init__(self, file: LazyFile, path: tuple, value: dict) -> None:
        self.file, self.path, self.value = file, path, value
        self.left = {key for key in value if key != "_target_"}

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))

    @property
    def target(self) -> str:
        """The class or function that ``_target_`` names.

        detectron2's go without their modules (lower case), of which a dump may give the shortest public path or
        the file of the class; others keep their whole path.
        """
        target = self.value.get("_target_")
        if not isinstance(target, str):
            raise ConfigError(
                f"{self.name}._target_ = {target!r} is not supported: expected the name of a class"
            )
        if not target.startswith("detectron2."):
            return target
        parts = target.split(".")
        return ".".join(parts[next((i for i, p in enumerate(parts) if p[:1].isupper()), -1) :])

    def check(self, *allowed: str) -> str:
        if self.target not in allowed:
            raise self._unknown(allowed)
        return self.target

    def _unknown(self, allowed: Iterable[str]) -> ConfigError:
        names = list(allowed)
        project = next((p for start, p in ELSEWHERE.items() if self.target.startswith(start)), None)
        note = f" (a part of {project})" if project else ""
        hint = did_you_mean(self.target, names)
        expected = f"expected {' or '.join(names)}{hint}"
        return ConfigError(f"{self.name}._target_ = {self.target!r}{note} is not supported: {expected}")

    def take(self, key: str, *default: Any) -> Any:
        """The argument ``key``, references followed; a mapping as a `Node`. Without a default it must be there."""
        self.left.discard(key)
        if key not in self.value:
            if default and default[0] is not REQUIRED:
                return default[0]
            raise ConfigError(f"{self.name}.{key} is missing")
        path, value = resolve(self.file.root, (*self.path, key))
        return Node(self.file, path, value) if isinstance(value, dict) else value

    def node(self, key: str) -> Node:
        value = self.take(key)
        if not isinstance(value, Node):
            raise ConfigError(f"{self.name}.{key} = {value!r}: expected an object with a _target_")
        return value

    def nodes(self, key: str) -> list[Node]:
        value = self.take(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ConfigError(f"{self.name}.{key}: expected a list of objects with a _target_")
        return [Node(self.file, (*self.path, key, i), item) for i, item in enumerate(value)]

    def part(self, kind: str, key: str, *context: Any) -> Any:
        """The part of a kind that the node ``key`` is; see `Keys.part`."""
        return self.node(key).read_as(kind, *context)

    def optional_part(self, kind: str, key: str, *context: Any) -> Any:
        """`part`, or None where the argument is missing or null."""
        return None if self.take(key, None) is None else self.part(kind, key, *context)

    def read_as(self, kind: str, *context: Any) -> Any:
        """This node as the part of a kind that its ``_target_`` names."""
        known = self.file.table[kind]
        if self.target not in known or not known[self.target].lazy:
            raise ConfigError(f"{self._unknown(n for n, part in known.items() if part.lazy)}{DOOR}")
        return known[self.target].config.from_lazy(self, *context)

    def fields(self, defaults: Mapping[str, Any]) -> Fields:
        """Arguments by name with the constructor's default, or `REQUIRED`; lists as tuples."""
        fields = Fields()
        for key, default in defaults.items():
            fields.put(key, f"{self.name}.{key}", as_tuples(self.take(key, default)))
        return fields

    def put(self, fields: Fields, field: str, key: str, default: Any = REQUIRED) -> None:
        """The argument ``key`` of this node as ``field``."""
        fields.put(field, f"{self.name}.{key}", as_tuples(self.take(key, default)))

    def put_norm(self, fields: Fields, field: str, key: str, default: Any = REQUIRED) -> None:
        """The same for a norm, in any of the forms of `norm_name`."""
        fields.put(field, f"{self.name}.{key}", norm_name(self.take(key, default)))

    def overridden(self, fields: Fields, keys: Mapping[str, str]) -> Fields:
        """``fields`` with the options that name one of the part's yacs ``keys``."""
        self.file.used.update(keys.values())
        return fields.overridden(keys, self.file.options)

    def only(self, key: str, expected: Any) -> None:
        """Refuse any value of ``key`` but the one that this version computes."""
        if (value := as_tuples(self.take(key, expected))) != expected:
            raise ConfigError(f"{self.name}.{key} = {value!r} is not supported: expected {expected!r}")

    def same(self, key: str, other: str, expected: Any) -> None:
        """Refuse a value of ``key`` that differs from that of ``other``."""
        if (value := as_tuples(self.take(key))) != expected:
            raise ConfigError(
                f"{self.name}.{key} = {value!r} is not supported: expected that of {other}, {expected!r}"
            )

    def done(self, ignored: str | Iterable[str] = ()) -> None:
        """Refuse what nobody took, but for the names in ``ignored`` (a list, or words in a string)."""
        names = ignored.split() if isinstance(ignored, str) else ignored
        unknown = sorted(map(str, self.left - set(names)))
        if unknown:
            raise ConfigError(f"{self.name}: the argument {unknown[0]!r} of {self.target} is not supported")


def second(node: Node, key: str) -> Any:
    """The test value of a (train, test) pair."""
    pair = node.take(key)
    if not isinstance(pair, list) or len(pair) != 2:
        raise ConfigError(f"{node.name}.{key} = {pair!r}: expected [train, test]")
    return pair[1]


def box2box_weights(node: Node, fields: Fields) -> None:
    """The weights of a Box2BoxTransform as the field ``bbox_reg_weights``."""
    transform = node.node("box2box_transform")
    transform.check("Box2BoxTransform", "Box2BoxTransformRotated")
    transform.put(fields, "bbox_reg_weights", "weights")
    transform.done()


# === References ===


def _lookup(root: dict, path: Iterable) -> Any:
    value: Any = root
    for part in path:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and str(part).isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise KeyError(part)
    return value


def resolve(root: dict, path: tuple) -> tuple[tuple, Any]:
    """The value at ``path`` and where it is, following OmegaConf's ``${a.b}`` and ``${..a}``.

    Raises:
        KeyError: nothing is there.
        ConfigError: a reference cannot be followed.
    """
    for _ in range(_MAX_HOPS):
        value = _lookup(root, path)
        if not isinstance(value, str) or "${" not in value:
            return path, value
        match = _INTERPOLATION.fullmatch(value)
        if match is None or len(match[1]) > len(path):
            break
        base = path[: len(path) - len(match[1])] if match[1] else ()
        path = (*base, *match[2].split("."))
        try:
            _lookup(root, path)
        except KeyError:
            break
    raise ConfigError(
        f"{'.'.join(map(str, path))}: the reference cannot be followed; write the value instead"
    )


def _resolved(root: dict, path: tuple) -> Any:
    path, value = resolve(root, path)
    if isinstance(value, dict):
        return {key: _resolved(root, (*path, key)) for key in value}
    if isinstance(value, list):
        return [_resolved(root, (*path, i)) for i in range(len(value))]
    return value


def dump(data: dict, options: Flat) -> str:
    """YAML of what inference reads of a dump, references resolved; `options` go beside it (`OPTIONS`)."""
    kept: dict[str, Any] = {"model": _resolved(data, ("model",))}
    for path in (
        ("dataloader", "test", "mapper"),
        ("dataloader", "test", "dataset"),
        ("train", "init_checkpoint"),
    ):
        try:
            value = _resolved(data, path)
        except (KeyError, ConfigError):
            continue
        section = kept
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = value
    if options:
        kept[OPTIONS] = options
    return yaml.safe_dump(_plain(kept), sort_keys=False, default_flow_style=None, width=110)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def set_path(root: dict, path: str, value: Any) -> None:
    """Override ``model.roi_heads.num_classes`` and the like in place; the mapping that holds it must be there.

    Raises:
        ConfigError: there is no such mapping.
    """
    *parents, leaf = path.split(".")
    try:
        holder = _lookup(root, parents)
        _, holder = resolve(root, tuple(parents)) if isinstance(holder, str) else ((), holder)
    except KeyError as error:
        raise ConfigError(f"option {path}: the configuration has no {error.args[0]!r}") from None
    if isinstance(holder, list) and leaf.isdecimal() and int(leaf) < len(holder):
        holder[int(leaf)] = value
    elif isinstance(holder, dict):
        holder[leaf] = value
    else:
        raise ConfigError(f"option {path}: the configuration has no such value")
