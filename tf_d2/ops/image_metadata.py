"""What Pillow reads beside the pixels of a JPEG, PNG or WebP file, found inside a graph with stock ops.

Only what decides how the picture is turned: the EXIF block and the XMP packet, from wherever Pillow 13 takes
them (and from nowhere else). Blocks of a file are walked one after the other; positions are int64 octets from
its start. Nothing here fails, whatever the file holds; what Pillow's answer cannot be told from makes
``certain`` false.

Source: Pillow JpegImagePlugin.py, PngImagePlugin.py, WebPImagePlugin.py, Image.py ``getexif``; libwebp demux.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_d2.ops.octets import length, number, octets, part, starts_with

PNG = b"\x89PNG\r\n\x1a\n"
EXIF_NAME = b"Exif\0\0"
_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"
_MOST_BLOCKS = 1024  # of one file; a hostile one has more, and its walk ends
_RUN = 1024  # chunks of pixels of one length that are passed over at once
_LONGEST_PACKED = 1 << 16  # compressed octets of a text: unpacked at most 64 MiB


class Metadata(NamedTuple):
    """``exif``: string, with or without "Exif\\0\\0" before the TIFF header, empty if there is none. ``xmp``: string.
    ``certain``: bool, whether Pillow finds these and no others, and no pixels lack. ``layers``: int64, components of a
    JPEG, else 0."""

    exif: tf.Tensor
    xmp: tf.Tensor
    certain: tf.Tensor
    layers: tf.Tensor


def is_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Whether the file starts as a JPEG, a marker behind the first one included."""
    return starts_with(data, 0, b"\xff\xd8\xff")


def metadata(data: tf.Tensor) -> Metadata:
    """What is said beside the pixels of a file (string ``[]``). Other formats than the three: nothing, certain."""
    return Metadata(
        *tf.case(
            [
                (is_jpeg(data), lambda: _jpeg(data)),
                (starts_with(data, 0, PNG), lambda: _png(data)),
                (starts_with(data, 0, b"RIFF") & starts_with(data, 8, b"WEBPVP8X"), lambda: _webp(data)),
            ],
            default=lambda: Metadata(
                tf.constant(b""), tf.constant(b""), tf.constant(True), tf.constant(0, tf.int64)
            ),
        )
    )


def _walk(
    data: tf.Tensor, start: int, first: Any, step: Callable[..., tuple[tf.Tensor, tf.Tensor, Any]]
) -> Any:
    """``step(position, state) -> (next position, whether to stop, state)`` from block to block.

    Returns the last state and whether the walk came to its end.
    """
    size = length(data)

    def more(i: tf.Tensor, position: tf.Tensor, stop: tf.Tensor, state: Any) -> tf.Tensor:
        del state
        return (i < _MOST_BLOCKS) & (position < size) & tf.logical_not(stop)

    def one(i: tf.Tensor, position: tf.Tensor, stop: tf.Tensor, state: Any) -> tuple[Any, ...]:
        del stop
        return i + 1, *step(position, state)

    loop = (0, tf.constant(start, tf.int64), tf.constant(False), first)
    count, _, _, state = tf.while_loop(more, one, loop, parallel_iterations=1)
    return state, count < _MOST_BLOCKS


# === JPEG: segments up to the first scan ===


class _Jpeg(NamedTuple):
    exif: tf.Tensor
    xmp: tf.Tensor
    certain: tf.Tensor
    layers: tf.Tensor
    names: tf.Tensor  # int64 [4], of the components, if they come in progressive scans; -1 = none


