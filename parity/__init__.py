"""Parity: do two implementations of a detectron2 model compute the same, and if not, where does it start?

    import parity
    comparisons = parity.run("config.yaml", "model.pkl", ["image.png"], output="out")   # runs both sides
    comparisons = parity.compare("detectron2.h5", "tensorflow.h5")                       # judges two traces
    parity.assert_parity("detectron2.h5", "tensorflow.h5")                               # for tests

The core needs numpy, h5py, pyyaml and scipy. Frameworks are imported only by the worker programs in
``parity.workers``, each of which runs in a process of its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.judge import ParityError, Waiver, assert_parity, compare
    from parity.results import Comparison, StageResult
    from parity.runner import run
    from parity.status import Status, Verdict

# Imported on first use, so that a worker in a bare interpreter needs only what it uses itself.
_HOME = {
    "Comparison": "parity.results",
    "ParityError": "parity.judge",
    "StageResult": "parity.results",
    "Status": "parity.status",
    "Verdict": "parity.status",
    "Waiver": "parity.judge",
    "assert_parity": "parity.judge",
    "compare": "parity.judge",
    "run": "parity.runner",
}

__all__ = [
    "Comparison",
    "ParityError",
    "StageResult",
    "Status",
    "Verdict",
    "Waiver",
    "assert_parity",
    "compare",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'parity' has no attribute {name!r}")
