"""JPEG of four inks against Pillow, byte for byte."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_d2.ops import cmyk_jpeg
from tf_d2.ops.image_decode import decode_cmyk, decode_image_bytes

decode = tf.function(
    lambda data: decode_cmyk(*cmyk_jpeg.forms(data)),
    input_signature=[tf.TensorSpec([], tf.string)],
    autograph=False,
)
INKS = np.random.default_rng(0).integers(0, 256, (45, 61, 4), np.uint8)
INKS[:8, :8, 3], INKS[8:16, :16, 3], INKS[16:32, :16] = 255, 0, np.arange(256).reshape(16, 16, 1)


def encoded(inks=INKS, **options):
    buffer = io.BytesIO()
    Image.fromarray(inks, "CMYK").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def adobe(data, transform):
    """With another Adobe marker (255: YCCK of an unknown kind), or without one (None)."""
    start = data.index(b"\xff\xeeAdobe"[:2])
    size = 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    marker = b"" if transform is None else data[start : start + size - 1] + bytes([transform])
    return data[:start] + marker + data[start + size :]


@pytest.mark.parametrize("transform", [None, 0, 2, 255])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 100, "subsampling": 0},
        {"quality": 75, "subsampling": 1},
        {"quality": 30, "subsampling": 2},
        {"quality": 90, "progressive": True},
        {"quality": 80, "restart_marker_rows": 1, "comment": b"\xff\xda"},
    ],
)
def test_equals_pillow(options, transform):
    data = adobe(encoded(**options), transform)
    pixels, certain = decode(data)
    assert certain
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_one_table_for_all_and_four_tables():
    for number in (1, 2, 4):
        tables = [[i + 1 + k for i in range(64)] for k in range(number)]
        data = encoded(qtables=tables)
        if number == 4:
            frame = data.index(b"\xff\xc0")
            data = bytearray(data)
            for component in range(4):
                data[frame + 12 + 3 * component] = component
            data = bytes(data)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(decode(data)[0], expected)
        np.testing.assert_array_equal(decode_image_bytes(data), expected)


def test_samples_that_do_not_explain_the_picture_are_no_answer():
    files, facts = cmyk_jpeg.forms(encoded())
    assert decode_cmyk(files, facts)[1]
    assert not decode_cmyk(files, tf.logical_not(facts))[1]
