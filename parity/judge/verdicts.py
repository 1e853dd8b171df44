"""Where a difference comes from: LOCAL, INHERITED, AMPLIFIED or UNKNOWN, by a stage's inputs and its forced twin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity.core.results import StageResult
from parity.core.status import Status, Verdict


def judge_origins(results: list[StageResult]) -> None:
    """LOCAL, INHERITED, AMPLIFIED or UNKNOWN for every bad stage (see ``Verdict``)."""
    by_name = {r.name: r for r in results}
    for result in results:
        errors = [e for i in result.inputs if i in by_name for e in [_error(by_name[i])] if e is not None]
        own = _error(result)
        if own is not None and errors and max(errors) > 0:
            result.factor = own / max(errors)
        if not result.bad:
            continue
        sources = [by_name[i] for i in result.inputs if i in by_name]
        if result.forced_status in (Status.FAIL, Status.ERROR):
            result.verdict = Verdict.LOCAL
        elif sources and all(not s.bad for s in sources) and result.forced_status is None:
            result.verdict = Verdict.LOCAL
        elif result.forced_status in (Status.PASS, Status.BORDERLINE):
            result.verdict = _not_local(sources)
        elif sources and any(s.bad for s in sources):
            result.verdict = Verdict.INHERITED
        else:
            result.verdict = Verdict.LOCAL if _has_no_inputs(result) else Verdict.UNKNOWN


def _not_local(sources: Sequence[StageResult]) -> Verdict:
    """The verdict of a bad stage that is right on the reference's input. Where its own inputs are not only
    within their limits but exactly the reference's, nothing came in, and the stage behaves differently by
    itself."""
    if any(s.bad for s in sources):
        return Verdict.INHERITED
    exact = all(s.kind == "exact" or (s.metrics is not None and s.metrics.max_abs == 0) for s in sources)
    return Verdict.LOCAL if exact else Verdict.AMPLIFIED


def _has_no_inputs(result: StageResult) -> bool:
    return result.name.startswith("input/")


def _error(result: StageResult) -> float | None:
    metrics = result.metrics
    return metrics.rel_l2 if metrics is not None and np.isfinite(metrics.rel_l2) else None
