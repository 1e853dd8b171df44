"""Parity: do two implementations of a detectron2 model compute the same, and if not, where does it start?

    import parity
    comparisons = parity.run("config.yaml", "model.pkl", ["image.png"], output="out")   # runs both sides
    comparisons = parity.compare("detectron2.h5", "tensorflow.h5")                       # judges two traces
    parity.assert_parity("detectron2.h5", "tensorflow.h5")                               # for tests

The core needs numpy, h5py and scipy. Frameworks are imported only by the worker programs in
``parity.workers``, each of which runs in a process of its own.
"""

from parity.judge import ParityError, Waiver, assert_parity, compare
from parity.results import Comparison, StageResult
from parity.status import Status, Verdict

__all__ = [
    "Comparison",
    "ParityError",
    "StageResult",
    "Status",
    "Verdict",
    "Waiver",
    "assert_parity",
    "compare",
]
