"""What a comparison produces: one ``StageResult`` per compared thing and a ``Comparison`` around them.

Plain data with a versioned JSON form (``to_json``/``from_json``), so that a report can be made and a result
judged again without running anything.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from parity.core.metrics import Metrics
from parity.core.profiles import Limit
from parity.core.status import Status, Verdict, exit_code, worst
from weights.errors import UsageError

SCHEMA = "tf-d2-parity/1"

RUNGS = ("manifest", "weights", "preprocessing", "ops", "backbone", "heads", "detections", "dataset")


@dataclass(frozen=True)
class Errors:
    """How far the reference and the candidate are from a float64 run of the reference.

    ``rows``: of how many detections or proposals the reference's error is, where it follows theirs, and
    ``peak_rows``: by how many the largest element is decided (:func:`parity.judge.truth.effective_rows`); None for
    every other array.
    """

    reference: Metrics
    candidate: Metrics
    rows: int | None = None
    peak_rows: int | None = None

    @property
    def numbers(self) -> tuple[int, int, int]:
        """How many independent ones the whole array and the candidate's worst channel hold, and how many decide the
        largest element (0: nobody counted): all of a detection or proposal are as wrong as its box, so that they
        count as one."""
        of_all, of_channel = self.reference.count, self.candidate.channel_cells
        if self.rows is None:
            return of_all, of_channel, 0
        return min(of_all, self.rows), min(of_channel, self.rows), self.peak_rows or 0


@dataclass
class StageResult:
    """One compared array or set.

    ``kind`` is continuous, exact (integers and booleans), set (detections, proposals) or pixels. ``limit``
    is a relative L2 for continuous stages. ``metrics`` are of the candidate's difference from the reference,
    ``errors`` of both sides' distance from the float64 run, where there is one. The ``forced_*`` fields are the same
    comparison with the candidate fed the reference's input. ``factor`` is free-running error over the largest
    incoming error.
    """

    name: str
    rung: str
    kind: str
    status: Status
    message: str = ""
    metrics: Metrics | None = None
    errors: Errors | None = None
    limit: Limit | None = None
    forced_status: Status | None = None
    forced_message: str = ""
    forced_metrics: Metrics | None = None
    forced_errors: Errors | None = None
    forced_limit: Limit | None = None
    verdict: Verdict = Verdict.NONE
    factor: float | None = None
    inputs: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    waiver: str = ""
    nothing: bool = False  # neither side has a number or an item here

    @property
    def overall(self) -> Status:
        """Worst of the free-running and the teacher-forced comparison; a waived stage counts as
        BORDERLINE."""
        status = self.status if self.forced_status is None else worst([self.status, self.forced_status])
        return Status.BORDERLINE if self.waiver and status is not Status.PASS else status

    @property
    def bad(self) -> bool:
        """Whether this stage keeps the comparison from being the same."""
        return self.overall not in (Status.PASS, Status.BORDERLINE)


@dataclass
class Comparison:
    """Candidate against reference on one image. ``stages`` are in computation order."""

    reference: str
    candidate: str
    profile: str
    stages: list[StageResult] = field(default_factory=list)
    deterministic: bool = True
    nondeterministic: list[str] = field(default_factory=list)
    image: str = ""
    scope: str = "all stages"
    stopped_at: str = ""
    reference_manifest: dict[str, Any] = field(default_factory=dict)
    candidate_manifest: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    caveat: str = ""  # what speaks against the verdict that a difference is real, where something does
    noise_source: str = "not measured; static limits apply"
    estimated: bool = False  # without a float64 run the limits are estimates
    index: int = 0  # of the image in the traces
    traces: tuple[str, ...] = ()  # files of the reference and the candidate, where there are any; not in JSON

    @property
    def status(self) -> Status:
        """Worst stage; NOT-COMPARED when nothing was compared at all."""
        return worst(s.overall for s in self.stages)

    @property
    def exit_code(self) -> int:
        """0 same, 1 different, 2 could not compare, 3 not deterministic."""
        return exit_code(self.status, self.deterministic)

    @property
    def first_bad(self) -> StageResult | None:
        """The first stage, in computation order, that is wrong: one whose own computation is (LOCAL) before
        one that only shows what came in."""
        bad = [s for s in self.stages if s.bad]
        local = [s for s in bad if s.verdict is Verdict.LOCAL]
        return (local or bad or [None])[0]

    @property
    def counts(self) -> dict[str, int]:
        """How many stages ended in each status."""
        return {str(s): sum(1 for r in self.stages if r.overall is s) for s in Status}


def headline(comparison: Comparison) -> str:
    """The verdict in one sentence."""
    counts = comparison.counts
    total = len(comparison.stages)
    if not comparison.deterministic:
        names = ", ".join(comparison.nondeterministic[:3]) or "its outputs"
        return f"NOT DETERMINISTIC: repeated runs differ at {names}; differences cannot be attributed"
    if comparison.status in (Status.PASS, Status.BORDERLINE):
        extra = f", {counts['BORDERLINE']} explained by margins" if counts["BORDERLINE"] else ""
        nothing = sum(s.nothing for s in comparison.stages)
        extra += f", {nothing} of them on nothing: neither side finds anything" if nothing else ""
        where = f"{comparison.scope}, {comparison.profile} profile{_doubt(comparison)}"
        return f"SAME: {total} of {total} checks agree{extra} ({where})"
    first = comparison.first_bad
    where = f"first at {first.name}" if first else "nothing was compared"
    where += f" ({first.verdict})" if first and first.verdict is not Verdict.NONE else ""
    word = {Status.FAIL: "DIFFERENT", Status.NOT_COMPARED: "NOT COMPARED", Status.ERROR: "ERROR"}
    bad = sum(1 for s in comparison.stages if s.bad)
    doubt = _doubt(comparison) if comparison.status is Status.FAIL else ""
    return f"{word[comparison.status]}: {bad} of {total} checks do not agree, {where}{doubt}"


def _doubt(comparison: Comparison) -> str:
    return "; limits are estimates" if comparison.estimated else ""


def to_json(comparisons: list[Comparison]) -> dict[str, Any]:
    """The versioned JSON form. Infinite and NaN numbers become strings, as JSON has none."""
    return {
        "schema": SCHEMA,
        "status": str(overall_status(comparisons)),
        "exit_code": overall_exit_code(comparisons),
        "comparisons": [_comparison_json(c) for c in comparisons],
    }


def _comparison_json(c: Comparison) -> dict[str, Any]:
    body = _plain(asdict(c))
    del body["traces"]
    for stage, result in zip(body["stages"], c.stages, strict=True):
        stage["overall"] = str(result.overall)
    first = c.first_bad
    body |= {
        "status": str(c.status),
        "exit_code": c.exit_code,
        "headline": headline(c),
        "first_bad": first.name if first else None,
        "counts": c.counts,
    }
    return body


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Status | Verdict):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_json(data: dict[str, Any]) -> list[Comparison]:
    """Comparisons out of ``to_json``'s form; ValueError for another schema."""
    if data.get("schema") != SCHEMA:
        raise UsageError(f"not a parity result of schema {SCHEMA}: schema is {data.get('schema')!r}")
    return [_comparison_from(c) for c in data["comparisons"]]


