"""What of a process decides how TensorFlow computes: Keras's backend, CPU kernels, settings that round or that would be
faster. TensorFlow itself is imported where it is asked.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from weights.errors import UsageError

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
FROZEN_WEIGHTS = "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"
KERAS_BACKEND = "KERAS_BACKEND"
# Each lets oneDNN round float32 to fewer bits before it multiplies; images for some processors set one by default.
_FPMATH = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "TF_SET_ONEDNN_FPMATH_MODE")
_ALLOCATOR = "TF_CPU_ALLOCATOR_USE_BFC"
_ALLOCATOR_LIMIT = "TF_CPU_BFC_MEM_LIMIT_IN_MB"
_THREADS = "TF_NUM_INTRAOP_THREADS"  # what TensorFlow takes where nothing was set in the process
_CPUINFO = Path("/proc/cpuinfo")
X86_64 = ("x86_64", "AMD64")  # what platform.machine() calls it; oneDNN was measured there only

_log = logging.getLogger("tf_d2")


def check_keras_backend() -> None:
    """Raise UsageError where Keras runs on something else than TensorFlow, or would once it is imported."""
    if "keras" in sys.modules:
        chosen = sys.modules["keras"].backend.backend()
    else:
        chosen = os.environ.get(KERAS_BACKEND) or _configured_backend()
    if chosen != "tensorflow":
        raise UsageError(
            f"Keras is set to run on {chosen} ({KERAS_BACKEND} in the environment, or keras.json), and tf_d2's layers "
            f"are TensorFlow's: set {KERAS_BACKEND}=tensorflow before anything imports keras"
        )


def _configured_backend() -> str:
    """What Keras's configuration file says, read as Keras reads it."""
    folder = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser())
    try:
        return str(json.loads((folder / "keras.json").read_text()).get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):  # none, or one that Keras ignores, too
        return "tensorflow"


def check_eager() -> None:
    """Raise UsageError where TensorFlow records a graph instead of computing."""
    import tensorflow as tf

    if not tf.executing_eagerly():
        raise UsageError(
            "a model can be made only where TensorFlow executes eagerly: not inside a tf.function or tf.Graph, and not "
            "after tf.compat.v1.disable_v2_behavior(). For TensorFlow 1's sessions export it (tf_d2.serving.export): "
            "tf.compat.v1.saved_model.loader.load reads that"
        )


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
def keep_memory() -> bool:
    """Have TensorFlow keep the memory of feature maps for the next call; whether it does.

    With oneDNN it does so by itself. Without, it asks the system for every large map and gives it back, of which each
    page is cleared again: a tenth of the time of a full-size prediction. Its other allocator is chosen by a variable
    that is read once, when the first tensor is made; so it is set until then and taken away again. Nothing is
    changed where a tensor was made before, where the user's environment says something, beside a GPU, and on systems
    where this was not measured.
    """
    import tensorflow as tf

    try:
        from tensorflow.python.eager.context import context
    except ImportError:  # not part of TensorFlow's public interface
        return False
    measured = sys.platform == "linux" and platform.machine() in X86_64
    current: Any = context()
    started = getattr(current, "_initialized", True)
    if (
        measured
        and not started
        and _ALLOCATOR not in os.environ
        and not tf.config.list_physical_devices("GPU")
    ):
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        ours = {_ALLOCATOR: "1", _ALLOCATOR_LIMIT: os.environ.get(_ALLOCATOR_LIMIT, str(pages >> 20))}
        with _environment(ours):
            current.ensure_initialized()
    try:
        tf.config.experimental.get_memory_info("CPU:0")  # only an allocator that keeps memory knows
    except ValueError:
        return False
    return True


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@cache
def onednn_isa() -> str | None:
    """The instruction set of oneDNN's float32 products here, "AVX512_CORE" or "AVX2" (its own names); None where there
    is neither, or where nobody can tell (no Linux)."""
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return None
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "").upper()
    if "avx2" not in flags or limit in ("SSE41", "AVX"):
        return None
    wide = {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(flags)
    return "AVX512_CORE" if wide and not limit.startswith("AVX2") else "AVX2"


def threads() -> int:
    """How many threads TensorFlow computes one operation with on this processor."""
    import tensorflow as tf

    asked = tf.config.threading.get_intra_op_parallelism_threads() or os.environ.get(_THREADS, "")
    if str(asked).isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def advice(weights_kept: bool = False) -> str | None:
    """The environment variables that would make a model faster in a process like this, or None.

    Only where nothing was said about them: who set one to 0 knows why. ``weights_kept``: the model asks oneDNN itself
    to keep its weights (:mod:`tf_d2.ops.onednn`); what TensorFlow's oneDNN then brings is its allocator, where
    :func:`keep_memory` came too late.
    """
    import tensorflow as tf

    enabled = onednn_enabled()
    if platform.machine() not in X86_64 or enabled is None or tf.config.list_physical_devices("GPU"):
        return None
    wanted = [] if enabled or (weights_kept and keep_memory()) else [ONEDNN]
    wanted += [] if weights_kept else [FROZEN_WEIGHTS]
    names = [name for name in wanted if os.environ.get(name, "").lower() not in ("1", "true")]
    if not names or any(name in os.environ for name in names):
        return None
    variables = " ".join(f"{name}=1" for name in names)
    text = f"faster with {variables} in the environment before TensorFlow is imported"
    return text if weights_kept else f"{text}, in a process that does not change its models' weights"


def rounding() -> str | None:
    """What in the environment makes float32 less than that, or None."""
    found = [f"{name}={os.environ[name]}" for name in _FPMATH if _rounds(os.environ.get(name, ""))]
    if not found:
        return None
    return (
        f"{' '.join(found)} in the environment lets oneDNN round float32 to fewer bits: answers will differ from "
        "detectron2's as bfloat16's do; unset it for the same answers"
    )


def _rounds(mode: str) -> bool:
    return mode.upper() not in ("", "STRICT")


@cache
def warn_of_rounding() -> None:
    """Log :func:`rounding` as a warning, once in a process."""
    text = rounding()
    if text is not None:
        _log.warning("tf_d2: %s", text)


@cache
def advise(weights_kept: bool = False) -> None:
    """Log :func:`advice` as a warning, once in a process."""
    text = advice(weights_kept)
    if text is not None:
        _log.warning("tf_d2: %s", text)
