"""From two traces to a verdict: manifest, weights, then every stage of every image, with noise and waivers.

This is the offline half of the harness: it needs no framework and can be repeated on saved traces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import numpy as np
import yaml

from parity.core import feed as feeds
from parity.core.job import tensor_hash
from parity.core.manifest import threads_of
from parity.core.metrics import Metrics, measure
from parity.core.profiles import PEAK_FACTOR, TRUTH_FACTOR, Profile, get_profile
from parity.core.results import RUNGS, Comparison, StageResult, headline
from parity.core.status import EXIT_DIFFERENT, Status, Verdict
from parity.core.trace import ImageTrace, Trace
from parity.core.units import forced_name, is_harmless, row_owners
from parity.core.units.table import PANOPTIC, RESULTS, SET_MEMBERS, SETS, SetSpec
from parity.judge.comparator import (
    Arrays,
    Context,
    compare_image,
    items_of,
    stage_table,
    static_noise,
)
from parity.judge.detections import Noise
from parity.judge.truth import Truth, match_rows
from weights.errors import UsageError, UserError

EARLY_RUNGS = ("manifest", "weights", "preprocessing")


@dataclass(frozen=True)
class Waiver:
    """A stage that is known not to agree: why, and until when that is accepted."""

    stage: str
    reason: str
    until: date


def parse_waiver(text: str) -> Waiver:
    """``STAGE=REASON@YYYY-MM-DD``; ValueError where the reason or the date is missing."""
    stage, _, rest = text.partition("=")
    reason, _, until = rest.rpartition("@")
    if not stage.strip() or not reason.strip():
        raise UsageError(f"a waiver is STAGE=REASON@YYYY-MM-DD, not {text!r}")
    try:
        return Waiver(stage.strip(), reason.strip(), date.fromisoformat(until.strip()))
    except ValueError as error:
        raise UsageError(f"waiver {text!r} needs the date it ends on, as @YYYY-MM-DD") from error


@dataclass(frozen=True)
class Side:
    """One opened trace: images in order, the manifest, the configuration and per-tensor weight hashes."""

    name: str
    images: Sequence[Arrays]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)
    segments: Sequence[Sequence[Mapping[str, Any]]] = ()
    precisions: frozenset[str] = frozenset()

    @property
    def recorded(self) -> bool:
        """Whether this is a recording of detectron2 without a manifest of its own."""
        return self.manifest.get("backend") == "recorded"


TraceLike = str | os.PathLike[str] | Mapping[str, np.ndarray] | Side


def open_side(source: TraceLike, stack: ExitStack) -> Side:
    """A trace file or a mapping of arrays (one image, no manifest) as a ``Side``; files close with
    ``stack``."""
    if isinstance(source, Side):
        return source
    if isinstance(source, Mapping):
        return Side("arrays", [source])
    trace = stack.enter_context(Trace(source))
    config = yaml.safe_load(trace.config) if trace.config else None
    name = str(trace.manifest.get("backend", "trace"))
    segments = [_segments(i) for i in trace.images]
    return Side(
        name, trace.images, trace.manifest, config, _tensor_hashes(trace), segments, trace.precisions()
    )


def _segments(image: ImageTrace) -> list[dict[str, Any]]:
    return image.segments_info() if PANOPTIC in image else []


def _tensor_hashes(trace: Trace) -> dict[str, str]:
    """Key -> hash of each weight: as the backend wrote it into the manifest, or of a recording's own
    weights."""
    stated = trace.manifest.get("tensors")
    if isinstance(stated, dict):
        return {str(k): str(v) for k, v in stated.items()}
    return {k: tensor_hash(v) for k, v in trace.weights().items()}


def compare(
    reference: TraceLike,
    candidate: TraceLike,
    *,
    profile: str | Profile = "strict",
    noise: Sequence[TraceLike] = (),
    waivers: Sequence[Waiver] = (),
    scope: str = "",
    early_stop: bool = True,
    config: Mapping[str, Any] | None = None,
) -> list[Comparison]:
    """Compare two traces: one ``Comparison`` per image.

    ``noise``: further traces of the reference (another thread count, or float64 as truth); their
    differences from ``reference`` become its noise. ``scope``: "" for every stage, "outputs" for a
    candidate that has nothing else, "served" for an exported model, which does not answer with heat maps of
    keypoints either; taken from the candidate's manifest when it says so. ``early_stop``:
    after a failing manifest, weights or preprocessing rung the later rungs are not judged, since they can
    only show the same fault again. ``config``: detectron2's full configuration where the traces hold none.
    Raises TraceError for unreadable files and ValueError for traces whose precision is not the profile's.
    """
    chosen = profile if isinstance(profile, Profile) else get_profile(profile)
    with ExitStack() as stack:
        ref, cand = open_side(reference, stack), open_side(candidate, stack)
        check_precision("reference", _name_of(reference, ref), ref.precisions, chosen)
        check_precision("candidate", _name_of(candidate, cand), cand.precisions, chosen)
        precise = chosen.dtype == "float64" and ref.recorded and len(ref.images) == len(cand.images)
        given = [feeds.arrays_of(image, chosen.name) for image in ref.images]
        if precise:
            ref, cand = _float64_steps(ref, cand, given)
        further = [open_side(n, stack) for n in noise]
        scope = _scope(scope, cand)
        job = _Job(ref, cand, further, chosen, waivers, scope, early_stop, config or ref.config, given)
        if len(ref.images) != len(cand.images) or not ref.images:
            return [_count_mismatch(job)]
        found = [_compare_one(job, k) for k in range(len(ref.images))]
    files = tuple(os.fspath(s) for s in (reference, candidate) if isinstance(s, str | os.PathLike))
    for comparison in found if len(files) == 2 else ():
        comparison.traces = files
    for comparison in found if precise else ():
        comparison.scope = "float64 steps of the recording"
        comparison.notes.append(_FLOAT64_NOTE)
    return found


def _name_of(source: TraceLike, side: Side) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else side.name


_FLOAT64_SIDES = {
    "reference": "torch, detectron2, or a recording with float64 steps",
    "candidate": "tf, tf-eager, or a trace of one in this profile",
}


def check_precision(role: str, name: str, precisions: frozenset[str], profile: Profile) -> None:
    """Raise ValueError where a side's network ran in float32 and the profile judges float64: every stage of a right
    model would seem wrong. (The other way round the manifests show it, as no recording is float64 alone.)"""
    # A recording may hold both; only as a reference its float64 steps are what is compared.
    wrong = "float32" in precisions if role == "candidate" else precisions == {"float32"}
    if profile.dtype == "float64" and wrong:
        raise UsageError(
            f"{name} is float32; the {profile.name} profile needs a float64 {role} "
            f"({_FLOAT64_SIDES[role]}): take one, or use --profile strict"
        )


def _float64_steps(reference: Side, candidate: Side, given: Sequence[Arrays]) -> tuple[Side, Side]:
    """Both sides of a comparison with the float64 pass that a recording of detectron2 holds beside its float32 run.

    That pass starts from the network input and from the recorded float32 proposals, and has no results. So only its
    stages are compared: those up to the proposals as the candidate ran them, those behind only as it computed them
    on the recording's input.
    """
    views = [_float64_view(r, c) for r, c in zip(reference.images, candidate.images, strict=True)]
    table = stage_table(reference.config)
    for k, (own, other) in enumerate(views):
        inputs, fed = feeds.Inputs(given[k], table), feeds.read(candidate.manifest, k)
        if any(inputs.problem(fed, name) for name in own if forced_name(name) in other):
            raise UsageError(
                "the candidate was fed by another trace than this recording, so that its stages behind the proposals "
                "cannot be compared: run tf-d2 parity with the recording as --reference"
            )
    return replace(reference, images=[v[0] for v in views]), replace(candidate, images=[v[1] for v in views])


def _float64_view(reference: Arrays, candidate: Arrays) -> tuple[Arrays, Arrays]:
    assert isinstance(reference, ImageTrace)  # only a file can be a recording
    own = reference.float64() | {n: reference[n] for n in ("input/image",) if n in reference}
    # The proposals were given to that pass, not computed by it.
    own = {n: a for n, a in own.items() if n not in SET_MEMBERS}
    forced = {forced_name(n): candidate[forced_name(n)] for n in own if forced_name(n) in candidate}
    free = {n: forced.get(forced_name(n)) if row_owners(n) else candidate.get(n) for n in own}
    return own, {n: a for n, a in free.items() if a is not None} | forced


_FLOAT64_NOTE = (
    "only the recording's float64 steps were compared, those behind the proposals on its own input: "
    "its detections are float32; --profile strict compares them"
)
_NOT_SERVED = f"{RESULTS.name}/pred_keypoint_heatmaps"


@dataclass(frozen=True)
class _Job:
    reference: Side
    candidate: Side
    noise: Sequence[Side]
    profile: Profile
    waivers: Sequence[Waiver]
    scope: str
    early_stop: bool
    config: Mapping[str, Any] | None
    given: Sequence[Arrays]  # per image: the reference's arrays as inputs of teacher-forced stages


def _scope(scope: str, candidate: Side) -> str:
    scope = scope or str(candidate.manifest.get("scope", "all"))
    if scope not in ("all", "outputs", "served"):
        raise UsageError(f"scope {scope!r} is not one of: all, outputs, served")
    return scope


def _empty_comparison(job: _Job) -> Comparison:
    return Comparison(
        job.reference.name,
        job.candidate.name,
        job.profile.name,
        reference_manifest=dict(job.reference.manifest),
        candidate_manifest=dict(job.candidate.manifest),
        scope="all stages" if job.scope == "all" else "outputs only; inner stages are not compared",
    )


def _count_mismatch(job: _Job) -> Comparison:
    comparison = _empty_comparison(job)
    text = f"{len(job.reference.images)} images against {len(job.candidate.images)}"
    comparison.stages.append(StageResult("input", "manifest", "exact", Status.NOT_COMPARED, text))
    return comparison


def _compare_one(job: _Job, index: int) -> Comparison:
    comparison = _empty_comparison(job)
    comparison.image, comparison.index = _image_name(job, index), index
    comparison.stages = [*_manifest_stages(job, comparison), *_weight_stages(job, comparison)]
    table = stage_table(job.config)
    context = Context(
        job.reference.images[index],
        job.candidate.images[index],
        job.profile,
        job.config,
        table=table,
        fed=feeds.read(job.candidate.manifest, index),
        inputs=feeds.Inputs(job.given[index], table),
        reference_segments=job.reference.segments[index] if job.reference.segments else (),
        candidate_segments=job.candidate.segments[index] if job.candidate.segments else (),
        recorded=job.reference.recorded,
        candidate_recorded=job.candidate.recorded or job.candidate.name == "detectron2",
    )
    _measure_noise(job, index, context, comparison)
    comparison.stages += [s for s in compare_image(context) if _in_scope(job, s.name)]
    note_skipped(comparison, context)
    if job.scope == "served" and _NOT_SERVED in context.reference:
        comparison.notes.append(f"not compared, since exported models do not answer with it: {_NOT_SERVED}")
    _waive(job, comparison)  # first: a fault that is known does not stop the search for others
    _stop_early(job, comparison)
    _repeatability(job, comparison)
    comparison.caveat = _caveat(job, comparison)
    return comparison


def _in_scope(job: _Job, name: str) -> bool:
    if job.scope == "served" and name == _NOT_SERVED:
        return False
    return job.scope == "all" or name.startswith("output/") or name == "input/image"


def _image_name(job: _Job, index: int) -> str:
    images = job.candidate.manifest.get("images") or job.reference.manifest.get("images") or []
    known = isinstance(images, list) and index < len(images)
    return str(images[index]) if known else f"image {index}"


def note_skipped(comparison: Comparison, context: Context) -> None:
    """Say in the notes what one side does not hold and what was not computed on the reference's input."""
    lacking = {
        "the reference does not record": [n for n in context.skipped if n not in context.reference],
        "the candidate does not give": [n for n in context.skipped if n not in context.candidate],
    }
    comparison.notes += [f"{what}: {', '.join(names)}" for what, names in lacking.items() if names]
    computed = [s for s in comparison.stages if s.name.startswith("steps/") and s.inputs]
    once = [s.name for s in computed if s.forced_status is None]
    if computed and len(once) == len(computed):
        comparison.notes.append("no stage was computed on the reference's input: end to end only")
    elif once:
        comparison.notes.append(f"end to end only, not on the reference's input: {', '.join(once)}")


