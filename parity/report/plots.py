"""Pictures of a comparison, as text that goes straight into an HTML page. Needs matplotlib and Pillow."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from parity.core.results import Comparison, StageResult
from parity.core.status import Status

INK, MUTED, GRID = "#1d2530", "#6b7785", "#e3e8ee"
_FREE, _FORCED, NOISE, LIMIT, _BAD = "#2563eb", "#0d9488", "#9aa5b1", "#d97706", "#dc2626"
_TRUTH = "#7c3aed"
REFERENCE, CANDIDATE, SAME = "#2563eb", "#ea580c", "#16a34a"


def svg(figure: Figure, background: str = "") -> str:
    """The figure as inline SVG, without the XML prologue. A file of its own needs a ``background`` colour: nobody
    knows on what it is shown."""
    paper: dict[str, Any] = {"facecolor": background} if background else {"transparent": True}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "parity"}):
        out = io.StringIO()
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None}, **paper)
    text = out.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure, dpi: int = 100) -> str:
    """The figure as a data URL of a PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", bbox_inches="tight", dpi=dpi, facecolor="white")
    return _data_url(out.getvalue())


def photo(figure: Figure, dpi: int = 100) -> str:
    """The figure as a data URL of a WebP picture: a fifth of a PNG's size where a photograph is below the lines."""
    out = io.BytesIO()
    options = {"quality": 88, "method": 4}
    figure.savefig(out, format="webp", bbox_inches="tight", dpi=dpi, facecolor="white", pil_kwargs=options)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def _data_url(data: bytes) -> str:
    """PNG bytes as a data URL."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def plain_axes(figure: Figure, position: tuple[int, int, int] = (1, 1, 1)) -> Any:
    """Axes without a frame, in the colours of all plots."""
    axes = figure.add_subplot(*position)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.set_axisbelow(True)
    return axes


def growth(comparison: Comparison) -> str:
    """Error by stage in computation order: free-running, on the same input, the noise and the limit (SVG)."""
    stages = [s for s in comparison.stages if s.metrics is not None and s.kind == "continuous"]
    if len(stages) < 2:
        return ""
    figure = Figure(figsize=(10.5, 3.6))
    axes = plain_axes(figure)
    x = np.arange(len(stages))
    series = (
        ("limit", [s.limit.value if s.limit else None for s in stages], LIMIT, "--", ""),
        ("reference's own noise", [s.limit.noise if s.limit else None for s in stages], NOISE, "-", ""),
        ("from float64", [s.errors.candidate.rel_l2 if s.errors else None for s in stages], _TRUTH, "-", "^"),
        (
            "same input",
            [s.forced_metrics.rel_l2 if s.forced_metrics else None for s in stages],
            _FORCED,
            "-",
            "s",
        ),
        ("end to end", [s.metrics.rel_l2 if s.metrics else None for s in stages], _FREE, "-", "o"),
    )
    lowest = _floor([v for _, values, *_ in series for v in values])
    for label, values, colour, line, marker in series:
        y = np.array([np.nan if v is None else max(float(v), lowest) for v in values])
        if np.isfinite(y).any():
            axes.plot(x, y, line, marker=marker, color=colour, label=label, lw=1.6, ms=4, clip_on=False)
    _mark_first_bad(axes, comparison, stages)
    axes.set_yscale("log")
    axes.set_ylim(bottom=lowest)
    axes.annotate(
        "exact",
        (0, 0),
        xycoords="axes fraction",
        xytext=(4, 4),
        textcoords="offset points",
        color=MUTED,
        fontsize=7,
        ha="left",
    )
    axes.set_ylabel("relative L2 error", color=MUTED, fontsize=9)
    axes.set_xticks(x, [_label(s.name) for s in stages], rotation=60, ha="right", fontsize=7)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.legend(
        frameon=False, fontsize=8, labelcolor=INK, ncols=4, loc="upper left", bbox_to_anchor=(0, 1.14)
    )
    return svg(figure)


def _floor(values: Sequence[float | None]) -> float:
    """A decade below the smallest positive value: where exact agreement is drawn on a logarithmic axis."""
    positive = [float(v) for v in values if v is not None and np.isfinite(v) and v > 0]
    return 10.0 ** (np.floor(np.log10(min(positive))) - 1) if positive else 1e-17


def _mark_first_bad(axes: Any, comparison: Comparison, stages: Sequence[StageResult]) -> None:
    first = comparison.first_bad
    place = next((i for i, s in enumerate(stages) if first is not None and s.name == first.name), None)
    if place is not None:
        axes.axvspan(place - 0.5, place + 0.5, color=_BAD, alpha=0.12, lw=0)
        axes.annotate(
            "starts here",
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            color=_BAD,
            fontsize=8,
            ha="center",
        )


def _label(name: str) -> str:
    """A stage's name short enough for an axis."""
    text = name.removeprefix("steps/").replace("backbone.bottom_up", "").replace("proposal_generator.", "")
    return text.replace("roi_heads.", "").strip("./")


