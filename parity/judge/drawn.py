"""What is drawn: masks, keypoints, semantic and panoptic maps, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity.core.profiles import EPSILON, ROUNDINGS
from parity.core.results import StageResult
from parity.core.status import Status, worst
from parity.core.units.table import DETECTIONS, MASK_LOGITS, RESULTS, conventions_of
from parity.judge import pixels
from parity.judge.context import Arrays, Cached, Context, items_of
from parity.judge.limits import argmax_limit, heat_maps, keypoint_limits, probability_limit, set_limits
from parity.judge.truth import Lined
from parity.judge.windows import has_windows, mask_window


def _finish_pixels(result: StageResult, report: pixels.FlipReport, what: str) -> None:
    result.details = {
        "compared": report.compared,
        "flipped": report.flipped,
        "unexplained": report.unexplained,
        "worst_margin": report.worst_margin,
        "worst_iou": report.worst_iou,
        "notes": report.notes[:50],
    }
    if report.unexplained:
        result.status = Status.FAIL
    elif report.flipped:
        result.status = worst([result.status, Status.BORDERLINE])
    shown = "; ".join(report.notes[:3])
    flipped = f"{report.flipped} of {report.compared} {what} differ, {report.unexplained} unexplained"
    text = f"{flipped}; {shown}" if report.flipped or report.notes else f"all {report.compared} {what} equal"
    result.message = "; ".join(t for t in (result.message, text) if t)


def judge_masks(context: Context, result: StageResult, reference: np.ndarray, candidate: np.ndarray) -> None:
    report = context.matches[RESULTS.name]
    boxes = context.reference[RESULTS.boxes][[p[0] for p in report.pairs]]
    probabilities: list[np.ndarray | None] = []
    if has_windows(context.reference) and context.config is not None:
        boxes, probabilities = _windows(context, boxes, [p[0] for p in report.pairs])
    for i, j in report.pairs if not probabilities else ():
        own = _mask_probability(context.reference, i)
        probabilities.append(_mask_probability(context.candidate, j) if own is None else own)
    # A misplaced box is a fault of its own; it must not excuse its mask.
    shift = np.minimum(report.box_px, set_limits(context, RESULTS).box_px)
    sources = pixels.Sources(boxes, shift, probabilities, _paste_of(context))
    flips = pixels.compare_masks(reference, candidate, sources, probability_limit(context))
    if flips.unexplained == 0:
        context.explained = (reference != candidate).any(axis=0)
    _finish_pixels(result, flips, "mask pixels")
    result.message += f"; worst mask IoU {flips.worst_iou:.6f}"


def _windows(
    context: Context, boxes: np.ndarray, rows: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray | None]]:
    """What TensorMask's masks cover, and their probabilities; a box where its window is not found."""
    assert context.config is not None
    trace, items = Cached(context.reference), items_of(context.reference, RESULTS)
    found = [mask_window(trace, context.config, items, row) for row in rows]
    covered = [box if w is None else w[1] for w, box in zip(found, boxes, strict=True)]
    return np.array(covered).reshape(-1, 4), [None if w is None else w[0] for w in found]


def judge_pasted(context: Context, probe: StageResult, lined: Lined) -> None:
    """Masks pasted from the same probabilities into the same boxes: a pixel may differ only where its probability is
    a rounding away from the threshold."""
    if np.array_equal(lined.reference, lined.candidate):
        probe.message = "equal"
        return
    rows = list(range(len(lined.reference))) if lined.rows is None else lined.rows.tolist()
    boxes = context.reference[RESULTS.boxes][rows]
    if has_windows(context.reference) and context.config is not None:
        boxes, behind = _windows(context, boxes, rows)
    else:
        behind = [_mask_probability(context.reference, k) for k in rows]
    sources = pixels.Sources(boxes, np.zeros(len(rows)), behind, _paste_of(context))
    flips = pixels.compare_masks(lined.reference, lined.candidate, sources, ROUNDINGS * EPSILON)
    _finish_pixels(probe, flips, "mask pixels")


def _paste_of(context: Context) -> pixels.Paste:
    """How masks get into the picture."""
    model = (context.config or {}).get("MODEL", {})
    if conventions_of(model) == "detectron2":
        return pixels.SAMPLED
    return pixels.Paste(True, float(model.get("ROI_MASK_HEAD", {}).get("THRESH", 0.5)))


def _mask_probability(trace: Arrays, index: int) -> np.ndarray | None:
    """Probability map (M, M) behind an output mask; None where the trace does not hold it."""
    if MASK_LOGITS not in trace:
        return _refined_probability(trace, index)
    logits, row = trace[MASK_LOGITS], _network_row(trace, index)
    if row is None or row >= len(logits):
        return None
    label = int(trace[RESULTS.classes or ""][index]) if logits.shape[1] > 1 else 0
    return pixels.sigmoid(logits[row, label])


