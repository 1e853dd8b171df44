"""Checkpoints as numpy arrays: reads and writes the formats detectron2 users have, executes none of them.

Imports neither TensorFlow nor torch. The currency is ``dict[str, np.ndarray]`` with detectron2's names and
layouts.
"""

from weights._files import touched
from weights._recognise import kind_of_file, kind_of_no_config
from weights._types import Checkpoint
from weights.checkpoint import read_checkpoint
from weights.errors import (
    CheckpointError,
    CheckpointNotice,
    ConversionError,
    WeightsError,
)
from weights.keras_file import KerasWeights, Progress, read_keras_h5, write_keras_h5
from weights.legacy import match_heuristically, matched_state
from weights.mapping import (
    class_counts,
    harmless_reason,
    initial_arrays,
    is_ignored,
    path_to_key,
    split_harmless,
    to_keras_arrays,
    to_state_dict,
)
from weights.writers import write_detectron2_pkl, write_pth, write_safetensors

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointNotice",
    "ConversionError",
    "KerasWeights",
    "Progress",
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
