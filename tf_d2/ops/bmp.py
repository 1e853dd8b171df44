"""BMP files inside a graph with stock ops, to the bytes that Pillow gives.

Decoded: 1, 4 and 8 bits with a colour table, 16 bits (5-5-5 and 5-6-5), 24 bits, 32 bits (alpha dropped), with
every header that Pillow reads (OS/2 1 and 2, Windows 3, V2 to V5), rows in either order. Not decoded: run lengths
(RLE4, RLE8), which Pillow reads. Nothing here fails, whatever the file holds.

Source: Pillow 13 BmpImagePlugin.py; libImaging/Unpack.c, RawDecode.c.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tf_d2.ops.octets import length, number, octets, part, starts_with

BROKEN, RUN_LENGTHS, READABLE = 0, 1, 2  # what a header promises

_OS2 = 12  # length of the oldest header
_HEADERS = [_OS2, 40, 52, 56, 64, 108, 124]
_PLAIN, _RLE8, _RLE4, _BITFIELDS = 0, 1, 2, 3
# Masks of 32-bit pixels (red, green, blue, alpha) that Pillow knows, and where it takes red, green and blue from.
_MASKS = (
    ((0xFF0000, 0xFF00, 0xFF, 0), (2, 1, 0)),
    ((0xFF000000, 0xFF0000, 0xFF00, 0), (3, 2, 1)),
    ((0xFF000000, 0xFF00, 0xFF, 0), (3, 1, 0)),
    ((0xFF000000, 0xFF0000, 0xFF00, 0xFF), (3, 2, 1)),
    ((0xFF, 0xFF00, 0xFF0000, 0xFF000000), (0, 1, 2)),
    ((0xFF0000, 0xFF00, 0xFF, 0xFF000000), (2, 1, 0)),
    ((0xFF000000, 0xFF00, 0xFF, 0xFF0000), (3, 1, 0)),
    ((0, 0, 0, 0), (2, 1, 0)),
)
_MASKS_16 = ((0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F))


class _Header(NamedTuple):
    """int64 scalars."""

    width: tf.Tensor
    height: tf.Tensor
    top_down: tf.Tensor  # bool
    bits: tf.Tensor
    compression: tf.Tensor
    masks: tf.Tensor  # [4]
    colours: tf.Tensor  # entries of the colour table
    entry: tf.Tensor  # octets of one
    table: tf.Tensor  # position of the first
    pixels: tf.Tensor  # position of the pixels


def is_bmp(data: tf.Tensor) -> tf.Tensor:
    """Whether the file starts as a BMP."""
    return starts_with(data, 0, b"BM")


def read_header(data: tf.Tensor) -> _Header:
    """What the header of a file (string ``[]``) says. Garbage where it is no BMP: see :func:`promise`."""
    head = octets(data, 0, 70)

    def field(start: int, size: int) -> tf.Tensor:
        return number(head[start : start + size], False)

    size = field(14, 4)
    os2 = size == _OS2
    zero = tf.zeros_like(size)
    top_down = tf.logical_not(os2) & (head[25] == 0xFF)
    height = tf.where(os2, field(20, 2), tf.where(top_down, 2**32 - field(22, 4), field(22, 4)))
    bits = tf.where(os2, field(24, 2), field(28, 2))
    compression = tf.where(os2, zero, field(30, 4))
    masks = tf.stack([field(54, 4), field(58, 4), field(62, 4), tf.where(size >= 56, field(66, 4), zero)])
    colours = tf.where(os2, zero, field(46, 4))
    colours = tf.where(colours == 0, tf.bitwise.left_shift(tf.ones_like(bits), tf.minimum(bits, 32)), colours)
    entry = tf.where(os2, 3 * tf.ones_like(size), 4)
    table = 14 + size + tf.where((size == 40) & (compression == _BITFIELDS), 12 * tf.ones_like(size), 0)
    said = field(10, 4)
    palette = tf.where(bits <= 8, entry * colours, 0)
    # A position right behind the header is a known mistake where a colour table follows; none means: what comes next.
    pixels = tf.where(said == 0, table + palette, said + tf.where(said == 14 + size, palette, 0))
    width = tf.where(os2, field(18, 2), field(18, 4))
    return _Header(width, height, top_down, bits, compression, masks, colours, entry, table, pixels)


def promise(data: tf.Tensor, header: _Header) -> tf.Tensor:
    """READABLE: :func:`decode` gives Pillow's pixels. RUN_LENGTHS: only Pillow can. BROKEN: Pillow cannot, either."""
    bits, compression = header.bits, header.compression
    size = number(octets(data, 14, 4), False)
    low = bits <= 8
    masks_known = (bits == 32) & (_mask_index(header) < len(_MASKS))
    masks_known |= (bits == 24) & tf.reduce_all(header.masks[:3] == _MASKS[0][0][:3])
    masks_known |= (bits == 16) & tf.reduce_any([tf.reduce_all(header.masks[:3] == m) for m in _MASKS_16])
    runs = (compression == _RLE8) | (compression == _RLE4)
    known = tf.reduce_any(size == _HEADERS) & tf.reduce_any(bits == [1, 4, 8, 16, 24, 32])
    known &= (compression == _PLAIN) | runs | (compression == _BITFIELDS) & masks_known
    known &= tf.logical_not(low) | (header.colours > 0) & (header.colours <= 256)
    known &= tf.logical_not(low) | (header.table + header.entry * header.colours <= length(data))
    sides = (header.width > 0) & (header.height > 0) & (header.width < 2**31) & (header.height < 2**31)
    stride, used = _row_octets(header, _unpacked_bits(data, header))
    # The last row needs no padding. 2**40: keeps the product below from running over.
    room = (stride < 2**31) & (used <= stride)
    room &= header.pixels + stride * (tf.minimum(header.height, 2**30) - 1) + used <= length(data)
    fine = known & sides & (runs | room)
    return tf.where(fine, tf.where(runs, RUN_LENGTHS, READABLE), BROKEN)


