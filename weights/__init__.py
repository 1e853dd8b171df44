"""Checkpoints as numpy arrays: reads and writes every format detectron2 users have, and executes none of
them.

Imports neither TensorFlow nor torch. The currency is ``dict[str, np.ndarray]`` with detectron2's names and
layouts.
"""

from weights.checkpoint import Checkpoint, read_checkpoint
from weights.errors import CheckpointError, ConversionError, WeightsError
from weights.mapping import class_counts, harmless_reason, path_to_key, to_keras_arrays, to_state_dict

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ConversionError",
    "WeightsError",
    "class_counts",
    "harmless_reason",
    "path_to_key",
    "read_checkpoint",
    "to_keras_arrays",
    "to_state_dict",
]