def _comparison_from(data: dict[str, Any]) -> Comparison:
    names = {f for f in Comparison.__dataclass_fields__ if f != "stages"}
    comparison = Comparison(**{k: v for k, v in data.items() if k in names})
    comparison.stages = [_stage_from(s) for s in data["stages"]]
    return comparison


def _stage_from(data: dict[str, Any]) -> StageResult:
    values = {k: v for k, v in data.items() if k in StageResult.__dataclass_fields__}
    for key in ("metrics", "forced_metrics"):
        values[key] = Metrics(**_numbers(values[key])) if values[key] else None
    for key in ("errors", "forced_errors"):
        values[key] = _errors_from(values[key]) if values.get(key) else None
    for key in ("limit", "forced_limit"):
        values[key] = Limit(**values[key]) if values[key] else None
    values["status"] = Status(values["status"])
    values["forced_status"] = Status(values["forced_status"]) if values["forced_status"] else None
    values["verdict"] = Verdict(values["verdict"])
    values["inputs"], values["shape"] = tuple(values["inputs"]), tuple(values["shape"])
    return StageResult(**values)


def _errors_from(sides: dict[str, Any]) -> Errors:
    reference, candidate = (Metrics(**_numbers(sides[side])) for side in ("reference", "candidate"))
    return Errors(reference, candidate, sides.get("rows"), sides.get("peak_rows"))


def _numbers(data: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {k: float(v) if isinstance(v, str) else v for k, v in data.items()}
    return out | {"worst_index": tuple(out["worst_index"])}


def overall_status(comparisons: list[Comparison]) -> Status:
    """Worst status of several comparisons (images, candidates)."""
    return worst(c.status for c in comparisons)


def overall_exit_code(comparisons: list[Comparison]) -> int:
    """Exit code of several comparisons."""
    return exit_code(overall_status(comparisons), all(c.deterministic for c in comparisons))
