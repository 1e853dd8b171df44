"""The wire format, against messages that the real protocol buffers wrote and TensorFlow's own TensorProto."""

from __future__ import annotations

import numpy as np
import pytest
from tensorflow.core.framework.tensor_pb2 import TensorProto

from tf_d2.client import wire
from tf_d2.serving.warmup import prediction_log

# Written by tensorflow-serving-api 2.21.0.
REQUEST = (
    "0a0b0a016d120308ac021a0173121b0a0178121608011208120208011202080222080000c03f000000c0"  # m, 300, s, x
)
LOG = "321f0a1d0a060a016d1a017312130a0162120e0807120412020802420261624200"
RESPONSE = (
    "0a1b0a016612160801120812020801120208022a080000003f000080bf0a1c0a0169121708031204120208033a0dffffffffffff"
    "ffffff0100ac020a190a016c12140809120412020801520a8080808080e0ffffff010a0b0a016e12060803120212000a110a0174"
    "120c080a1204120208025a0201000a1d0a07795f627974657312120807120812020801120208024202616242000a170a017a1212"
    "0801120812020802120208022a040000e04012030a016d"
)


def test_request_bytes() -> None:
    message = wire.predict_request("m", "s", {"x": np.array([[1.5, -2]], np.float32)}, version=300)
    assert message.hex() == REQUEST


def test_prediction_log_bytes() -> None:
    request = wire.predict_request("m", "s", {"b": np.array([b"ab", b""], object)})
    assert prediction_log(request).hex() == LOG


def test_response() -> None:
    outputs = wire.predict_response(bytes.fromhex(RESPONSE))
    expected = {
        "f": np.array([[0.5, -1]], np.float32),
        "i": np.array([-1, 0, 300], np.int32),
        "l": np.array([-(2**40)], np.int64),
        "n": np.zeros(0, np.int32),
        "t": np.array([True, False]),
        "y_bytes": np.array([[b"ab", b""]], object),
        "z": np.full((2, 2), 7, np.float32),
    }
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        assert outputs[name].dtype == value.dtype
        np.testing.assert_array_equal(outputs[name], value, err_msg=name)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u1", "i2", "i1", "i8", "?"])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (300,)])
def test_tensors_are_tensorflows(dtype: str, shape: tuple[int, ...]) -> None:
    import tensorflow as tf

    rng = np.random.default_rng(0)
    value = rng.integers(-100, 100, shape).astype(dtype)
    message = wire.tensor_proto(value)
    np.testing.assert_array_equal(tf.make_ndarray(TensorProto.FromString(message)), value)
    theirs = tf.make_tensor_proto(value).SerializeToString()
    parsed = wire.parse_tensor(memoryview(theirs))
    assert parsed.dtype == value.dtype
    np.testing.assert_array_equal(parsed, value)


def test_strings_in_tensor_content() -> None:
    """As a server with --enable_serialization_as_tensor_content writes them: all lengths, then all bytes."""
    long = bytes(300)
    shape = b"".join(wire.field(2, bytes([8, n])) for n in (1, 3))

    def message(content: bytes) -> memoryview:
        return memoryview(bytes([8, 7]) + wire.field(2, shape) + wire.field(4, content))

    good = wire.varint(2) + wire.varint(0) + wire.varint(300) + b"ab" + long
    assert wire.parse_tensor(message(good)).tolist() == [[b"ab", b"", long]]
    for broken in (good[:-1], good + b"x", good[:2]):
        with pytest.raises(wire.WireError):
            wire.parse_tensor(message(broken))


def test_model_spec_has_no_signature() -> None:
    request = wire.predict_request("m", "s", {}, version=300)
    assert wire.field(1, wire.model_spec("m", 300) + wire.field(3, b"s")) == request


def test_broken_answers_are_errors() -> None:
    whole = bytes.fromhex(RESPONSE)
    for cut in range(1, len(whole)):
        try:
            wire.predict_response(whole[:cut])
        except wire.WireError:
            pass
    rng = np.random.default_rng(0)
    for _ in range(2000):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        try:
            wire.predict_response(bytes(data))
        except wire.WireError:
            pass


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (wire.field(1, b""), "without name"),
        (wire.field(1, wire.field(1, b"x") + wire.field(2, bytes([8, 99]))), "data type 99"),
        (
            wire.field(1, wire.field(1, b"x") + wire.field(2, bytes([8, 1]) + wire.field(4, b"12"))),
            "size|values",
        ),
        (b"\x0f", "unknown kind"),
        (b"\x80" * 11, "64 bits"),
    ],
)
def test_what_is_wrong(message: bytes, problem: str) -> None:
    with pytest.raises(wire.WireError, match=problem):
        wire.predict_response(message)


def test_unknown_dtype_is_not_sent() -> None:
    with pytest.raises(wire.WireError, match="complex64"):
        wire.tensor_proto(np.zeros(1, np.complex64))
