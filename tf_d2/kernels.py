"""Which CPU kernels TensorFlow runs, and what would make it faster. TensorFlow itself is imported where it is asked."""

from __future__ import annotations

import logging
import os
import platform
from functools import cache

from weights.errors import UsageError

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
FROZEN_WEIGHTS = "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"
X86_64 = ("x86_64", "AMD64")  # what platform.machine() calls it; oneDNN was measured there only

_log = logging.getLogger("tf_d2")


def onednn_enabled() -> bool | None:
    """Whether TensorFlow computes with oneDNN in this process; None if it does not tell."""
    try:
        from tensorflow.python.util import _pywrap_util_port
    except ImportError:  # not part of TensorFlow's public interface
        return None
    return bool(_pywrap_util_port.IsMklEnabled())


def weights_assumed_frozen() -> bool:
    """Whether TF_ONEDNN_ASSUME_FROZEN_WEIGHTS tells TensorFlow that no filter of this process ever changes."""
    return os.environ.get(FROZEN_WEIGHTS, "").lower() in ("1", "true")


@cache
def bfloat16_runs() -> bool:
    """Whether TensorFlow can convolve in bfloat16 here.

    It cannot where ONEDNN_MAX_CPU_ISA forbids oneDNN the AVX-512 of a processor that has it: TensorFlow looks at the
    processor and leaves bfloat16 to oneDNN, which then has no kernel. (Without AVX-512 TensorFlow's own kernels do it.)
    """
    import tensorflow as tf

    one = tf.ones([1, 1, 1, 1], tf.bfloat16)
    try:
        tf.nn.conv2d(one, one, 1, "VALID")
    except (tf.errors.AbortedError, tf.errors.UnimplementedError):
        return False
    return True


def check_bfloat16() -> None:
    """Raise ValueError where :func:`bfloat16_runs` says no."""
    if not bfloat16_runs():
        raise UsageError(
            "TensorFlow has no bfloat16 kernels under these settings: unset ONEDNN_MAX_CPU_ISA (it keeps oneDNN from "
            "AVX-512), or set TF_ENABLE_ONEDNN_OPTS=0, before TensorFlow is imported; or compute in float32"
        )


def advice() -> str | None:
    """The environment variables that would make a model faster in a process like this, or None.

    Only where nothing was said about them: who set one to 0 knows why.
    """
    import tensorflow as tf

    enabled = onednn_enabled()
    if platform.machine() not in X86_64 or enabled is None or tf.config.list_physical_devices("GPU"):
        return None
    wanted = [FROZEN_WEIGHTS] if enabled else [ONEDNN, FROZEN_WEIGHTS]
    names = [name for name in wanted if os.environ.get(name, "").lower() not in ("1", "true")]
    if not names or any(name in os.environ for name in names):
        return None
    return (
        f"faster with {' '.join(f'{name}=1' for name in names)} in the environment before TensorFlow is imported, in a "
        "process that does not change its models' weights"
    )


@cache
def advise() -> None:
    """Log :func:`advice` as a warning, once in a process."""
    text = advice()
    if text is not None:
        _log.warning("tf_d2: %s", text)
