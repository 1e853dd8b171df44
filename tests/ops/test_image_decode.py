"""Decoding in a graph against Pillow, byte for byte."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_d2.ops.image_decode import decode_image_bytes

_graph = tf.function(decode_image_bytes, input_signature=[tf.TensorSpec([], tf.string)])


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png16(values: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG of any colour type; Pillow writes grey ones only."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    framed = (struct.pack(">I", len(b)) + t + b + struct.pack(">I", zlib.crc32(t + b)) for t, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def make_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (37, 53, 4), np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((203, 101), Image.Resampling.BICUBIC))
    wide = rng.integers(0, 65536, (9, 11, 4))
    wide[0] //= 300
    files = {"16-bit grey png": png16(wide[:, :, :1], 0), "16-bit rgba png": png16(wide, 6)}
    for name, pixels in (("noise", noise), ("smooth", smooth)):
        rgb, grey = Image.fromarray(pixels[:, :, :3]), Image.fromarray(pixels[:, :, 0])
        for quality, subsampling in ((75, 2), (95, 0), (50, 1), (100, 2)):
            files[f"{name} jpeg {quality} {subsampling}"] = encoded(
                rgb, "JPEG", quality=quality, subsampling=subsampling, progressive=quality == 50
            )
        files |= {
            f"{name} grey jpeg": encoded(grey, "JPEG"),
            f"{name} png": encoded(rgb, "PNG"),
            f"{name} rgba png": encoded(Image.fromarray(pixels), "PNG"),
            f"{name} grey alpha png": encoded(Image.fromarray(pixels[:, :, :2], "LA"), "PNG"),
            f"{name} grey png": encoded(grey, "PNG"),
            f"{name} 1-bit png": encoded(grey.convert("1"), "PNG"),
            f"{name} palette png": encoded(rgb.quantize(50), "PNG"),
            f"{name} bmp": encoded(rgb, "BMP"),
            f"{name} gif": encoded(rgb.quantize(50), "GIF"),
            f"{name} webp": encoded(rgb, "WEBP"),
            f"{name} lossless webp": encoded(rgb, "WEBP", lossless=True),
            f"{name} alpha webp": encoded(Image.fromarray(pixels), "WEBP"),
            f"{name} lossless alpha webp": encoded(Image.fromarray(pixels), "WEBP", lossless=True),
        }
    return files


FILES = make_files()


@pytest.mark.parametrize("kind", FILES)
def test_equals_pillow(kind):
    expected = np.asarray(Image.open(io.BytesIO(FILES[kind])).convert("RGB"))
    np.testing.assert_array_equal(_graph(FILES[kind]), expected)
    np.testing.assert_array_equal(decode_image_bytes(FILES[kind]), expected)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8", b"RIFF\0\0\0\0WEBP", b"nothing", b"\x89PNG\r\n\x1a\n", FILES["noise jpeg 75 2"][:300]],
)
def test_broken_data_is_an_error(data):
    with pytest.raises(tf.errors.InvalidArgumentError):
        _graph(data)


@pytest.mark.parametrize("channels", [3, 4])
def test_animated_webp_is_refused(channels):
    frames = np.random.default_rng(2).integers(0, 256, (2, 20, 30, channels), np.uint8)
    first, second = map(Image.fromarray, frames)
    data = encoded(first, "WEBP", save_all=True, append_images=[second], lossless=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="animated WebP"):
        _graph(data)