# ---- the first two rungs ---------------------------------------------------------------------------------


def _manifest_stages(job: _Job, comparison: Comparison) -> list[StageResult]:
    """Both sides must have read the same weights, configuration and pictures, at the same precision."""
    out = []
    for key in ("weights_sha256", "config_file_sha256", "images_sha256", "profile", "dtype"):
        values = [side.manifest.get(key) for side in (job.reference, job.candidate)]
        if None in values:
            if values != [None, None] and not job.reference.recorded:
                comparison.notes.append(f"manifest: only one side states {key}")
            continue
        same = values[0] == values[1]
        text = f"{_short(values[0])}" if same else f"{_short(values[0])} against {_short(values[1])}"
        status = Status.PASS if same else Status.FAIL
        verdict = Verdict.NONE if same else Verdict.LOCAL
        out.append(StageResult(f"manifest/{key}", "manifest", "exact", status, text, verdict=verdict))
    return out


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else text[:16] + "…"


def _weight_stages(job: _Job, comparison: Comparison) -> list[StageResult]:
    """Every tensor bit-equal after the layout change, none missing, none extra."""
    ref, cand = job.reference.tensors, job.candidate.tensors
    if not ref or not cand:
        if ref or cand:
            side = job.reference.name if cand else job.candidate.name
            comparison.notes.append(f"weights: {side} gives no tensor hashes, so tensors were not compared")
        return []
    ref, cand = ({k: v for k, v in t.items() if not is_harmless(k)} for t in (ref, cand))
    missing, extra = sorted(set(ref) - set(cand)), sorted(set(cand) - set(ref))
    unequal = sorted(k for k in set(ref) & set(cand) if ref[k] != cand[k])
    result = StageResult("weights", "weights", "exact", Status.PASS, f"{len(ref)} tensors bit-equal")
    parts = {"differ": unequal, "missing in the candidate": missing, "extra in the candidate": extra}
    broken = [f"{len(k)} {what}: {', '.join(k[:4])}" for what, k in parts.items() if k]
    if broken:
        result.status, result.message, result.verdict = Status.FAIL, "; ".join(broken), Verdict.LOCAL
        result.details = parts
    return [result]


