"""Oracles in plain loops and float64, for the tests of a model's parts: convolution, boxes, suppression."""

from __future__ import annotations

import numpy as np


def conv(x, kernel, bias, padding=0, stride=1):
    """``[N,H,W,C]`` with ``[kh,kw,C,O]``."""
    x = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    kh, kw = kernel.shape[:2]
    rows, columns = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    out = np.empty((len(x), rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride : i * stride + kh, j * stride : j * stride + kw]
            out[:, i, j] = np.einsum("nhwc,hwco->no", window, kernel) + bias
    return out


def relu(x):
    return np.maximum(x, 0)


def decode(delta, box, weights):
    """One box from one anchor or proposal."""
    width, height = box[2] - box[0], box[3] - box[1]
    dx, dy, dw, dh = (d / w for d, w in zip(delta, weights, strict=True))
    dw, dh = min(dw, np.log(1000 / 16)), min(dh, np.log(1000 / 16))
    x, y = box[0] + width / 2 + dx * width, box[1] + height / 2 + dy * height
    width, height = width * np.exp(dw), height * np.exp(dh)
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def clip(box, size):
    """``size``: (height, width)."""
    return np.clip(box, 0, [size[1], size[0], size[1], size[0]])


def overlap(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def suppressed(boxes, scores, groups, threshold):
    """Rows that stay, best first; within a group none overlaps a better one by more than ``threshold``."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(groups[i] != groups[j] or overlap(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def fill(layer, rng, scale=0.3):
    """Random numbers for every variable of a layer."""
    for variable in layer.variables:
        variable.assign(scale * rng.normal(size=variable.shape))