def _refined_probability(trace: Arrays, index: int) -> np.ndarray | None:
    """The same of a model whose masks have no logits of every class: PointRend's."""
    name = f"{DETECTIONS.name}/pred_masks"
    row = _network_row(trace, index) if name in trace else None
    return None if row is None or row >= len(trace[name]) else trace[name][row, 0].astype(np.float64)


def _network_row(trace: Arrays, index: int) -> int | None:
    """Row, before empty boxes were dropped, of the output's item ``index``: found by its unchanged score."""
    scores = trace[RESULTS.scores]
    if DETECTIONS.scores not in trace:
        return index
    before = trace[DETECTIONS.scores]
    if len(before) == len(scores):
        return index
    rows = np.flatnonzero(before == scores[index])
    rank = int((scores[:index] == scores[index]).sum())
    return int(rows[rank]) if rank < len(rows) else None


def judge_keypoints(
    context: Context, result: StageResult, reference: np.ndarray, candidate: np.ndarray
) -> None:
    spec = RESULTS if result.name.startswith("output") else DETECTIONS
    report = context.matches.get(spec.name) or context.matches[RESULTS.name]
    rows = [p[0] for p in report.pairs]
    flips, worst = keypoint_flips(context, result.name, reference, candidate, rows)
    if not worst <= keypoint_limits(context, result.name)[1]:
        result.status, result.message = Status.FAIL, f"keypoint scores differ by {worst:.1e} relative"
    _finish_pixels(result, flips, "keypoints")


def keypoint_flips(
    context: Context,
    name: str,
    reference: np.ndarray,
    candidate: np.ndarray,
    rows: Sequence[int] | None,
) -> tuple[pixels.FlipReport, float]:
    """Moved keypoints and the largest relative score difference. ``rows``: which of the reference's
    detections the arrays belong to; None for all of them in order."""
    final, (px, logit) = name.startswith("output"), keypoint_limits(context, name)
    spec, heat_name = RESULTS if final else DETECTIONS, heat_maps(name)
    heat = context.reference[heat_name] if heat_name in context.reference else None
    image, network = (context.reference[f"input/{n}"].shape for n in ("image", "resized"))
    model = (context.config or {}).get("MODEL", {})
    rescaled = final and conventions_of(model) != "detectron"  # which decodes in pixels of the picture
    scale = (image[1] / network[1], image[0] / network[0]) if rescaled else (1.0, 1.0)
    chosen = slice(None) if rows is None else list(rows)
    boxes = context.reference[spec.boxes][chosen] / np.array([*scale, *scale])
    heat = None if heat is None else heat[chosen]
    least = int(model.get("ROI_KEYPOINT_HEAD", {}).get("INFERENCE_MIN_SIZE", 0))
    maps = pixels.HeatMaps(boxes, heat, scale, least)
    flips = pixels.compare_keypoints(reference, candidate, maps, px, logit)
    scores = [a[..., 2].astype(np.float64) for a in (reference, candidate)]
    worst = (np.abs(scores[0] - scores[1]) / (np.abs(scores[0]) + 1e-3)).max(initial=0.0)
    # A score is a quotient of exponentials: its relative error is the logits' absolute one.
    largest = 1.0 if heat is None else max(1.0, float(np.abs(heat).max(initial=0.0)))
    return flips, float(worst) / largest


def judge_argmax(context: Context, result: StageResult, reference: np.ndarray, candidate: np.ndarray) -> None:
    flips = pixels.compare_argmax(reference, candidate, argmax_limit(result))
    changed = reference.argmax(axis=0) != candidate.argmax(axis=0)
    if flips.unexplained == 0:
        context.explained = changed if context.explained is None else context.explained | changed
    _finish_pixels(result, flips, "pixel classes")


def judge_panoptic(
    context: Context, result: StageResult, reference: np.ndarray, candidate: np.ndarray
) -> None:
    if not context.reference_segments or not context.candidate_segments:
        result.status, result.message = Status.NOT_COMPARED, "a side has no segment list"
        return
    explained = np.zeros(reference.shape, bool) if context.explained is None else context.explained
    flips = pixels.compare_panoptic(
        pixels.Segmented(reference, context.reference_segments),
        pixels.Segmented(candidate, context.candidate_segments),
        explained,
        context.profile.score if context.truth is None else set_limits(context, RESULTS).score,
    )
    _finish_pixels(result, flips, "pixels")


def judge_numbered(
    context: Context, result: StageResult, reference: np.ndarray, candidate: np.ndarray
) -> None:
    """A map of segments (H, W), or their masks (P, H, W): a pixel may differ only where its class may."""
    flipped = reference != candidate
    explained = np.zeros(reference.shape[-2:], bool) if context.explained is None else context.explained
    report = pixels.FlipReport(compared=int(flipped.size), flipped=int(flipped.sum()))
    report.unexplained = int((flipped & ~explained).sum())
    _finish_pixels(result, report, "pixels")
