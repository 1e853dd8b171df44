"""Files: mapped for reading, and written under a temporary name until they are complete and checked."""

from __future__ import annotations

import mmap
import os
import secrets
import stat
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from weights.errors import CheckpointError, WeightsError

_lock = threading.Lock()  # guards the two below
_mappings: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_resident = 0  # bytes of mapped files used since pages were last released
_RELEASE_AFTER = 256 << 20


def touched(count: int) -> None:
    """Say that ``count`` bytes of mapped files were used and are not needed soon.

    Every so often their pages are given back to the operating system (and read again should they be used
    again), so that a conversion holds a part of the files in memory and not all of both.
    """
    global _resident
    with _lock:
        _resident += count
        if _resident >= _RELEASE_AFTER and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            _resident = 0
            for mapping in list(_mappings):
                mapping.madvise(mmap.MADV_DONTNEED)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it at the end; an exception leaves nothing behind.

    The caller creates the file, as a new one (mode "x"): ext4 puts a file that was opened with "w", and so
    emptied, on the disk when it is closed, which takes as long as all of the writing.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.open("xb").close()  # a try, before the work
        temporary.unlink()
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error.strerror or error}).") from None
    finally:
        with suppress(OSError):  # usually it is not there any more
            temporary.unlink()


def _kind_of_folder(name: str) -> str:
    """Why a folder is no checkpoint, and which file may be meant."""
    entries = sorted(os.listdir(name))[:1000]
    if "saved_model.pb" in entries:
        return "is a TensorFlow SavedModel, which holds a program; give the checkpoint of the training (.pth, .pkl)."
    inside = [
        entry for entry in entries if entry.endswith((".pth", ".pkl", ".pt", ".ckpt", ".safetensors", ".h5"))
    ]
    if "data.pkl" in entries:
        return "is a folder: an unpacked .pth; zip it again, or give the file it was unpacked from."
    return f"is a folder, not a checkpoint{'; in it are ' + ', '.join(inside[:5]) if inside else ''}."


def map_file(name: str) -> memoryview:
    """The bytes of a file, memory-mapped read-only."""
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{name}: {_kind_of_folder(name)}")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            raise CheckpointError(f"{name}: is not a regular file.")
        with open(name, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError(
                    f"{name}: the file is empty: an interrupted download or copy; get it again."
                )
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with _lock:
                _mappings.add(mapping)
            return memoryview(mapping)
    except FileNotFoundError:
        raise CheckpointError(f"{name}: there is no such file.") from None
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: cannot be read ({error}).") from None
