"""Environment, device, precision and determinism of a TensorFlow process: set for a profile, reported as observed."""

from __future__ import annotations

import os
from typing import Any

from parity.core.job import Job


def configure(job: Job) -> None:
    """Environment variables that must be set before TensorFlow is imported."""
    if job.threads is not None:
        for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
            os.environ[name] = str(job.threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    elif job.profile != "production":
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"


def set_flags(job: Job) -> dict[str, Any]:
    """Set precision and determinism in TensorFlow, prove that they took effect, and return what holds, as entries
    ``flags`` and ``canaries`` of a manifest.

    Raises RuntimeError when the device is missing or a flag did not take effect.
    """
    import tensorflow as tf

    from tf_d2.kernels import onednn_enabled

    profile, device = job.profile, job.device
    gpus = tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise RuntimeError(f"device gpu: TensorFlow {tf.__version__} sees no GPU on this machine")
    if profile != "production":
        tf.config.experimental.enable_tensor_float_32_execution(False)
        tf.config.experimental.enable_op_determinism()
        tf.random.set_seed(0)
    rounding = _matmul_rounding()
    if profile != "production" and rounding > 2.0**-14:
        raise RuntimeError(
            f"reduced precision is active although switched off: a product lost {rounding:.1e}"
        )
    flags = {
        "tf32_allowed": tf.config.experimental.tensor_float_32_execution_enabled(),
        "determinism": profile != "production",
        "onednn": onednn_enabled(),
        "devices": [d.name for d in gpus] if device == "gpu" else ["CPU"],
        "gpu": [tf.config.experimental.get_device_details(d).get("device_name", "") for d in gpus],
    }
    canaries = {"matmul_error": rounding, "reduced_precision": rounding > 2.0**-14}
    return {"flags": flags, "canaries": canaries}


def _matmul_rounding() -> float:
    """Canary: relative error of a product of numbers that need 13 bits of mantissa. TF32 and bfloat16 lose
    them."""
    import tensorflow as tf

    exact = 1.0 + 2.0**-13
    a = tf.fill([64, 64], tf.constant(exact, tf.float32))
    product = tf.linalg.matmul(a, tf.eye(64))
    return float(tf.reduce_max(tf.abs(product - exact)))
