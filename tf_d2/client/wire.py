"""The few protocol buffers of TensorFlow Serving's Predict call, as bytes.

Written out by hand because the packages that carry them (tensorflow-serving-api, tensorflow) are hundreds of
megabytes, and a client should not need them. Unknown fields are skipped, as protocol buffers ask for.

    PredictRequest  { ModelSpec model_spec = 1; map<string, TensorProto> inputs = 2; }
    PredictResponse { map<string, TensorProto> outputs = 1; }
    ModelSpec       { string name = 1; Int64Value version = 2; string signature_name = 3;
                      string version_label = 4; }
    TensorProto     { DataType dtype = 1; TensorShapeProto tensor_shape = 2; bytes tensor_content = 4;
                      float float_val = 5; double double_val = 6; int32 int_val = 7; bytes string_val = 8;
                      int64 int64_val = 10; bool bool_val = 11; }
    TensorShapeProto { Dim dim = 2 { int64 size = 1; } }

Source: tensorflow_serving/apis/{predict,model}.proto,
tensorflow/core/framework/{tensor,tensor_shape,types}.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from weights.errors import UserError

# DataType: number -> (numpy dtype of the tensor, field of its values, how these are packed).
_STRING = 7
_NUMBERS = {
    1: (np.dtype("<f4"), 5, np.dtype("<f4")),
    2: (np.dtype("<f8"), 6, np.dtype("<f8")),
    3: (np.dtype("<i4"), 7, None),
    4: (np.dtype("u1"), 7, None),
    5: (np.dtype("<i2"), 7, None),
    6: (np.dtype("i1"), 7, None),
    9: (np.dtype("<i8"), 10, None),
    10: (np.dtype("?"), 11, None),
}
_MAX_TENSOR_BYTES = 4 * 2**30
_CODES = {dtype: code for code, (dtype, _, _) in _NUMBERS.items()}


class WireError(UserError, ValueError):
    """An answer that is not the protocol buffer it should be."""


# === Requests ===


def predict_request(
    model: str,
    signature: str,
    inputs: Mapping[str, np.ndarray],
    version: int | None = None,
    label: str | None = None,
) -> bytes:
    """A serialised ``PredictRequest``; arrays of ``bytes`` objects are string tensors."""
    message = field(1, model_spec(model, version, label) + field(3, signature.encode()))
    for name, value in inputs.items():
        message += field(2, field(1, name.encode()) + field(2, tensor_proto(value)))
    return message


def model_spec(model: str, version: int | None = None, label: str | None = None) -> bytes:
    """A serialised ``ModelSpec`` without a signature."""
    spec = field(1, model.encode())
    if version is not None:
        spec += field(2, varint(1 << 3) + varint(version))
    if label is not None:
        spec += field(4, label.encode())
    return spec


def tensor_proto(value: np.ndarray) -> bytes:
    """A serialised ``TensorProto``. Raises WireError for dtypes that no signature takes."""
    value = np.asarray(value)
    dims = b"".join(field(2, varint(1 << 3) + varint(size)) for size in value.shape)
    if value.dtype == object:
        strings = b"".join(field(8, bytes(item)) for item in value.ravel())
        return _head(_STRING) + field(2, dims) + strings
    dtype = value.dtype.newbyteorder("<")
    if dtype not in _CODES:
        raise WireError(f"no request takes an array of {value.dtype}")
    return _head(_CODES[dtype]) + field(2, dims) + field(4, np.ascontiguousarray(value, dtype).tobytes())


def _head(code: int) -> bytes:
    return varint(1 << 3) + varint(code)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    """A non-negative integer, 7 bits per byte, lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


# === Answers ===


def predict_response(message: bytes) -> dict[str, np.ndarray]:
    """The outputs of a serialised ``PredictResponse`` by name. Raises WireError."""
    outputs = {}
    for number, value in fields(memoryview(message)):
        if number == 1 and isinstance(value, memoryview):
            entry = dict(fields(value))
            name, tensor = entry.get(1), entry.get(2)
            if not isinstance(name, memoryview) or not isinstance(tensor, memoryview):
                raise WireError("an output without name or value")
            outputs[bytes(name).decode(errors="replace")] = parse_tensor(tensor)
    return outputs


