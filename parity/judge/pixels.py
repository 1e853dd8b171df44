"""Judging what detections draw: masks, keypoints, semantic and panoptic maps.

A flipped pixel or a moved keypoint is explained only by the value its decision was made on: the mask's
probability at that pixel, the heat map's value at both places, the gap between the two best classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

_BICUBIC_A = -0.75  # the coefficient of torch's bicubic interpolation


@dataclass
class FlipReport:
    """Differences of discrete per-pixel decisions.

    ``worst_margin`` is the largest distance of a flipped decision from its threshold (inf where the value
    it was made on is not in the traces), ``allowed`` the distance that noise explains. ``unexplained``
    counts the rest.
    """

    compared: int
    flipped: int = 0
    unexplained: int = 0
    worst_margin: float = 0.0
    allowed: float = 0.0
    worst_iou: float = 1.0
    notes: list[str] = field(default_factory=list)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic function in float64, without overflow."""
    x = np.asarray(x, np.float64)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def paste_probability(mask: np.ndarray, box: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Mask probability at image pixels (xs, ys), both (P,), in float64.

    mask (M, M) is the mask head's probability map of one box (x1, y1, x2, y2) in image pixels. The pixel
    centre x + 0.5 lies at (x + 0.5 - x1) / (x2 - x1) * M - 0.5 on the mask's grid; bilinear, zero outside
    the grid. Source: detectron2 layers/mask_ops.py.
    """
    size = mask.shape[0]
    x1, y1, x2, y2 = box.astype(np.float64)
    gx = (xs + 0.5 - x1) / (x2 - x1) * size - 0.5
    gy = (ys + 0.5 - y1) / (y2 - y1) * size - 0.5
    padded = np.pad(mask.astype(np.float64), 1)
    gx, gy = np.clip(gx + 1, 0, size + 1), np.clip(gy + 1, 0, size + 1)
    ix, iy = np.minimum(gx.astype(int), size), np.minimum(gy.astype(int), size)
    fx, fy = gx - ix, gy - iy
    top = padded[iy, ix] * (1 - fx) + padded[iy, ix + 1] * fx
    low = padded[iy + 1, ix] * (1 - fx) + padded[iy + 1, ix + 1] * fx
    return top * (1 - fy) + low * fy


class Paste(NamedTuple):
    """How a mask is decided: detectron2's way, or padded into a whole number of pixels (Detectron)."""

    padded: bool = False
    threshold: float = 0.5


SAMPLED = Paste()


def padded_probability(mask: np.ndarray, box: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Mask probability at image pixels (xs, ys) as Detectron pastes it, in float64.

    The map gets a border of one zero and its box grows with it, is cut to whole pixels (toward zero) and filled
    bilinearly. Source: detectron core/test.py segm_results.
    """
    size = mask.shape[0]
    x1, y1, x2, y2 = _padded_box(box, size)
    padded = np.pad(mask.astype(np.float64), 1)

    def cells(at: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        place = (at - low + 0.5) * (size + 2) / max(high - low + 1, 1) - 0.5
        place = np.clip(place, 0, size + 1)
        first = np.minimum(place.astype(int), size)
        return first, place - first

    (ix, fx), (iy, fy) = cells(xs, x1, x2), cells(ys, y1, y2)
    top = padded[iy, ix] * (1 - fx) + padded[iy, ix + 1] * fx
    low = padded[iy + 1, ix] * (1 - fx) + padded[iy + 1, ix + 1] * fx
    inside = (xs >= x1) & (xs <= max(x2, x1)) & (ys >= y1) & (ys <= max(y2, y1))
    return np.where(inside, top * (1 - fy) + low * fy, 0.0)


def _padded_box(box: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """The box of a padded mask, in whole pixels; float32 as those projects compute it."""
    half = (box[2:] - box[:2]).astype(np.float32) * np.float32(0.5) * np.float32((size + 2.0) / size)
    centre = (box[2:] + box[:2]).astype(np.float32) * np.float32(0.5)
    x1, y1, x2, y2 = np.trunc(np.concatenate([centre - half, centre + half])).astype(int).tolist()
    return x1, y1, x2, y2


class Sources(NamedTuple):
    """What P masks were pasted from, and how."""

    boxes: np.ndarray  # (P, 4), the reference's
    box_px: np.ndarray  # (P,), how far the two sides' boxes differ
    probabilities: Sequence[np.ndarray | None]  # the (M, M) maps; None where they are not recorded
    paste: Paste = SAMPLED


def compare_masks(
    reference: np.ndarray, candidate: np.ndarray, sources: Sources, allowed: float
) -> FlipReport:
    """Compare paired boolean masks (P, H, W).

    A flipped pixel is explained when its probability is within ``allowed`` of the threshold, plus what a shift by the
    boxes' own difference can change (at most one mask cell's contrast per cell).
    """
    report = FlipReport(compared=int(reference.size), allowed=allowed)
    for k in range(len(reference)):
        flipped = reference[k] != candidate[k]
        union = int((reference[k] | candidate[k]).sum())
        inter = int((reference[k] & candidate[k]).sum())
        report.worst_iou = min(report.worst_iou, inter / union if union else 1.0)
        if flipped.any():
            boxes, box_px, probabilities, paste = sources
            behind = _Behind(boxes[k], float(box_px[k]), probabilities[k], paste)
            _judge_flips(report, f"mask {k}", flipped, behind)
    return report


class _Behind(NamedTuple):
    """What a mask was pasted from, and how: its box, how far the sides' boxes differ, its (M, M) probabilities."""

    box: np.ndarray
    box_px: float
    probability: np.ndarray | None
    paste: Paste


def _judge_flips(report: FlipReport, name: str, flipped: np.ndarray, behind: _Behind) -> None:
    box, box_px, probability, paste = behind
    ys, xs = np.nonzero(flipped)
    report.flipped += len(xs)
    if probability is None:
        report.unexplained += len(xs)
        report.worst_margin = float("inf")
        report.notes.append(f"{name}: {len(xs)} pixels differ and its probabilities are not in the traces")
        return
    size = probability.shape[0]
    sides = np.maximum(box[2:].astype(np.float64) - box[:2], 1e-6)
    slack = report.allowed + float((size / sides).sum()) * box_px
    margin = _margins(probability, behind, xs, ys)
    bad = int((margin > slack).sum())
    report.unexplained += bad
    report.worst_margin = max(report.worst_margin, float(margin.max()))
    verdict = f"{bad} unexplained" if bad else "explained"
    reach = f"up to {margin.max():.1e} from {paste.threshold} ({slack:.1e} allowed)"
    report.notes.append(f"{name}: {len(xs)} pixels differ, {reach}: {verdict}")


def _margins(mask: np.ndarray, behind: _Behind, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """How far the probability of each pixel is from the threshold; 0 where another whole box that corners moved by
    ``box_px`` can give puts it on the other side."""
    box, box_px, _, paste = behind
    if not paste.padded:
        return np.abs(paste_probability(mask, box, xs, ys) - paste.threshold)
    moved = (box + np.array(s) for s in itertools.product((0.0, -box_px, box_px), repeat=4))
    shifted = {_padded_box(b, len(mask)): b for b in moved}
    found = np.array([padded_probability(mask, b, xs, ys) - paste.threshold for b in shifted.values()])
    either = (found > 0).any(axis=0) & (found <= 0).any(axis=0)
    return np.where(either, 0.0, np.abs(found).min(axis=0))


def _cubic_weights(t: float) -> np.ndarray:
    """The four weights of torch's bicubic filter for a fractional offset t in [0, 1)."""
    a = _BICUBIC_A

    def near(d: float) -> float:
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: float) -> float:
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return np.array([far(1 + t), near(t), near(1 - t), far(2 - t)])


def heatmap_value(heatmap: np.ndarray, rows: int, cols: int, iy: int, ix: int) -> float:
    """Value at cell (iy, ix) of a heat map (M, M) resized bicubically to (rows, cols), edges clamped.

    Source: detectron2 structures/keypoints.py heatmaps_to_keypoints.
    """
    height, width = heatmap.shape
    sy = (iy + 0.5) * height / rows - 0.5
    sx = (ix + 0.5) * width / cols - 0.5
    y0, x0 = int(np.floor(sy)), int(np.floor(sx))
    ys = np.clip(np.arange(y0 - 1, y0 + 3), 0, height - 1)
    xs = np.clip(np.arange(x0 - 1, x0 + 3), 0, width - 1)
    patch = heatmap[np.ix_(ys, xs)].astype(np.float64)
    return float(_cubic_weights(sy - y0) @ patch @ _cubic_weights(sx - x0))


class HeatMaps(NamedTuple):
    """What keypoints were decoded from."""

    boxes: np.ndarray  # (P, 4), network pixels
    logits: np.ndarray | None  # (P, K, M, M), the reference's; None where they are not recorded
    scale: tuple[float, float] = (1.0, 1.0)  # image pixels per network pixel (x, y)
    least: int = 0  # the fewest cells along a side of a stretched map

    def value_at(self, item: int, keypoint: int, point: np.ndarray) -> float:
        """The logit at the cell that a keypoint at ``point`` (x, y) was decoded from; NaN outside of the map."""
        assert self.logits is not None
        x1, y1, x2, y2 = self.boxes[item].astype(np.float64)
        width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
        cols, rows = max(int(np.ceil(width)), self.least), max(int(np.ceil(height)), self.least)
        ix = round((point[0] / self.scale[0] - x1) * cols / width - 0.5)
        iy = round((point[1] / self.scale[1] - y1) * rows / height - 0.5)
        inside = 0 <= ix < cols and 0 <= iy < rows
        return heatmap_value(self.logits[item, keypoint], rows, cols, iy, ix) if inside else float("nan")


def compare_keypoints(
    reference: np.ndarray, candidate: np.ndarray, maps: HeatMaps, px: float, logit: float
) -> FlipReport:
    """Compare paired keypoints (P, K, 3) of x, y, score.

    A keypoint may move by ``px``; one that moves farther needs two heat-map cells whose logits differ by at
    most ``logit`` times the map's largest magnitude.
    """
    report = FlipReport(compared=int(reference.shape[0] * reference.shape[1]), allowed=px)
    moved = np.abs(reference[..., :2].astype(np.float64) - candidate[..., :2]).max(axis=-1, initial=0.0)
    for i, k in np.argwhere(moved > px):
        report.flipped += 1
        report.worst_margin = max(report.worst_margin, float(moved[i, k]))
        gap = np.inf
        if maps.logits is not None:
            values = [maps.value_at(i, k, p[i, k, :2]) for p in (reference, candidate)]
            gap = abs(values[0] - values[1]) / max(float(np.abs(maps.logits[i, k]).max()), 1e-12)
        if not gap <= logit:
            report.unexplained += 1
        report.notes.append(f"keypoint {k} of item {i} moved {moved[i, k]:.3f} px; peaks differ by {gap:.1e}")
    return report


def compare_argmax(reference: np.ndarray, candidate: np.ndarray, relative: float) -> FlipReport:
    """Compare the best class per pixel of two logit maps (C, H, W): a flip is explained when the
    reference's two classes differ by at most ``relative`` times its largest magnitude."""
    best_r, best_c = reference.argmax(axis=0), candidate.argmax(axis=0)
    flipped = best_r != best_c
    allowed = relative * float(np.abs(reference).max())
    report = FlipReport(compared=int(flipped.size), flipped=int(flipped.sum()), allowed=allowed)
    if report.flipped:
        ys, xs = np.nonzero(flipped)
        ref = reference[:, ys, xs].astype(np.float64)
        gap = ref[best_r[ys, xs], np.arange(len(xs))] - ref[best_c[ys, xs], np.arange(len(xs))]
        report.worst_margin = float(gap.max())
        report.unexplained = int((gap > allowed).sum())
        report.notes.append(f"{len(xs)} pixels change class; gaps up to {gap.max():.1e}")
    return report


class Segmented(NamedTuple):
    """A panoptic map (H, W) and the segments that its ids stand for."""

    ids: np.ndarray
    segments: Sequence[Mapping[str, Any]]


def compare_panoptic(
    reference: Segmented, candidate: Segmented, explained: np.ndarray, score: float
) -> FlipReport:
    """Compare two panoptic maps whose ids only have a meaning through their segment lists.

    Segments are paired by kind, category and largest overlap. Every pixel whose segment is not the pair of
    the other side's counts as flipped; ``explained`` (H, W) marks pixels whose decision was within noise.
    Thing scores of paired segments may differ by ``score``; stuff areas only by the flipped pixels.
    """
    mapping, lonely = _pair_segments(reference, candidate)
    mapped = np.zeros_like(candidate.ids)
    for own, other in mapping.items():
        mapped[candidate.ids == own] = other
    flipped = mapped != reference.ids
    flipped |= (candidate.ids != 0) & ~np.isin(candidate.ids, list(mapping))
    report = FlipReport(compared=int(reference.ids.size), flipped=int(flipped.sum()), allowed=score)
    report.unexplained = int((flipped & ~explained).sum())
    for text in lonely:
        report.notes.append(text)
    by_id = {int(s["id"]): s for s in reference.segments}
    for segment in candidate.segments:
        partner = by_id.get(mapping.get(int(segment["id"]), -1))
        if partner is not None:
            _judge_segment(report, partner, segment, score)
    report.unexplained += len(lonely) if report.flipped == 0 else 0
    return report


def _pair_segments(reference: Segmented, candidate: Segmented) -> tuple[dict[int, int], list[str]]:
    """candidate id -> reference id, and a line for each segment without a partner."""
    mapping: dict[int, int] = {}
    lonely = []
    for segment in candidate.segments:
        own = int(segment["id"])
        options = [
            int(s["id"])
            for s in reference.segments
            if (s["category_id"], s["isthing"]) == (segment["category_id"], segment["isthing"])
            and int(s["id"]) not in mapping.values()
        ]
        counts = {i: int(((candidate.ids == own) & (reference.ids == i)).sum()) for i in options}
        best = max(counts, key=lambda i: counts[i], default=-1)
        if best >= 0 and (counts[best] > 0 or not (candidate.ids == own).any()):
            mapping[own] = best
        else:
            lonely.append(f"segment {own} (category {segment['category_id']}) is only in the candidate")
    lonely += [
        f"segment {s['id']} (category {s['category_id']}) is only in the reference"
        for s in reference.segments
        if int(s["id"]) not in mapping.values()
    ]
    return mapping, lonely


def _judge_segment(report: FlipReport, ref: Mapping[str, Any], cand: Mapping[str, Any], score: float) -> None:
    if "score" in ref or "score" in cand:
        gap = abs(float(ref.get("score", np.nan)) - float(cand.get("score", np.nan)))
        if not gap <= score:
            report.unexplained += 1
            report.notes.append(f"segment {ref['id']}: scores differ by {gap:.1e}")
    if "area" in ref or "area" in cand:
        gap = abs(int(ref.get("area", -(10**9))) - int(cand.get("area", -(10**9))))
        if gap > report.flipped:
            report.unexplained += 1
            report.notes.append(f"segment {ref['id']}: areas differ by {gap} pixels")
