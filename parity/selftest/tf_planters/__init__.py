"""Plants the bugs of `parity.selftest.mutations` in a running TensorFlow model. Part of the TensorFlow worker.

Each planter changes the model, or the modules of tf_d2, and undoes it afterwards. The model runs eagerly, so a changed
function takes effect at the next call. The files are families of models and parts of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from parity.selftest.tf_planters.base import PLANTERS

_FAMILIES = (
    "backbone",
    "deeplab",
    "densepose",
    "older",
    "operations",
    "panoptic_deeplab",
    "picture",
    "point_rend",
    "proposals",
    "regions",
    "results",
    "segmentation",
    "tensor_mask",
    "transformers",
    "trident",
)


@contextlib.contextmanager
def plant(name: str, predictor: Any = None) -> Iterator[None]:
    """Plant the bug called ``name`` for a while. KeyError lists the known ones."""
    for family in _FAMILIES:  # each adds its planters to the table
        import_module(f"{__name__}.{family}")
    if name not in PLANTERS:
        raise KeyError(f"no planted bug is called {name!r}; known: {', '.join(PLANTERS)}")
    with PLANTERS[name](predictor):
        yield