def _jpeg(data: tf.Tensor) -> Metadata:
    def step(position: tf.Tensor, state: _Jpeg) -> tuple[tf.Tensor, tf.Tensor, _Jpeg]:
        head = octets(data, position, 48)  # enough for the names
        marker = head[1]
        size = number(head[2:4], True)
        # What stands between segments is passed over; padding octets and "escaped" ones, too.
        junk = (head[0] != 0xFF) | (marker == 0xFF) | (marker == 0)
        next_marker = tf.argmax(tf.cast(head[1:] == 0xFF, tf.int32))  # 0 without one
        passed = tf.where(tf.reduce_any(head[1:] == 0xFF), next_marker + 1, 48)
        passed = tf.where((head[0] == 0xFF) & (marker == 0), tf.constant(2, tf.int64), passed)
        alone = (marker >= 0xD0) & (marker <= 0xD9)  # no length follows
        # Markers that one of Pillow and libjpeg does not know.
        odd = ((marker >= 0x01) & (marker < 0xC0)) | (marker == 0xC8) | (marker >= 0xF0) & (marker < 0xFE)
        odd |= (marker >= 0xDE) & (marker < 0xE0) | tf.logical_not(alone) & (size < 2)
        odd |= tf.logical_not(alone) & (position + 2 + size > length(data))
        odd &= tf.logical_not(junk)
        scan = tf.logical_not(junk) & (marker == 0xDA)
        frame = tf.logical_not(junk) & (marker >= 0xC0) & (marker < 0xD0)
        frame &= (marker != 0xC4) & (marker != 0xC8) & (marker != 0xCC)
        layers = tf.where(frame, head[9], state.layers)
        progressive = frame & ((marker == 0xC2) | (marker == 0xCA))
        own = tf.where(tf.range(4, dtype=tf.int64) < layers, octets(data, position + 10, 12)[::3], -1)
        names = tf.where(progressive, own, state.names)
        app1 = tf.logical_not(junk | odd) & (marker == 0xE1)
        state = _Jpeg(state.exif, state.xmp, state.certain & tf.logical_not(odd), layers, names)
        state = tf.cond(app1, lambda: _app1(data, position, size, state), lambda: state)
        after = position + tf.where(junk, passed, 2 + tf.where(alone, tf.zeros_like(size), size))
        return after, scan | odd, _Jpeg(*state)

    nothing = tf.constant(b"")
    none = tf.constant([-1] * 4, tf.int64)
    first = _Jpeg(nothing, nothing, tf.constant(True), tf.constant(0, tf.int64), none)
    state, ended = _walk(data, 2, first, step)
    complete = tf.cond(state.names[0] < 0, lambda: tf.constant(True), lambda: _all_scans(data, state.names))
    return Metadata(state.exif, state.xmp, state.certain & ended & complete, state.layers)


def _all_scans(data: tf.Tensor, names: tf.Tensor) -> tf.Tensor:
    """Whether the low frequencies of every component of a progressive JPEG come with all their bits.

    Where they do not, libjpeg guesses them from the neighbours, and its versions guess differently.
    """
    values = tf.io.decode_raw(data, tf.uint8)
    starts = tf.where((values[:-1] == 0xFF) & (values[1:] == 0xDA))[:, 0]  # nothing else in a scan looks so
    count = tf.shape(starts)
    heads = tf.strings.substr(data, starts, tf.fill(count, tf.constant(16, tf.int64)))
    heads = tf.strings.substr(tf.strings.join([heads, bytes(16)]), 0, 16)
    heads = tf.cast(tf.ensure_shape(tf.io.decode_raw(heads, tf.uint8), [None, 16]), tf.int32)  # [S, 16]
    members = tf.minimum(heads[:, 4:5], 4)  # [S, 1]
    low, high, bits = (
        tf.gather(heads, 5 + 2 * members[:, 0] + i, axis=1, batch_dims=1)[:, None] for i in range(3)
    )
    frequency = tf.range(1, 10)
    final = (low <= frequency) & (frequency <= high) & (bits & 15 == 0)  # [S, 9]
    inside = (heads[:, 5:13:2, None] == tf.cast(names, tf.int32)) & (tf.range(4) < members)[
        :, :, None
    ]  # [S, 4, 4]
    inside = tf.reduce_any(inside, axis=1)
    sent = tf.reduce_any(inside[:, :, None] & final[:, None, :], axis=0)  # [4, 9]
    return tf.reduce_all(sent | (names < 0)[:, None])


def _app1(data: tf.Tensor, position: tf.Tensor, size: tf.Tensor, state: _Jpeg) -> _Jpeg:
    """EXIF of several segments is joined; of XMP packets the last one counts."""
    content = part(data, position + 4, size - 2)
    named = starts_with(content, 0, EXIF_NAME)
    bare = part(content, len(EXIF_NAME), size)
    joined = tf.where(state.exif == b"", content, tf.strings.join([state.exif, bare]))
    exif = tf.where(named, joined, state.exif)
    packet = starts_with(content, 0, _XMP_NAME)
    xmp = tf.where(packet, part(content, len(_XMP_NAME), size), state.xmp)
    return state._replace(exif=exif, xmp=xmp)


# === PNG: chunks up to the pixels, and behind them unless EXIF was found before ===


class _Png(NamedTuple):
    exif: tf.Tensor
    profile: tf.Tensor  # ImageMagick's text
    packet: tf.Tensor  # text "XML:com.adobe.xmp"
    certain: tf.Tensor
    behind: tf.Tensor  # whether pixels have been seen
    frames: tf.Tensor  # int64; of an animation, 0 = none
    animated: tf.Tensor  # whether the pixels are the first of several frames


_TEXT = (b"tEXt", b"zTXt", b"iTXt")