def decode(data: tf.Tensor, header: _Header) -> tf.Tensor:
    """Pixels of a file that is READABLE: uint8 RGB ``[H, W, 3]``."""
    width, height = tf.cast(header.width, tf.int32), tf.cast(header.height, tf.int32)
    bits = _unpacked_bits(data, header)
    stride, used = (tf.cast(n, tf.int32) for n in _row_octets(header, bits))
    raw = tf.io.decode_raw(part(data, header.pixels, header.height * tf.cast(stride, tf.int64)), tf.uint8)
    raw = tf.pad(raw, [[0, height * stride - tf.size(raw)]])
    rows = tf.reshape(raw, [height, stride])[:, :used]

    def from_table(per_octet: int) -> tf.Tensor:
        index = tf.cast(rows, tf.int32)
        if per_octet > 1:
            depth = 8 // per_octet
            shifts = tf.range(8 - depth, -1, -depth)
            index = tf.bitwise.right_shift(index[:, :, None], shifts) & (2**depth - 1)
            index = tf.reshape(index, [height, used * per_octet])[:, :width]
        return tf.gather(_table(data, header), index)

    def from_16() -> tf.Tensor:
        pair = tf.cast(tf.reshape(rows, [height, width, 2]), tf.int32)
        value = pair[:, :, 0] + 256 * pair[:, :, 1]
        six = (header.compression == _BITFIELDS) & (header.masks[1] == _MASKS_16[0][1])
        green = tf.where(six, 63, 31)
        red = tf.bitwise.right_shift(value, tf.where(six, 11, 10)) & 31
        scaled = [
            red * 255 // 31,
            (tf.bitwise.right_shift(value, 5) & green) * 255 // green,
            (value & 31) * 255 // 31,
        ]
        return tf.cast(tf.stack(scaled, axis=-1), tf.uint8)

    def from_32() -> tf.Tensor:
        places = tf.constant([p for _, p in _MASKS] + [(2, 1, 0)])
        plain = header.compression == _PLAIN
        chosen = tf.gather(places, tf.where(plain, 0, _mask_index(header)))
        return tf.gather(tf.reshape(rows, [height, width, 4]), chosen, axis=2)

    pixels = tf.case(
        [
            (bits == 24, lambda: tf.reshape(rows, [height, width, 3])[:, :, ::-1]),
            (bits == 32, from_32),
            (bits == 16, from_16),
            (bits == 8, lambda: from_table(1)),
            (bits == 4, lambda: from_table(2)),
        ],
        default=lambda: from_table(8),
    )
    pixels = tf.cond(header.top_down, lambda: pixels, lambda: tf.reverse(pixels, [0]))
    return tf.ensure_shape(pixels, [None, None, 3])


def _mask_index(header: _Header) -> tf.Tensor:
    """Which of ``_MASKS``; their number if none."""
    same = tf.reduce_all(header.masks == tf.constant([m for m, _ in _MASKS], tf.int64), axis=1)
    return tf.argmax(tf.concat([tf.cast(same, tf.int32), [1]], 0), output_type=tf.int32)


def _row_octets(header: _Header, bits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """From row to row, and in use at ``bits`` per pixel."""
    width = tf.minimum(header.width, 2**32)
    return (width * header.bits + 31) // 32 * 4, (width * bits + 7) // 8


def _unpacked_bits(data: tf.Tensor, header: _Header) -> tf.Tensor:
    """Bits per pixel that Pillow unpacks. It takes a table of greys (black and white; or 0, 1, 2 ...) for no table, and
    then one bit per pixel for two colours and eight for more, whatever the header says."""
    grey = tf.where(header.colours <= 2, tf.ones_like(header.bits), 8)
    low = header.bits <= 8
    return tf.cond(low & _grey_table(data, header), lambda: grey, lambda: header.bits)


def _colours(data: tf.Tensor, header: _Header) -> tf.Tensor:
    """The colour table as it is stored (blue, green, red), black where there is no entry: uint8 ``[256, 3]``."""
    count = tf.clip_by_value(header.colours, 0, 256)
    raw = tf.io.decode_raw(part(data, header.table, header.entry * count), tf.uint8)
    count = tf.size(raw, tf.int64) // header.entry
    entries = tf.reshape(raw[: count * header.entry], tf.stack([count, header.entry]))[:, :3]
    return tf.ensure_shape(tf.pad(entries, [[0, 256 - count], [0, 0]]), [256, 3])


def _grey_table(data: tf.Tensor, header: _Header) -> tf.Tensor:
    index = tf.range(256, dtype=tf.int64)
    grey = tf.where(header.colours == 2, 255 * index, index)[:, None]
    same = tf.reduce_all(tf.cast(_colours(data, header), tf.int64) == grey, axis=1)
    return tf.reduce_all(same | (index >= header.colours))


def _table(data: tf.Tensor, header: _Header) -> tf.Tensor:
    """Colours by index, red first: uint8 ``[256, 3]``."""
    index = tf.range(256)
    white = tf.where(header.colours <= 2, 255 * tf.minimum(index, 1), index)
    grey = tf.cast(tf.repeat(white[:, None], 3, axis=1), tf.uint8)
    return tf.where(_grey_table(data, header), grey, _colours(data, header)[:, ::-1])
