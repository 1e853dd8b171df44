"""Units of a part that somebody added from outside, and what the real detectron2 needs to build it.

``PARITY_EXTEND`` names Python files or modules (separated as in ``PATH``), imported in every process of parity: so they
import neither TensorFlow nor torch at the top. A file enters its units where ours stand, in one of the dictionaries
of `parity.core.units`, and may define ``prepare(cfg)``: called in the detectron2 process with a fresh configuration,
before the file of the model is merged, to import the part's PyTorch code and add its keys.
"""

from __future__ import annotations

import importlib.util
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType

from weights.errors import UsageError

_VARIABLE = "PARITY_EXTEND"

_loaded: dict[str, ModuleType] = {}


def load_extensions() -> list[ModuleType]:
    """The modules that ``PARITY_EXTEND`` names, each imported once.

    Raises:
        ValueError: one of them cannot be imported.
    """
    sources = [source for source in os.environ.get(_VARIABLE, "").split(os.pathsep) if source]
    for source in sources:
        if source not in _loaded:
            try:
                _loaded[source] = _import(source)
            except Exception as error:  # the user's code may raise anything
                raise UsageError(
                    f"{_VARIABLE} {source} cannot be imported: {type(error).__name__}: {error}"
                ) from error
    return [_loaded[source] for source in sources]


def _import(source: str) -> ModuleType:
    path = Path(source)
    if path.suffix != ".py":
        return import_module(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