def _png(data: tf.Tensor) -> Metadata:
    size_in_header = part(data, 16, 8)

    def step(position: tf.Tensor, state: _Png) -> tuple[tf.Tensor, tf.Tensor, _Png]:
        kind = part(data, position + 4, 4)
        size = number(octets(data, position, 4), True)
        pixels = kind == b"IDAT"
        cut = position + 8 + size > length(data)
        # What Pillow does not take for the name of a chunk ends the file.
        named = tf.strings.regex_full_match(kind, r"\w{4}")
        end = (kind == b"IEND") | tf.logical_not(named) | pixels & (state.exif != b"")
        end |= state.behind & state.animated & (kind == b"fcTL")
        known = tf.reduce_any(kind == [b"eXIf", b"acTL", b"fcTL", b"fdAT", b"IDAT", *_TEXT])
        state = state._replace(certain=state.certain & (end | tf.logical_not(cut)))
        state = tf.cond(
            known & tf.logical_not(end | cut),
            lambda: _png_chunk(data, _Chunk(kind, position + 8, size), size_in_header, state),
            lambda: state,
        )
        chunks = tf.cond(pixels, lambda: _equal_chunks(data, position, size + 12), lambda: tf.ones_like(size))
        return position + chunks * (size + 12), end | cut, _Png(*state)

    nothing, no, zero = tf.constant(b""), tf.constant(False), tf.constant(0, tf.int64)
    first = _Png(nothing, nothing, nothing, tf.constant(True), no, zero, no)
    state, ended = _walk(data, 8, first, step)
    with_profile = (state.exif == b"") & (state.profile != b"")
    profile, readable = tf.cond(
        with_profile, lambda: _from_hex(state.profile), lambda: (nothing, tf.constant(True))
    )
    exif = tf.where(with_profile, profile, state.exif)
    return Metadata(exif, state.packet, state.certain & ended & readable, zero)


