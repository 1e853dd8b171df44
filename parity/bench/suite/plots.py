"""Plots of ``tf-d2 bench --all`` as SVG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from parity.bench.bench import MODULES, TORCH
from parity.bench.results import NAMES, from_json
from parity.report.plots import CANDIDATE, GRID, INK, MUTED, NOISE, REFERENCE, bench_plot, plain_axes, svg

Part = Mapping[str, Any]
_UNITS = {
    "pixels": "megapixels of network input",
    "proposals": "proposals",
    "classes": "classes",
}


def _main_plot(part: Part) -> str:
    """Every run of every side."""
    return bench_plot([from_json(part["data"]["bench"])])


def _families_plot(part: Part) -> str:
    """Ratios of all families, with the spread over rounds, and the median."""
    benches = [from_json(b) for b in part["data"]["benches"]]
    found = [(b, b.ratios(b.sides[1])) for b in benches if len(b.sides) > 1 and b.sides[1].seconds]
    figure = Figure(figsize=(9, 0.9 + 0.42 * max(1, len(found))))
    axes = plain_axes(figure)
    for y, (_, ratios) in enumerate(found):
        axes.barh(y, median(ratios), height=0.6, color=CANDIDATE, alpha=0.75)
        axes.plot([min(ratios), max(ratios)], [y, y], color=INK, lw=1)
        axes.text(max(ratios) + 0.015, y, f"{median(ratios):.2f}", va="center", fontsize=9, color=INK)
    axes.axvline(1.0, color=REFERENCE, lw=1.5)
    axes.text(1.0, -0.75, " detectron2", color=REFERENCE, fontsize=8, va="center")
    middle = part["data"]["median_ratio"]
    if middle:
        axes.axvline(middle, color=MUTED, lw=1, ls="--")
        axes.text(middle, len(found) - 0.35, " median", color=MUTED, fontsize=8, va="center")
    axes.set_yticks(range(len(found)), [b.title for b, _ in found])
    axes.set_ylim(len(found) - 0.1, -1.0)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of tf-d2 over seconds of the reference; less is faster", color=MUTED, fontsize=9)
    return svg(figure, "white")


def _batch_plot(part: Part) -> str:
    """Images per second by batch size."""
    data = part["data"]
    figure = Figure(figsize=(6, 3))
    axes = plain_axes(figure)
    for name, side in data["sides"].items():
        speed = [n / median(t) for n, t in zip(data["batches"], side["seconds"], strict=True)]
        axes.plot(data["batches"], speed, "o-", color=colour(name), label=NAMES[name], ms=5)
    axes.set_xscale("log", base=2)
    axes.set_xticks(data["batches"], [str(n) for n in data["batches"]])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images in a batch", color=MUTED, fontsize=9)
    axes.set_ylabel("images per second", color=MUTED, fontsize=9)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.legend(frameon=False, fontsize=8)
    return svg(figure, "white")


def _curves_plot(part: Part) -> str:
    """Seconds against pixels, proposals and classes, on linear axes, so that a straight line is linear cost."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for k, (key, curve) in enumerate(part["data"].items()):
        axes = plain_axes(figure, (1, len(part["data"]), k + 1))
        factor = 1e-6 if key == "pixels" else 1
        x = [v * factor for v in curve["x"]]
        for name, side in curve["sides"].items():
            axes.plot(
                x, [median(t) for t in side["seconds"]], "o-", color=colour(name), label=NAMES[name], ms=4
            )
            for value, times in zip(x, side["seconds"], strict=True):
                axes.plot([value] * 2, [min(times), max(times)], color=colour(name), lw=1, alpha=0.5)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(_UNITS.get(key, key), color=MUTED, fontsize=9)
        axes.grid(color=GRID, lw=0.8)
        if k == 0:
            axes.set_ylabel("seconds", color=MUTED, fontsize=9)
            axes.legend(frameon=False, fontsize=8)
    return svg(figure, "white")


def _profile_plot(part: Part) -> str:
    """Share of the kinds that take longest; convolutions and products in colour."""
    from parity.bench.tf_profile import is_heavy

    data = part["data"]
    rows = data["rows"][:14]
    figure = Figure(figsize=(9, 0.7 + 0.28 * len(rows)))
    axes = plain_axes(figure)
    for y, (kind, ms, _) in enumerate(rows):
        share = ms / 10 / data["seconds"]
        axes.barh(y, share, height=0.7, color=CANDIDATE if is_heavy(kind) else NOISE, alpha=0.85)
        axes.text(share + 0.3, y, f"{share:.1f} %", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(rows)), [r[0] for r in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(
        "per cent of a profiled prediction; convolutions and matrix products in colour",
        color=MUTED,
        fontsize=9,
    )
    return svg(figure, "white")


def colour(name: str) -> str:
    """Of a side, the same in every plot."""
    return REFERENCE if MODULES[name] == TORCH else CANDIDATE


PLOTS: dict[str, Callable[[Part], str]] = {
    "main": _main_plot,
    "families": _families_plot,
    "batch": _batch_plot,
    "curves": _curves_plot,
    "profile": _profile_plot,
}
