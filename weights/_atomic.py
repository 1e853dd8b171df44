"""Writes a file under a temporary name and gives it its own name only when it is complete and checked."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weights.errors import WeightsError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it at the end; on an exception nothing is left
    behind."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.open("xb").close()
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error.strerror}).") from None
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error}).") from None
    finally:
        temporary.unlink(missing_ok=True)
