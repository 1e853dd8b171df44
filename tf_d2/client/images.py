"""Images as the bytes that are sent. Only NumPy."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from weights.errors import UsageError


def encode_png(image_rgb: np.ndarray) -> bytes:
    """A uint8 RGB image ``(H, W, 3)`` as a PNG file, losslessly and quickly rather than small."""
    image = np.ascontiguousarray(image_rgb)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UsageError(f"expected a uint8 image (height, width, 3), got {image.dtype} {image.shape}")
    height, width, _ = image.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # a filter byte, 0 = none, before each line
    lines[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
