"""Comparing two traces, stage by stage. No framework runs here, and nothing passes without having been compared.

``compare_image`` walks the stages in computation order. A continuous stage is judged by relative L2 (and
the peak and worst channel) against a noise-relative limit (``values.py``), integers and booleans exactly,
detections as sets (``sets.py``), masks, keypoints and maps pixel by pixel (``drawn.py``). Rows that follow the
order of proposals or detections are first put side by side by that match, never by guessing (``rows.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from parity.core.results import StageResult
from parity.core.status import Status
from parity.core.units import array_of
from parity.core.units.table import SET_MEMBERS, SETS, Judge
from parity.judge.context import Context, absent_in, rung_of, stage_table
from parity.judge.detections import limit_budget
from parity.judge.drawn import judge_argmax, judge_keypoints, judge_masks, judge_numbered, judge_panoptic
from parity.judge.edges import on_an_edge
from parity.judge.forced import judge_forced
from parity.judge.rows import line_up
from parity.judge.sets import judge_items
from parity.judge.truth import Lined
from parity.judge.values import judge_refined, judge_values, unlike
from parity.judge.verdicts import judge_origins


def compare_image(context: Context, only: Sequence[str] | None = None) -> list[StageResult]:
    """Compare every array of the two traces of one image (or those of ``only``), in computation order.

    Arrays between modules (optional in the stage table) that a recording of detectron2 or detectron2's hooks
    cannot hold are listed in ``context.skipped``; every other missing or extra array is NOT-COMPARED, which
    never passes.
    """
    if not context.table:
        context.table = stage_table(context.config)
    names = _compared(context, only)
    done = {s.name: _one(context, s.name) for s in SETS if s.name in names}
    results = [done[n] if n in done else _one(context, n) for n in names]
    _accept_nothing(results)
    judge_origins(results)
    return results


def _accept_nothing(results: Sequence[StageResult]) -> None:
    """Where neither side finds anything, that is the same answer, if all that it follows from was compared: the values
    that no detection came of, and for what is computed on detections that there are none."""
    found = {r.name: r for r in results}
    sets = {s.name for s in SETS}
    for result in results:
        inputs = [found.get(name) for name in result.inputs]
        if not result.nothing or result.overall is not Status.NOT_COMPARED or not inputs:
            continue
        agreed = [i for i in inputs if i is not None and not i.bad]
        decided = any((i.kind == "continuous" and i.metrics) or i.nothing for i in agreed)
        if len(agreed) == len(inputs) and decided and (result.name in sets or any(i.nothing for i in agreed)):
            result.status, result.forced_status = Status.PASS, None
            result.message, result.forced_message = "nothing on either side", ""


def _compared(context: Context, only: Sequence[str] | None) -> list[str]:
    """Stage and set names in order; arrays outside the table follow in the reference's order."""
    both = dict.fromkeys([*context.reference, *context.candidate])
    known = [n for n in context.table if n in both]
    rest = [n for n in both if n not in context.table and n.split("/")[0] in ("input", "steps", "output")]
    rest.sort(key=lambda n: ("input", "steps", "output").index(n.split("/")[0]))
    inputs = [n for n in rest if n.startswith("input/")]
    ordered = inputs + known + [n for n in rest if n not in inputs]
    kept = [n for n in ordered if not _skip(context, n)]
    out = dict.fromkeys(SET_MEMBERS[n].name if n in SET_MEMBERS else n for n in kept)
    return [n for n in out if only is None or n in only]


def _skip(context: Context, name: str) -> bool:
    """Whether one side lacks an array it need not have; remembers it in ``context.skipped``."""
    if name in context.reference and name in context.candidate:
        return False
    stage = context.table.get(name)
    optional = stage is not None and stage.optional
    if name not in context.reference:
        excused = context.recorded or optional
    else:
        excused = optional and context.candidate_recorded
    if excused:
        context.skipped.append(name)
        return True
    return False


def _one(context: Context, name: str) -> StageResult:
    spec = next((s for s in SETS if s.name == name), None)
    try:
        result = judge_items(context, spec) if spec else _array(context, name)
    except Exception as error:  # a broken stage must not hide the others, nor pass
        result = StageResult(name, rung_of(name), "unknown", Status.ERROR, f"{type(error).__name__}: {error}")
    stage = context.table.get(spec.boxes if spec else name)
    if stage is not None:
        result.inputs = tuple(
            dict.fromkeys(SET_MEMBERS[i].name if i in SET_MEMBERS else i for i in stage.inputs)
        )
    return result


def _array(context: Context, name: str) -> StageResult:
    result = StageResult(name, rung_of(name), _kind(context, name), Status.PASS)
    absent = absent_in(context, name)
    if absent:
        result.status, result.message = Status.NOT_COMPARED, absent
        return result
    reference, candidate = context.reference[name], context.candidate[name]
    result.shape, result.dtype = reference.shape, str(reference.dtype)
    lined, notes, problem = line_up(context, name, reference, candidate)
    reference, candidate = lined.reference, lined.candidate
    problem = problem or unlike(reference, candidate)
    if problem:
        result.status, result.message = problem
        result.nothing = reference.shape == candidate.shape and reference.size == 0
    else:
        result = _judge_rows(context, result, lined)
    result.message = "; ".join(t for t in (result.message, *notes) if t)
    judge_forced(context, result, name)
    return result


def _judge_rows(context: Context, result: StageResult, lined: Lined) -> StageResult:
    """All rows, and where these do not agree, those that rounding does not pool otherwise."""
    whole = replace(result, details=dict(result.details))
    _judge_array(context, whole, lined)
    if whole.status is not Status.FAIL or lined.rows is None:
        return whole
    report, edge = context.matches[lined.owner], on_an_edge(context, lined.owner)
    kept = np.array([int(row) not in edge for row in lined.rows], bool)
    few = limit_budget(report, context.profile.borderline_share)
    if kept.all() or not kept.any() or int((~kept).sum()) > few:
        return whole
    rest = replace(
        lined, reference=lined.reference[kept], candidate=lined.candidate[kept], rows=lined.rows[kept]
    )
    _judge_array(context, result, rest)
    if result.status is not Status.PASS:
        return whole
    result.status = Status.BORDERLINE
    note = f"without {int((~kept).sum())} of {len(kept)} rows, whose boxes rounding pools otherwise"
    result.message = "; ".join(text for text in (result.message, note) if text)
    return result


def _judge_array(context: Context, result: StageResult, lined: Lined) -> None:
    """As the unit table says."""
    reference, candidate = lined.reference, lined.candidate
    how: Judge = array_of(result.name, context.table).judge
    if how == "refined":
        judge_refined(context, result, lined)
    elif how == "numbered":
        judge_numbered(context, result, reference, candidate)
    elif how == "panoptic":
        judge_panoptic(context, result, reference, candidate)
    elif how == "masks" and reference.dtype == bool:
        judge_masks(context, result, reference, candidate)
    elif how == "keypoints":
        judge_keypoints(context, result, reference, candidate)
    else:
        judge_values(context, result, result.name, lined)
        if how == "sem_seg" and result.status is Status.PASS:
            judge_argmax(context, result, reference, candidate)


def _kind(context: Context, name: str) -> str:
    drawn = array_of(name, context.table).judge in ("masks", "keypoints", "panoptic", "numbered")
    if drawn and name.startswith("output/"):
        return "pixels"
    array = context.reference.get(name, context.candidate.get(name))
    return "continuous" if array is not None and array.dtype.kind == "f" else "exact"
