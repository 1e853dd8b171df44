"""Checkpoints as numpy arrays: reads and writes the formats detectron2 users have, executes none of them.

Imports neither TensorFlow nor torch. The currency is ``dict[str, np.ndarray]`` with detectron2's names and
layouts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weights._class_counts import class_counts
    from weights._files import touched
    from weights._recognise import kind_of_file, kind_of_no_config
    from weights._types import Checkpoint
    from weights.checkpoint import read_checkpoint
    from weights.errors import (
        CheckpointError,
        CheckpointNotice,
        ConversionError,
        UsageError,
        UserError,
        WeightsError,
    )
    from weights.keras_file import KerasWeights, Progress, read_keras_h5, write_keras_h5
    from weights.layouts import path_to_key
    from weights.legacy import match_heuristically, matched_state
    from weights.mapping import (
        harmless_reason,
        initial_arrays,
        is_ignored,
        split_harmless,
        to_keras_arrays,
        to_state_dict,
    )
    from weights.writers import write_detectron2_pkl, write_pth, write_safetensors

# Imported on first use, so that the errors, which everything imports, bring neither numpy nor h5py.
_HOME = {
    "Checkpoint": "weights._types",
    "CheckpointError": "weights.errors",
    "CheckpointNotice": "weights.errors",
    "ConversionError": "weights.errors",
    "KerasWeights": "weights.keras_file",
    "Progress": "weights.keras_file",
    "UsageError": "weights.errors",
    "UserError": "weights.errors",
    "WeightsError": "weights.errors",
    "class_counts": "weights._class_counts",
    "harmless_reason": "weights.mapping",
    "initial_arrays": "weights.mapping",
    "is_ignored": "weights.mapping",
    "kind_of_file": "weights._recognise",
    "kind_of_no_config": "weights._recognise",
    "match_heuristically": "weights.legacy",
    "matched_state": "weights.legacy",
    "path_to_key": "weights.layouts",
    "read_checkpoint": "weights.checkpoint",
    "read_keras_h5": "weights.keras_file",
    "split_harmless": "weights.mapping",
    "to_keras_arrays": "weights.mapping",
    "to_state_dict": "weights.mapping",
    "touched": "weights._files",
    "write_detectron2_pkl": "weights.writers",
    "write_keras_h5": "weights.keras_file",
    "write_pth": "weights.writers",
    "write_safetensors": "weights.writers",
}

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointNotice",
    "ConversionError",
    "KerasWeights",
    "Progress",
    "UsageError",
    "UserError",
    "WeightsError",
    "class_counts",
    "harmless_reason",
    "initial_arrays",
    "is_ignored",
    "kind_of_file",
    "kind_of_no_config",
    "match_heuristically",
    "matched_state",
    "path_to_key",
    "read_checkpoint",
    "read_keras_h5",
    "split_harmless",
    "to_keras_arrays",
    "to_state_dict",
    "touched",
    "write_detectron2_pkl",
    "write_keras_h5",
    "write_pth",
    "write_safetensors",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'weights' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
