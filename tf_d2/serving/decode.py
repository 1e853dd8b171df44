"""Encoded images of a request -> pictures at network size, each with a status of its own.

A served graph cannot catch the error of an op, and TensorFlow Serving merges the requests of several users
into one batch: one broken file would take its neighbours down. ``tf.data`` can catch it (``ignore_errors``),
with stock ops, in the graph. So every image is decoded by a data set of one element; what cannot be decoded
becomes a status.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_d2.config import InputConfig
from tf_d2.modeling.network_input import network_size_tf, pixel_dtype, to_network
from tf_d2.ops import bmp, cmyk_jpeg, exif, image_decode
from tf_d2.ops.image_metadata import PNG, is_jpeg, metadata
from tf_d2.ops.octets import number, octets, starts_with
from tf_d2.serving_contract import NOT_EXACT, OK, TOO_LARGE, TOO_THIN, UNREADABLE

# What is decoded, and what is not; for the README of an export.
DECODED = (
    "Decoded as detectron2 decodes them, bit for bit: JPEG (baseline and progressive; grey, YCbCr, RGB, CMYK and YCCK; "
    "8 bits), PNG (every colour type, 1 to 16 bits, interlaced; of an animation the first picture), BMP (colour "
    "tables, 16, 24 and 32 bits, OS/2 and Windows headers) and still WebP (lossy, lossless). Opacity is dropped. They "
    "are turned by the orientation that Pillow finds in EXIF (JPEG, PNG before and behind the pixels, WebP, "
    "ImageMagick's profiles) or else in XMP. Refused with an `image_status`: BMP with run lengths, animated WebP, "
    "files that are cut off, files whose orientation cannot be told, and every other format."
)

_HEADER_BYTES = 32


class Picture(NamedTuple):
    """One image of a request. Where ``status`` is not 0, ``pixels`` is empty and both sizes are 0."""

    # [h, w, C] at network size, channels in the network's order; uint8, with Detectron's conventions float32
    pixels: tf.Tensor
    network_size: tf.Tensor  # int32 [2] (height, width) of `pixels`
    size: tf.Tensor  # int32 [2] (height, width) of the upright image
    status: tf.Tensor  # int32 []


@cache
def _small_jpeg() -> bytes:
    """A grey pixel, decoded in place of a JPEG that is too large. Not made on import, where it would be the first
    tensor of the user's process, after which TensorFlow takes no settings any more."""
    with tf.init_scope():
        return tf.io.encode_jpeg(np.zeros((1, 1, 1), np.uint8)).numpy()


def picture_from_bytes(data: tf.Tensor, config: InputConfig, max_pixels: int) -> Picture:
    """Read one encoded image, turned as its EXIF orientation says; never fails, whatever the bytes.

    A model of one channel gets what detectron2's ``read_image`` gives for format "L".

    Args:
        data: string ``[]``, a JPEG, PNG, BMP or WebP file (WebP: where the server's DecodeImage has it).
        max_pixels: larger images are refused by what their header says, before they are decoded.
    """
    found = metadata(data)
    decoded, status = tf.case(
        [
            (is_jpeg(data), lambda: _read_jpeg(data, found.layers, max_pixels)),
            (bmp.is_bmp(data), lambda: _read_bmp(data, max_pixels)),
        ],
        default=lambda: _read_other(data, max_pixels),
    )
    orientation = tf.cond(status == OK, lambda: exif.orientation_of(found), lambda: tf.constant(1))
    status = tf.where(orientation == exif.UNCERTAIN, NOT_EXACT, status)
    decoded = exif.upright(tf.ensure_shape(decoded, [None, None, 3]), orientation)
    image = grey(decoded) if len(config.pixel_mean) == 1 else decoded
    return tf.cond(
        status == OK,
        lambda: picture_from_pixels(image, config, max_pixels),
        lambda: _no_picture(status, config),
    )


def grey(rgb: tf.Tensor) -> tf.Tensor:
    """uint8 RGB ``[H, W, 3]`` -> ``[H, W, 1]`` as Pillow's convert("L"): (19595 R + 38470 G + 7471 B + 2^15) >> 16."""
    r, g, b = tf.unstack(tf.cast(rgb, tf.int32), axis=2)
    weighted = 19595 * r + 38470 * g + 7471 * b + 0x8000
    return tf.cast(tf.bitwise.right_shift(weighted, 16), tf.uint8)[:, :, None]


def picture_from_pixels(image: tf.Tensor, config: InputConfig, max_pixels: int) -> Picture:
    """Resize a decoded uint8 image ``[H, W, C]`` to the network size, with Pillow's bytes.

    Three channels are RGB. Any other number of them is in the order of ``Predictor``'s argument: to that, too,
    detectron2 applies INPUT.FORMAT "RGB" by turning the order of all channels around.
    """
    channels = len(config.pixel_mean)
    turned = config.format == ("BGR" if channels == 3 else "RGB")
    shape = tf.shape(image)
    height, width = shape[0], shape[1]
    network = tf.stack(network_size_tf(tf.maximum(height, 1), tf.maximum(width, 1), config))
    status = tf.where(tf.reduce_min(network) < 1, TOO_THIN, OK)
    too_large = tf.cast(height, tf.int64) * tf.cast(width, tf.int64) > max_pixels
    status = tf.where(too_large, TOO_LARGE, status)
    status = tf.where((height < 1) | (width < 1), UNREADABLE, status)

    def resized() -> Picture:
        ordered = tf.ensure_shape(image[:, :, ::-1] if turned else image, [None, None, channels])
        return Picture(to_network(ordered, network, config), network, shape[:2], status)

    return tf.cond(status == OK, resized, lambda: _no_picture(status, config))