# ---- noise, waivers, early stop --------------------------------------------------------------------------


def _measure_noise(job: _Job, index: int, context: Context, comparison: Comparison) -> None:
    """What the limits follow from: a float64 run of the reference, and the differences of further runs of it."""
    sides = [s for s in job.noise if index < len(s.images)]
    usable = [s for s in sides if _same_model(job.reference, s, index, comparison)]
    exact = [s for s in usable if _is_truth(job, s)]
    if exact:
        context.truth = _truth(job, exact[0], index, context)
    usable = [s for s in usable if s not in exact]
    _measure_differences(usable, index, context, comparison)
    _say_origin(job, exact[:1], usable, comparison)


def _say_origin(job: _Job, exact: Sequence[Side], others: Sequence[Side], comparison: Comparison) -> None:
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


def _is_truth(job: _Job, side: Side) -> bool:
    """Whether a further run is the float64 run of a float32 reference."""
    stated = job.reference.manifest.get("dtype")
    single = stated == "float32" or (stated is None and "float32" in job.reference.precisions)
    return single and side.manifest.get("dtype") == "float64"


def _truth(job: _Job, side: Side, index: int, context: Context) -> Truth:
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


def _stop_early(job: _Job, comparison: Comparison) -> None:
    """Cut the ladder after the first failing early rung."""
    if not job.early_stop:
        return
    for rung in EARLY_RUNGS:
        if any(s.bad for s in comparison.stages if s.rung == rung):
            later = RUNGS[RUNGS.index(rung) + 1 :]
            dropped = sum(1 for s in comparison.stages if s.rung in later)
            comparison.stages = [s for s in comparison.stages if s.rung not in later]
            comparison.stopped_at = rung
            comparison.notes.append(f"stopped after the {rung} rung; {dropped} later checks were not judged")
            return


