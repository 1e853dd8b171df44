"""Size of the network input, as detectron2's test-time resize computes it."""

from __future__ import annotations


def network_size(size: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """(height, width) after resizing the shorter side to `shortest`, the longer one to at most `longest`.

    float64, rounded half up, in this order of operations. Source: detectron2's ResizeShortestEdge.
    """
    height, width = size
    if shortest == 0:
        return height, width
    scale = shortest * 1.0 / min(height, width)
    new = (shortest, scale * width) if height < width else (scale * height, shortest)
    if max(new) > longest:
        shrink = longest * 1.0 / max(new)
        new = (new[0] * shrink, new[1] * shrink)
    return int(new[0] + 0.5), int(new[1] + 0.5)
