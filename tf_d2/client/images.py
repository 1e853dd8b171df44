"""Images as the bytes that are sent. Only NumPy, but for pictures that must be turned."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np

_ORIENTATION = 0x0112  # EXIF tag


def encode_png(image_rgb: np.ndarray) -> bytes:
    """A uint8 RGB image ``(H, W, 3)`` as a PNG file, losslessly and quickly rather than small."""
    image = np.ascontiguousarray(image_rgb)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected a uint8 image (height, width, 3), got {image.dtype} {image.shape}")
    height, width, _ = image.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)  # a filter byte, 0 = none, before each line
    lines[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def upright_bytes(path: str | Path) -> bytes:
    """The file as it is or, where its EXIF orientation says so, turned and stored as PNG.

    The served graph ignores EXIF; detectron2 applies it when it reads a file.
    """
    data = Path(path).read_bytes()
    if b"Exif\0\0" not in data[: 1 << 16]:
        return data
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return data
        return encode_png(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
