"""Comparisons of many pictures: one row each, and what all of them say together in memory that does not grow.

Rows are JSON objects, one a line. numpy only.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity.core.results import Comparison, headline
from parity.core.status import Status, exit_code, worst

SCHEMA = "tf-d2-parity-many/1"
_WORST = 10
_SETS = ("output/instances", "output/proposals")
_ORDER = (Status.PASS, Status.BORDERLINE, Status.NOT_COMPARED, Status.FAIL, Status.ERROR)
_RANK = {str(status): rank for rank, status in enumerate(_ORDER)}

Row = dict[str, Any]


def row_of(index: int, picture: str, comparison: Comparison) -> Row:
    """What is kept of one picture's comparison. ``box_px`` and ``score`` hold a number for every matched detection."""
    found = next((s.details for s in comparison.stages if s.name in _SETS and s.details), {})
    relative = [s.metrics.rel_l2 for s in comparison.stages if s.metrics and s.kind == "continuous"]
    first = comparison.first_bad
    return {
        "index": index,
        "picture": picture,
        "status": str(comparison.status),
        "deterministic": comparison.deterministic,
        "headline": headline(comparison),
        "first_bad": first.name if first else None,
        "verdict": str(first.verdict) if first else None,
        "reference": found.get("reference_count", 0),
        "candidate": found.get("candidate_count", 0),
        "matched": found.get("matched", 0),
        "box_px": [_short(v) for v in found.get("box_px", ())],
        "score": [_short(abs(v)) for v in found.get("score_difference", ())],
        "rel_l2": _short(max(relative, default=0.0)),
        "command": comparison.command,
    }


def failed_row(index: int, picture: str, message: str) -> Row:
    """A picture that could not be compared."""
    status = str(Status.ERROR)
    return {"index": index, "picture": picture, "status": status, "deterministic": True, "headline": message}


def _short(value: float) -> float:
    """Three digits; no NaN or infinity, which JSON does not have."""
    return float(f"{value:.3g}") if math.isfinite(value) else 1e300


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file. What follows the last whole line, left by a process that was killed, is none."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


class Spread:
    """How numbers >= 0 are spread: count and largest exactly, quantiles to 2.4 % (their upper neighbour on a scale of
    100 steps per power of ten from 1e-12 to 1e6)."""

    PER_DECADE, LOW, HIGH = 100, -12, 6

    def __init__(self) -> None:
        self.largest = 0.0
        self.counts = np.zeros((self.HIGH - self.LOW) * self.PER_DECADE + 2, np.int64)

    def add(self, values: Iterable[float]) -> None:
        """Count further numbers."""
        given = np.fromiter(values, np.float64)
        if not given.size:
            return
        self.largest = max(self.largest, float(given.max()))
        with np.errstate(divide="ignore"):
            steps = np.ceil((np.log10(given) - self.LOW) * self.PER_DECADE)
        places = np.clip(steps + 1, 0, len(self.counts) - 1).astype(np.int64)
        np.add.at(self.counts, places, 1)

    @property
    def count(self) -> int:
        """How many numbers were added."""
        return int(self.counts.sum())

    def quantile(self, share: float) -> float:
        """The number that ``share`` of all do not exceed; 0 without any."""
        if not self.count:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self.counts), share * self.count))
        if place == 0:
            return 0.0
        return min(10.0 ** ((place - 1) / self.PER_DECADE + self.LOW), self.largest)

    def by_decade(self) -> list[tuple[str, int]]:
        """(label, count) of every power of ten between the smallest and the largest number; 0 by itself."""
        inner = self.counts[1:-1].reshape(-1, self.PER_DECADE).sum(axis=1)
        inner[-1] += self.counts[-1]
        used = np.flatnonzero(inner)
        rows = [("0", int(self.counts[0]))] if self.counts[0] else []
        if used.size:
            decades = range(int(used[0]), int(used[-1]) + 1)
            rows += [(f"to 1e{k + 1 + self.LOW:+03d}", int(inner[k])) for k in decades]
        return rows

    def to_json(self) -> dict[str, float]:
        """count, median, p99 and max."""
        return {
            "count": self.count,
            "median": self.quantile(0.5),
            "p99": self.quantile(0.99),
            "max": self.largest,
        }


