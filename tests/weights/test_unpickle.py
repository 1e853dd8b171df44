"""The reader of pickles, opcode by opcode, against what Python's own pickle wrote; nothing of a file is run."""

import collections
import datetime
import os
import pickle
import pickletools

import numpy as np
import pytest

from weights import CheckpointError
from weights._unpickle import load
from weights._unpickle_state import ArrayShell, Inert, LongText

PLAIN = {
    "none and booleans": [None, True, False],
    "integers": [0, 1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**63, -(2**200)],
    "numbers": [0.0, -0.0, 1.5, 1e300, float("inf"), -1e-300],
    "text": ["", "a", "ü", "\u2028", "\U0001f600", "x" * 300, "quote ' and \\ and \n"],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((), [()])],
    "containers": {"a": [1, {"b": (2, [])}], 7: {}},
    "sets": [{1, 2, 3}, set()],
    "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
}


def read(data, **options):
    return load(memoryview(data), **options)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", PLAIN)
def test_plain_values(name, protocol):
    data = pickle.dumps(PLAIN[name], protocol)
    value, end = read(b"before" + data + b"behind", start=6)
    assert value == PLAIN[name] and end == 6 + len(data)
    if isinstance(value, list):
        assert [type(v) for v in value] == [type(v) for v in PLAIN[name]]


def test_what_no_state_dict_has_is_kept_apart():
    value, _ = read(pickle.dumps({(1, 2): "tuple", "a": frozenset({4, 5})}, 4))
    assert [repr(key) for key in value] == ["<tuple>", "'a'"] and value["a"] == {4, 5}
    (old,), _ = read(pickle.dumps([frozenset({4, 5})], 2))
    assert isinstance(old, Inert)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes_are_views_of_the_file(protocol):
    data = bytearray(pickle.dumps([b"short", b"y" * 70000], protocol))
    (short, long), _ = read(data)
    assert bytes(short) == b"short" and bytes(long) == b"y" * 70000
    data[data.index(b"short")] = ord("S")
    assert bytes(short) == b"Short"


def test_long_text_is_decoded_when_it_is_asked_for():
    (value,), _ = read(pickle.dumps(["ä" * 5000]))
    assert isinstance(value, LongText) and value.text() == "ä" * 5000


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_is_shared_stays_one_object(protocol):
    inner = [1, 2]
    value, _ = read(pickle.dumps({"a": inner, "b": inner, "c": [inner]}, protocol))
    assert value["a"] is value["b"] is value["c"][0]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool", "float16"])
def test_arrays(protocol, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    value, _ = read(
        pickle.dumps({"c": array, "fortran": np.asfortranarray(array), "empty": array[:0]}, protocol)
    )
    for name, shell in value.items():
        found = shell.array if isinstance(shell, ArrayShell) else shell  # protocol 5 names the array at once
        assert found.dtype == dtype, name
        np.testing.assert_array_equal(found, array[:0] if name == "empty" else array)


def test_a_scalar_of_numpy():
    value, _ = read(pickle.dumps([np.float64(2.5), np.int64(-7)]))
    assert [np.asarray(v).item() for v in value] == [2.5, -7]


def test_an_array_of_objects_is_not_read():
    value, _ = read(pickle.dumps(np.array([1, "a"], object)))
    assert isinstance(value, ArrayShell) and value.array is None and value.problem


class Trap:
    """Would leave a folder behind if it were made."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"mkdir '{self.path}'",)


class Harmless:
    def __init__(self):
        self.step = 3


def test_objects_of_other_classes_are_placeholders():
    value, _ = read(pickle.dumps({"when": datetime.date(2020, 1, 2), "own": Harmless(), "n": 5}))
    assert isinstance(value["when"], Inert) and isinstance(value["own"], Inert) and value["n"] == 5
    assert "date" in repr(value["when"]) and "Harmless" in repr(value["own"])


def test_what_would_run_something_is_refused(tmp_path):
    path = tmp_path / "made"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps([1, Trap(path)], protocol)
        with pytest.raises(CheckpointError, match="system"):
            read(data)
    assert not path.exists()
    pickle.loads(data)
    assert path.exists()  # the trap works


@pytest.mark.parametrize(
    "module, name", [("os", "system"), ("builtins", "eval"), ("subprocess", "Popen"), ("nt", "system")]
)
@pytest.mark.parametrize("form", ["global", "stack"])
def test_names_whose_only_use_is_to_run(module, name, form):
    if form == "global":
        named = f"c{module}\n{name}\n".encode()
    else:
        named = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"
    with pytest.raises(CheckpointError, match=name):
        read(b"\x80\x04" + named + b"\x8c\x04true\x85R.")


def test_a_pickle_cut_off_anywhere_is_an_error():
    data = pickle.dumps({"model": {"a": np.arange(3.0)}, "text": "x" * 50, "n": [1, 2.5, (None, 2**70)]}, 2)
    for end in range(len(data)):
        with pytest.raises(CheckpointError):
            read(data[:end])


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "truncated"),
        (b"\x80\x04]", "no end"),
        (b"\x80\x04\xff.", "unknown opcode 0xff"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x82\x01.", "EXT1"),
        (b"\x80\x04h\x07.", "damaged"),  # a memo that was never written
        (b"\x80\x04.", "damaged"),  # nothing on the stack
        (b"I" + b"9" * 5000 + b"\n.", "byte 1"),  # digits that would take quadratic time
        (b"\x80\x02K\x01Q.", "persistent"),  # a persistent id, which no one resolves
        (b"\x80\x09N.", "protocol"),
        (pickle.dumps(2**2000), "integer of more than 512 bits"),
    ],
)
def test_damage_is_named_and_placed(data, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        read(data)
    assert "byte" in str(caught.value)


def test_persistent_ids_are_resolved_by_the_caller():
    data = b"\x80\x02(X\x07\x00\x00\x00storageK\x05tQ."
    seen = []
    value, _ = read(data, persistent=lambda given: seen.append(given) or "loaded")
    assert value == "loaded" and seen == [("storage", 5)]


def test_every_opcode_that_pickle_writes_is_read_or_refused_by_name():
    from weights._unpickle import _HANDLERS

    known = {ord(op.code) for op in pickletools.opcodes}
    refused = {
        ord(op.code) for op in pickletools.opcodes if op.name in {"STOP", "EXT1", "EXT2", "EXT4", "BINPERSID"}
    }
    refused |= {
        ord(op.code) for op in pickletools.opcodes if op.name in {"NEXT_BUFFER", "READONLY_BUFFER", "PERSID"}
    }
    assert known - set(_HANDLERS) <= refused and set(_HANDLERS) <= known