def _waive(job: _Job, comparison: Comparison) -> None:
    names = {s.name for s in comparison.stages}
    for waiver in job.waivers:
        if waiver.stage not in names:
            comparison.notes.append(f"waiver for {waiver.stage} matches no stage")
        elif waiver.until < date.today():
            comparison.notes.append(f"waiver for {waiver.stage} ended on {waiver.until} and was not applied")
    active = {w.stage: w for w in job.waivers if w.until >= date.today()}
    for stage in comparison.stages:
        if stage.bad and stage.name in active:
            stage.waiver = f"{active[stage.name].reason} (until {active[stage.name].until})"


def _repeatability(job: _Job, comparison: Comparison) -> None:
    """Take over what the backends found when they ran twice."""
    for side in (job.reference, job.candidate):
        repeat = side.manifest.get("repeat")
        if isinstance(repeat, Mapping) and repeat.get("nondeterministic"):
            comparison.nondeterministic += [f"{side.name}: {n}" for n in repeat["nondeterministic"]]
    if comparison.nondeterministic and job.profile.name != "production":
        comparison.deterministic = False


def _caveat(job: _Job, comparison: Comparison) -> str:
    """What to know about a difference that rounding, or a side that does not repeat itself, might have made."""
    if comparison.exit_code != EXIT_DIFFERENT:
        return ""
    told = []
    numbers = [s for s in comparison.stages if s.bad and s.kind in ("continuous", "set")]
    if comparison.estimated and numbers and all(map(could_be_rounding, numbers)):
        told.append(
            "rounding alone may make a difference of this size: without a float64 run of the reference the limits "
            "are estimates; such a run (--noise truth, with torch or detectron2 installed) measures them"
        )
    runs = [side.manifest.get("repeat") for side in (job.reference, job.candidate)]
    if any(isinstance(r, Mapping) and r.get("runs") == 1 for r in runs):
        told.append("a side ran only once, so it was not seen whether it repeats itself: --repeat 2 shows it")
    return "; ".join(told)


