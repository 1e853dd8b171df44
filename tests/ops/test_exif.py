"""EXIF orientation in a graph against Pillow, for every format, byte order and broken file."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tf_d2.ops.exif import orientation, upright

_orientation = tf.function(orientation, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
_upright = tf.function(
    upright,
    input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.int32)],
    autograph=False,
)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def file(kind, exif=None, **options):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **({} if exif is None else {"exif": exif}), **options)
    return buffer.getvalue()


def tags(value, tag=0x0112):
    exif = Image.Exif()
    exif[0x010F] = "a maker"  # an entry before
    exif[tag] = value
    exif[0x0131] = "some software"  # and one after
    return exif


def tiff(big, *entries):
    """A TIFF block: entries (tag, kind, number of values, four octets)."""
    order = ">" if big else "<"
    body = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    magic = b"MM\0*" if big else b"II*\0"
    return magic + struct.pack(order + "IH", 8, len(entries)) + body + bytes(4)


def theirs(data):
    return Image.open(io.BytesIO(data)).getexif().get(0x0112, 1)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_tag_of_each_format(kind, value):
    data = file(kind, tags(value))
    assert theirs(data) == value
    assert _orientation(data).numpy() == value


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_no_tag_is_upright(kind):
    assert _orientation(file(kind)).numpy() == 1
    if kind in ("JPEG", "PNG", "WEBP"):
        assert _orientation(file(kind, tags(6, tag=0x0111))).numpy() == 1


def test_other_segments_come_first_in_a_jpeg():
    data = file(
        "JPEG", tags(8), comment=b"\xff\xe1 Exif\0\0 MM", icc_profile=b"\xff\xd9" * 3000, dpi=(72, 72)
    )
    start = data.index(b"\xff\xe1")
    data = data[:start] + b"\xff\xee\0\x06Adob" + b"\xff" + data[start:]  # a segment and a padding octet
    assert theirs(data) == _orientation(data).numpy() == 8


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    "entries, expected",
    [
        ([(0x0112, 3, 1, (6, 6))], 6),
        ([(0x0112, 4, 1, 3)], 3),
        ([(0x0112, 1, 1, b"\x05\0\0\0")], 5),
        ([(0x0100, 3, 1, (9, 0)), (0x0112, 3, 1, (2, 0)), (0x0113, 3, 1, (4, 0))], 2),
        ([(0x0112, 3, 1, (9, 0))], 1),
        ([(0x0112, 3, 1, (0, 0))], 1),
        ([(0x0112, 3, 2, (6, 6))], 1),
        ([(0x0112, 2, 1, b"6\0\0\0")], 1),
        ([], 1),
    ],
)
def test_kinds_of_entries_in_both_byte_orders(big, entries, expected):
    order = ">" if big else "<"

    def octets(value):
        if isinstance(value, bytes):
            return value
        return (
            struct.pack(order + "HH", *value) if isinstance(value, tuple) else struct.pack(order + "I", value)
        )

    block = tiff(big, *((*entry[:3], octets(entry[3])) for entry in entries))
    for kind in ("JPEG", "PNG", "WEBP"):
        data = file(kind, b"Exif\0\0" + block)
        assert _orientation(data).numpy() == expected, kind


def test_pixels_are_turned_as_pillow_turns_them():
    for value in range(1, 9):
        data = file("PNG", tags(value))
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        turned = _upright(PIXELS, _orientation(data)).numpy()
        np.testing.assert_array_equal(turned, expected)


def test_broken_files_never_fail():
    rng = np.random.default_rng(1)
    files = [file(kind, tags(6)) for kind in ("JPEG", "PNG", "WEBP")]
    files += [
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8" + b"\xff" * 5000,
        b"RIFF\0\0\0\0WEBPEXIF\xff\xff\xff\xff",
    ]
    for data in files:
        for _ in range(60 if len(data) > 40 else 1):
            broken = bytearray(data[: rng.integers(len(data) + 1)] if rng.random() < 0.5 else data)
            for place in rng.integers(0, max(min(len(broken), 150), 1), 3 if broken else 0):
                broken[place] = rng.integers(256)
            assert 1 <= _orientation(bytes(broken)).numpy() <= 8


def test_the_search_in_a_hostile_file_ends():
    empty_segments = b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000
    assert _orientation(empty_segments).numpy() == 1
