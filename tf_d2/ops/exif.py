"""The orientation of an image file, read and applied inside a graph with stock ops.

A camera that is held upright often stores the picture lying on its side, and the way to turn it in a tag.
detectron2 applies what Pillow finds, so a served model has to do so too: the EXIF tag, or where there is none
the one in XMP, from the places :mod:`tf_d2.ops.image_metadata` lists, with Pillow's tolerance for odd kinds of
numbers, and in files that Pillow cannot make sense of, nothing.

Source: ``_apply_exif_orientation``, detectron2/data/detection_utils.py; Pillow 13 Image.py ``getexif``,
TiffImagePlugin.py ``ImageFileDirectory_v2``.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tf_d2.ops.image_metadata import EXIF_NAME, Metadata, metadata
from tf_d2.ops.octets import length, number, octets, part, starts_with

UNCERTAIN = 0

_TAG = 0x0112
_SIZES = [0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8]  # octets of one value of each kind; 0 = unknown
_SHORTS, _LONGS, _SMALL = (3, 8), (4, 9, 13), (6,)
_RATIONAL, _SIGNED_RATIONAL, _FLOAT, _DOUBLE, _LONG8 = 5, 10, 11, 12, 16
_HEADERS = [b"MM\0*", b"II*\0", b"MM*\0", b"II\0*", b"MM\0+"]  # all that Pillow accepts and can read here
_XMP = r'(?s)\A\C*?tiff:Orientation(?:="|>)([0-9])\C*\z'


def orientation(data: tf.Tensor) -> tf.Tensor:
    """The orientation of a JPEG, PNG or WebP file (string ``[]``): int32 ``[]``, 1 to 8, or UNCERTAIN (0).

    1 is upright, or a file without a tag. UNCERTAIN: it cannot be told whether Pillow finds one (damaged
    files, and a few that Pillow itself stumbles over). Source of the meanings: EXIF 2.3, tag 274.
    """
    return orientation_of(metadata(data))


def orientation_of(found: Metadata) -> tf.Tensor:
    """The same from what was read beside the pixels."""

    def from_tags() -> tuple[tf.Tensor, tf.Tensor]:
        tiff = _without_names(found.exif)
        nothing = tf.constant(0, tf.int64), tf.constant(True)
        return tf.cond(tiff == b"", lambda: nothing, lambda: _from_exif(tiff))

    def search() -> tf.Tensor:
        value, look_on = from_tags()
        value = tf.cond(look_on & (found.xmp != b""), lambda: _from_xmp(found.xmp), lambda: value)
        return tf.cast(tf.where((value > 1) & (value < 9), value, 1), tf.int32)

    return tf.cond(found.certain, search, lambda: tf.constant(UNCERTAIN))


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """``[H, W, C]`` as stored -> the picture as it was seen, ``[W, H, C]`` for orientations 5 to 8."""

    def changed(when: tuple[int, ...], change: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> tf.Tensor:
        return tf.cond(tf.reduce_any(orientation == when), lambda: change(x), lambda: x)

    channels = image.shape[-1]
    image = changed((5, 6, 7, 8), lambda x: tf.transpose(x, [1, 0, 2]), image)
    image = changed((3, 4, 7, 8), lambda x: tf.reverse(x, [0]), image)
    image = changed((2, 3, 6, 7), lambda x: tf.reverse(x, [1]), image)
    return tf.ensure_shape(image, [None, None, channels])


def _without_names(exif: tf.Tensor) -> tf.Tensor:
    """Up to two names before the header go."""
    for _ in range(2):
        start = tf.where(starts_with(exif, 0, EXIF_NAME), len(EXIF_NAME), 0)
        exif = part(exif, start, length(exif))
    return exif


def _from_xmp(xmp: tf.Tensor) -> tf.Tensor:
    digit = tf.strings.regex_replace(xmp, _XMP, r"\1")
    found = tf.strings.length(digit) == 1
    return tf.where(found, octets(digit, 0, 1)[0] - ord("0"), tf.constant(0, tf.int64))


def _from_exif(tiff: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The value of the first orientation entry of the first directory (0: none that turns a picture), and whether
    XMP counts, which it does where the block could be read and holds no such entry."""
    head = octets(tiff, 0, 8)
    big = head[0] == ord("M")
    readable = tf.reduce_any(part(tiff, 0, 4) == _HEADERS) & (length(tiff) >= 8)
    directory = number(head[4:8], big)
    count = number(octets(tiff, directory, 2), big)
    entries = tf.io.decode_raw(part(tiff, directory + 2, 12 * count), tf.uint8)
    entries = tf.cast(tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12]), tf.int64)  # [N, 12]
    kind, places = number(entries[:, 2:4], big), number(entries[:, 8:12], big)
    unit = tf.gather(tf.constant(_SIZES, tf.int64), tf.where(kind < len(_SIZES), kind, 0))
    size = number(entries[:, 4:8], big) * unit
    # Values of more than 4 octets are elsewhere. Where they are too many, the entry is passed over; where they lie
    # behind the end, Pillow stops reading.
    outside = size > 4
    too_many = outside & (tf.cumsum(tf.where(outside, size, 0)) > length(tiff))
    missing = outside & tf.logical_not(too_many) & (places + size > length(tiff))
    reached = tf.cumsum(tf.cast(missing, tf.int32)) == 0
    holds = reached & (number(entries[:, 0:2], big) == _TAG) & (size > 0) & tf.logical_not(too_many)
    found = tf.reduce_any(holds) & readable

    def value() -> tf.Tensor:
        row = tf.argmax(tf.cast(holds, tf.int32))
        position = tf.where(outside[row], places[row], directory + 2 + 12 * row + 8)
        return _number(octets(tiff, position, 8), kind[row], big)

    found_value = tf.cond(found, value, lambda: tf.constant(0, tf.int64))
    return found_value, readable & tf.logical_not(found)


def _number(values: tf.Tensor, kind: tf.Tensor, big: tf.Tensor) -> tf.Tensor:
    """Eight octets as a number of a TIFF kind; 0 for one that is not whole, and for text and bare octets."""
    first, second, whole = number(values[:4], big), number(values[4:], big), number(values, big)
    zero = tf.zeros_like(first)
    signed = kind == _SIGNED_RATIONAL
    top = tf.where(signed & (first >= 2**31), first - 2**32, first)
    bottom = tf.where(signed & (second >= 2**31), second - 2**32, second)
    divisor = tf.where(bottom == 0, tf.ones_like(bottom), bottom)
    ratio = tf.where((bottom != 0) & (tf.math.floormod(top, divisor) == 0), top // divisor, zero)
    single = tf.cast(tf.bitcast(tf.cast(first, tf.int32), tf.float32), tf.float64)
    real = tf.where(kind == _FLOAT, single, tf.bitcast(whole, tf.float64))
    turning = (real >= 2) & (real <= 8) & (real == tf.floor(real))
    real = tf.cast(tf.where(turning, real, tf.zeros_like(real)), tf.int64)

    def among(kinds: tuple[int, ...]) -> tf.Tensor:
        return tf.reduce_any(kind == list(kinds))

    value = tf.where(among(_SMALL), values[0], zero)
    value = tf.where(among(_SHORTS), number(values[:2], big), value)
    value = tf.where(among(_LONGS), first, value)
    value = tf.where(among((_RATIONAL, _SIGNED_RATIONAL)), ratio, value)
    value = tf.where(among((_FLOAT, _DOUBLE)), real, value)
    return tf.where(kind == _LONG8, whole, value)
