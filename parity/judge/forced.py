"""The second comparison of an array: what the candidate made of the reference's own input."""

from __future__ import annotations

from dataclasses import replace

from parity.core.metrics import measure
from parity.core.profiles import truth_limit
from parity.core.results import StageResult
from parity.core.status import Status
from parity.core.units import array_of, forced_name
from parity.judge.context import Context
from parity.judge.drawn import judge_pasted, keypoint_flips
from parity.judge.limits import forced_limit, keypoint_limits
from parity.judge.rows import line_up_replayed
from parity.judge.truth import forced_errors
from parity.judge.values import agreed, judge_exact, settled, unlike, verdict_of


def judge_forced(context: Context, result: StageResult, name: str) -> None:
    """The second comparison: what the candidate made of the reference's own input, row by row."""
    forced = forced_name(name)
    if forced not in context.candidate:
        return
    if another := context.other_input(name):
        result.forced_status, result.forced_message = Status.NOT_COMPARED, another
        return
    lined = line_up_replayed(context, name, context.reference[name], context.candidate[forced])
    reference, candidate = lined.reference, lined.candidate
    problem = unlike(reference, candidate)
    if problem:
        result.forced_status, result.forced_message = problem
        return
    if reference.dtype.kind != "f":
        probe = StageResult(name, result.rung, "exact", Status.PASS)
        if result.kind == "pixels" and reference.dtype == bool:
            judge_pasted(context, probe, lined)
        else:
            judge_exact(probe, reference, candidate)
        result.forced_status, result.forced_message = probe.status, probe.message
        return
    if array_of(name, context.table).judge == "keypoints":
        rows = None if lined.rows is None else lined.rows.tolist()
        flips, worst = keypoint_flips(context, name, reference, candidate, rows)
        fine = flips.unexplained == 0 and worst <= keypoint_limits(context, name)[1]
        result.forced_status = Status.PASS if fine else Status.FAIL
        moved = f"{flips.flipped} of {flips.compared} keypoints moved, {flips.unexplained} unexplained"
        result.forced_message = f"{moved}; scores to {worst:.1e}"
        return
    assert context.inputs is not None
    if array_of(name, context.table).judge == "refined":
        candidate, note = settled(reference, candidate)
        lined = replace(lined, candidate=candidate)
        errors = forced_errors(context.truth, context.inputs, name, lined, agreed)
        bound, result.forced_errors = forced_limit(context, name), errors
        if errors is not None and context.truth is not None:
            bound = truth_limit(context.profile, errors.reference, True, context.truth.own, errors.numbers)
        result.forced_limit, result.forced_metrics = bound, measure(reference, candidate)
        result.forced_status, message = verdict_of(result, bound, forced=True)
        result.forced_message = "; ".join(text for text in (message, note) if text)
        return
    result.forced_errors = forced_errors(context.truth, context.inputs, name, lined)
    if result.forced_errors is not None and context.truth is not None:
        errors = result.forced_errors
        bound = truth_limit(context.profile, errors.reference, True, context.truth.own, errors.numbers)
    else:
        bound = forced_limit(context, name)
    result.forced_limit, result.forced_metrics = bound, measure(reference, candidate)
    result.forced_status, result.forced_message = verdict_of(result, bound, forced=True)