def _equal_chunks(data: tf.Tensor, position: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """How many chunks in a row begin with the same eight octets: int64."""
    places = tf.minimum(position + step * tf.range(_RUN, dtype=tf.int64), length(data))
    heads = tf.strings.substr(data, places, tf.fill([_RUN], tf.constant(8, tf.int64)))
    other = tf.concat([heads != heads[0], [True]], 0)
    return tf.argmax(tf.cast(other, tf.int32))


class _Chunk(NamedTuple):
    kind: tf.Tensor  # string, four letters
    start: tf.Tensor  # int64, of its content in the file
    size: tf.Tensor  # int64, of its content


def _png_chunk(data: tf.Tensor, chunk: _Chunk, size_in_header: tf.Tensor, state: _Png) -> _Png:
    kind, start, size = chunk

    def text() -> _Png:
        return _png_text(kind, part(data, start, size), state)

    def exif() -> _Png:
        return state._replace(exif=tf.strings.join([EXIF_NAME, part(data, start, size)]))

    def pixels() -> _Png:
        # Frames, and one more where the pixels are not the first frame of the animation.
        return state._replace(
            behind=tf.constant(True),
            animated=state.animated | (state.frames > 1) & tf.logical_not(state.behind),
        )

    def animation() -> _Png:
        frames = number(octets(data, start, 4), True)
        control = tf.logical_not(state.behind) & (kind == b"fcTL")
        # A first frame that is not the whole picture, or frames out of order, are no pictures to Pillow.
        whole = part(data, start + 4, 16) == tf.strings.join([size_in_header, tf.constant(bytes(8))])
        whole &= part(data, start, 4) == bytes(4)
        fine = tf.where(
            kind == b"acTL", (state.frames == 0) & (frames > 0) & (frames <= 2**31), control & whole
        )
        count = tf.where(kind == b"acTL", frames + 1, tf.where(control, state.frames - 1, state.frames))
        return state._replace(certain=state.certain & (fine | state.behind & state.animated), frames=count)

    return tf.case(
        [(kind == b"IDAT", pixels), (kind == b"eXIf", exif), (tf.reduce_any(kind == list(_TEXT)), text)],
        default=animation,
    )


def _png_text(kind: tf.Tensor, content: tf.Tensor, state: _Png) -> _Png:
    """Text with one of four keywords; that of any other is of no interest."""

    def keyword(word: bytes) -> tf.Tensor:
        return starts_with(content, 0, word + b"\0")

    profile, packet = keyword(b"Raw profile type exif"), keyword(b"XML:com.adobe.xmp")
    raw = keyword(b"exif")
    # Pillow takes these for bytes, and fails where they are text; so it is for an unpacked "exif".
    failing = keyword(b"xmp") | raw & (kind != b"tEXt")

    def value() -> tuple[tf.Tensor, tf.Tensor]:
        start = tf.where(profile, 22, tf.where(packet, 18, 5))
        rest = part(content, start, length(content))
        return tf.case(
            [
                (kind == b"zTXt", lambda: _inflated(part(rest, 1, length(rest)), octets(rest, 0, 1)[0] == 0)),
                (kind == b"iTXt", lambda: _international(rest)),
            ],
            default=lambda: (rest, tf.constant(True)),
        )

    found, fine = tf.cond(
        profile | packet | raw & (kind == b"tEXt"), value, lambda: (tf.constant(b""), tf.constant(True))
    )
    return state._replace(
        exif=tf.where(raw, found, state.exif),
        profile=tf.where(profile, found, state.profile),
        packet=tf.where(packet, found, state.packet),
        certain=state.certain & fine & tf.logical_not(failing),
    )


def _international(rest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The text of an iTXt chunk, from the octets behind its keyword, and whether it could be read."""
    # Behind two flags, a language and a translated keyword, each ended by a zero.
    head = tf.strings.regex_full_match(rest, r"(?s)\C\C[^\x00]*\x00[^\x00]*\x00\C*")
    text = tf.strings.regex_replace(part(rest, 2, length(rest)), r"(?s)\A[^\x00]*\x00[^\x00]*\x00", "", False)
    flags = octets(rest, 0, 2)
    packed = flags[0] != 0
    value, fine = tf.cond(packed, lambda: _inflated(text, flags[1] == 0), lambda: (text, tf.constant(True)))
    return value, fine & head


def _inflated(packed: tf.Tensor, known: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Octets of a zlib stream, and whether Pillow would accept them (at most 1 MiB)."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    small = known & (length(packed) <= _LONGEST_PACKED)
    harmless = tf.where(small, packed, b"")
    # A broken stream is an error, which a data set can catch.
    unpack = tf.data.Dataset.from_tensors(harmless).map(lambda x: tf.io.decode_compressed(x, "ZLIB"))
    unpack = unpack.ignore_errors().with_options(options)
    value, count = unpack.reduce((tf.constant(b""), tf.constant(0)), lambda old, new: (new, old[1] + 1))
    return value, small & (count == 1) & (length(value) <= 2**20)


def _from_hex(text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """ImageMagick's profile: three lines (empty, name, length), then pairs of hexadecimal digits in lines."""
    digits = tf.strings.regex_replace(text, r"\A(?:[^\n]*\n){3}", "", False)
    digits = tf.strings.regex_replace(digits, r"[\r\n]", "")
    readable = tf.strings.regex_full_match(text, r"(?s)(?:[^\n]*\n){3}[0-9a-fA-F\r\n]*")
    readable &= tf.math.floormod(length(digits), 2) == 0
    codes = tf.cast(tf.io.decode_raw(tf.where(readable, digits, b""), tf.uint8), tf.int32)
    values = tf.where(codes > 0x39, (codes & 0xDF) - 0x37, codes - 0x30)
    pairs = tf.reshape(values, [-1, 2])
    return _to_string(pairs[:, 0] * 16 + pairs[:, 1]), readable


def _to_string(values: tf.Tensor) -> tf.Tensor:
    """Octets, int32 ``[n]``, as one string."""
    every = tf.constant([bytes([i]) for i in range(256)])
    return tf.strings.reduce_join(tf.gather(every, values))


# === WebP: chunks of the extended format ===


class _Webp(NamedTuple):
    exif: tf.Tensor
    xmp: tf.Tensor


def _webp(data: tf.Tensor) -> Metadata:
    flags = octets(data, 20, 1)[0]
    riff_end = 8 + number(octets(data, 4, 4), False)

    def step(position: tf.Tensor, state: _Webp) -> tuple[tf.Tensor, tf.Tensor, _Webp]:
        kind = part(data, position, 4)
        size = number(octets(data, position + 4, 4), False)
        end = position + 8 + size
        inside = end <= tf.minimum(riff_end, length(data))

        def first_of(name: bytes, flag: int, old: tf.Tensor) -> tf.Tensor:
            wanted = (tf.bitwise.bitwise_and(flags, flag) > 0) & (kind == name) & (old == b"") & inside
            return tf.cond(wanted, lambda: part(data, position + 8, size), lambda: old)

        state = _Webp(first_of(b"EXIF", 0x08, state.exif), first_of(b"XMP ", 0x04, state.xmp))
        return end + tf.math.floormod(size, 2), tf.logical_not(inside), state

    state, ended = _walk(data, 12, _Webp(tf.constant(b""), tf.constant(b"")), step)
    return Metadata(state.exif, state.xmp, ended, tf.constant(0, tf.int64))
