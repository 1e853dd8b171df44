"""How much the reference differs from itself: other runs of it, and a run in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from parity.core import feed as feeds
from parity.core.manifest import threads_of
from parity.core.metrics import Metrics, measure
from parity.core.profiles import PEAK_FACTOR, TRUTH_FACTOR
from parity.core.results import Comparison
from parity.core.status import Status
from parity.core.units import forced_name
from parity.core.units.table import SETS, SetSpec
from parity.judge.comparator import compare_image
from parity.judge.context import Arrays, Context, items_of
from parity.judge.detections import Noise
from parity.judge.limits import static_noise
from parity.judge.sides import Request, Side
from parity.judge.truth import Truth, match_rows


def measure_noise(job: Request, index: int, context: Context, comparison: Comparison) -> None:
    """What the limits follow from: a float64 run of the reference, and the differences of further runs of it."""
    sides = [s for s in job.noise if index < len(s.images)]
    usable = [s for s in sides if _same_model(job.reference, s, index, comparison)]
    exact = [s for s in usable if _is_truth(job, s)]
    if exact:
        context.truth = _truth(job, exact[0], index, context)
    usable = [s for s in usable if s not in exact]
    _measure_differences(usable, index, context, comparison)
    _say_origin(job, exact[:1], usable, comparison)


def _say_origin(job: Request, exact: Sequence[Side], others: Sequence[Side], comparison: Comparison) -> None:
    """Where the limits come from, for the report."""
    names = "; ".join(_noise_name(s) for s in [*exact, *others])
    if exact:
        comparison.noise_source = f"limits follow from a float64 run ({names})"
        return
    comparison.estimated = job.profile.dtype == "float32"
    if others:
        more = "one more run" if len(others) == 1 else f"{len(others)} more runs"
        comparison.noise_source = f"{more} of the reference ({names})"
    if comparison.estimated:
        comparison.noise_source += "; limits are estimates, for there is no float64 run"


def _same_model(reference: Side, other: Side, index: int, comparison: Comparison) -> bool:
    """Whether a further run is one of the same weights, configuration and picture; a note where it is not."""
    keys = ("weights_sha256", "config_file_sha256", "images_sha256")
    stated = [(key, reference.manifest.get(key), other.manifest.get(key)) for key in keys]
    unlike = [key for key, a, b in stated if None not in (a, b) and a != b]
    pictures = [side.images[index].get("input/image") for side in (reference, other)]
    if pictures[0] is not None and pictures[1] is not None and not np.array_equal(pictures[0], pictures[1]):
        unlike.append("input/image")
    if unlike:
        comparison.notes.append(
            f"a further run ({other.name}) is of another model, and not used: {', '.join(unlike)}"
        )
    return not unlike


def _is_truth(job: Request, side: Side) -> bool:
    """Whether a further run is the float64 run of a float32 reference."""
    stated = job.reference.manifest.get("dtype")
    single = stated == "float32" or (stated is None and "float32" in job.reference.precisions)
    return single and side.manifest.get("dtype") == "float64"


def _truth(job: Request, side: Side, index: int, context: Context) -> Truth:
    """The float64 run beside this image, its sets matched with the reference's."""
    own = side.manifest.get("backend") == job.reference.manifest.get("backend")
    truth = Truth(side.images[index], feeds.read(side.manifest, index), own)
    for spec in SETS:
        names = [n for n in (spec.boxes, spec.scores, spec.classes) if n]
        if all(n in truth.arrays and n in context.reference for n in names):
            reference, exact = (items_of(a, spec) for a in (context.reference, truth.arrays))
            if len(reference) and len(exact):
                found = match_rows(reference, exact, static_noise(context, spec))
                truth.rows[spec.name], truth.noise[spec.name] = found
    return truth


def _measure_differences(sides: Sequence[Side], index: int, context: Context, comparison: Comparison) -> None:
    """The reference's noise per stage without a float64 run: the largest difference of any further run."""
    noise: dict[str, float] = {}
    forced: dict[str, float] = {}
    sets: dict[str, Noise] = {}
    for side in sides:
        widened = _AsDtypeOf(side.images[index], context.reference)
        probe = Context(
            context.reference, widened, context.profile, context.config, table=context.table, recorded=True
        )
        for result in compare_image(probe):
            if result.status is Status.ERROR:
                comparison.notes.append(f"noise of {result.name} could not be measured: {result.message}")
            if result.metrics is not None and np.isfinite(result.metrics.rel_l2):
                noise[result.name] = max(noise.get(result.name, 0.0), noise_level(result.metrics))
        for spec in (s for s in SETS if s.name in probe.matches):
            found = _set_noise(probe, spec)
            before = sets.get(spec.name, Noise(0.0, 0.0))
            sets[spec.name] = Noise(max(before.box_px, found.box_px), max(before.score, found.score))
        fed = feeds.read(side.manifest, index)
        for name, value in _same_input_noise(context, side.images[index], fed).items():
            forced[name] = max(forced.get(name, 0.0), value)
    context.noise, context.forced_noise, context.set_noise = noise, forced, sets


def _set_noise(probe: Context, spec: SetSpec) -> Noise:
    """The largest differences of matched pairs; those no rounding makes (another box of a near tie was kept)
    left out."""
    report, static = probe.matches[spec.name], static_noise(probe, spec)
    scores = np.abs(report.score_difference)
    rounding = (report.box_px <= TRUTH_FACTOR * static.box_px) & (scores <= TRUTH_FACTOR * static.score)
    return Noise(float(report.box_px[rounding].max(initial=0.0)), float(scores[rounding].max(initial=0.0)))


def _same_input_noise(context: Context, image: Arrays, fed: feeds.Fed) -> dict[str, float]:
    """Noise of continuous stages that a run of the reference computed on this very run's input."""
    out: dict[str, float] = {}
    assert context.inputs is not None
    for name, stage in context.table.items():
        forced = forced_name(name)
        if stage.kind != "continuous" or forced not in image or name not in context.reference:
            continue
        if context.inputs.problem(fed, name):
            continue
        own, other = context.reference[name], image[forced]
        rows = min(len(own), len(other)) if stage.roi_features else None
        own, other = own[:rows], other[:rows]
        usable = own.shape == other.shape and own.size > 0 and own.dtype.kind == other.dtype.kind == "f"
        if usable and np.isfinite(own).all() and np.isfinite(other).all():
            out[name] = noise_level(measure(own, other))
    return out


def noise_level(metrics: Metrics) -> float:
    """A stage's noise as a relative L2: what its worst channel and worst element allow counts, too, since
    these are judged against PEAK_FACTOR times the limit."""
    return max(metrics.rel_l2, metrics.channel_rel_l2 / PEAK_FACTOR, metrics.max_rel / PEAK_FACTOR)


def _noise_name(side: Side) -> str:
    count = threads_of(side.manifest)
    return f"{side.name}, {side.manifest.get('dtype', '')}, {count or '?'} thread{'' if count == 1 else 's'}"


class _AsDtypeOf(Mapping[str, np.ndarray]):
    """A trace read in another trace's dtypes, so that a float64 run measures a float32 one's error."""

    def __init__(self, arrays: Arrays, like: Arrays) -> None:
        self._arrays, self._like = arrays, like

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._arrays[name]
        if name in self._like and array.dtype.kind == "f":
            return array.astype(self._like[name].dtype)
        return array

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and not name.startswith("forced/") and name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return (n for n in self._arrays if not n.startswith("forced/"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def rows(self, name: str) -> int:
        """Rows the underlying trace computed."""
        source: Any = self._arrays
        return source.rows(name) if hasattr(source, "rows") else len(self._arrays[name])
