"""The EXIF orientation of an image file, read and applied inside a graph with stock ops.

A camera that is held upright often stores the picture lying on its side, and the way to turn it in a tag.
detectron2 applies the tag when it reads a file, so a served model has to do so too. All positions are int64
octets from the start of the file; whatever the file holds, nothing fails: no tag means orientation 1.

Not read: a tag after the pixels of a PNG file, and one in XMP alone.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_d2.ops.image_decode import PNG, is_jpeg
from tf_d2.ops.octets import length, number, octets, part, starts_with

_TAG = 0x0112
_BYTE, _SHORT, _LONG = 1, 3, 4  # kinds of values
_NAME = b"Exif\0\0"  # before the TIFF header in a JPEG, and in other formats of some writers
_MOST_BLOCKS = 256  # more than a file has before the tag; the search in a hostile one ends

# (position after the block, position of its TIFF header or 0, whether to stop)
Step = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def orientation(data: tf.Tensor) -> tf.Tensor:
    """The orientation of a JPEG, PNG or WebP file (string ``[]``): int32 ``[]``, 1 to 8.

    1 is upright, or a file without a tag. Source of the meanings: EXIF 2.3, tag 274.
    """

    def none() -> tf.Tensor:
        return tf.constant(0, tf.int64)

    header = tf.case(
        [
            (is_jpeg(data), lambda: _search(data, 2, _jpeg_segment)),
            (starts_with(data, 0, PNG), lambda: _search(data, 8, _png_chunk)),
            (starts_with(data, 8, b"WEBP"), lambda: _search(data, 12, _webp_chunk)),
        ],
        default=none,
    )
    found = tf.cond(header > 0, lambda: _tag_value(data, header), none)
    return tf.where((found > 1) & (found < 9), tf.cast(found, tf.int32), 1)


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """``[H, W, C]`` as stored -> the picture as it was seen, ``[W, H, C]`` for orientations 5 to 8."""

    def changed(when: tuple[int, ...], change: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        return tf.cond(tf.reduce_any(orientation == when), lambda: change(x), lambda: x)

    channels = image.shape[-1]
    image = changed((5, 6, 7, 8), lambda x: tf.transpose(x, [1, 0, 2]), image)
    image = changed((3, 4, 7, 8), lambda x: tf.reverse(x, [0]), image)
    image = changed((2, 3, 6, 7), lambda x: tf.reverse(x, [1]), image)
    return tf.ensure_shape(image, [None, None, channels])


# === Where the TIFF header is ===


def _search(data: tf.Tensor, start: int, step: Callable[[tf.Tensor, tf.Tensor], Step]) -> tf.Tensor:
    """Walk from block to block until ``step(data, position)`` finds the header or says stop; 0 = not found."""
    size = length(data)

    def more(i: tf.Tensor, position: tf.Tensor, header: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
        return (i < _MOST_BLOCKS) & (position < size) & (header == 0) & tf.logical_not(stop)

    def one(i: tf.Tensor, position: tf.Tensor, header: tf.Tensor, stop: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return i + 1, *step(data, position)

    first = (0, tf.constant(start, tf.int64), tf.constant(0, tf.int64), tf.constant(False))
    return tf.while_loop(more, one, first, parallel_iterations=1)[2]


def _jpeg_segment(data: tf.Tensor, position: tf.Tensor) -> Step:
    head = octets(data, position, 4)
    marker = head[1]
    named = starts_with(data, position + 4, _NAME)
    header = _where((marker == 0xE1) & named, position + 4 + len(_NAME))
    pixels = (head[0] != 0xFF) | (marker == 0xDA) | (marker == 0xD9)
    alone = (marker == 0x01) | ((marker >= 0xD0) & (marker <= 0xD8))  # no length follows
    size = 2 + _where(tf.logical_not(alone), number(head[2:4], True))
    padding = marker == 0xFF  # may be repeated
    return position + tf.where(padding, tf.ones_like(size), size), header, pixels


def _png_chunk(data: tf.Tensor, position: tf.Tensor) -> Step:
    size = number(octets(data, position, 4), True)
    header = _where(starts_with(data, position + 4, b"eXIf"), _after_name(data, position + 8))
    return position + 12 + size, header, starts_with(data, position + 4, b"IDAT")


def _webp_chunk(data: tf.Tensor, position: tf.Tensor) -> Step:
    size = number(octets(data, position + 4, 4), False)
    header = _where(starts_with(data, position, b"EXIF"), _after_name(data, position + 8))
    return position + 8 + size + tf.math.floormod(size, 2), header, tf.constant(False)


def _after_name(data: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    return position + len(_NAME) * tf.cast(starts_with(data, position, _NAME), tf.int64)


def _where(condition: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    return tf.where(condition, position, tf.zeros_like(position))


# === The tag ===


def _tag_value(data: tf.Tensor, header: tf.Tensor) -> tf.Tensor:
    """The value of the last orientation entry in the first directory, 0 without one."""
    head = octets(data, header, 8)
    big = head[0] == ord("M")
    is_tiff = (head[0] == head[1]) & (big | (head[0] == ord("I"))) & (head[2] + head[3] == 42)
    directory = header + number(head[4:8], big)
    count = number(octets(data, directory, 2), big)
    entries = tf.io.decode_raw(part(data, directory + 2, 12 * count), tf.uint8)
    entries = tf.cast(tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12]), tf.int64)
    kind, values = number(entries[:, 2:4], big), number(entries[:, 4:8], big)
    value = tf.where(kind == _SHORT, number(entries[:, 8:10], big), number(entries[:, 8:12], big))
    value = tf.where(kind == _BYTE, entries[:, 8], value)
    known = tf.reduce_any(kind[:, None] == [_BYTE, _SHORT, _LONG], axis=1)
    fits = is_tiff & known & (values == 1) & (number(entries[:, 0:2], big) == _TAG)
    return tf.concat([tf.zeros([1], tf.int64), tf.boolean_mask(value, fits)], axis=0)[-1]
