"""What teacher-forced stages were fed with: said by every worker in one form, checked by the judge.

The entry ``forced`` of a manifest:
    feed      {"backend", "written"} of the trace that was fed, to name it in a message
    inputs    one object per image: name -> `array_sha256` of every array that a unit could read from that trace
    derived   one object per image: stage -> those of its inputs that the trace lacks and the worker computed itself

"The same input" is said only where these hashes are those of the reference's own arrays. numpy only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity.core.trace import ImageTrace, Trace
from parity.core.units import Stage, Unit

Arrays = Mapping[str, np.ndarray]


def array_sha256(array: np.ndarray) -> str:
    """SHA-256 of an array's shape, dtype and values."""
    values = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{values.shape}{values.dtype}".encode())
    digest.update(values.reshape(-1).view(np.uint8).data if values.size else b"")
    return digest.hexdigest()


def arrays_of(image: Arrays, profile: str) -> Arrays:
    """The arrays of one image that teacher-forced stages of this profile read.

    In the semantic profile of a recording they are its float64 pass.
    """
    if not isinstance(image, ImageTrace):
        return image
    recorded = any(name.startswith("steps64/") for name in image)
    return image.float64() if profile == "semantic" and recorded else image


def given_to(units: Iterable[Unit], image: Arrays, profile: str) -> dict[str, np.ndarray]:
    """Name -> array of everything that units read and one image of a trace holds with every row."""
    arrays = arrays_of(image, profile)
    wanted = dict.fromkeys(name for unit in units for name in unit.inputs)
    return {name: arrays[name] for name in wanted if name in arrays and _whole(arrays, name)}


def _whole(arrays: Arrays, name: str) -> bool:
    return not isinstance(arrays, ImageTrace) or arrays.rows(name) == (arrays.shape(name) or (1,))[0]


def hashes(given: Arrays) -> dict[str, str]:
    """Name -> hash of what was fed."""
    return {name: array_sha256(array) for name, array in given.items()}


def entry(
    feed: Trace, inputs: Sequence[Mapping[str, str]], derived: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The manifest's entry ``forced``. inputs: the `hashes` of each image."""
    return {
        "feed": {key: feed.manifest.get(key) for key in ("backend", "written")},
        "inputs": [dict(known) for known in inputs],
        "derived": [dict(stages) for stages in derived],
    }


@dataclass(frozen=True)
class Fed:
    """What one image's teacher-forced stages were fed with; ``hashes`` is None where the trace does not say."""

    hashes: Mapping[str, str] | None
    source: str = "another trace"


def read(manifest: Mapping[str, Any], image: int) -> Fed:
    """What a manifest says about one image's feed."""
    forced = manifest.get("forced")
    if not isinstance(forced, Mapping):
        return Fed(None)
    inputs, feed = forced.get("inputs"), forced.get("feed")
    held = isinstance(inputs, Sequence) and image < len(inputs) and isinstance(inputs[image], Mapping)
    if isinstance(feed, Mapping):
        written = f" of {feed['written']}" if feed.get("written") else ""
        source = f"the trace of {feed.get('backend')}{written}"
    else:
        source = "another trace"
    return Fed(inputs[image] if held and inputs else None, source)


class Inputs:
    """The reference's arrays as possible inputs, each hashed once."""

    def __init__(self, arrays: Arrays, table: Mapping[str, Stage]) -> None:
        self._arrays, self._table = arrays, table
        self._hashes: dict[str, str] = {}

    def problem(self, fed: Fed, stage: str) -> str:
        """Why a stage was not computed from bit for bit these arrays; "" where it was.

        A stage whose direct inputs the fed trace lacks stands on what these were computed from.
        """
        if fed.hashes is None:
            return "not compared: its trace does not say what it was fed, so the input may be another"
        known = fed.hashes
        try:
            roots = list(dict.fromkeys(self._roots(stage, known)))
        except KeyError as error:
            return f"not compared: its trace does not say from what {error.args[0]} was computed"
        other = [name for name in roots if self._hash(name) != known[name]]
        if not other:
            return ""
        return (
            f"not compared: it was fed {', '.join(other[:3])} of {fed.source}, which is not bit for bit this "
            "reference's; run the candidate again with this --reference"
        )

    def _roots(self, stage: str, known: Mapping[str, str]) -> Iterator[str]:
        if stage not in self._table:
            yield from known  # it is not known what such a stage reads
            return
        for name in self._table[stage].inputs:
            if name in known:
                yield name
            elif name in self._table:
                yield from self._roots(name, known)
            else:
                raise KeyError(name)

    def _hash(self, name: str) -> str:
        if name not in self._hashes:
            self._hashes[name] = array_sha256(self._arrays[name]) if name in self._arrays else ""
        return self._hashes[name]
