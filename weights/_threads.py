"""Work on many arrays at once: numpy and files let other threads run while they go through memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import EllipsisType

import numpy as np

_THREADS = min(os.cpu_count() or 1, 4)  # each may hold a copy of one part, and memory is soon the limit
_PART = 32 << 20  # bytes; larger arrays are worked on in parts

Rows = slice | EllipsisType  # of the first axis; the ellipsis for all of an array (which may be a scalar)


def each_part(
    work: Callable[[str, Rows, np.ndarray], None], arrays: Mapping[str, np.ndarray]
) -> Iterator[int]:
    """``work(name, rows, array[rows])`` in threads, until all arrays are done; yields the bytes of each part.

    The largest come first, so that no thread is left alone with one at the end. An error ends it.
    """
    parts = [(name, rows) for name, array in arrays.items() for rows in _rows(array)]
    parts.sort(key=lambda part: -arrays[part[0]][part[1]].nbytes)

    def done(part: tuple[str, Rows]) -> int:
        name, rows = part
        array = arrays[name][rows]
        work(name, rows, array)
        return array.nbytes

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(done, parts)


def _rows(array: np.ndarray) -> list[Rows]:
    count = min(-(-array.nbytes // _PART), len(array) if array.ndim else 1)
    if count < 2:
        return [...]
    edges = [len(array) * k // count for k in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]
