"""Work on many arrays at once: numpy and files let other threads run while they go through memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_THREADS = min(os.cpu_count() or 1, 4)  # each may hold a copy of one array, and memory is soon the limit


def each_array(work: Callable[[str, np.ndarray], None], arrays: Mapping[str, np.ndarray]) -> Iterator[int]:
    """``work(name, array)`` in threads, for all arrays; yields the bytes of each when it is done.

    The largest come first, so that no thread is left alone with one at the end. An error ends it.
    """
    by_size = sorted(arrays, key=lambda name: -arrays[name].nbytes)

    def done(name: str) -> int:
        work(name, arrays[name])
        return arrays[name].nbytes

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(done, by_size)