@dataclass
class Summary:
    """All rows together. ``worst`` is in order, the worst first."""

    pictures: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    deterministic: bool = True
    reference: int = 0
    candidate: int = 0
    matched: int = 0
    box_px: Spread = field(default_factory=Spread)
    score: Spread = field(default_factory=Spread)
    rel_l2: Spread = field(default_factory=Spread)
    worst: list[Row] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """The worst of all pictures."""
        return worst(Status(name) for name in self.statuses)

    @property
    def exit_code(self) -> int:
        """As of a single comparison: 0 same, 1 different, 2 could not compare, 3 not deterministic."""
        return exit_code(self.status, self.deterministic)

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        same = sum(self.statuses.get(str(s), 0) for s in (Status.PASS, Status.BORDERLINE))
        explained = self.statuses.get(str(Status.BORDERLINE), 0)
        agree = (str(Status.PASS), str(Status.BORDERLINE))
        others = ", ".join(f"{n} {name}" for name, n in sorted(self.statuses.items()) if name not in agree)
        words = {0: "SAME", 1: "DIFFERENT", 2: "NOT COMPARED", 3: "NOT DETERMINISTIC"}
        text = f"{words[self.exit_code]}: {same} of {self.pictures} pictures agree"
        text += f", {explained} of them explained by margins" if explained else ""
        return text + (f" ({others})" if others else "")

    def to_json(self) -> dict[str, Any]:
        """The versioned JSON form."""
        return {
            "schema": SCHEMA,
            "status": str(self.status),
            "exit_code": self.exit_code,
            "headline": self.headline,
            "pictures": self.pictures,
            "statuses": dict(sorted(self.statuses.items())),
            "detections": {
                "reference": self.reference,
                "candidate": self.candidate,
                "matched": self.matched,
            },
            "box_px": self.box_px.to_json(),
            "score": self.score.to_json(),
            "rel_l2": self.rel_l2.to_json(),
            "worst": self.worst,
        }


def _badness(row: Row) -> tuple[float, ...]:
    """What worse pictures have more of: severity, detections without a partner, pixels, score, relative L2."""
    alone = row.get("reference", 0) + row.get("candidate", 0) - 2 * row.get("matched", 0)
    largest = (max(row.get(name, ()), default=0.0) for name in ("box_px", "score"))
    return (_RANK[row["status"]], alone, *largest, row.get("rel_l2", 0.0))


def summarize(rows: Iterable[Row]) -> Summary:
    """Read rows once."""
    summary, kept = Summary(), []
    for row in rows:
        summary.pictures += 1
        summary.statuses[row["status"]] = summary.statuses.get(row["status"], 0) + 1
        summary.deterministic &= row["deterministic"]
        for name in ("reference", "candidate", "matched"):
            setattr(summary, name, getattr(summary, name) + row.get(name, 0))
        summary.box_px.add(row.get("box_px", ()))
        summary.score.add(row.get("score", ()))
        if "rel_l2" in row:
            summary.rel_l2.add([row["rel_l2"]])
        heapq.heappush(kept, (_badness(row), -row["index"], _told(row)))
        if len(kept) > _WORST:
            heapq.heappop(kept)
    summary.worst = [row for _, _, row in sorted(kept, key=lambda k: k[:2], reverse=True)]
    return summary


def _told(row: Row) -> Row:
    """A row as reports show it: the largest number in place of all."""
    largest = {f"worst_{n}": max(row.get(n, ()), default=0.0) for n in ("box_px", "score")}
    return {k: v for k, v in row.items() if k not in ("box_px", "score")} | largest
