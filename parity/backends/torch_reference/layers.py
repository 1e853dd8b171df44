"""Convolutions with norm and activation, and the norms, under detectron2's parameter names. NCHW, inference
only."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import ops

_EPSILON = 1e-5
_CHANNEL_EPSILON = 1e-6  # detectron2.layers.LayerNorm's default, unlike nn.LayerNorm's 1e-5
_GN_GROUPS = 32
_BATCH_NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
NO_EPSILON = "AffineChannel"  # the frozen norm of Detectron and maskrcnn-benchmark


class BatchNorm(nn.Module):
    """Batch norm with stored statistics: at inference the same map for frozen, plain and synchronised
    ones."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, affine: bool = True, epsilon: float = _EPSILON) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.epsilon
        )


class _ChannelNorm(nn.Module):
    """Norm "LN": over the channels at each pixel, biased variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        variance = centred.pow(2).mean(dim=1, keepdim=True)
        unit = centred / torch.sqrt(variance + _CHANNEL_EPSILON)
        return self.weight[:, None, None] * unit + self.bias[:, None, None]


class LevelNorm(nn.ModuleList):
    """RetinaNet's norm "BN"/"SyncBN": statistics per feature level, one affine map for all.

    Source: detectron2.layers.batch_norm.CycleBatchNormList. `level` must be set before each call.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__(BatchNorm(channels, affine=False) for _ in range(levels))
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.level = 0

    def forward(self, x: Tensor) -> Tensor:
        return self[self.level](x) * self.weight[:, None, None] + self.bias[:, None, None]


def make_norm(name: str, channels: int) -> nn.Module | None:
    """The norm that detectron2 calls `name`, or None for "". Raises ValueError for another name."""
    if name == "":
        return None
    if name in _BATCH_NORMS:
        return BatchNorm(channels)
    if name == NO_EPSILON:
        return BatchNorm(channels, epsilon=0.0)
    if name == "GN":
        return nn.GroupNorm(_GN_GROUPS, channels, eps=_EPSILON)
    if name == "LN":
        return _ChannelNorm(channels)
    raise ValueError(
        f"norm {name!r} is not supported; supported: {', '.join(('', *_BATCH_NORMS, NO_EPSILON, 'GN', 'LN'))}"
    )


class Conv(nn.Conv2d):
    """Convolution, then norm, then ReLU where asked for. Parameters: `weight`, `bias`, `norm.*`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: str = "",
        bias: bool | None = None,
        relu: bool = False,
    ) -> None:
        """bias: None = only without norm. Padding keeps the size at stride 1 (odd kernels)."""
        super().__init__(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=groups,
            bias=norm == "" if bias is None else bias,
        )
        self.norm = make_norm(norm, outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        x = x if self.norm is None else self.norm(x)
        return functional.relu(x) if self.relu else x


class DeformConv(nn.Module):
    """3x3 deformable convolution without bias, then norm. Offsets (and masks) come from another layer."""

    def __init__(self, inputs: int, outputs: int, steps: ops.Steps, *, groups: int, norm: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        self.norm = make_norm(norm, outputs)
        self.steps = steps

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        x = ops.deform_conv(x, offset, self.weight, self.steps, mask)
        return x if self.norm is None else self.norm(x)
