"""Decoding image files inside a graph with stock ops, to the bytes that Pillow gives.

Equal in every byte to Pillow 13 (TensorFlow 2.21):

- JPEG: baseline and progressive, grey, YCbCr and RGB in every subsampling, CMYK and YCCK with and without the
  Adobe marker (:mod:`tf_d2.ops.cmyk_jpeg`), restart markers, anything behind the end;
- PNG: grey, RGB, palette, each with or without opacity (dropped), 1 to 16 bits, interlaced, the first frame of an
  animation;
- BMP: everything but run lengths (:mod:`tf_d2.ops.bmp`);
- WebP: lossy and lossless, opacity dropped, not animated;
- GIF: the first frame (here; serving refuses GIF).

The orientation is applied by :mod:`tf_d2.ops.exif`.
"""

from __future__ import annotations

import tensorflow as tf

from tf_d2.ops import bmp, cmyk_jpeg
from tf_d2.ops.image_metadata import PNG, is_jpeg, metadata
from tf_d2.ops.octets import octets, starts_with


def decode_image_bytes(data: tf.Tensor) -> tf.Tensor:
    """One encoded JPEG, PNG, BMP, GIF (first frame) or still WebP, a string scalar, to uint8 RGB `[H,W,3]`.

    The image is decoded whatever its size: check `max_pixels` on the header before, where the sender is not
    trusted.

    Raises:
        tf.errors.InvalidArgumentError: broken data, another format, a BMP of run lengths, or an animated WebP
            (TensorFlow 2.21 writes outside its buffer when it decodes one into a single frame, so none is passed on).

    Source: `read_image`, detectron2/data/detection_utils.py, for the conversions to RGB.
    """
    data = tf.convert_to_tensor(data)
    layers = tf.cond(is_jpeg(data), lambda: metadata(data).layers, lambda: tf.constant(0, tf.int64))
    image = tf.case(
        [
            (layers == 4, lambda: _decode_cmyk(data)),
            (is_jpeg(data), lambda: decode_jpeg(data)),
            (bmp.is_bmp(data), lambda: _decode_bmp(data)),
            (is_webp_with_alpha(data), lambda: decode_without_alpha(_still(data))),
            (is_grey16_png(data), lambda: decode_grey16_png(data)),
        ],
        default=lambda: decode_other(_still(data)),
    )
    return tf.ensure_shape(image, [None, None, 3])


def _still(data: tf.Tensor) -> tf.Tensor:
    return _asserted(data, tf.logical_not(is_animated_webp(data)), "animated WebP images are not supported")


def _decode_bmp(data: tf.Tensor) -> tf.Tensor:
    header = bmp.read_header(data)
    readable = bmp.promise(data, header) == bmp.READABLE
    return bmp.decode(_asserted(data, readable, "not a complete BMP, or one of run lengths"), header)


def _decode_cmyk(data: tf.Tensor) -> tf.Tensor:
    files, facts = cmyk_jpeg.forms(data)
    image, explained = decode_cmyk(files, facts)
    return _asserted(image, explained, "inks of this JPEG cannot be told")


def _asserted(value: tf.Tensor, condition: tf.Tensor, message: str) -> tf.Tensor:
    check = tf.debugging.Assert(condition, [message])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(value)


# === The parts: which kind a file is by its header, and how each kind is decoded ===


def decode_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Pillow's settings: accurate integer DCT, smooth upsampling of the chroma planes."""
    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)


def decode_cmyk(files: tf.Tensor, facts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Of :func:`tf_d2.ops.cmyk_jpeg.forms`: uint8 RGB ``[H, W, 3]``, and whether it is certain."""
    return cmyk_jpeg.to_rgb([decode_jpeg(files[i]) for i in range(cmyk_jpeg.FORMS)], facts)


def is_grey16_png(data: tf.Tensor) -> tf.Tensor:
    """Whether the header is that of a PNG with 16 bits of grey."""
    is_png = starts_with(data, 0, PNG)
    return is_png & (octets(data, 24, 1)[0] == 16) & (octets(data, 25, 1)[0] == 0)


def decode_grey16_png(data: tf.Tensor) -> tf.Tensor:
    """16-bit grey becomes 8-bit by cutting at 255, not by shifting: Pillow's conversion of mode I;16."""
    grey = tf.io.decode_png(data, channels=1, dtype=tf.uint16)
    return tf.repeat(tf.cast(tf.minimum(grey, 255), tf.uint8), 3, axis=2)


def is_animated_webp(data: tf.Tensor) -> tf.Tensor:
    """Whether the header announces frames. Such a file must not reach TensorFlow's decoder."""
    return _is_webp(data, b"VP8X") & _has_bit(octets(data, 20, 1)[0], 0x02)


def is_webp_with_alpha(data: tf.Tensor) -> tf.Tensor:
    """Whether the alpha bit is set: in the flags of the extended format, in the fifth octet of the lossless one."""
    extended = _is_webp(data, b"VP8X") & _has_bit(octets(data, 20, 1)[0], 0x10)
    return extended | (_is_webp(data, b"VP8L") & _has_bit(octets(data, 24, 1)[0], 0x10))


def decode_without_alpha(data: tf.Tensor) -> tf.Tensor:
    """The colours of a WebP as they are stored; asked for three channels, TensorFlow would blend them."""
    return tf.io.decode_image(data, channels=4, expand_animations=False)[:, :, :3]


def decode_other(data: tf.Tensor) -> tf.Tensor:
    """PNG, GIF and WebP without alpha."""
    return tf.io.decode_image(data, channels=3, expand_animations=False)


def _is_webp(data: tf.Tensor, kind: bytes) -> tf.Tensor:
    return starts_with(data, 0, b"RIFF") & starts_with(data, 8, b"WEBP" + kind)


def _has_bit(value: tf.Tensor, bit: int) -> tf.Tensor:
    return tf.bitwise.bitwise_and(value, bit) > 0
