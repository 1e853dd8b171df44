"""BMP files of every kind against Pillow, byte for byte."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_d2.ops import bmp


def _read(data):
    header = bmp.read_header(data)
    promise = bmp.promise(data, header)
    nothing = tf.zeros([0, 0, 3], tf.uint8)
    return promise, tf.cond(promise == bmp.READABLE, lambda: bmp.decode(data, header), lambda: nothing)


read = tf.function(_read, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
RNG = np.random.default_rng(0)


def pillow(data):
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except Exception:
        return None


def check(data, promise=bmp.READABLE):
    expected = pillow(data)
    found, pixels = read(data)
    assert (expected is not None) == (promise != bmp.BROKEN)
    assert found.numpy() == promise
    if promise == bmp.READABLE:
        np.testing.assert_array_equal(pixels, expected)


def make(bits, size=40, width=13, height=7, colours=None, masks=None, used=None, compression=None, **more):
    """A BMP file of random pixels with a header of ``size`` octets."""
    sign = -1 if more.get("top_down") else 1
    if compression is None:
        compression = 3 if masks else 0
    if size == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        count = used if used is not None else 0
        info = struct.pack(
            "<IiiHHIIiiII", size, width, sign * height, 1, bits, compression, 0, 2835, 2835, count, 0
        )
        packed = struct.pack("<4I", *(*masks, 0, 0)[:4]) if masks else b""
        if masks and size == 40:
            packed = packed[:12]
            info += packed
        else:
            info = (info + packed).ljust(size, b"\0")[: max(size, 40)]
    table = b"" if colours is None else bytes(np.asarray(colours, np.uint8).tobytes())
    stride = (width * bits + 31) // 32 * 4
    pixels = (
        RNG.integers(0, 256, stride * height, np.uint8).tobytes() if "pixels" not in more else more["pixels"]
    )
    offset = more.get("offset", 14 + len(info) + len(table))
    head = b"BM" + struct.pack("<IHHI", 14 + len(info) + len(table) + len(pixels), 0, 0, offset)
    return head + info + table + pixels


def palette(count, entry=4):
    return RNG.integers(0, 256, (count, entry), np.uint8)


def greys(count, entry=4):
    step = 255 if count == 2 else 1
    table = np.zeros((count, entry), np.uint8)
    table[:, :3] = (np.arange(count) * step)[:, None]
    return table


@pytest.mark.parametrize("width", [1, 3, 8, 13, 32, 33])
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("size", [12, 40, 52, 56, 64, 108, 124])
def test_colour_tables(bits, size, width):
    entry = 3 if size == 12 else 4
    check(make(bits, size, width, colours=palette(2**bits, entry)))


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 16, 200, 256])
def test_short_tables_and_tables_of_greys(bits, count):
    check(make(bits, colours=palette(count), used=count))
    for width in (1, 7, 8, 40):
        data = make(bits, colours=greys(count), used=count, width=width)
        check(data, bmp.READABLE if pillow(data) is not None else bmp.BROKEN)
    check(make(bits, size=12, colours=greys(2**bits, 3)), bmp.BROKEN if bits == 4 else bmp.READABLE)


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("size", [40, 52, 56, 64, 108, 124])
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_colours_without_masks(bits, size, top_down):
    check(make(bits, size, top_down=top_down))
    check(make(bits, size, width=12, height=1, top_down=top_down))


def test_oldest_header():
    for bits in (16, 24, 32):
        check(make(bits, 12))


@pytest.mark.parametrize("size", [40, 52, 56, 64, 108, 124])
@pytest.mark.parametrize(
    "bits, masks",
    [
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0x7C00, 0x3E0, 0x1F)),
        (16, (0x0F00, 0x00F0, 0x000F)),
        (24, (0xFF0000, 0xFF00, 0xFF)),
        (24, (0xFF, 0xFF00, 0xFF0000)),
        *((32, masks) for masks, _ in bmp._MASKS),
        (32, (0xFF, 0xFF00, 0xFF0000, 0)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF, 0)),
        (8, (1, 2, 3)),
    ],
)
def test_masks(bits, masks, size):
    data = make(bits, size, masks=masks, colours=palette(256) if bits == 8 else None)
    check(data, bmp.READABLE if pillow(data) is not None else bmp.BROKEN)


def test_position_of_the_pixels():
    check(make(8, colours=palette(256), offset=0))
    check(make(8, colours=palette(256), offset=14 + 40))
    check(make(4, size=12, colours=palette(16, 3), offset=0))
    check(make(24, offset=0))
    check(make(24, masks=(0xFF0000, 0xFF00, 0xFF), offset=0))
    check(make(24, offset=14 + 40 + 8, pixels=bytes(8) + RNG.integers(0, 256, 280, np.uint8).tobytes()))


@pytest.mark.parametrize("compression", [1, 2])
def test_run_lengths_are_told_apart(compression):
    runs = b"\x0d\x01\0\0" * 7 + b"\0\1"
    data = make(
        8 if compression == 1 else 4, colours=palette(16), used=16, compression=compression, pixels=runs
    )
    check(data, bmp.RUN_LENGTHS)


def test_what_pillow_cannot_read():
    check(make(24, compression=4), bmp.BROKEN)
    check(make(24, compression=6), bmp.BROKEN)
    check(make(2, colours=palette(4)), bmp.BROKEN)
    check(make(24, width=0), bmp.BROKEN)
    check(make(24, height=0), bmp.BROKEN)
    check(make(8, colours=palette(300), used=300), bmp.BROKEN)
    check(make(24, size=44), bmp.BROKEN)


def test_the_padding_of_the_last_row_may_lack():
    data = make(24)  # 39 octets in rows of 40
    check(data[:-1])
    check(data[:-2], bmp.BROKEN)


def test_broken_files_never_fail():
    files = [
        make(8, colours=palette(256)),
        make(24),
        make(32, masks=(0xFF0000, 0xFF00, 0xFF)),
        make(1, colours=greys(2)),
    ]
    for data in files:
        for _ in range(150):
            broken = bytearray(data[: RNG.integers(len(data) + 1)] if RNG.random() < 0.2 else data)
            for place in RNG.integers(0, max(min(len(broken), 70), 1), 2 if broken else 0):
                broken[place] = RNG.choice([0, 1, 2, 3, 8, 16, 24, 32, 40, 255, RNG.integers(256)])
            broken = bytes(broken)
            found, pixels = read(broken)
            if found.numpy() == bmp.READABLE and broken[:2] == b"BM":
                expected = pillow(broken)
                assert expected is not None
                np.testing.assert_array_equal(pixels, expected)
