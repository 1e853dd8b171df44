"""Where an export may be written. Without TensorFlow: the command line asks before it loads anything."""

from __future__ import annotations

import re
from pathlib import Path

from weights.errors import UsageError

_BESIDE = ("README.md", "models.config", "batching_parameters.txt", "monitoring.config")  # the versions


def check_target(output: Path, version: int, name: str, overwrite: bool = False) -> None:
    """Whether version ``version`` of a model that servers call ``name`` can be written to the folder ``output``.

    Raises:
        ValueError: a number or name that no server takes, a file in the way, a version that is there already, or
            other contents; the last two not with ``overwrite``.
    """
    if not 0 < version < 2**63:
        raise UsageError(f"version must be a positive integer below 2^63, got {version}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(
            f"a server cannot address a model named {name!r}; pass name= with letters, digits, _ . -"
        )
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file; the output must be a folder")
    if overwrite or not output.exists():
        return
    if (output / str(version)).exists():
        raise UsageError(
            f"{output / str(version)} exists; export another version (--version {_newest(output) + 1}), or replace it "
            "with --overwrite"
        )
    others = [p.name for p in sorted(output.iterdir()) if not _of_an_export(p)]
    if others:
        raise UsageError(
            f"{output} holds something else than an export ({', '.join(others[:3])}); name a new or empty folder, or "
            "write beside it with --overwrite"
        )


def _newest(output: Path) -> int:
    """The highest version in a folder, 0 if there is none."""
    return max((int(p.name) for p in output.glob("*") if p.name.isdecimal()), default=0)


def _of_an_export(path: Path) -> bool:
    return path.name.isdecimal() or path.name in _BESIDE or path.name.startswith(".")