def heat(reference: np.ndarray, candidate: np.ndarray) -> str:
    """Where two arrays differ (PNG): the reference, the absolute difference, and the error by channel."""
    ref, cand = reference.astype(np.float64), candidate.astype(np.float64)
    if ref.ndim == 4:
        ref, cand = _as_map(ref), _as_map(cand)
    elif ref.ndim == 2:
        ref, cand = ref[None], cand[None]
    else:
        return ""
    diff = np.abs(cand - ref)
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    panels = (
        ("reference, mean over channels", ref.mean(axis=0), "gray"),
        ("|difference|, largest", diff.max(axis=0), "magma"),
    )
    for k, (title, image, colours) in enumerate(panels):
        axes = figure.add_subplot(1, 3, k + 1)
        shown = axes.imshow(image, cmap=colours, aspect="auto" if reference.ndim == 2 else "equal")
        axes.set_title(title, fontsize=9, color=INK)
        axes.tick_params(labelsize=7, colors=MUTED, length=0)
        figure.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=7, colors=MUTED)
    axes = plain_axes(figure, (1, 3, 3))
    error = _by_channel(reference.astype(np.float64), candidate.astype(np.float64))
    lowest = _floor(list(error))
    axes.bar(np.arange(len(error)), np.maximum(error, lowest), 1.0, color=_FREE, alpha=0.7)
    axes.set_yscale("log")
    axes.set_ylim(bottom=lowest)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(which="minor", labelsize=7, labelcolor=MUTED)
    axes.set_title("relative L2 by channel", fontsize=9, color=INK)
    return png(figure, 110)


def _as_map(array: np.ndarray) -> np.ndarray:
    """(N, C, H, W) -> (C, H, W): the single item, or the first items as a grid of tiles."""
    side = max(1, min(4, int(np.sqrt(len(array)))))
    rows = [np.concatenate(list(array[side * r : side * r + side]), axis=2) for r in range(side)]
    return np.concatenate(rows, axis=1)


def _by_channel(ref: np.ndarray, cand: np.ndarray) -> np.ndarray:
    axes = tuple(a for a in range(ref.ndim) if a != 1)
    scale = np.sqrt((ref**2).sum(axis=axes))
    error = np.sqrt(((cand - ref) ** 2).sum(axis=axes))
    return np.divide(error, scale, out=np.zeros_like(error), where=scale > 0)


class Labelled(NamedTuple):
    """One side's boxes, (N, 4) xyxy pixels, and what stands beside each."""

    boxes: np.ndarray
    labels: Sequence[str]


class _Outline(NamedTuple):
    colour: str
    width: float
    filled: bool = False


