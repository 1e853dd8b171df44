"""Decoding in the graph, against Pillow."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_d2.config import InputConfig
from tf_d2.ops.image_io import read_image
from tf_d2.serving import decode

from .conftest import png16

CONFIG = InputConfig("RGB", 0, 0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # 0: no resizing
MAX_PIXELS = 10_000


@pytest.fixture(scope="module")
def read():
    """``read(data)`` -> Picture of arrays, by one graph."""
    function = tf.function(
        lambda data: decode.picture_from_bytes(data, CONFIG, MAX_PIXELS),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )
    return lambda data: decode.Picture(*(part.numpy() for part in function(data)))


def photo(height: int = 45, width: int = 61) -> Image.Image:
    """Smooth colours with edges and some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 11)], -1) * 90 + 128
    waves[10:20, 10:30] = 255 - waves[10:20, 10:30]
    return Image.fromarray((waves + rng.normal(0, 6, waves.shape)).clip(0, 255).astype(np.uint8))


def translucent() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


EXACT = {
    "jpeg 4:2:0": save(photo(), "JPEG", quality=80),
    "jpeg 4:4:4": save(photo(), "JPEG", quality=95, subsampling=0),
    "jpeg 4:2:2": save(photo(), "JPEG", quality=70, subsampling=1),
    "jpeg progressive": save(photo(), "JPEG", progressive=True),
    "jpeg grey": save(photo().convert("L"), "JPEG"),
    "png": save(photo(), "PNG"),
    "png grey": save(photo().convert("L"), "PNG"),
    "png grey and alpha": save(photo().convert("LA"), "PNG"),
    "png palette": save(photo().convert("P"), "PNG"),
    "png black and white": save(photo().convert("1"), "PNG"),
    "bmp": save(photo(), "BMP"),
    "webp": save(photo(), "WEBP", quality=80),
    "webp lossless": save(photo(), "WEBP", lossless=True),
    "webp with alpha": save(translucent(), "WEBP", lossless=True),
    "lossy webp with alpha": save(translucent(), "WEBP", quality=80),
}


