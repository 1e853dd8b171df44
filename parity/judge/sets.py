"""Detections and proposals as sets: matched, then judged by how far the pairs are apart and by what has no partner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from parity.core.results import StageResult
from parity.core.status import Status
from parity.core.units import forced_name
from parity.core.units.table import PROPOSALS, SetSpec, conventions_of
from parity.judge import detections
from parity.judge.context import Cached, Context, absent_in, items_of, rung_of
from parity.judge.detections import MatchReport, Noise, Rules
from parity.judge.edges import on_an_edge
from parity.judge.explanations import explain_with_traces, origins_of
from parity.judge.limits import decision_noise, set_bounds, set_floor, set_limits, static_noise
from parity.judge.provenance import source_row
from parity.judge.truth import fewest_rows


def judge_items(context: Context, spec: SetSpec) -> StageResult:
    result = StageResult(spec.name, rung_of(spec.name), "set", Status.PASS)
    names = [n for n in (spec.boxes, spec.scores, spec.classes) if n]
    absent = [f"{n}: {t}" for n in names if (t := absent_in(context, n))]
    if absent:
        result.status, result.message = Status.NOT_COMPARED, "; ".join(absent)
        return result
    result.shape = context.reference[spec.boxes].shape
    result.dtype = str(context.reference[spec.boxes].dtype)
    problem = next((p for n in names if (p := _malformed(context, n))), None)
    if problem:
        result.status, result.message = problem
        return result
    reference, candidate = items_of(context.reference, spec), items_of(context.candidate, spec)
    if len(reference) == 0 and len(candidate) == 0:
        result.status, result.message = Status.NOT_COMPARED, "no items on either side: nothing was compared"
        result.nothing = True
        context.matches[spec.name] = detections.compare_sets(reference, candidate, Rules(), Noise(0.0, 0.0))
        return result
    noise = decision_noise(context, spec)
    rules = _rules_of(context.config, spec.rules)
    explain = explain_with_traces(context, spec, noise)
    report = detections.compare_sets(
        reference, candidate, rules, noise, explain, origins_of(context, spec, noise)
    )
    context.matches[spec.name] = report
    _judge_set(context, result, report, spec)
    _judge_forced_set(context, result, spec)
    return result


def _malformed(context: Context, name: str) -> tuple[Status, str] | None:
    reference, candidate = context.reference[name], context.candidate[name]
    if reference.dtype != candidate.dtype:
        return Status.FAIL, f"{name}: dtype {reference.dtype} against {candidate.dtype}"
    if reference.ndim != candidate.ndim or reference.shape[1:] != candidate.shape[1:]:
        return Status.FAIL, f"{name}: shape {reference.shape} against {candidate.shape}"
    if reference.dtype.kind == "f" and not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        return Status.FAIL, f"{name}: NaN or infinity"
    return None


def _rules_of(config: Mapping[str, Any] | None, kind: str) -> Rules:
    """The thresholds that made a set, from detectron2's configuration; unknown ones stay None."""
    model = (config or {}).get("MODEL", {})
    if model.get("META_ARCHITECTURE") == "PanopticDeepLab":  # whose instances are no thresholded boxes
        return Rules()
    last = 0.0 if conventions_of(model) == "detectron2" else 1.0
    try:
        if kind == "rpn":
            rpn = model["RPN"]
            return Rules(None, float(rpn["NMS_THRESH"]), int(rpn["POST_NMS_TOPK_TEST"]), last)
        heads = model[_DETECTED_BY.get(model["META_ARCHITECTURE"], "ROI_HEADS")]
        top = int((config or {})["TEST"]["DETECTIONS_PER_IMAGE"])
        return Rules(float(heads["SCORE_THRESH_TEST"]), float(heads["NMS_THRESH_TEST"]), top, last)
    except (KeyError, TypeError):
        return Rules()


_DETECTED_BY = {"RetinaNet": "RETINANET", "FCOS": "RETINANET", "TensorMask": "TENSOR_MASK"}


