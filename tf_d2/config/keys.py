"""The yacs door: detectron2's flat keys, handed out part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tf_d2.config.defaults import Flat
from tf_d2.config.errors import ConfigError, did_you_mean
from tf_d2.config.reading import DOOR, Fields, one_of, refusal

Table = Mapping[str, Mapping[str, Any]]


class Keys:
    """All merged keys. A part takes its own with `fields` and the parts below it with `part`."""

    def __init__(self, flat: Flat, table: Table) -> None:
        self._flat, self._table = flat, table

    def __getitem__(self, key: str) -> Any:
        return self._flat[key]

    def fail(self, key: str, expected: str) -> ConfigError:
        return refusal(key, self[key], expected)

    def fields(self, keys: Mapping[str, str]) -> Fields:
        """The values of a part, ``keys`` being its table field -> key."""
        fields = Fields()
        for field, key in keys.items():
            fields.put(field, key, self[key])
        return fields

    def part(self, kind: str, key: str, *context: Any) -> Any:
        """The part of a kind ("backbone", "roi_heads", ...) that the value of ``key`` names.

        ``context``: what parts of this kind are told of the rest of the model (see `tf_d2.config.table`).
        """
        name, known = self[key], self._table[kind]
        if not isinstance(name, str) or name not in known or not known[name].yacs:
            names = [n for n, part in known.items() if part.yacs]
            hint = did_you_mean(str(name), names)
            raise self.fail(key, f"{one_of(names)}{hint}{DOOR}")
        return self.named(kind, name, *context)

    def named(self, kind: str, name: str, *context: Any) -> Any:
        """The part of this name."""
        return self._table[kind][name].config.from_keys(self, name, *context)
