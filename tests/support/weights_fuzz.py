"""tests/weights/fuzz.py, loaded once: it installs an audit hook."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location(
    "weights_fuzz", Path(__file__).parents[1] / "weights" / "fuzz.py"
)
assert _SPEC is not None and _SPEC.loader is not None
fuzz = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = fuzz  # where dataclasses look for their module
_SPEC.loader.exec_module(fuzz)