def overlay(
    image: np.ndarray, reference: Labelled, candidate: Labelled, details: dict[str, Any], limit_px: float
) -> str:
    """Both sides' boxes on the picture (WebP). Equal pairs are thin and green; a pair that differs shows both
    boxes, an item that only one side has is filled. image: (H, W, 3) BGR uint8."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(10.5, 10.5 * height / max(width, 1)))
    axes = figure.add_axes((0, 0, 1, 1))
    grey = _rgb(image).astype(np.float64) * 0.6 + 255 * 0.4
    axes.imshow(grey.astype(np.uint8))
    axes.set_axis_off()
    pairs = [tuple(p) for p in details.get("pairs", [])]
    gaps = details.get("box_px", [0.0] * len(pairs))
    for (i, j), gap in zip(pairs, gaps, strict=True):
        if gap <= limit_px:
            _box(axes, reference, i, _Outline(SAME, 1.2))
        else:
            _box(axes, reference, i, _Outline(REFERENCE, 2.2))
            _box(axes, candidate, j, _Outline(CANDIDATE, 2.2))
    for i in sorted(set(range(len(reference.boxes))) - {p[0] for p in pairs}):
        _box(axes, reference, i, _Outline(REFERENCE, 2.4, filled=True))
    for j in sorted(set(range(len(candidate.boxes))) - {p[1] for p in pairs}):
        _box(axes, candidate, j, _Outline(CANDIDATE, 2.4, filled=True))
    return photo(figure, 90)


def _box(axes: Any, side: Labelled, index: int, outline: _Outline) -> None:
    x1, y1, x2, y2 = (float(v) for v in side.boxes[index, :4])
    colour, width, filled = outline
    face = (*matplotlib.colors.to_rgb(colour), 0.25 if filled else 0.0)  # pyright: ignore
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, ec=colour, fc=face, lw=width))
    style = {"fc": colour, "ec": "none", "pad": 1.2, "alpha": 0.85}
    axes.text(x1, y1, side.labels[index], color="white", fontsize=7, va="bottom", bbox=style, clip_on=True)


def mask_difference(image: np.ndarray, reference: np.ndarray, candidate: np.ndarray) -> str:
    """Mask pixels only one side has (WebP), or "" where there are none. Masks (N, H, W), paired."""
    only_reference = (reference & ~candidate).any(axis=0)
    only_candidate = (candidate & ~reference).any(axis=0)
    if not (only_reference.any() or only_candidate.any()):
        return ""
    picture = _rgb(image).astype(np.float64) * 0.35 + 255 * 0.65
    for where, colour in ((only_reference, REFERENCE), (only_candidate, CANDIDATE)):
        picture[_grown(where)] = np.array(matplotlib.colors.to_rgb(colour)) * 255  # pyright: ignore
    figure = Figure(figsize=(10.5, 10.5 * image.shape[0] / image.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture.astype(np.uint8))
    axes.set_axis_off()
    return photo(figure, 90)


def _rgb(image: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) of a BGR picture; of any other number of channels the first one in grey."""
    return image[:, :, ::-1] if image.shape[2] == 3 else np.repeat(image[:, :, :1], 3, axis=2)


def _grown(where: Any) -> np.ndarray:
    """The pixels and their neighbours, so that a single one can be seen."""
    out = where.copy()
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        out |= np.roll(where, (dy, dx), axis=(0, 1))
    return out


def score_scatter(details: dict[str, Any]) -> str:
    """Differences of matched pairs in pixels and score, by rank (SVG)."""
    px, score = details.get("box_px", []), details.get("score_difference", [])
    if not px:
        return ""
    figure = Figure(figsize=(10.5, 2.0))
    for k, (values, title) in enumerate(((px, "box difference, px"), (np.abs(score), "score difference"))):
        axes = plain_axes(figure, (1, 2, 1 + k))
        axes.bar(np.arange(len(values)), np.maximum(values, 0), color=_FREE, alpha=0.7, width=0.9)
        axes.set_title(title + ", by rank", fontsize=9, color=INK)
        axes.grid(axis="y", color=GRID, lw=0.8)
    return svg(figure)


def status_colour(status: Status) -> str:
    """The colour a status has everywhere in a report."""
    return {
        Status.PASS: "#16a34a",
        Status.BORDERLINE: "#d97706",
        Status.FAIL: "#dc2626",
        Status.NOT_COMPARED: "#7c3aed",
        Status.ERROR: "#991b1b",
    }[status]


def bench_plot(benches: Sequence[Any]) -> str:
    """Seconds of every run of every side (SVG): one row of points per side, its median as a line."""
    rows = [(b, s) for b in benches for s in b.sides if s.seconds]
    figure = Figure(figsize=(9, 0.8 + 0.45 * max(len(rows), 1)))
    axes = plain_axes(figure)
    for y, (_, side) in enumerate(rows):
        colour = REFERENCE if "TensorFlow" not in side.name else CANDIDATE
        axes.plot(side.seconds, [y] * len(side.seconds), "o", color=colour, alpha=0.45, ms=5, mew=0)
        axes.plot([side.median] * 2, [y - 0.3, y + 0.3], color=colour, lw=2.5)
    axes.set_yticks(
        range(len(rows)), [f"{b.title}: {s.name}" if len(benches) > 1 else s.name for b, s in rows]
    )
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds per image; the bar is the median", color=MUTED, fontsize=9)
    axes.grid(axis="x", color=GRID, lw=0.8)
    return svg(figure, "white")