def _judge_set(context: Context, result: StageResult, report: MatchReport, spec: SetSpec) -> None:
    profile, deciding = context.profile, _deciding(context, spec, report)
    most = set_limits(context, spec, deciding)
    report, moved = _without_moved(context, spec, report, most)
    px, score = (float(np.abs(a).max(initial=0.0)) for a in (report.box_px, report.score_difference))
    problems, explained = [], [c for c in report.certificates if c.certified]
    if not px <= most.box_px:
        problems.append(f"boxes differ by {px:.2e} px > {most.box_px:.1e}")
    if not score <= most.score:
        problems.append(f"scores differ by {score:.2e} > {most.score:.1e}")
    far = _set_errors(context, spec, report)
    bounds = set_bounds(context, spec, deciding) if far is not None else None
    if far is not None and bounds is not None:
        if not far.box_px <= bounds.far.box_px:
            text = f"(the reference's: {bounds.own.box_px:.1e})"
            problems.append(f"boxes are {far.box_px:.2e} px from float64 > {bounds.far.box_px:.1e} {text}")
        if not far.score <= bounds.far.score:
            text = f"(the reference's: {bounds.own.score:.1e})"
            problems.append(f"scores are {far.score:.2e} from float64 > {bounds.far.score:.1e} {text}")
    problems += [c.text for c in report.uncertified[:5]]
    budget = detections.limit_budget(report, profile.borderline_share)
    lonely = moved + sum(1 for c in explained if c.reason != "order")
    if lonely > budget:
        problems.append(f"{lonely} differences explained by margins, more than the {budget} allowed")
    if not report.pairs:
        problems.append("no item of one side matches any of the other")
    result.status = Status.FAIL if problems else Status.BORDERLINE if explained or moved else Status.PASS
    ties = f"; {report.tied_swaps} ties reordered" if report.tied_swaps else ""
    summary = f"{len(report.pairs)} matched of {report.reference_count} and {report.candidate_count}"
    own = context.set_noise.get(result.name)
    beside = f" (noise {own.box_px:.1e} px, {own.score:.1e} score)" if own is not None else ""
    if far is not None and bounds is not None:
        own = bounds.own
        beside = (
            f"; from float64 {far.box_px:.1e} px, {far.score:.1e} score "
            f"(the reference {own.box_px:.1e} px, {own.score:.1e})"
        )
    result.message = "; ".join(
        [*problems, f"{summary}, worst {px:.1e} px, {score:.1e} score{beside}{ties}"]
        + ([f"{len(explained)} explained by margins"] if explained else [])
        + ([f"{moved} pairs left out, whose proposals rounding pools otherwise"] if moved else [])
    )
    result.details = _set_details(report, px, score) | {"box_limit": most.box_px, "score_limit": most.score}
    if own is not None:
        result.details |= {"box_noise": own.box_px, "score_noise": own.score}
    if far is not None:
        result.details |= {"box_error": far.box_px, "score_error": far.score}


def _without_moved(
    context: Context, spec: SetSpec, report: MatchReport, most: Noise
) -> tuple[MatchReport, int]:
    """The pairs without those that are too far apart because rounding pools their proposal otherwise, and how many
    these are."""
    edge = on_an_edge(context, PROPOSALS.name) if PROPOSALS.name in context.matches else frozenset()
    far = np.flatnonzero(~((report.box_px <= most.box_px) & (np.abs(report.score_difference) <= most.score)))
    if spec.rules == "rpn" or not edge or not len(far) or len(far) == len(report.pairs):
        return report, 0
    items, trace = items_of(context.reference, spec), Cached(context.reference)
    if any(source_row(trace, items, report.pairs[k][0]) not in edge for k in far):
        return report, 0
    near = np.setdiff1d(np.arange(len(report.pairs)), far)
    rest = replace(
        report,
        pairs=[report.pairs[k] for k in near],
        box_px=report.box_px[near],
        score_difference=report.score_difference[near],
        iou=report.iou[near],
    )
    return rest, len(far)


def _set_errors(context: Context, spec: SetSpec, report: MatchReport) -> Noise | None:
    """How far the candidate's matched items are from the float64 run; None where that holds none of them."""
    known = _known_pairs(context, spec, report)
    if not known or context.truth is None:
        return None
    _, own, exact = zip(*known, strict=True)
    gaps = [
        np.abs(context.candidate[n][list(own)].astype(np.float64) - context.truth.arrays[n][list(exact)])
        for n in (spec.boxes, spec.scores)
    ]
    return Noise(float(gaps[0].max(initial=0.0)), float(gaps[1].max(initial=0.0)))


