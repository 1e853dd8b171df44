"""Rows of two arrays side by side: in the order in which the sets they belong to were matched."""

from __future__ import annotations

import numpy as np

from parity.core.status import Status
from parity.core.units import row_owners
from parity.judge.context import Arrays, Context, HasRows
from parity.judge.truth import Lined


def _rows(trace: Arrays, name: str) -> int:
    if isinstance(trace, HasRows):
        return trace.rows(name)
    array = trace[name]
    return len(array) if array.ndim else 1


def line_up(
    context: Context, name: str, reference: np.ndarray, candidate: np.ndarray
) -> tuple[Lined, list[str], tuple[Status, str] | None]:
    """Rows of proposals and detections side by side, as their sets were matched, within the recorded rows."""
    owners = row_owners(name, context.table)
    owner = next((o.name for o in owners if o.name in context.matches), "")
    report, whole = context.matches.get(owner), Lined(reference, candidate)
    total_r, total_c = _rows(context.reference, name), _rows(context.candidate, name)
    if report is None and any(o.boxes in context.reference for o in owners):
        text = f"its rows follow {owners[0].name}, which could not be matched"
        return whole, [], (Status.NOT_COMPARED, text)
    if report is None or reference.ndim == 0:
        held = min(len(reference), len(candidate)) if owners and reference.ndim and candidate.ndim else 0
        if held and total_r == total_c and held < total_r:
            # Rows of the proposals that both sides were given; a recording keeps the first of them.
            notes = [f"first {held} of {total_r} rows are recorded and compared"]
            return Lined(reference[:held], candidate[:held]), notes, None
        return whole, [], None
    counts = report.reference_count, report.candidate_count
    totals = (
        _recorded_rows(total_r, len(reference), counts[0]),
        _recorded_rows(total_c, len(candidate), counts[1]),
    )
    if totals != counts:
        return whole, [], (Status.FAIL, f"{totals} rows do not belong to {counts} items")
    pairs = [(i, j) for i, j in report.pairs if i < len(reference) and j < len(candidate)]
    notes = []
    if len(pairs) < len(report.pairs):
        notes.append(f"first {len(pairs)} of {len(report.pairs)} matched rows are recorded and compared")
    if not pairs and report.pairs:
        return whole, notes, (Status.NOT_COMPARED, "no matched row is recorded on both sides")
    rows, cols = (np.array([p[k] for p in pairs], int) for k in (0, 1))
    return Lined(reference[rows], candidate[cols], rows, owner), notes, None


def line_up_replayed(context: Context, name: str, reference: np.ndarray, candidate: np.ndarray) -> Lined:
    """Rows side by side of what the candidate made of the reference's own input.

    They are those of the input, in its order, unless the unit that wrote the array chose its items, too: of equal
    scores either may come first, and a sort need not say which. Then rows follow the items as they were matched.
    """
    if reference.ndim and is_cut(context, name):
        held = min(len(reference), len(candidate))
        reference, candidate = reference[:held], candidate[:held]
    whole, stage = Lined(reference, candidate), context.table.get(name)
    for owner in row_owners(name, context.table) if stage is not None else ():
        chosen, report = context.table.get(owner.boxes), context.replayed.get(owner.name)
        if stage is None or chosen is None or chosen.unit != stage.unit or report is None or not report.pairs:
            continue
        if (len(reference), len(candidate)) != (report.reference_count, report.candidate_count):
            return whole
        rows, cols = (np.array([p[k] for p in report.pairs], int) for k in (0, 1))
        return Lined(reference[rows], candidate[cols], rows, owner.name)
    return whole


def _recorded_rows(total: int, held: int, count: int) -> int:
    """Rows an array stands for. A recording of detectron2 keeps the first 20 rows of ROI features without
    saying so; such an array stands for the whole set."""
    return count if total == held == _RECORDED_ROI_ROWS < count else total


_RECORDED_ROI_ROWS = 20


def is_cut(context: Context, name: str) -> bool:
    stage = context.table.get(name)
    return stage is not None and stage.roi_features
