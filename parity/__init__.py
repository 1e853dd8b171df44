"""Parity: do two implementations of a detectron2 model compute the same, and if not, where does it start?

    import parity
    comparisons = parity.run("config.yaml", "model.pkl", ["image.png"], output="out")   # runs both sides
    comparisons = parity.compare("detectron2.h5", "tensorflow.h5")                       # judges two traces
    parity.assert_parity("detectron2.h5", "tensorflow.h5")                               # for tests

The core needs numpy, h5py, pyyaml and scipy. Frameworks are imported only by the worker programs in
``parity.backends`` and ``parity.bench``, each of which runs in a process of its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.core.results import Comparison, StageResult
    from parity.core.status import Status, Verdict
    from parity.judge.judge import ParityError, assert_parity, compare
    from parity.judge.waivers import Waiver
    from parity.running.runner import run

# Imported on first use, so that a worker in a bare interpreter needs only what it uses itself.
_HOME = {
    "Comparison": "parity.core.results",
    "ParityError": "parity.judge.judge",
    "StageResult": "parity.core.results",
    "Status": "parity.core.status",
    "Verdict": "parity.core.status",
    "Waiver": "parity.judge.waivers",
    "assert_parity": "parity.judge.judge",
    "compare": "parity.judge.judge",
    "run": "parity.running.runner",
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
