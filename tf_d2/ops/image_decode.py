"""Decoding image files inside a graph with stock ops, to the bytes that Pillow gives.

Measured against Pillow 13 (TensorFlow 2.21; noise and smooth pictures, 1x1 to 480x640): equal in every byte
for JPEG (quality 50-100; 4:4:4, 4:2:2, 4:2:0; progressive; restart markers; grey), PNG (RGB, grey, alpha
dropped, palette with and without transparency, 1 and 16 bits), BMP, GIF and WebP (lossy, lossless, alpha
dropped). CMYK JPEG differs by 1 level in about half of the values: TensorFlow multiplies the channels with
another rounding, which cannot be undone afterwards.

The EXIF orientation is not applied (stock ops do not read it); `tf_d2.ops.image_io.read_image` does.
"""

import tensorflow as tf


def decode_image_bytes(data: tf.Tensor) -> tf.Tensor:
    """One encoded JPEG, PNG, BMP, GIF (first frame) or still WebP, a string scalar, to uint8 RGB `[H,W,3]`.

    The image is decoded whatever its size: check `max_pixels` on the header before, where the sender is not
    trusted.

    Raises:
        InvalidArgumentError: broken data, another format, or an animated WebP (TensorFlow 2.21 writes
        outside its buffer
            when it decodes one into a single frame, so none is passed to it).

    Source: `read_image`, detectron2/data/detection_utils.py, for the conversions to RGB.
    """
    data = tf.convert_to_tensor(data)
    is_webp = _starts_with(data, b"RIFF") & (tf.strings.substr(_padded(data), 8, 4) == b"WEBP")
    is_png = _starts_with(data, b"\x89PNG\r\n\x1a\n")
    image = tf.case(
        [
            (_starts_with(data, b"\xff\xd8"), lambda: _decode_jpeg(data)),
            (is_webp, lambda: _decode_webp(data)),
            (is_png & (_octet(data, 24) == 16) & (_octet(data, 25) == 0), lambda: _decode_grey16_png(data)),
        ],
        default=lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, [None, None, 3])


def _decode_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Pillow's settings: accurate integer DCT, smooth upsampling of the chroma planes."""
    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)


def _decode_grey16_png(data: tf.Tensor) -> tf.Tensor:
    """16-bit grey becomes 8-bit by cutting at 255, not by shifting: Pillow's conversion of mode I;16."""
    grey = tf.io.decode_png(data, channels=1, dtype=tf.uint16)
    return tf.repeat(tf.cast(tf.minimum(grey, 255), tf.uint8), 3, axis=2)


def _decode_webp(data: tf.Tensor) -> tf.Tensor:
    kind, flags = tf.strings.substr(_padded(data), 12, 4), _octet(data, 20)
    extended = kind == b"VP8X"
    still = tf.debugging.Assert(
        tf.logical_not(extended & _has_bit(flags, 0x02)), ["animated WebP images are not supported"]
    )
    # The alpha bit: in the flags of the extended format, in the fifth octet of the lossless one.
    has_alpha = (extended & _has_bit(flags, 0x10)) | ((kind == b"VP8L") & _has_bit(_octet(data, 24), 0x10))
    with tf.control_dependencies([still] if still is not None else []):
        return tf.cond(
            has_alpha,
            lambda: tf.io.decode_image(data, channels=4, expand_animations=False)[:, :, :3],
            lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
        )


def _padded(data: tf.Tensor) -> tf.Tensor:
    """The first 32 octets, filled up with zeros, so that short data can be looked at."""
    return tf.strings.substr(tf.strings.join([tf.strings.substr(data, 0, 32), b"\0" * 32]), 0, 32)


def _starts_with(data: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.strings.substr(_padded(data), 0, len(magic)) == magic


def _octet(data: tf.Tensor, position: int) -> tf.Tensor:
    """One octet of the header as an int32 scalar."""
    octets = tf.io.decode_raw(tf.strings.substr(_padded(data), position, 1), tf.uint8)
    return tf.cast(tf.reshape(octets, [1])[0], tf.int32)


def _has_bit(value: tf.Tensor, bit: int) -> tf.Tensor:
    return tf.bitwise.bitwise_and(value, bit) > 0
