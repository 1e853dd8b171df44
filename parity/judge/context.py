"""What one image's comparison knows: the two traces, limits, measured noise and matches so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from parity.core.feed import Fed, Inputs
from parity.core.profiles import Profile
from parity.core.units import Stage, stages
from parity.core.units.table import SetSpec
from parity.judge.detections import Items, MatchReport, Noise
from parity.judge.truth import Truth

Arrays = Mapping[str, np.ndarray]


@runtime_checkable
class HasRows(Protocol):
    """A trace that may hold only the first rows of an array and knows how many there were."""

    def rows(self, name: str) -> int: ...


class Cached(Mapping[str, np.ndarray]):
    """A trace that keeps what was read from it: the search for one detection's origin reads the same few
    arrays as the search for the next."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._kept: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._kept:
            self._kept[name] = self._arrays[name]
        return self._kept[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


@dataclass
class Context:
    """Everything one image's comparison knows: the two traces, limits, measured noise and matches so far."""

    reference: Arrays
    candidate: Arrays
    profile: Profile
    config: Mapping[str, Any] | None = None
    noise: Mapping[str, float] = field(default_factory=dict)
    forced_noise: Mapping[str, float] = field(default_factory=dict)  # measured on the reference's own input
    set_noise: Mapping[str, Noise] = field(default_factory=dict)  # of each set of detections
    truth: Truth | None = None  # a float64 run of the reference on the same picture
    table: dict[str, Stage] = field(default_factory=dict)
    matches: dict[str, MatchReport] = field(default_factory=dict)
    replayed: dict[str, MatchReport] = field(
        default_factory=dict
    )  # sets made anew of the reference's own input
    explained: np.ndarray | None = None  # pixels (H, W) whose mask or class decision was within noise
    reference_segments: Sequence[Mapping[str, Any]] = ()
    candidate_segments: Sequence[Mapping[str, Any]] = ()
    recorded: bool = False  # the reference is a recording, which holds module outputs only
    candidate_recorded: bool = False  # so is the candidate, or it is detectron2, which shows modules only
    edges: dict[str, frozenset[int]] = field(
        default_factory=dict
    )  # of each set the rows that rounding pools otherwise (`edges.py`)
    skipped: list[str] = field(default_factory=list)
    fed: Fed = field(
        default_factory=lambda: Fed(None)
    )  # what the candidate's teacher-forced stages were fed with
    inputs: Inputs | None = None  # the reference's arrays as inputs; of ``reference`` where it is not given

    def other_input(self, name: str) -> str:
        """Why the candidate's teacher-forced stage ``name`` was not computed on this reference's input, or ""."""
        if self.inputs is None:
            self.inputs = Inputs(self.reference, self.table)
        return self.inputs.problem(self.fed, name)


def stage_table(config: Mapping[str, Any] | None) -> dict[str, Stage]:
    """Stage name -> stage, in computation order; empty where the configuration has no table."""
    if config is None:
        return {}
    try:
        return {s.name: s for s in stages(config)}
    except (KeyError, ValueError):
        return {}


def rung_of(name: str) -> str:
    """The rung of the ladder a stage belongs to."""
    if name.startswith("input/") or name == "steps/input":
        return "preprocessing"
    if name.startswith("output/"):
        return "detections"
    return "backbone" if name.startswith("steps/backbone") else "heads"


def absent_in(context: Context, name: str) -> str:
    if name not in context.candidate:
        return "missing in the candidate"
    return "" if name in context.reference else "extra: the reference has no such array"


def items_of(trace: Arrays, spec: SetSpec, rename: Any = None) -> Items:
    """One set of a trace; ``rename`` gives the names of its arrays there."""
    get = (lambda n: trace[rename(n)]) if rename else (lambda n: trace[n])
    return Items(get(spec.boxes), get(spec.scores), get(spec.classes) if spec.classes else None)
