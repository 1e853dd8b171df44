"""Reading image files: every kind of file against Pillow's own conversion, orientation by hand, broken
files."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from tf_d2.ops.image_io import read_image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (13, 17, 4), np.uint8)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


FILES = {
    "rgb png": encoded(Image.fromarray(NOISE[:, :, :3]), "PNG"),
    "rgba png": encoded(Image.fromarray(NOISE), "PNG"),
    "grey png": encoded(Image.fromarray(NOISE[:, :, 0]), "PNG"),
    "grey alpha png": encoded(Image.fromarray(NOISE[:, :, :2], "LA"), "PNG"),
    "16-bit png": encoded(Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 257), "PNG"),
    "palette png": encoded(Image.fromarray(NOISE[:, :, :3]).quantize(7), "PNG"),
    "1-bit png": encoded(Image.fromarray(NOISE[:, :, 0]).convert("1"), "PNG"),
    "jpeg": encoded(Image.fromarray(NOISE[:, :, :3]), "JPEG"),
    "progressive jpeg": encoded(Image.fromarray(NOISE[:, :, :3]), "JPEG", progressive=True, subsampling=0),
    "grey jpeg": encoded(Image.fromarray(NOISE[:, :, 0]), "JPEG"),
    "cmyk jpeg": encoded(Image.fromarray(NOISE, "CMYK"), "JPEG"),
    "bmp": encoded(Image.fromarray(NOISE[:, :, :3]), "BMP"),
    "gif": encoded(Image.fromarray(NOISE[:, :, :3]).quantize(9), "GIF"),
    "webp": encoded(Image.fromarray(NOISE[:, :, :3]), "WEBP"),
    "tiff": encoded(Image.fromarray(NOISE[:, :, :3]), "TIFF"),
}


@pytest.mark.parametrize("kind", FILES)
def test_equals_pillows_conversion(kind, tmp_path):
    expected = np.asarray(Image.open(io.BytesIO(FILES[kind])).convert("RGB"))
    path = tmp_path / "image"
    path.write_bytes(FILES[kind])
    for source in (path, str(path), FILES[kind]):
        image = read_image(source)
        assert image.shape == (13, 17, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        np.testing.assert_array_equal(image, expected[:, :, ::-1])
    np.testing.assert_array_equal(read_image(path, "RGB"), expected)


def test_values_by_hand():
    np.testing.assert_array_equal(read_image(FILES["rgb png"], "RGB"), NOISE[:, :, :3])
    np.testing.assert_array_equal(
        read_image(FILES["rgba png"]), NOISE[:, :, 2::-1]
    )  # alpha dropped, not blended
    np.testing.assert_array_equal(read_image(FILES["grey png"]), NOISE[:, :, :1].repeat(3, axis=2))
    grey = read_image(FILES["grey png"], "L")
    assert grey.shape == (13, 17, 1)
    np.testing.assert_array_equal(grey[:, :, 0], NOISE[:, :, 0])


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(orientation):
    """Each orientation says where the stored first row and column belong."""
    turned = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90,
    }
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(Image.fromarray(NOISE[:, :, :3]), "PNG", exif=exif)
    expected = turned.get(orientation, lambda a: a)(NOISE[:, :, :3])
    np.testing.assert_array_equal(read_image(data, "RGB"), expected)


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + b"\0\0\0\4IDAT"
    )


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "empty"),
        (b"not an image at all", "cannot be read"),
        (FILES["jpeg"][:200], "cannot be read"),
        (FILES["rgb png"][:300], "cannot be read"),
        (FILES["webp"][:40], "cannot be read"),
        (png_header(20000, 20000), "cannot be read.*400000000 pixels"),
        (png_header(0, 5), "cannot be read"),
    ],
)
def test_broken_files_are_one_clear_error(data, message, tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_image(path)
    assert str(error.value).startswith(str(path))
    with pytest.raises(ValueError, match=message):
        read_image(data)


def test_size_limit_is_checked_before_decoding():
    with pytest.raises(ValueError, match=r"17x13 pixels are more than the limit of 220; shrink"):
        read_image(FILES["rgb png"], max_pixels=220)
    assert read_image(FILES["rgb png"], max_pixels=221).shape == (13, 17, 3)
    # A header alone: the pixels are never looked for. Pillow's own warning (from 89 megapixels) is silent.
    with warnings.catch_warnings(), pytest.raises(ValueError, match="12000x12000 pixels"):
        warnings.simplefilter("error")
        read_image(png_header(12000, 12000), max_pixels=10**8)


def test_missing_file_and_bad_format(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ValueError, match='"BGR", "RGB" or "L"'):
        read_image(FILES["rgb png"], "YUV")
