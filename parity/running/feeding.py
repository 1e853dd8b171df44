"""A recorded candidate whose teacher-forced stages were fed by another reference: run it again, fed by this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from parity.core import feed as feeds
from parity.core.job import differing
from parity.core.trace import Trace
from parity.core.units import forced_name, stages

Run = Callable[[Mapping[str, Any], Path], Path]  # manifest, where to write -> the trace of a further run


def _fed_by_another(reference: Trace, candidate: Trace, profile: str) -> bool:
    """Whether some stage of the candidate was computed from other arrays than the reference's."""
    if len(reference.images) != len(candidate.images):
        return False  # nothing of them is compared
    config = yaml.safe_load(candidate.config or "{}")
    try:
        table = {stage.name: stage for stage in stages(config)}
    except (KeyError, ValueError, TypeError):
        table = {}
    for k, (own, other) in enumerate(zip(reference.images, candidate.images, strict=True)):
        inputs = feeds.Inputs(feeds.arrays_of(own, profile), table)
        fed = feeds.read(candidate.manifest, k)
        forced = [name for name in table or own if forced_name(name) in other]
        if any(inputs.problem(fed, name) for name in forced):
            return True
    return False


def feed_again(reference: Path, candidate: Path, profile: str, target: Path, run: Run) -> tuple[Path, str]:
    """The trace to judge instead of ``candidate``, and what to say about it ("" where nothing had to be done).

    ``run`` repeats the candidate with ``reference`` as its feed. Only where that gives bit for bit the candidate's
    own results is it the same candidate; otherwise the candidate stays and its stages on another input are not
    compared.
    """
    with Trace(reference) as own, Trace(candidate) as given:
        if not _fed_by_another(own, given, profile):
            return candidate, ""
        manifest = given.manifest
    try:
        again = run(manifest, target)
    except (RuntimeError, ValueError) as error:
        return candidate, f"the candidate was fed by another trace and could not be fed again: {error}"
    with Trace(candidate) as given, Trace(again) as found:
        unequal = [
            n for a, b in zip(given.images, found.images, strict=True) for n in differing(_free(a), _free(b))
        ]
    if unequal:
        return candidate, (
            "the candidate was fed by another trace; fed again here it gives other results than recorded "
            f"({unequal[0]}), so it is not the same run"
        )
    return again, "the candidate was fed by another trace and was fed again, by this reference"


def _free(image: Mapping[str, Any]) -> dict[str, Any]:
    return {name: image[name] for name in image if not name.startswith("forced/")}
