"""Encoded images of a request -> pictures at network size, each with a status of its own.

A served graph cannot catch the error of an op, and TensorFlow Serving merges the requests of several users
into one batch: one broken file would take its neighbours down. ``tf.data`` can catch it (``ignore_errors``),
with stock ops, in the graph. So every image is decoded by a data set of one element; what cannot be decoded
becomes a status.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_d2.config import InputConfig
from tf_d2.ops import exif, image_decode
from tf_d2.ops.octets import number, octets, starts_with
from tf_d2.ops.resize import resize_uint8, shortest_edge_size_tf

# Values of the output `image_status`.
OK = 0
UNREADABLE = 1  # not a complete JPEG, PNG, BMP or WebP file, or an image without pixels
TOO_LARGE = 2  # more pixels than the export allows
TOO_THIN = 3  # one side of the network input would be 0 pixels (detectron2 fails, too)

STATUS_TEXT = {
    UNREADABLE: "not a readable JPEG, PNG, BMP or WebP image",
    TOO_LARGE: "the image has more pixels than this export accepts",
    TOO_THIN: "the image is too elongated to be resized to the network input",
}

_HEADER_BYTES = 32

# A grey pixel, decoded in place of a JPEG that is too large.
_SMALL_JPEG = tf.io.encode_jpeg(np.zeros((1, 1, 1), np.uint8)).numpy()


class Picture(NamedTuple):
    """One image of a request. Where ``status`` is not 0, ``pixels`` is empty and both sizes are 0."""

    pixels: tf.Tensor  # uint8 [h, w, 3] at network size, channels in INPUT.FORMAT order
    network_size: tf.Tensor  # int32 [2] (height, width) of `pixels`
    size: tf.Tensor  # int32 [2] (height, width) of the upright image
    status: tf.Tensor  # int32 []


def picture_from_bytes(data: tf.Tensor, config: InputConfig, max_pixels: int) -> Picture:
    """Read one encoded image, turned as its EXIF orientation says; never fails, whatever the bytes.

    Args:
        data: string ``[]``, a JPEG, PNG, BMP or WebP file (WebP: where the server's DecodeImage has it).
        max_pixels: larger images are refused by what their header says, before they are decoded.
    """
    decoded, status = tf.cond(
        image_decode.is_jpeg(data),
        lambda: _read_jpeg(data, max_pixels),
        lambda: _read_other(data, max_pixels),
    )
    decoded = exif.upright(tf.ensure_shape(decoded, [None, None, 3]), exif.orientation(data))
    return tf.cond(
        status == OK, lambda: picture_from_rgb(decoded, config, max_pixels), lambda: _no_picture(status)
    )


def picture_from_rgb(image: tf.Tensor, config: InputConfig, max_pixels: int) -> Picture:
    """Resize a decoded uint8 RGB image ``[H, W, 3]`` to the network size, with Pillow's bytes."""
    shape = tf.shape(image)
    height, width = shape[0], shape[1]
    network = tf.stack(
        shortest_edge_size_tf(
            tf.maximum(height, 1), tf.maximum(width, 1), config.min_size_test, config.max_size_test
        )
    )
    status = tf.where(tf.reduce_min(network) < 1, TOO_THIN, OK)
    too_large = tf.cast(height, tf.int64) * tf.cast(width, tf.int64) > max_pixels
    status = tf.where(too_large, TOO_LARGE, status)
    status = tf.where((height < 1) | (width < 1), UNREADABLE, status)

    def resized() -> Picture:
        ordered = image if config.format == "RGB" else image[:, :, ::-1]
        return Picture(resize_uint8(ordered, network[0], network[1]), network, shape[:2], status)

    return tf.cond(status == OK, resized, lambda: _no_picture(status))


def _no_picture(status: tf.Tensor) -> Picture:
    pixels = tf.ensure_shape(tf.zeros(tf.constant([0, 0, 3]), tf.uint8), [None, None, 3])
    return Picture(pixels, tf.zeros([2], tf.int32), tf.zeros([2], tf.int32), status)


# === Decoding ===

Decoded = tuple[tf.Tensor, tf.Tensor]  # uint8 RGB [H, W, 3], status


def _read_jpeg(data: tf.Tensor, max_pixels: int) -> Decoded:
    def read(encoded: tf.Tensor) -> Decoded:
        too_large = _too_large(tf.io.extract_jpeg_shape(encoded)[:2], max_pixels)
        harmless = tf.where(too_large, _SMALL_JPEG, encoded)
        return image_decode.decode_jpeg(harmless), tf.where(too_large, TOO_LARGE, OK)

    return _attempt(read, data)


def _read_other(data: tf.Tensor, max_pixels: int) -> Decoded:
    size = header_size(data)

    def attempt(decode: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[], Decoded]:
        return lambda: _attempt(lambda encoded: (decode(encoded), tf.constant(OK)), data)

    # A format without a header that is understood here could be of any size: it is not decoded. The kinds are told
    # apart out here because _attempt is slow with more than a few ops.
    refused = (tf.reduce_min(size) < 1) | image_decode.is_animated_webp(data)
    return tf.case(
        [
            (refused, lambda: _nothing(UNREADABLE)),
            (_too_large(size, max_pixels), lambda: _nothing(TOO_LARGE)),
            (image_decode.is_webp_with_alpha(data), attempt(image_decode.decode_without_alpha)),
            (image_decode.is_grey16_png(data), attempt(image_decode.decode_grey16_png)),
        ],
        default=attempt(image_decode.decode_other),
    )


def _attempt(read: Callable[[tf.Tensor], Decoded], data: tf.Tensor) -> Decoded:
    """``read(data)``, or nothing and UNREADABLE where it fails.

    The data set makes its function anew for every element, so that should be as small as it can be.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    dataset = tf.data.Dataset.from_tensors(data).map(read).ignore_errors().with_options(options)
    return dataset.reduce(_nothing(UNREADABLE), lambda _, element: element)


def _nothing(status: int) -> Decoded:
    return tf.zeros(tf.constant([0, 0, 3]), tf.uint8), tf.constant(status)


def _too_large(size: tf.Tensor, max_pixels: int) -> tf.Tensor:
    return tf.reduce_prod(tf.cast(size, tf.int64)) > max_pixels


# === Headers ===


def header_size(data: tf.Tensor) -> tf.Tensor:
    """(height, width) of a PNG, BMP or WebP file by its header: int32 ``[2]``; 0 for every other format."""
    head = octets(data, 0, _HEADER_BYTES)
    size = tf.where(starts_with(data, 0, image_decode.PNG), _png_size(head), tf.zeros([2], tf.int32))
    size = tf.where(starts_with(data, 0, b"BM"), _bmp_size(head), size)
    return tf.where(starts_with(data, 0, b"RIFF"), _webp_size(head, data), size)


def _png_size(head: tf.Tensor) -> tf.Tensor:
    return _pair(number(head[20:24], True), number(head[16:20], True))


def _bmp_size(head: tf.Tensor) -> tf.Tensor:
    # A negative height means rows from top to bottom.
    return tf.abs(_pair(number(head[22:26], False), number(head[18:22], False)))


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
