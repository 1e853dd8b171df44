"""What comes with the package to try it on: the embedded checkpoint, and a picture that is drawn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from weights.errors import UsageError


def embedded_demo() -> Path:
    """The folder of the checkpoint that comes with the tf_d2 package, which is located, not imported.

    Raises:
        UsageError: tf_d2 is not installed here.
    """
    spec = find_spec("tf_d2")
    if spec is None or spec.origin is None:
        raise UsageError("the tf_d2 package with its embedded checkpoint is not installed")
    return Path(spec.origin).parent / "data" / "demo"


def sample_picture() -> np.ndarray:
    """A picture (331, 477, 3) of overlapping coloured shapes on texture; its sides need rounding and
    padding."""
    rng = np.random.default_rng(3)
    yy, xx = np.mgrid[:331, :477]
    base = 120 + 40 * np.sin(xx / 23.0) * np.cos(yy / 31.0)
    image = np.stack([base + 20, base, base - 25], axis=-1) + rng.normal(0, 6, (331, 477, 3))
    for k in range(14):
        colour, size = rng.integers(0, 256, 3), rng.integers(18, 90)
        cy, cx = rng.integers(10, 320), rng.integers(10, 465)
        round_shape = (yy - cy) ** 2 + (xx - cx) ** 2 < size**2 / 2
        square = (abs(yy - cy) < size / 2) & (abs(xx - cx) < size * 0.7)
        image[round_shape if k % 2 else square] = colour
    return np.clip(image, 0, 255).astype(np.uint8)
