"""Adversarial boxes for the operations of Detectron's and maskrcnn-benchmark's conventions."""

from __future__ import annotations

import numpy as np


def some_boxes(rng: np.random.Generator, count: int, size: tuple[int, int], wild: bool = True) -> np.ndarray:
    """Boxes in and (if ``wild``) around a picture: tiny, whole-numbered, without extent, of the whole picture."""
    height, width = size
    corner = rng.uniform(-0.2 if wild else 0, 1, (count, 2)) * [width, height]
    sides = np.exp(rng.uniform(np.log(0.3), np.log(max(size)), (count, 2)))
    found = np.concatenate([corner, corner + sides], axis=1)
    found[::5] = np.round(found[::5])
    found[1::7, 2:] = found[1::7, :2]
    found[-1] = [0, 0, width - 1, height - 1]
    if not wild:
        found = np.clip(found, 0, [width - 1, height - 1] * 2)
    return found.astype(np.float32)


def sides_near_powers(rng: np.random.Generator) -> np.ndarray:
    """Sides around those where the level changes, a few units of the last place to either side."""
    sides = np.float32(224) * np.float32(2.0) ** rng.integers(-3, 3, 60) - 1
    sides = (sides + rng.integers(-40, 40, 60) * np.spacing(sides.astype(np.float32))).astype(np.float32)
    corner = rng.integers(0, 8, (60, 2)).astype(np.float32)
    return np.concatenate([corner, corner + sides[:, None]], axis=1).astype(np.float32)
