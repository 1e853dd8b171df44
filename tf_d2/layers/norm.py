"""Normalisation layers, in the form they have at inference."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_d2.layers.base import Module, sequence
from tf_d2.ops.elementary import rsqrt
from weights.errors import UsageError

BATCH_NORM_EPS = 1e-5  # torch's default, also FrozenBN and GroupNorm; Keras would use 1e-3
_LAYER_NORM_EPS = 1e-6  # detectron2's channel-first LayerNorm
GROUP_NORM_GROUPS = 32

# At inference all of these apply the recorded statistics.
BATCH_NORMS = ("BN", "SyncBN", "FrozenBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "AffineChannel")


class BatchNorm(Module):
    """``(x - moving_mean) * gamma / sqrt(moving_variance + eps) + beta`` per channel of ``[..., C]``.

    Serves BN, SyncBN and FrozenBN, which differ in training only; old files fold the statistics of a ``frozen`` one
    into its weight and bias. ``eps`` is 0 in "AffineChannel", the frozen norm of Detectron (which has no statistics, so
    that they are 0 and 1) and of maskrcnn-benchmark (layers/batch_norm.py).
    Source: detectron2/layers/batch_norm.py.
    """

    def __init__(
        self, channels: int, name: str = "norm", frozen: bool = False, eps: float = BATCH_NORM_EPS
    ) -> None:
        super().__init__(name)
        self.frozen, self.eps = frozen, eps
        self.gamma = self.parameter("gamma", (channels,))
        self.beta = self.parameter("beta", (channels,))
        self.moving_mean = self.parameter("moving_mean", (channels,), trainable=False)
        self.moving_variance = self.parameter("moving_variance", (channels,), trainable=False)

    def scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """The layer as ``x * scale + shift``, float64 ``[C]`` each."""
        gamma, beta, mean, variance = (
            v.value.numpy().astype(np.float64)
            for v in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )
        scale = gamma / np.sqrt(variance + self.eps)
        return scale, beta - mean * scale

    def call(self, x: tf.Tensor) -> tf.Tensor:
        scale = self.value(self.gamma) * rsqrt(self.value(self.moving_variance) + self.eps)
        return x * scale + (self.value(self.beta) - self.value(self.moving_mean) * scale)


class GroupNorm(Module):
    """Group normalisation of ``[N, H, W, C]`` over 32 groups of channels, statistics over (H, W, C / 32)."""

    def __init__(self, channels: int, name: str = "norm") -> None:
        super().__init__(name)
        if channels % GROUP_NORM_GROUPS:
            raise UsageError(f"GroupNorm needs a multiple of {GROUP_NORM_GROUPS} channels, got {channels}")
        self.gamma = self.parameter("gamma", (channels,))
        self.beta = self.parameter("beta", (channels,))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        channels = x.shape[-1]
        accurate = tf.float64 if x.dtype == tf.float64 else tf.float32
        wide = tf.cast(x, accurate)
        mean = self._over_group(wide)  # [N, 1, 1, C], equal within a group
        centred = wide - mean
        variance = self._over_group(tf.square(centred))
        scale = tf.cast(self.value(self.gamma), accurate) * rsqrt(variance + BATCH_NORM_EPS)
        y = tf.cast(centred * scale + tf.cast(self.value(self.beta), accurate), x.dtype)
        return tf.ensure_shape(y, [x.shape[0], x.shape[1], x.shape[2], channels])

    @staticmethod
    def _over_group(x: tf.Tensor) -> tf.Tensor:
        """Mean of each group, given to each of its channels: ``[N, H, W, C]`` -> ``[N, 1, 1, C]``.

        One axis at a time: a single float32 sum over H * W cells would lose three more bits.
        """
        channels: int = x.shape[-1]  # pyright: ignore[reportAssignmentType]
        per_channel = tf.reduce_mean(tf.reduce_mean(x, axis=2), axis=1)  # [N, C]
        grouped = tf.reshape(per_channel, [-1, GROUP_NORM_GROUPS, channels // GROUP_NORM_GROUPS])
        per_group = tf.reduce_mean(grouped, axis=2, keepdims=True)
        return tf.reshape(tf.broadcast_to(per_group, tf.shape(grouped)), [-1, 1, 1, channels])


class LayerNorm(Module):
    """Normalises each token or pixel of ``[..., C]`` over its channels; 16-bit values in float32.

    detectron2's "LN" has eps 1e-6; torch's ``nn.LayerNorm``, which transformers use, has 1e-5 unless told otherwise.
    """

    def __init__(self, channels: int, name: str = "norm", eps: float = _LAYER_NORM_EPS) -> None:
        super().__init__(name)
        self.eps = eps
        self.gamma = self.parameter("gamma", (channels,))
        self.beta = self.parameter("beta", (channels,))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        accurate = tf.float64 if x.dtype == tf.float64 else tf.float32
        wide = tf.cast(x, accurate)
        centred = wide - tf.reduce_mean(wide, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        gamma, beta = (tf.cast(self.value(part), accurate) for part in (self.gamma, self.beta))
        return tf.cast(centred * (gamma * rsqrt(variance + self.eps)) + beta, x.dtype)


class CycleBatchNorm(Module):
    """One set of statistics per feature level, one affine map for all (RetinaNet heads with BN).

    Source: detectron2/layers/batch_norm.py ``CycleBatchNormList``.
    """

    def __init__(self, levels: int, channels: int, name: str) -> None:
        super().__init__(name)
        self.gamma = self.parameter("gamma", (channels,))
        self.beta = self.parameter("beta", (channels,))
        with self.scope():
            for key, stats in {str(i): _BatchStatistics(channels, str(i)) for i in range(levels)}.items():
                setattr(self, f"level{key}", stats)

    def call(self, x: tf.Tensor, level: int) -> tf.Tensor:
        stats: _BatchStatistics = getattr(self, f"level{level}")
        mean, variance = self.value(stats.moving_mean), self.value(stats.moving_variance)
        scale = self.value(self.gamma) * rsqrt(variance + BATCH_NORM_EPS)
        return x * scale + (self.value(self.beta) - mean * scale)


class _BatchStatistics(Module):
    """Mean and variance of one level of a :class:`CycleBatchNorm`."""

    def __init__(self, channels: int, name: str) -> None:
        super().__init__(name)
        self.moving_mean = self.parameter("moving_mean", (channels,), trainable=False)
        self.moving_variance = self.parameter("moving_variance", (channels,), trainable=False)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        mean, variance = self.value(self.moving_mean), self.value(self.moving_variance)
        return (x - mean) * rsqrt(variance + BATCH_NORM_EPS)


def get_norm(norm: str, channels: int, name: str = "norm") -> Module | None:
    """The normalisation detectron2 calls ``norm``; "" is none. Unknown names raise ValueError.

    Source: detectron2/layers/batch_norm.py ``get_norm``.
    """
    if norm == "":
        return None
    if norm in BATCH_NORMS:
        frozen = norm in ("FrozenBN", "AffineChannel")
        return BatchNorm(channels, name, frozen, 0.0 if norm == "AffineChannel" else BATCH_NORM_EPS)
    if norm == "GN":
        return GroupNorm(channels, name)
    if norm == "LN":
        return LayerNorm(channels, name)
    raise UsageError(f"unknown norm {norm!r}; supported are {', '.join(('', *BATCH_NORMS, 'GN', 'LN'))}")


__all__ = ["BatchNorm", "CycleBatchNorm", "GroupNorm", "LayerNorm", "get_norm", "sequence"]
