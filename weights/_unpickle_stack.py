"""Opcodes of a pickle that build plain values and containers, move the stack and use the memo."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import Any

from weights._unpickle_state import LAZY_BYTES, MARK, Inert, LongText, State, hashable, kind
from weights.errors import CheckpointError

_MAX_DIGITS = 1000  # digits of a decimal integer; more would take quadratic time


# --- plain values ---------------------------------------------------------------------------------
def _push(value: Any) -> Callable[[State], None]:
    return lambda state: state.stack.append(value)


def _push_new(make: Callable[[], Any]) -> Callable[[State], None]:
    return lambda state: state.stack.append(make())


def _number(code: str) -> Callable[[State], None]:
    form = struct.Struct(code)
    return lambda state: state.stack.append(form.unpack(state.take(form.size))[0])


def _length(state: State, code: str) -> int:
    form = struct.Struct(code)
    return form.unpack(state.take(form.size))[0]


def _text(code: str, encoding: str) -> Callable[[State], None]:
    """A counted string. Those of Python 2 are text or raw bytes, nobody can tell: latin-1 keeps both."""

    def handler(state: State) -> None:
        raw = state.take(_length(state, code))
        text = LongText(raw, encoding)
        state.stack.append(text if len(raw) > LAZY_BYTES else text.text())

    return handler


def _bytes(code: str) -> Callable[[State], None]:
    return lambda state: state.stack.append(state.take(_length(state, code)))


def _long(code: str) -> Callable[[State], None]:
    def handler(state: State) -> None:
        count = _length(state, code)
        if not 0 <= count <= 64:
            raise CheckpointError("The pickle has an integer of more than 512 bits.")
        state.stack.append(int.from_bytes(state.take(count), "little", signed=True))

    return handler


def _decimal(state: State) -> None:
    digits = bytes(state.line(_MAX_DIGITS))
    if digits in (b"00", b"01"):  # how protocol 0 writes booleans
        state.stack.append(digits == b"01")
    else:
        state.stack.append(int(digits.rstrip(b"L").decode("ascii")))


def _quoted(state: State) -> None:
    """A string of Python 2 in quotes, text or raw bytes, as in :func:`_text`; a whole tensor may be on the line."""
    raw = bytes(state.line())
    if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
        raise CheckpointError("The pickle has a string without quotes: the file is damaged.")
    value, _ = codecs.escape_decode(raw[1:-1])  # type: ignore[attr-defined]
    text = LongText(memoryview(value), "latin-1")
    state.stack.append(text if len(value) > LAZY_BYTES else text.text())


def _unicode_line(state: State) -> None:
    """A string of protocol 0; the data of a tensor, too, are text there, with some characters escaped."""
    raw = state.line()
    text = LongText(raw, "raw_unicode_escape")
    state.stack.append(text if len(raw) > LAZY_BYTES else text.text())


def _protocol(state: State) -> None:
    if state.take(1)[0] > 5:
        raise CheckpointError("The pickle declares a protocol above 5: the file is damaged or no checkpoint.")


# --- stack, memo, containers ----------------------------------------------------------------------
def _dup(state: State) -> None:
    value = state.pop()
    state.stack += (value, value)


def _drop(value: object) -> None:
    """What was read is not needed."""


def _pop_any(state: State) -> None:
    state.stack.pop()


def _tuple(count: int) -> Callable[[State], None]:
    def handler(state: State) -> None:
        items = tuple(state.stack[-count:])
        if len(items) < count or any(item is MARK for item in items):
            raise CheckpointError(
                "The pickle makes a tuple of values that are not there: the file is damaged."
            )
        state.stack[-count:] = [items]

    return handler


def _get(code: str) -> Callable[[State], None]:
    return lambda state: state.stack.append(state.memo[_length(state, code)])


def _put(code: str) -> Callable[[State], None]:
    def handler(state: State) -> None:
        index = _length(state, code)
        if state.stack[-1] is MARK:
            raise CheckpointError("The pickle remembers a mark: the file is damaged.")
        state.memo[index] = state.stack[-1]

    return handler


def _get_text(state: State) -> None:
    state.stack.append(state.memo[int(bytes(state.line(20)))])


def _put_text(state: State) -> None:
    state.memo[int(bytes(state.line(20)))] = state.stack[-1]


def _memoize(state: State) -> None:
    state.memo[len(state.memo)] = state.stack[-1]


def _append(state: State) -> None:
    value = state.pop()
    extend(state, [value])


def extend(state: State, items: list[Any]) -> None:
    target = state.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Inert):
        raise CheckpointError(f"The pickle appends to a {kind(target)}.")


def _set_items(state: State, items: list[Any]) -> None:
    target = state.stack[-1]
    if len(items) % 2:
        raise CheckpointError("The pickle has a dictionary key without a value: the file is damaged.")
    if isinstance(target, Inert):
        return
    if not isinstance(target, dict):
        raise CheckpointError(f"The pickle sets items of a {kind(target)}.")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[hashable(key)] = value


def _set_item(state: State) -> None:
    value = state.pop()
    key = state.pop()
    _set_items(state, [key, value])


def _add_items(state: State) -> None:
    items = state.pop_mark()
    target = state.stack[-1]
    if isinstance(target, Inert):
        return
    if not isinstance(target, set):
        raise CheckpointError(f"The pickle adds items to a {kind(target)}.")
    target.update(hashable(item) for item in items)


def _new_dict(state: State) -> None:
    items = state.pop_mark()
    state.stack.append({})
    _set_items(state, items)


def _frozenset(state: State) -> None:
    items = state.pop_mark()
    state.stack.append(frozenset(hashable(item) for item in items))


STACK: dict[int, Callable[[State], None]] = {
    ord("("): _push(MARK),
    ord("0"): _pop_any,
    ord("1"): lambda state: _drop(state.pop_mark()),
    ord("2"): _dup,
    ord("N"): _push(None),
    0x88: _push(True),
    0x89: _push(False),
    ord("I"): _decimal,
    ord("L"): _decimal,
    ord("F"): lambda state: state.stack.append(float(bytes(state.line(_MAX_DIGITS)))),
    ord("J"): _number("<i"),
    ord("K"): _number("<B"),
    ord("M"): _number("<H"),
    ord("G"): _number(">d"),
    0x8A: _long("<B"),
    0x8B: _long("<i"),
    ord("S"): _quoted,
    ord("T"): _text("<I", "latin-1"),
    ord("U"): _text("<B", "latin-1"),
    ord("V"): _unicode_line,
    ord("X"): _text("<I", "utf-8"),
    0x8C: _text("<B", "utf-8"),
    0x8D: _text("<Q", "utf-8"),
    ord("B"): _bytes("<I"),
    ord("C"): _bytes("<B"),
    0x8E: _bytes("<Q"),
    0x96: _bytes("<Q"),
    ord("}"): _push_new(dict),
    ord("]"): _push_new(list),
    ord(")"): _push(()),
    0x8F: _push_new(set),
    ord("d"): _new_dict,
    ord("l"): lambda state: state.stack.append(state.pop_mark()),
    ord("t"): lambda state: state.stack.append(tuple(state.pop_mark())),
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    ord("a"): _append,
    ord("e"): lambda state: extend(state, state.pop_mark()),
    ord("s"): _set_item,
    ord("u"): lambda state: _set_items(state, state.pop_mark()),
    0x90: _add_items,
    0x91: _frozenset,
    ord("q"): _put("<B"),
    ord("r"): _put("<I"),
    ord("p"): _put_text,
    0x94: _memoize,
    ord("h"): _get("<B"),
    ord("j"): _get("<I"),
    ord("g"): _get_text,
    0x80: _protocol,
    0x95: lambda state: _drop(state.take(8)),  # FRAME: lengths are checked value by value
}
