"""HDF5 files written with h5py, and errors of writing that stay errors.

HDF5 that cannot write when it closes a file (a full disk, a limit on the size of files) leaves it half open, and
then crashes the process at its end. So here it never gets to see that it could not write.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import h5py

T = TypeVar("T")


def in_hdf5(path: Path, mode: Literal["x", "r+"], work: Callable[[h5py.File], T]) -> T:
    """``work`` on an HDF5 file: a new one with mode "x", one that exists with "r+".

    Raises:
        OSError: not everything could be written; the file is then of no use.
    """

    def run(seen: _Unfailing) -> T:
        with h5py.File(seen, "w" if mode == "x" else mode) as file:
            return work(file)

    # In another thread, because signals (Ctrl-C) raise exceptions in the main thread, wherever that is, and no
    # exception may come out of _Unfailing.
    with open(path, "x+b" if mode == "x" else "r+b", buffering=0) as file, ThreadPoolExecutor(1) as aside:
        seen = _Unfailing(file)
        future = aside.submit(run, seen)
        future.exception()  # waits; after an error HDF5 may not find again what it believes to have written
        if seen.error is not None:
            raise seen.error
        return future.result()


class _Unfailing:
    """A file for h5py whose methods do not fail; ``error`` keeps the first exception that there was."""

    def __init__(self, file: io.FileIO) -> None:
        self.file = file
        self.error: Exception | None = None

    def _try(self, action: Callable[..., int], *arguments: Any) -> int:
        try:
            return action(*arguments)
        except Exception as error:
            self.error = self.error or error
            return 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See :class:`io.FileIO`, as for all of these."""
        return self._try(self.file.seek, offset, whence)

    def tell(self) -> int:
        return self._try(self.file.tell)

    def read(self, size: int = -1) -> bytes:
        """Not used: h5py takes an object with this method for a file, and reads by ``readinto``."""
        raise io.UnsupportedOperation("read")

    def readinto(self, buffer: memoryview) -> int:
        return self._try(self.file.readinto, buffer)

    def write(self, data: memoryview) -> int:
        return self._try(self._write, memoryview(data))

    def _write(self, data: memoryview) -> int:
        """All of ``data``, where the system may take a part at a time."""
        done = 0
        while done < len(data):
            done += self.file.write(data[done:])
        return done

    def truncate(self, size: int) -> int:
        return self._try(self.file.truncate, size)

    def flush(self) -> None:
        """Nothing is held back."""