def could_be_rounding(stage: StageResult) -> bool:
    """Whether a bad stage would be within the highest ceiling that a float64 run of the reference can justify."""
    if stage.kind == "set":
        details = stage.details
        if stage.forced_status is Status.FAIL or not details or details["matched"] == 0:
            return False  # a replay on the same input has static limits in any case
        alone = any(not c["certified"] for c in details["certificates"])
        worst = (("worst_box_px", "box_limit"), ("worst_score", "score_limit"))
        return not alone and all(details[a] <= TRUTH_FACTOR * details[b] for a, b in worst)
    judged = (
        (stage.status, stage.metrics, stage.limit),
        (stage.forced_status, stage.forced_metrics, stage.forced_limit),
    )
    return all(
        status is Status.FAIL
        and m is not None
        and b is not None
        and noise_level(m) <= TRUTH_FACTOR * b.ceiling
        for status, m, b in judged
        if status not in (Status.PASS, None)
    )


class ParityError(UserError, AssertionError):
    """Two models do not compute the same. ``comparisons`` holds the whole result."""

    def __init__(self, message: str, comparisons: list[Comparison]) -> None:
        super().__init__(message)
        self.comparisons = comparisons


def assert_parity(reference: TraceLike, candidate: TraceLike, **options: Any) -> list[Comparison]:
    """For tests: ``compare`` and raise ParityError, naming the first bad stage, unless everything is the
    same."""
    comparisons = compare(reference, candidate, **options)
    bad = [c for c in comparisons if c.exit_code]
    if bad:
        raise ParityError("\n".join(_explanation(c) for c in bad), comparisons)
    return comparisons


def _explanation(comparison: Comparison) -> str:
    lines = [f"{comparison.image}: {headline(comparison)}"]
    lines += [
        f"  {s.overall} {s.name} {s.verdict}: {s.message or s.forced_message}"
        for s in comparison.stages
        if s.bad
    ][:10]
    return "\n".join(lines)
