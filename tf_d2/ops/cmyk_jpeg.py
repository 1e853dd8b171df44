"""JPEG files of four inks (CMYK, YCCK) inside a graph, to the bytes that Pillow gives, with stock ops.

TensorFlow's decoder gives such a file as RGB only, with a rounding of its own: ``k c / 255`` rounded down where
the file has an Adobe marker, ``(255 - k)(255 - c) / 255`` where it has none. The samples can be had all the same:
with a table of zeros to multiply the coefficients of one component with, that component is 128 everywhere, and
from both forms of the file ``c = floor(128 c / 255) + 127 - floor(127 (255 - c) / 255)`` follows exactly. So a file
is decoded four times, each time with another header, and a fifth time as it is, to see that these samples explain
what TensorFlow makes of it.

Source: libjpeg-turbo jdcolor.c (YCCK), Pillow Unpack.c ("CMYK;I"), Convert.c (``cmyk2rgb``); TensorFlow jpeg_mem.cc.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tf_d2.ops.octets import length, number, octets, part, starts_with

FORMS = 5  # files that `forms` makes of one

_ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"  # a marker that says: CMYK
_NO_MARKER = -1
_MOST_SEGMENTS = 1024
_TABLE_OF_FIRST = (
    12  # where the frame header says which table the first component has; 3 octets on, the second
)


class _Header(NamedTuple):
    tables: tf.Tensor  # string, all segments that the decoder needs, but for the frame header
    frame: tf.Tensor  # string, the frame header
    adobe: tf.Tensor  # int64, what the Adobe marker says of the colours, or _NO_MARKER


def forms(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The files to decode, string ``[FORMS]``, and whether colours are YCCK and an Adobe marker is there, bool ``[2]``.

    ``data`` is a string scalar, a JPEG whose frame header has four components. The first form is the file itself.
    """

    def step(
        i: tf.Tensor, position: tf.Tensor, stop: tf.Tensor, header: _Header
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, _Header]:
        del stop
        head = octets(data, position, 16)
        marker = head[1]
        size = number(head[2:4], True)
        segment = part(data, position, 2 + size)
        start = head[0] == 0xFF
        junk = tf.logical_not(start) | (marker == 0xFF) | (marker == 0) | (marker >= 0xD0) & (marker <= 0xD8)
        extra = (marker >= 0xE0) & (marker <= 0xEF) | (marker == 0xFE)  # applications, comments
        frame = (marker >= 0xC0) & (marker < 0xD0) & (marker != 0xC4) & (marker != 0xCC)
        scan = tf.logical_not(junk) & ((marker == 0xDA) | (marker == 0xD9))
        skip = junk | scan
        tables = tf.where(skip | extra | frame, header.tables, tf.strings.join([header.tables, segment]))
        adobe = tf.logical_not(skip) & (marker == 0xEE) & (size >= 14) & starts_with(segment, 4, b"Adobe")
        header = _Header(
            tables,
            tf.where(frame & tf.logical_not(skip), segment, header.frame),
            tf.where(adobe, head[15], header.adobe),
        )
        padding = tf.where(start & (marker != 0xFF), tf.constant(2, tf.int64), 1)
        return (
            i + 1,
            position + tf.where(scan, tf.zeros_like(size), tf.where(junk, padding, 2 + size)),
            scan,
            header,
        )

    nothing = _Header(tf.constant(b""), tf.constant(b""), tf.constant(_NO_MARKER, tf.int64))
    _, scan, _, header = tf.while_loop(
        lambda i, position, stop, _: (i < _MOST_SEGMENTS) & (position < length(data)) & tf.logical_not(stop),
        step,
        (0, tf.constant(2, tf.int64), tf.constant(False), nothing),
        parallel_iterations=1,
    )
    rest = part(data, scan, length(data))
    flat = [_flattened(header.frame, component) for component in (3, 0)]
    made = [
        tf.strings.join([b"\xff\xd8", marker, header.tables, frame, zeros, rest])
        for frame, zeros in flat
        for marker in (_ADOBE, b"")
    ]
    marked = header.adobe != _NO_MARKER
    return tf.stack([data, *made]), tf.stack([marked & (header.adobe != 0), marked])


def _flattened(frame: tf.Tensor, component: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The frame header with another table for one component, and that table, of zeros, as a segment."""
    tables = octets(frame, _TABLE_OF_FIRST, 12)[::3]  # of the four components
    others = tf.gather(tables, [i for i in range(4) if i != component])
    used = tf.reduce_any(tf.range(4, dtype=tf.int64)[:, None] == others, axis=1)
    free = tf.gather([b"\0", b"\1", b"\2", b"\3"], tf.argmin(tf.cast(used, tf.int32)))
    place = _TABLE_OF_FIRST + 3 * component
    changed = tf.strings.join([part(frame, 0, place), free, part(frame, place + 1, length(frame))])
    return changed, tf.strings.join([b"\xff\xdb\0\x43", free, bytes(64)])


def to_rgb(decoded: Sequence[tf.Tensor], facts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What TensorFlow makes of the forms, uint8 ``[H, W, 3]`` -> Pillow's RGB, uint8 ``[H, W, 3]``, and whether
    the samples explain the first of them. ``facts`` as from :func:`forms`."""
    ycck, marked = facts[0], facts[1]
    three = decoded[1] + 127 - decoded[2]  # of 8 bits: what runs over on the way comes back
    black = (decoded[3] + 127 - decoded[4])[:, :, :1]
    inks = tf.cond(ycck, lambda: _from_ycc(three), lambda: three)
    # 16 bits hold all products.
    inks, black = tf.cast(inks, tf.uint16), tf.cast(black, tf.uint16)
    known = tf.cond(marked, lambda: black * inks, lambda: (255 - black) * (255 - inks))
    known = tf.bitwise.right_shift(
        known + 1 + tf.bitwise.right_shift(known, 8), 8
    )  # divided by 255, rounded down
    explained = tf.reduce_all(tf.cast(known, tf.uint8) == decoded[0])
    # Pillow takes all such files to be inverted, as Adobe writes them.
    product = (255 - inks) * black + 128
    rgb = black - tf.bitwise.right_shift(product + tf.bitwise.right_shift(product, 8), 8)
    return tf.cast(rgb, tf.uint8), explained


def _from_ycc(ycc: tf.Tensor) -> tf.Tensor:
    """libjpeg's integer arithmetic for the inks of YCCK: 16 bits behind the point."""
    y, cb, cr = tf.unstack(tf.cast(ycc, tf.int32), axis=-1)
    cb, cr = cb - 128, cr - 128

    def shifted(x: tf.Tensor) -> tf.Tensor:
        return tf.bitwise.right_shift(x + 32768, 16)  # of int32: keeps the sign

    rgb = [y + shifted(91881 * cr), y + shifted(-22554 * cb - 46802 * cr), y + shifted(116130 * cb)]
    return tf.cast(tf.clip_by_value(255 - tf.stack(rgb, axis=-1), 0, 255), tf.uint8)
