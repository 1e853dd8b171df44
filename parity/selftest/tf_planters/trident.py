"""Bugs in TridentNet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from parity.selftest.tf_planters.base import planter, together
from tf_d2.layers.base import walk
from tf_d2.layers.conv import Conv2d


@planter("first_branch")
def _first_branch(p: Any) -> Iterator[None]:
    found = [x for x in walk(p.model.backbone) if isinstance(x, Conv2d) and x.dilation > 1]
    with together(*((conv, name, 1) for conv in found for name in ("dilation", "padding"))):
        yield