def _no_picture(status: tf.Tensor, config: InputConfig) -> Picture:
    channels = len(config.pixel_mean)
    pixels = tf.zeros(tf.constant([0, 0, channels]), pixel_dtype(config))
    pixels = tf.ensure_shape(pixels, [None, None, channels])
    return Picture(pixels, tf.zeros([2], tf.int32), tf.zeros([2], tf.int32), status)


# === Decoding ===

_Decoded = tuple[tf.Tensor, tf.Tensor]  # uint8 RGB [H, W, 3], status


def _read_jpeg(data: tf.Tensor, layers: tf.Tensor, max_pixels: int) -> _Decoded:
    def read(encoded: tf.Tensor) -> _Decoded:
        too_large = _too_large(tf.io.extract_jpeg_shape(encoded)[:2], max_pixels)
        harmless = tf.where(too_large, _small_jpeg(), encoded)
        return image_decode.decode_jpeg(harmless), tf.where(too_large, TOO_LARGE, OK)

    def read_cmyk(files: tf.Tensor, facts: tf.Tensor) -> _Decoded:
        # Decoding takes as much memory as that of several pictures.
        too_large = _too_large(tf.io.extract_jpeg_shape(files[0])[:2], max_pixels // 3)
        harmless = tf.where(too_large, tf.fill([cmyk_jpeg.FORMS], _small_jpeg()), files)
        image, explained = image_decode.decode_cmyk(harmless, facts)
        return image, tf.where(too_large, TOO_LARGE, tf.where(explained, OK, NOT_EXACT))

    return tf.cond(
        layers == 4, lambda: _attempt(read_cmyk, *cmyk_jpeg.forms(data)), lambda: _attempt(read, data)
    )


def _read_bmp(data: tf.Tensor, max_pixels: int) -> _Decoded:
    header = bmp.read_header(data)
    promise = bmp.promise(data, header)
    too_large = (promise != bmp.BROKEN) & (header.width * header.height > max_pixels)
    status = tf.where(promise == bmp.READABLE, OK, tf.where(promise == bmp.BROKEN, UNREADABLE, NOT_EXACT))
    status = tf.where(too_large, TOO_LARGE, status)
    nothing = tf.zeros(tf.constant([0, 0, 3]), tf.uint8)
    return tf.cond(status == OK, lambda: bmp.decode(data, header), lambda: nothing), status


def _read_other(data: tf.Tensor, max_pixels: int) -> _Decoded:
    size = header_size(data)

    def attempt(decode: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[], _Decoded]:
        return lambda: _attempt(lambda encoded: (decode(encoded), tf.constant(OK)), data)

    # A format without a header that is understood here could be of any size: it is not decoded. The kinds are told
    # apart out here because _attempt is slow with more than a few ops.
    return tf.case(
        [
            (tf.reduce_min(size) < 1, lambda: _nothing(UNREADABLE)),
            (image_decode.is_animated_webp(data), lambda: _nothing(NOT_EXACT)),
            (_too_large(size, max_pixels), lambda: _nothing(TOO_LARGE)),
            (image_decode.is_webp_with_alpha(data), attempt(image_decode.decode_without_alpha)),
            (image_decode.is_grey16_png(data), attempt(image_decode.decode_grey16_png)),
        ],
        default=attempt(image_decode.decode_other),
    )


def _attempt(read: Callable[..., _Decoded], *data: Any) -> _Decoded:
    """``read(*data)``, or nothing and UNREADABLE where it fails.

    The data set makes its function anew for every element, so that should be as small as it can be.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    # One element of one tensor or of several.
    inputs = data[0] if len(data) == 1 else data
    dataset = tf.data.Dataset.from_tensors(inputs).map(read).ignore_errors().with_options(options)
    return dataset.reduce(_nothing(UNREADABLE), lambda _, element: element)


def _nothing(status: int) -> _Decoded:
    return tf.zeros(tf.constant([0, 0, 3]), tf.uint8), tf.constant(status)


def _too_large(size: tf.Tensor, max_pixels: int) -> tf.Tensor:
    return tf.reduce_prod(tf.cast(size, tf.int64)) > max_pixels


# === Headers ===


def header_size(data: tf.Tensor) -> tf.Tensor:
    """(height, width) of a PNG or WebP file by its header: int32 ``[2]``; 0 for every other format."""
    head = octets(data, 0, _HEADER_BYTES)
    size = tf.where(starts_with(data, 0, PNG), _png_size(head), tf.zeros([2], tf.int32))
    return tf.where(starts_with(data, 0, b"RIFF"), _webp_size(head, data), size)


def _png_size(head: tf.Tensor) -> tf.Tensor:
    return _pair(number(head[20:24], True), number(head[16:20], True))


def _webp_size(head: tf.Tensor, data: tf.Tensor) -> tf.Tensor:
    # Lossy: 14 bits per side at byte 26. Lossless: 14 bits, less 1, at 21. Extended: 24 bits, less 1, at 24.
    lossy = _pair(number(head[28:30], False), number(head[26:28], False)) & 0x3FFF
    bits = number(head[21:25], False)
    lossless = (_pair(tf.bitwise.right_shift(bits, 14), bits) & 0x3FFF) + 1
    extended = _pair(number(head[27:30], False), number(head[24:27], False)) + 1
    size = tf.zeros([2], tf.int32)
    for kind, own in ((b"VP8 ", lossy), (b"VP8L", lossless), (b"VP8X", extended)):
        size = tf.where(starts_with(data, 12, kind), own, size)
    return size


def _pair(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    # The highest bit of 32 becomes the sign, as in C.
    return tf.cast(tf.stack([height, width]), tf.int32)