def _deciding(context: Context, spec: SetSpec, report: MatchReport) -> int:
    """By how many coordinates the largest distance from the float64 run is decided; 0 where there is none."""
    known = _known_pairs(context, spec, report)
    if not known or context.truth is None:
        return 0
    arrays = (context.truth.arrays, context.reference, context.candidate)
    reference, candidate, exact = (list(rows) for rows in zip(*known, strict=True))
    numbers = [
        a[spec.boxes][rows].reshape(-1, 1)
        for a, rows in zip(arrays, (exact, reference, candidate), strict=True)
    ]
    return fewest_rows(*numbers)[1]


def _known_pairs(context: Context, spec: SetSpec, report: MatchReport) -> list[tuple[int, int, int]]:
    """Rows of the pairs whose item the float64 run has, too: the reference's, the candidate's and that run's."""
    rows = context.truth.rows.get(spec.name, {}) if context.truth else {}
    return [(i, j, rows[i]) for i, j in report.pairs if i in rows]


def _set_details(report: MatchReport, px: float, score: float) -> dict[str, Any]:
    return {
        "reference_count": report.reference_count,
        "candidate_count": report.candidate_count,
        "matched": len(report.pairs),
        "pairs": [list(p) for p in report.pairs],
        "box_px": [float(v) for v in report.box_px],
        "score_difference": [float(v) for v in report.score_difference],
        "worst_box_px": px,
        "worst_score": score,
        "worst_iou": float(report.iou.min(initial=1.0)),
        "certificates": [
            {
                "side": c.side,
                "index": c.index,
                "reason": c.reason,
                "value": c.value,
                "threshold": c.threshold,
                "margin": c.margin,
                "allowed": c.allowed,
                "certified": c.certified,
                "text": c.text,
            }
            for c in report.certificates
        ],
    }


def _judge_forced_set(context: Context, result: StageResult, spec: SetSpec) -> None:
    """Replay of a discrete step on the reference's own inputs: the same items in the same order, where only
    exactly tied items may change places."""
    names = [n for n in (spec.boxes, spec.scores, spec.classes) if n]
    present = [forced_name(n) in context.candidate for n in names]
    if not any(present):
        return
    if not all(present):
        result.forced_status, result.forced_message = Status.NOT_COMPARED, "the forced set is incomplete"
        return
    if another := context.other_input(spec.boxes):
        result.forced_status, result.forced_message = Status.NOT_COMPARED, another
        return
    reference, candidate = items_of(context.reference, spec), items_of(context.candidate, spec, forced_name)
    bad = [
        n for n in names if not np.isfinite(np.asarray(context.candidate[forced_name(n)], np.float64)).all()
    ]
    if bad or not len(reference) or not len(candidate):
        empty = len(reference) == len(candidate) == 0 and not bad
        result.forced_status = Status.NOT_COMPARED if empty else Status.FAIL
        result.forced_message = f"replayed on the same input: {len(reference)} items against {len(candidate)}"
        return
    # Where limits are measured a replay, which is float32 in every run, differs by the roundings of its own steps.
    measured = context.truth is not None and spec.name in context.truth.noise
    most = set_floor(context, spec) if measured else static_noise(context, spec, forced=True)
    # Boxes that are decoded a rounding apart may overlap by a rounding more or less than NMS allows.
    rules = replace(_rules_of(context.config, spec.rules), score_threshold=None)
    rounding = Noise(set_floor(context, spec).box_px, 0.0)
    report = detections.compare_sets(reference, candidate, rules, rounding)
    context.replayed[spec.name] = report
    px, score = (float(np.abs(a).max(initial=0.0)) for a in (report.box_px, report.score_difference))
    fine = not report.uncertified and px <= most.box_px and score <= most.score
    fine &= len(report.certificates) <= detections.limit_budget(report, context.profile.borderline_share)
    kept = len(reference) == len(candidate) and not report.certificates
    result.forced_status = (Status.PASS if kept else Status.BORDERLINE) if fine else Status.FAIL
    others = f", {len(report.certificates)} items differ" if report.certificates else ""
    counts = "" if len(reference) == len(candidate) else f", {len(reference)} items against {len(candidate)}"
    result.forced_message = f"replayed: worst {px:.1e} px, {score:.1e} score{others}{counts}"