@pytest.mark.parametrize("kind", EXACT)
def test_pixels_are_pillows(read, kind: str) -> None:
    found = read(EXACT[kind])
    assert found.status == decode.OK
    assert found.size.tolist() == [45, 61]
    np.testing.assert_array_equal(found.pixels, pillow(EXACT[kind]))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_files_are_turned_as_read_image_turns_them(read, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo"
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path.write_bytes(save(photo(), kind, exif=exif))
        picture = read(path.read_bytes())
        expected = read_image(path, "RGB")
        np.testing.assert_array_equal(picture.pixels, expected)
        assert picture.size.tolist() == list(expected.shape[:2])


def test_alpha_is_dropped_not_blended(read) -> None:
    image = photo().convert("RGBA")
    image.putalpha(7)
    np.testing.assert_array_equal(read(save(image, "PNG")).pixels, np.asarray(photo()))


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_png(read, colour_type: int, channels: int) -> None:
    """As Pillow, and so detectron2, reads them: the high byte of colours, but pure grey is cut at 255."""
    samples = np.random.default_rng(0).integers(0, 2**16, (5, 7, channels))
    samples[0] //= 200  # some below 256
    data = png16(samples, colour_type)
    found = read(data)
    assert found.status == decode.OK
    by_hand = np.minimum(samples, 255) if colour_type == 0 else samples >> 8
    expected = by_hand[:, :, :3] if channels > 2 else np.repeat(by_hand[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(found.pixels, expected)
    np.testing.assert_array_equal(found.pixels, pillow(data))


def test_animated_webp_is_refused(read) -> None:
    """TensorFlow 2.21 writes outside its buffer when it decodes one."""
    frames = [photo(), photo().rotate(180)]
    data = save(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert read(data).status == decode.NOT_EXACT


def test_what_used_to_be_decoded_wrongly(read) -> None:
    cmyk = save(photo().convert("CMYK"), "JPEG", quality=95)
    adobe = cmyk.index(b"\xff\xee")
    behind = save(photo(), "PNG")
    exif = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    chunk = len(exif).to_bytes(4, "big") + b"eXIf" + exif + zlib.crc32(b"eXIf" + exif).to_bytes(4, "big")
    files = {
        "bmp with a palette": save(photo().convert("P"), "BMP"),
        "bmp, black and white": save(photo().convert("1"), "BMP"),
        "cmyk": cmyk,
        "cmyk without the adobe marker": cmyk[:adobe] + cmyk[adobe + 16 :],
        "eXIf behind the pixels": behind[:-12] + chunk + behind[-12:],
    }
    for name, data in files.items():
        found = read(data)
        assert found.status == decode.OK, name
        np.testing.assert_array_equal(found.pixels, read_image(data, "RGB"), err_msg=name)
    assert read(files["eXIf behind the pixels"]).size.tolist() == [61, 45]


def test_run_lengths_are_refused_by_a_status_of_their_own(read) -> None:
    data = bytearray(save(photo().convert("P"), "BMP"))
    data[30] = 1
    assert read(bytes(data)).status == decode.NOT_EXACT


def test_a_progressive_jpeg_without_its_last_scans_is_refused(read) -> None:
    """libjpeg makes up what lacks; TensorFlow's and Pillow's do so differently."""
    for image in (photo(), photo().convert("L"), photo().convert("CMYK")):
        data = save(image, "JPEG", progressive=True)
        assert read(data).status == decode.OK
        last_tables = data.rindex(b"\xff\xc4")
        cut = data[:last_tables] + b"\xff\xd9"
        assert pillow(cut).shape == (45, 61, 3)
        assert read(cut).status == decode.NOT_EXACT


def test_every_truncation_is_noticed(read) -> None:
    for kind in ("jpeg 4:2:0", "png", "bmp", "webp"):
        data = EXACT[kind]
        for cut in (0, 1, 3, 11, 25, 29, 60, len(data) // 2, int(len(data) * 0.9)):
            found = read(data[:cut])
            assert found.status == decode.UNREADABLE, (kind, cut)
            assert found.pixels.shape == (0, 0, 3)
            assert not found.size.any()


@pytest.mark.parametrize("kind", EXACT)
def test_corruption_never_raises(read, kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(EXACT[kind])
        for position in rng.integers(0, min(len(data), 400), 3):
            data[position] = rng.integers(256)
        found = read(bytes(data))
        assert found.status in (0, 1, 2, 3)
        assert found.pixels.shape == (*found.network_size, 3)
        assert found.pixels.shape[0] * found.pixels.shape[1] <= MAX_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_size_limit_is_read_from_the_header(read, kind: str) -> None:
    just = Image.new("RGB", (100, 100))
    more = Image.new("RGB", (101, 100))
    assert read(save(just, kind)).status == decode.OK
    assert read(save(more, kind)).status == decode.TOO_LARGE
    assert read(save(more, kind)).pixels.shape == (0, 0, 3)


@pytest.mark.parametrize("kind", [k for k in EXACT if k[:3] in ("png", "web", "los")])
def test_header_size(kind: str) -> None:
    assert decode.header_size(tf.constant(EXACT[kind])).numpy().tolist() == [45, 61]


@pytest.mark.parametrize("data", [b"", b"GIF89a" + b"\1" * 40, b"RIFFxxxxWEBPVP9 " + b"\1" * 40, b"\0" * 100])
def test_other_formats_have_no_size(data: bytes) -> None:
    assert decode.header_size(tf.constant(data)).numpy().tolist() == [0, 0]


def test_gif_is_refused(read) -> None:
    assert read(save(photo(), "GIF")).status == decode.UNREADABLE


def test_network_size_and_channel_order() -> None:
    config = InputConfig("BGR", 32, 50, CONFIG.pixel_mean, CONFIG.pixel_std)
    rgb = np.asarray(photo())
    found = decode.picture_from_pixels(tf.constant(rgb), config, MAX_PIXELS)
    expected = np.asarray(photo().resize((43, 32), Image.Resampling.BILINEAR))[:, :, ::-1]
    np.testing.assert_array_equal(found.pixels.numpy(), expected)
    assert found.network_size.numpy().tolist() == [32, 43]
    assert found.size.numpy().tolist() == [45, 61]


@pytest.mark.parametrize(
    ("shape", "status"), [((0, 5, 3), 1), ((5, 0, 3), 1), ((1, 5000, 3), 3), ((1000, 11, 3), 2)]
)
def test_pictures_that_cannot_be_used(shape: tuple[int, ...], status: int) -> None:
    config = InputConfig("BGR", 32, 50, CONFIG.pixel_mean, CONFIG.pixel_std)
    found = decode.picture_from_pixels(tf.zeros(shape, tf.uint8), config, MAX_PIXELS)
    assert found.status.numpy() == status
    assert found.pixels.shape == (0, 0, 3)