def parse_tensor(message: memoryview) -> np.ndarray:
    """A serialised ``TensorProto`` -> array; string tensors become arrays of ``bytes``. Raises WireError."""
    code, shape = 0, ()
    values: dict[int, list[memoryview | int]] = {}
    for number, value in fields(message):
        if number == 1 and isinstance(value, int):
            code = value
        elif number == 2 and isinstance(value, memoryview):
            shape = _shape(value)
        else:
            values.setdefault(number, []).append(value)
    count = math.prod(shape)
    if code == _STRING:
        strings = [bytes(v) for v in values.get(8, []) if isinstance(v, memoryview)]
        content = values.get(4, [b""])[-1]
        if isinstance(content, memoryview) and len(content):
            strings = _string_list(content, count)
        if len(strings) != count:
            raise WireError(f"a tensor of shape {shape} with {len(strings)} strings")
        array = np.empty(count, object)
        array[:] = strings
        return array.reshape(shape)
    if code not in _NUMBERS:
        raise WireError(f"a tensor of data type {code}, which this client does not know")
    return _number_array(code, count, values).reshape(shape)


def _string_list(content: memoryview, count: int) -> list[bytes]:
    """Strings in ``tensor_content`` (``--enable_serialization_as_tensor_content``): all lengths, then all bytes."""
    lengths, position = [], 0
    for _ in range(count):
        length, position = _read_varint(content, position)
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise WireError(f"{count} strings in {len(content)} bytes, but their lengths do not fit")
    ends = position + np.cumsum(lengths)
    return [bytes(content[end - length : end]) for end, length in zip(ends, lengths, strict=True)]


def _number_array(code: int, count: int, values: dict[int, list[memoryview | int]]) -> np.ndarray:
    """``count`` numbers: from ``tensor_content``, else from the field of the data type."""
    dtype, number, packed = _NUMBERS[code]
    if count * dtype.itemsize > _MAX_TENSOR_BYTES:
        raise WireError(f"a tensor of {count} values")
    content = values.get(4, [b""])[-1]
    if not isinstance(content, int) and len(content):
        array = _fixed(content, dtype)
    else:
        array = _numbers(values.get(number, []), packed).astype(dtype)
        # What is left out at the end repeats the last value; a tensor of zeros may have none at all.
        missing = max(count - len(array), 0)
        array = np.concatenate([array, np.full(missing, array[-1] if len(array) else 0, dtype)])
    if len(array) != count:
        raise WireError(f"a tensor of {count} values with {len(array)}")
    return array


def _fixed(data: memoryview | bytes, dtype: np.dtype) -> np.ndarray:
    if len(data) % dtype.itemsize:
        raise WireError(f"{len(data)} bytes are no whole number of {dtype} values")
    return np.frombuffer(data, dtype)


def _shape(message: memoryview) -> tuple[int, ...]:
    sizes = []
    for number, dim in fields(message):
        if number == 2 and isinstance(dim, memoryview):
            size = dict(fields(dim)).get(1, 0)
            sizes.append(size if isinstance(size, int) else -1)
    if any(size < 0 for size in sizes):
        raise WireError(f"a tensor of shape {sizes}")
    return tuple(sizes)


def _numbers(parts: list[memoryview | int], packed: np.dtype | None) -> np.ndarray:
    """Values of a repeated field: packed fixed-width, packed varints, or single ones."""
    arrays = []
    for part in parts:
        if isinstance(part, int):
            arrays.append(np.array([part], np.uint64).view(np.int64))
        elif packed is not None:
            arrays.append(_fixed(part, packed))
        else:
            arrays.append(_varints(part))
    return np.concatenate(arrays) if arrays else np.zeros(0)


def _varints(data: memoryview) -> np.ndarray:
    """Packed varints -> int64 (negative numbers are 64-bit two's complement)."""
    octets = np.frombuffer(data, np.uint8)
    last = np.flatnonzero(octets < 0x80)
    if len(octets) and (not len(last) or last[-1] != len(octets) - 1):
        raise WireError("truncated number")
    first = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    lengths = last - first + 1
    if len(lengths) and lengths.max() > 10:
        raise WireError("number of more than 64 bits")
    result = np.zeros(len(last), np.uint64)
    for i in range(int(lengths.max()) if len(lengths) else 0):
        part = lengths > i
        digits = octets[first[part] + i].astype(np.uint64) & np.uint64(0x7F)
        result[part] |= digits << np.uint64(7 * i)
    return result.view(np.int64)


def fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a message in order: (number, value); fixed-width values come as their bytes."""
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _read_varint(message, position)
            yield key >> 3, value
            continue
        if kind == 2:
            size, position = _read_varint(message, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise WireError(f"field of unknown kind {kind}")
        if position + size > len(message):
            raise WireError("truncated message")
        yield key >> 3, message[position : position + size]
        position += size


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise WireError("truncated message")
        octet = message[position]
        position += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value & (1 << 64) - 1, position
    raise WireError("number of more than 64 bits")
