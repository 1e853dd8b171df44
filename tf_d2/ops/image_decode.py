"""Decoding image files inside a graph with stock ops, to the bytes that Pillow gives.

Measured against Pillow 13 (TensorFlow 2.21; noise and smooth pictures, 1x1 to 480x640): equal in every byte
for JPEG (quality 50-100; 4:4:4, 4:2:2, 4:2:0; progressive; restart markers; grey), PNG (RGB, grey, alpha
dropped, palette with and without transparency, 1 and 16 bits), BMP, GIF and WebP (lossy, lossless, alpha
dropped). CMYK JPEG differs by 1 level in about half of the values: TensorFlow multiplies the channels with
another rounding, which cannot be undone afterwards.

The EXIF orientation is applied by `tf_d2.ops.exif`.
"""

import tensorflow as tf

from tf_d2.ops.octets import octets, starts_with

PNG = b"\x89PNG\r\n\x1a\n"


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
    still = tf.debugging.Assert(
        tf.logical_not(is_animated_webp(data)), ["animated WebP images are not supported"]
    )
    with tf.control_dependencies([still] if still is not None else []):
        image = tf.case(
            [
                (is_jpeg(data), lambda: decode_jpeg(data)),
                (is_webp_with_alpha(data), lambda: decode_without_alpha(data)),
                (is_grey16_png(data), lambda: decode_grey16_png(data)),
            ],
            default=lambda: decode_other(data),
        )
    return tf.ensure_shape(image, [None, None, 3])


# === The parts: which kind a file is by its header, and how each kind is decoded ===


def is_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Whether the file starts as a JPEG."""
    return starts_with(data, 0, b"\xff\xd8")


def decode_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Pillow's settings: accurate integer DCT, smooth upsampling of the chroma planes."""
    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE", fancy_upscaling=True)


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
    """PNG, BMP, GIF and WebP without alpha."""
    return tf.io.decode_image(data, channels=3, expand_animations=False)


def _is_webp(data: tf.Tensor, kind: bytes) -> tf.Tensor:
    return starts_with(data, 0, b"RIFF") & starts_with(data, 8, b"WEBP" + kind)


def _has_bit(value: tf.Tensor, bit: int) -> tf.Tensor:
    return tf.bitwise.bitwise_and(value, bit) > 0
