"""From two traces to a verdict: manifest, weights, then every stage of every image, with noise and waivers.

This is the offline half of the harness: it needs no framework and can be repeated on saved traces.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from typing import Any

from parity.core import feed as feeds
from parity.core.profiles import TRUTH_FACTOR, Profile, get_profile
from parity.core.results import RUNGS, Comparison, StageResult, headline
from parity.core.status import EXIT_DIFFERENT, Status
from parity.core.units.table import RESULTS
from parity.judge.comparator import compare_image
from parity.judge.context import Context, stage_table
from parity.judge.manifests import manifest_stages, weight_stages
from parity.judge.noise import measure_noise, noise_level
from parity.judge.sides import Request, Side, TraceLike, check_precision, float64_steps, name_of, open_side
from parity.judge.waivers import Waiver
from weights.errors import UsageError, UserError

_EARLY_RUNGS = ("manifest", "weights", "preprocessing")


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
        check_precision("reference", name_of(reference, ref), ref.precisions, chosen)
        check_precision("candidate", name_of(candidate, cand), cand.precisions, chosen)
        precise = chosen.dtype == "float64" and ref.recorded and len(ref.images) == len(cand.images)
        given = [feeds.arrays_of(image, chosen.name) for image in ref.images]
        if precise:
            ref, cand = float64_steps(ref, cand, given)
        further = [open_side(n, stack) for n in noise]
        scope = _scope(scope, cand)
        job = Request(ref, cand, further, chosen, waivers, scope, early_stop, config or ref.config, given)
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


_FLOAT64_NOTE = (
    "only the recording's float64 steps were compared, those behind the proposals on its own input: "
    "its detections are float32; --profile strict compares them"
)


_NOT_SERVED = f"{RESULTS.name}/pred_keypoint_heatmaps"


def _scope(scope: str, candidate: Side) -> str:
    scope = scope or str(candidate.manifest.get("scope", "all"))
    if scope not in ("all", "outputs", "served"):
        raise UsageError(f"scope {scope!r} is not one of: all, outputs, served")
    return scope


def _empty_comparison(job: Request) -> Comparison:
    return Comparison(
        job.reference.name,
        job.candidate.name,
        job.profile.name,
        reference_manifest=dict(job.reference.manifest),
        candidate_manifest=dict(job.candidate.manifest),
        scope="all stages" if job.scope == "all" else "outputs only; inner stages are not compared",
    )


def _count_mismatch(job: Request) -> Comparison:
    comparison = _empty_comparison(job)
    text = f"{len(job.reference.images)} images against {len(job.candidate.images)}"
    comparison.stages.append(StageResult("input", "manifest", "exact", Status.NOT_COMPARED, text))
    return comparison


def _compare_one(job: Request, index: int) -> Comparison:
    comparison = _empty_comparison(job)
    comparison.image, comparison.index = _image_name(job, index), index
    comparison.stages = [*manifest_stages(job, comparison), *weight_stages(job, comparison)]
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
    measure_noise(job, index, context, comparison)
    comparison.stages += [s for s in compare_image(context) if _in_scope(job, s.name)]
    note_skipped(comparison, context)
    if job.scope == "served" and _NOT_SERVED in context.reference:
        comparison.notes.append(f"not compared, since exported models do not answer with it: {_NOT_SERVED}")
    _waive(job, comparison)  # first: a fault that is known does not stop the search for others
    _stop_early(job, comparison)
    _repeatability(job, comparison)
    comparison.caveat = _caveat(job, comparison)
    return comparison


def _in_scope(job: Request, name: str) -> bool:
    if job.scope == "served" and name == _NOT_SERVED:
        return False
    return job.scope == "all" or name.startswith("output/") or name == "input/image"


def _image_name(job: Request, index: int) -> str:
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


def _stop_early(job: Request, comparison: Comparison) -> None:
    """Cut the ladder after the first failing early rung."""
    if not job.early_stop:
        return
    for rung in _EARLY_RUNGS:
        if any(s.bad for s in comparison.stages if s.rung == rung):
            later = RUNGS[RUNGS.index(rung) + 1 :]
            dropped = sum(1 for s in comparison.stages if s.rung in later)
            comparison.stages = [s for s in comparison.stages if s.rung not in later]
            comparison.stopped_at = rung
            comparison.notes.append(f"stopped after the {rung} rung; {dropped} later checks were not judged")
            return


def _waive(job: Request, comparison: Comparison) -> None:
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


def _repeatability(job: Request, comparison: Comparison) -> None:
    """Take over what the backends found when they ran twice."""
    for side in (job.reference, job.candidate):
        repeat = side.manifest.get("repeat")
        if isinstance(repeat, Mapping) and repeat.get("nondeterministic"):
            comparison.nondeterministic += [f"{side.name}: {n}" for n in repeat["nondeterministic"]]
    if comparison.nondeterministic and job.profile.name != "production":
        comparison.deterministic = False


def _caveat(job: Request, comparison: Comparison) -> str:
    """What to know about a difference that rounding, or a side that does not repeat itself, might have made."""
    if comparison.exit_code != EXIT_DIFFERENT:
        return ""
    told = []
    numbers = [s for s in comparison.stages if s.bad and s.kind in ("continuous", "set")]
    if comparison.estimated and numbers and all(map(_could_be_rounding, numbers)):
        told.append(
            "rounding alone may make a difference of this size: without a float64 run of the reference the limits "
            "are estimates; such a run (--noise truth, with torch or detectron2 installed) measures them"
        )
    runs = [side.manifest.get("repeat") for side in (job.reference, job.candidate)]
    if any(isinstance(r, Mapping) and r.get("runs") == 1 for r in runs):
        told.append("a side ran only once, so it was not seen whether it repeats itself: --repeat 2 shows it")
    return "; ".join(told)


def _could_be_rounding(stage: StageResult) -> bool:
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
