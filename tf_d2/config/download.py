"""Fetch a published checkpoint once: resumed, checked, and moved into place only when complete.

detectron2 names its checkpoints after their content: the MD5 digest of ``model_final_280758.pkl`` starts with
280758 (MODEL_ZOO.md). That catches a broken file, not a malicious one; the reader of checkpoints executes
nothing in them.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tf_d2.config.errors import DownloadError

_CHUNK = 1 << 18
TIMEOUT_S = 30
_ATTEMPTS = 3

_HASHED = re.compile(r"_([0-9a-f]{6})\.[a-z]+$")
_UNSAFE = re.compile(r"[^A-Za-z0-9._%+=@,-]")


class _Interrupted(Exception):
    """The connection ended early; what came is kept and the next attempt continues."""


def cache_dir() -> Path:
    """``TF_D2_CACHE``, or ``~/.cache/tf_d2`` (below ``XDG_CACHE_HOME`` where that is set)."""
    if os.environ.get("TF_D2_CACHE"):
        return Path(os.environ["TF_D2_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tf_d2"


def split_matching(name: str) -> tuple[str, bool]:
    """``model.pth?matching_heuristics=True`` -> the path or address without that note, and whether it asks for it.

    It is a note to the reader of the file (detectron2's ``DetectionCheckpointer``); any other query is a part of the
    address.
    """
    place, mark, fragment = name.partition("#") if "://" in name else (name, "", "")
    start, _, query = place.partition("?")
    parts = query.split("&") if query else []
    rest = [part for part in parts if not part.startswith("matching_heuristics=")]
    asked = any(part.lower() == "matching_heuristics=true" for part in parts)
    if len(rest) == len(parts):
        return name, False
    return start + ("?" + "&".join(rest) if rest else "") + mark + fragment, asked


def cache_path(url: str) -> Path:
    """Where the file of ``url`` is kept: host and path of the address below `cache_dir`, a folder for each query."""
    parts = urlsplit(url)
    segments = [parts.netloc, *parts.path.split("/")]
    safe = [_UNSAFE.sub("_", s) for s in segments if s not in ("", ".", "..")]
    if len(safe) < 2:
        raise DownloadError(f"{url}: names no file")
    if parts.query:
        safe.insert(-1, f"query-{hashlib.sha256(parts.query.encode()).hexdigest()[:16]}")
    return cache_dir().joinpath(*safe)


def expected_md5(path: Path) -> str | None:
    """The start of the MD5 digest that a file name promises (``280758``), or None."""
    match = _HASHED.search(path.name)
    return match[1] if match else None


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time per partial file, where the system can lock; a crash leaves no lock behind."""
    try:
        import fcntl
    except (
        ImportError
    ):  # not on Windows: two downloads of one file may then disturb each other and fail the check
        yield
        return
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _request(url: str, start: int) -> urllib.request.Request:
    headers = {"User-Agent": "tf-d2", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    return urllib.request.Request(url, headers=headers)


def _continues(response: Any, start: int) -> bool:
    """Whether the server sent the rest after byte ``start`` rather than the whole file."""
    content_range = response.headers.get("Content-Range") or ""
    return response.status == 206 and content_range.startswith(f"bytes {start}-")


def _receive(response: Any, part: Path, start: int, progress: Any) -> None:
    length = response.headers.get("Content-Length")
    total = start + int(length) if length and length.isdigit() else None
    size = start
    with part.open("ab" if start else "wb") as file:
        progress(size, total)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            size += len(chunk)
            progress(size, total)
    if total is not None and size < total:
        raise _Interrupted(f"it ended after {size} of {total} bytes")


def _attempt(url: str, part: Path, resumable: bool, progress: Any) -> None:
    start = part.stat().st_size if resumable and part.exists() else 0
    try:
        with urllib.request.urlopen(_request(url, start), timeout=TIMEOUT_S) as response:
            _receive(response, part, start if start and _continues(response, start) else 0, progress)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416:
            raise
        part.write_bytes(b"")  # it has all bytes, or those of another file: start again
        raise _Interrupted("the server refused to continue a partial file") from None
    except (TimeoutError, ConnectionError, http.client.IncompleteRead) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


@contextmanager
def _bar(name: str, show: bool) -> Iterator[Any]:
    if not show:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _by_hand(url: str, path: Path) -> str:
    return f"Fetch it by hand:\n  {url}\nand put it at:\n  {path}"


def _download(url: str, part: Path, path: Path, progress: bool) -> None:
    resumable = expected_md5(path) is not None  # without a check, two halves of different files would pass
    with _bar(path.name, progress) as report:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return _attempt(url, part, resumable, report)
            except _Interrupted as error:
                if attempt == _ATTEMPTS:
                    kept = " Run the same command again to continue." if resumable and part.exists() else ""
                    raise DownloadError(
                        f"{url}: broke off {_ATTEMPTS} times ({error}).{kept} {_by_hand(url, path)}"
                    ) from error
            except urllib.error.HTTPError as error:
                raise DownloadError(
                    f"{url}: the server answered {error.code} {error.reason}. {_by_hand(url, path)}"
                ) from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", error)
                raise DownloadError(f"{url}: cannot be reached ({reason}). {_by_hand(url, path)}") from error


def _something_else(file: Path) -> str | None:
    """What the file is, where it is known to be no checkpoint: most often a page to sign in or to confirm on."""
    with file.open("rb") as opened:
        from weights import kind_of_file  # brings numpy

        return kind_of_file(opened.read(4096))


def _is_kept(path: Path) -> bool:
    """Whether the file is there; not the web page that earlier versions kept in its place."""
    return path.is_file() and not (_something_else(path) or "").startswith("a web page")


def _check(file: Path, path: Path, url: str) -> None:
    expected = expected_md5(path)
    if file.stat().st_size == 0:
        raise DownloadError(f"{url}: the server sent an empty file. {_by_hand(url, path)}")
    if what := _something_else(file):
        file.write_bytes(b"")
        raise DownloadError(
            f"{url}: what arrived is {what}. Nothing was kept. Find the address that the download itself has, or: "
            f"{_by_hand(url, path)}"
        )
    if expected and not (actual := _md5(file)).startswith(expected):
        file.write_bytes(b"")
        raise DownloadError(
            f"{url}: what arrived is not this file: its name promises an MD5 digest that starts with "
            f"{expected}, it is {actual}. The broken file was removed; try again, or: {_by_hand(url, path)}"
        )


def _of_detectron2(url: str, path: Path) -> Path | None:
    """The same file in detectron2's own cache (iopath), if it is there and its digest fits its name."""
    root = Path(os.environ.get("FVCORE_CACHE") or "~/.torch/iopath_cache").expanduser()
    candidate = root.joinpath(*[p for p in urlsplit(url).path.split("/") if p not in ("", ".", "..")])
    expected = expected_md5(path)
    if expected and candidate.is_file() and _md5(candidate).startswith(expected):
        return candidate
    return None


def _drop_useless(part: Path, path: Path) -> None:
    """Remove a partial file that a later attempt could not continue."""
    if part.exists() and (part.stat().st_size == 0 or expected_md5(path) is None):
        part.unlink()


def fetch(url: str, *, progress: bool = True) -> Path:
    """The local copy of ``url``, downloaded if neither our cache nor detectron2's has it.

    The query of the address is a part of it (two ids are two files), but for ``matching_heuristics=True``. The file
    appears under its name only when complete and checked; a copy that exists is used as it is.

    Raises:
        DownloadError: no network, an error of the server, a web page or broken file, or no room; it says what to
            fetch by hand and where to put it.
    """
    url = split_matching(url)[0].split("#", 1)[0]
    path = cache_path(url)
    if _is_kept(path):
        return path
    if found := _of_detectron2(url, path):
        return found
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(part):
            if not _is_kept(path):
                _download(url, part, path, progress)
                _check(part, path, url)
                os.replace(part, path)
    except DownloadError:
        _drop_useless(part, path)
        raise
    except OSError as error:
        raise DownloadError(f"{url}: cannot be kept in {path.parent} ({error}); set TF_D2_CACHE") from error
    return path
