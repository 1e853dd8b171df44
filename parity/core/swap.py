"""One attribute replaced for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def swapped(
    owner: Any, name: str, value: Any, store: Callable[[Any, str, Any], None] = setattr
) -> Iterator[None]:
    """While inside, the attribute ``name`` of ``owner`` is ``value``.

    store: how an attribute is set, for objects that do more than keep it.
    """
    original = getattr(owner, name)
    store(owner, name, value)
    try:
        yield
    finally:
        store(owner, name, original)
