"""Reads ``.safetensors``: eight bytes of length, a JSON header, then the tensors back to back.

The checks are those of the reference implementation: header size capped, no unknown dtype, offsets in order,
without holes or overlaps, covering the file exactly.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from weights._limits import MAX_JSON_BYTES, MAX_TENSORS, check_shape, check_sizes, element_count
from weights._torch import widen_bfloat16
from weights._unpickle_calls import view_as
from weights.errors import CheckpointError

DTYPES = {
    "BOOL": "?",
    "U8": "<u1",
    "I8": "<i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "<u2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}


def looks_like(data: memoryview) -> bool:
    """Whether the file begins with a plausible header length and an opening brace."""
    return len(data) >= 10 and data[8] == ord("{")


def read(data: memoryview) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors (read-only views; bfloat16 as float32) and metadata of a safetensors file.

    Raises:
        CheckpointError: for anything that is not exactly a well-formed file.
    """
    size = struct.unpack("<Q", data[:8])[0]
    if size > MAX_JSON_BYTES or size > len(data) - 8:
        raise CheckpointError(
            f"The safetensors header declares {size} bytes: the file is truncated or damaged."
        )
    header = _header(bytes(data[8 : 8 + size]))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("The metadata of the safetensors file is not text.")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"The safetensors file has {len(header)} tensors; no checkpoint has that many.")
    return _tensors(header, data[8 + size :]), metadata


def _header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The safetensors header is no valid JSON ({str(error)[:100]}).") from None
    if not isinstance(header, dict):
        raise CheckpointError("The safetensors header is no JSON object.")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise CheckpointError("The safetensors header has the same name twice.")
    return result


def _tensors(header: dict[str, Any], body: memoryview) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        where = f"The safetensors tensor {name[:200]!r}"
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"{where} has no valid description.")
        dtype, shape = entry["dtype"], check_shape(entry["shape"], where)
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise CheckpointError(f"{where} has the dtype {str(dtype)[:40]!r}, which is not read.")
        begin, end = check_sizes(entry["data_offsets"], where)[:2] if _is_pair(entry) else (0, -1)
        if not 0 <= begin <= end <= len(body):
            raise CheckpointError(f"{where} lies outside of the file: it is truncated or damaged.")
        if element_count(shape) * np.dtype(DTYPES[dtype]).itemsize != end - begin:
            raise CheckpointError(f"{where} has shape {shape} and {end - begin} bytes, which do not fit.")
        spans.append((begin, end))
        array = view_as(body[begin:end], np.dtype(DTYPES[dtype]), shape)
        tensors[name] = widen_bfloat16(array) if dtype == "BF16" else array
    _check_spans(spans, len(body))
    return tensors


def _is_pair(entry: dict[str, Any]) -> bool:
    return isinstance(entry["data_offsets"], list) and len(entry["data_offsets"]) == 2


def _check_spans(spans: list[tuple[int, int]], size: int) -> None:
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise CheckpointError("The tensors of the safetensors file overlap or leave holes.")
        position = end
    if position != size:
        raise CheckpointError(f"The safetensors file has {size - position} bytes that belong to no tensor.")
