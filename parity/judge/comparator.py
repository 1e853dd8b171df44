"""Comparing two traces, stage by stage. No framework runs here, and nothing passes without having been
compared.

``compare_image`` walks the stages in computation order. A continuous stage is judged by relative L2 (and
the peak and worst channel) against a noise-relative limit, integers and booleans exactly, detections as
sets. Rows that follow the order of proposals or detections are first put side by side by that match, never
by guessing.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from parity.core.feed import Fed, Inputs
from parity.core.metrics import Metrics, measure
from parity.core.profiles import (
    BOX_ROUNDINGS,
    EPSILON,
    LARGEST,
    NOISE_FACTOR,
    PEAK_FACTOR,
    ROUNDINGS,
    STRICT,
    TRUTH_FACTOR,
    Limit,
    Profile,
    limit,
    truth_limit,
    value_limit,
)
from parity.core.results import StageResult
from parity.core.status import Status, Verdict, worst
from parity.core.units import Stage, array_of, forced_name, row_owners, stages
from parity.core.units.table import (
    DENSE_HEAD,
    DETECTIONS,
    MASK_LOGITS,
    PROPOSALS,
    RESULTS,
    RPN_HEAD,
    SET_MEMBERS,
    SETS,
    Judge,
    SetSpec,
)
from parity.judge import detections, pixels, provenance
from parity.judge.detections import Items, MatchReport, Noise, Rules
from parity.judge.truth import (
    Lined,
    Truth,
    forced_errors,
    free_errors,
    mask_noise,
    over_levels,
    probability_noise,
)

Arrays = Mapping[str, np.ndarray]


@runtime_checkable
class HasRows(Protocol):
    """A trace that may hold only the first rows of an array and knows how many there were."""

    def rows(self, name: str) -> int: ...


class Cached(Mapping[str, np.ndarray]):
    """A trace that keeps what was read from it: the search for one detection's origin reads the same few
    arrays as the search for the next."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._kept: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._kept:
            self._kept[name] = self._arrays[name]
        return self._kept[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


@dataclass
class Context:
    """Everything one image's comparison knows: the two traces, limits, measured noise and matches so far."""

    reference: Arrays
    candidate: Arrays
    profile: Profile
    config: Mapping[str, Any] | None = None
    noise: Mapping[str, float] = field(default_factory=dict)
    forced_noise: Mapping[str, float] = field(default_factory=dict)  # measured on the reference's own input
    set_noise: Mapping[str, Noise] = field(default_factory=dict)  # of each set of detections
    truth: Truth | None = None  # a float64 run of the reference on the same picture
    table: dict[str, Stage] = field(default_factory=dict)
    matches: dict[str, MatchReport] = field(default_factory=dict)
    explained: np.ndarray | None = None  # pixels (H, W) whose mask or class decision was within noise
    reference_segments: Sequence[Mapping[str, Any]] = ()
    candidate_segments: Sequence[Mapping[str, Any]] = ()
    recorded: bool = False  # the reference is a recording, which holds module outputs only
    candidate_recorded: bool = False  # so is the candidate, or it is detectron2, which shows modules only
    skipped: list[str] = field(default_factory=list)
    fed: Fed = field(
        default_factory=lambda: Fed(None)
    )  # what the candidate's teacher-forced stages were fed with
    inputs: Inputs | None = None  # the reference's arrays as inputs; of ``reference`` where it is not given

    def other_input(self, name: str) -> str:
        """Why the candidate's teacher-forced stage ``name`` was not computed on this reference's input, or ""."""
        if self.inputs is None:
            self.inputs = Inputs(self.reference, self.table)
        return self.inputs.problem(self.fed, name)


def stage_table(config: Mapping[str, Any] | None) -> dict[str, Stage]:
    """Stage name -> stage, in computation order; empty where the configuration has no table."""
    if config is None:
        return {}
    try:
        return {s.name: s for s in stages(config)}
    except (KeyError, ValueError):
        return {}


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
    _judge_origins(results)
    return results


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
        result = _set(context, spec) if spec else _array(context, name)
    except Exception as error:  # a broken stage must not hide the others, nor pass
        result = StageResult(name, rung_of(name), "unknown", Status.ERROR, f"{type(error).__name__}: {error}")
    stage = context.table.get(spec.boxes if spec else name)
    if stage is not None:
        result.inputs = tuple(
            dict.fromkeys(SET_MEMBERS[i].name if i in SET_MEMBERS else i for i in stage.inputs)
        )
    return result


def rung_of(name: str) -> str:
    """The rung of the ladder a stage belongs to."""
    if name.startswith("input/") or name == "steps/input":
        return "preprocessing"
    if name.startswith("output/"):
        return "detections"
    return "backbone" if name.startswith("steps/backbone") else "heads"


# ---- one array -------------------------------------------------------------------------------------------


def _array(context: Context, name: str) -> StageResult:
    result = StageResult(name, rung_of(name), _kind(context, name), Status.PASS)
    absent = _absent(context, name)
    if absent:
        result.status, result.message = Status.NOT_COMPARED, absent
        return result
    reference, candidate = context.reference[name], context.candidate[name]
    result.shape, result.dtype = reference.shape, str(reference.dtype)
    lined, notes, problem = _line_up(context, name, reference, candidate)
    reference, candidate = lined.reference, lined.candidate
    problem = problem or _unlike(reference, candidate)
    if problem:
        result.status, result.message = problem
    else:
        _judge_array(context, result, lined)
    result.message = "; ".join(t for t in (result.message, *notes) if t)
    _judge_forced(context, result, name)
    return result


def _judge_array(context: Context, result: StageResult, lined: Lined) -> None:
    """As the unit table says."""
    reference, candidate = lined.reference, lined.candidate
    how: Judge = array_of(result.name, context.table).judge
    if how == "refined":
        _judge_refined(context, result, lined)
    elif how == "panoptic":
        _judge_panoptic(context, result, reference, candidate)
    elif how == "masks" and reference.dtype == bool:
        _judge_masks(context, result, reference, candidate)
    elif how == "keypoints":
        _judge_keypoints(context, result, reference, candidate)
    else:
        _judge_values(context, result, result.name, lined)
        if how == "sem_seg" and result.status is Status.PASS:
            _judge_argmax(context, result, reference, candidate)


# Of a refined array this part of the cells may differ, because one side refined them and the other did not. Every
# step ends between two cells of nearly equal uncertainty, which rounding orders; a step refines hundreds of cells.
REFINED_SHARE = 1 / 500
REFINED_STEP = 1e-3  # of the largest value: what is nearer is judged as a value


def _settled(reference: np.ndarray, candidate: np.ndarray) -> tuple[np.ndarray, str]:
    """The candidate with the reference's value in the few cells that were refined on one side only."""
    far = np.abs(candidate - reference) > REFINED_STEP * np.abs(reference).max(initial=1e-30)
    if not far.any() or far.mean() > REFINED_SHARE:
        return candidate, ""
    note = f"{int(far.sum())} of {far.size} cells were refined on one side only"
    return np.where(far, reference, candidate), note


def _judge_refined(context: Context, result: StageResult, lined: Lined) -> None:
    candidate, note = _settled(lined.reference, lined.candidate)
    result.limit = limit(_free_profile(context, result.name), context.noise.get(result.name), forced=False)
    result.metrics = measure(lined.reference, candidate)
    result.status, message = verdict_of(result, result.limit)
    result.message = "; ".join(text for text in (message, note) if text)


def _kind(context: Context, name: str) -> str:
    drawn = array_of(name, context.table).judge in ("masks", "keypoints", "panoptic")
    if drawn and name.startswith("output/"):
        return "pixels"
    array = context.reference.get(name, context.candidate.get(name))
    return "continuous" if array is not None and array.dtype.kind == "f" else "exact"


def _absent(context: Context, name: str) -> str:
    if name not in context.candidate:
        return "missing in the candidate"
    return "" if name in context.reference else "extra: the reference has no such array"


def _unlike(reference: np.ndarray, candidate: np.ndarray) -> tuple[Status, str] | None:
    """Why two arrays have no meaningful difference, or None."""
    if reference.dtype != candidate.dtype:
        return Status.FAIL, f"dtype {reference.dtype} against {candidate.dtype}"
    if reference.shape != candidate.shape:
        return Status.FAIL, f"shape {reference.shape} against {candidate.shape}"
    if reference.size == 0:
        return Status.NOT_COMPARED, "empty on both sides: nothing was compared"
    if reference.dtype.kind == "f":
        bad = [int((~np.isfinite(a)).sum()) for a in (reference, candidate)]
        if any(bad):
            return Status.FAIL, f"NaN or infinity: {bad[0]} in the reference, {bad[1]} in the candidate"
    return None


def _rows(trace: Arrays, name: str) -> int:
    if isinstance(trace, HasRows):
        return trace.rows(name)
    array = trace[name]
    return len(array) if array.ndim else 1


def _line_up(
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


def _recorded_rows(total: int, held: int, count: int) -> int:
    """Rows an array stands for. A recording of detectron2 keeps the first 20 rows of ROI features without
    saying so; such an array stands for the whole set."""
    return count if total == held == RECORDED_ROI_ROWS < count else total


RECORDED_ROI_ROWS = 20


def _judge_values(context: Context, result: StageResult, name: str, lined: Lined) -> None:
    reference, candidate = lined.reference, lined.candidate
    if reference.dtype.kind != "f":
        _judge_exact(result, reference, candidate)
        return
    result.errors = free_errors(context.truth, name, lined, context.profile)
    if result.errors is not None and context.truth is not None:
        error = over_levels(context.truth, context.reference, name, result.errors.reference)
        bound = truth_limit(context.profile, error, forced=False, own=context.truth.own)
    else:
        bound = limit(_free_profile(context, name), context.noise.get(name), forced=False)
    result.limit = bound
    result.metrics = measure(reference, candidate)
    result.status, result.message = verdict_of(result, bound)


def _judge_exact(result: StageResult, reference: np.ndarray, candidate: np.ndarray) -> None:
    unequal = reference != candidate
    if unequal.any():
        at = tuple(int(i) for i in np.argwhere(unequal)[0])
        result.status = Status.FAIL
        result.message = (
            f"{int(unequal.sum())} of {reference.size} values differ, first at {at}: "
            f"{reference[at]} against {candidate[at]}"
        )
        result.metrics = measure(reference, candidate)
    else:
        result.message = "equal"


def verdict_of(result: StageResult, bound: Limit, forced: bool = False) -> tuple[Status, str]:
    """PASS or FAIL of a continuous stage, and the metric that decided."""
    metrics, errors = result.metrics, result.errors
    if forced:
        metrics, errors = result.forced_metrics, result.forced_errors
    assert metrics is not None
    checks: list[tuple[str, float, float, str]] = []
    own, most = (0.0, 0.0, 0.0), (bound.value, PEAK_FACTOR * bound.value, PEAK_FACTOR * bound.value)
    if errors is not None and bound.peak is not None and bound.channel is not None:
        own, most = _three(errors.reference), (bound.value, bound.peak, bound.channel)
        far = zip(_names(errors.candidate.worst_channel), _three(errors.candidate), most, own, strict=True)
        checks = [(f"{what} from float64", v, top, f" (the reference's: {r:.2e})") for what, v, top, r in far]
    highest = (bound.ceiling, PEAK_FACTOR * bound.ceiling, PEAK_FACTOR * bound.ceiling)
    # Two sides that are both near the truth are not farther apart than their distances from it together.
    apart = [min(high, top + r) for high, top, r in zip(highest, most, own, strict=True)]
    named = zip(_names(metrics.worst_channel), _three(metrics), apart, strict=True)
    checks += [(what, value, top, "") for what, value, top in named]
    broken = [
        f"{what} {value:.2e} > {top:.2e}{more}" for what, value, top, more in checks if not value <= top
    ]
    return (Status.FAIL, "; ".join(broken)) if broken else (Status.PASS, "")


def _three(metrics: Metrics) -> tuple[float, float, float]:
    return metrics.rel_l2, metrics.max_rel, metrics.channel_rel_l2


def _names(channel: int) -> tuple[str, str, str]:
    return "relative L2", "largest difference over largest value", f"channel {channel} relative L2"


def _free_profile(context: Context, name: str) -> Profile:
    """The profile whose free-running limits apply. detectron2 rounds boxes and scores to float32 in every
    discrete step, so what follows one is at float32 precision even in float64."""
    if context.profile.dtype != "float64":
        return context.profile
    seen, todo = set(), [name]
    while todo:
        stage = context.table.get(todo.pop())
        if stage is None or stage.name in seen:
            continue
        if stage.kind == "discrete" and stage.name != "input/resized":
            return STRICT
        seen.add(stage.name)
        todo += stage.inputs
    return context.profile


# ---- teacher-forced --------------------------------------------------------------------------------------


def _judge_forced(context: Context, result: StageResult, name: str) -> None:
    """The second comparison: what the candidate made of the reference's own input, row by row."""
    forced = forced_name(name)
    if forced not in context.candidate:
        return
    if another := context.other_input(name):
        result.forced_status, result.forced_message = Status.NOT_COMPARED, another
        return
    reference, candidate = context.reference[name], context.candidate[forced]
    rows = min(len(reference), len(candidate)) if reference.ndim and _is_cut(context, name) else None
    reference, candidate = reference[:rows], candidate[:rows]
    problem = _unlike(reference, candidate)
    if problem:
        result.forced_status, result.forced_message = problem
        return
    if reference.dtype.kind != "f":
        probe = StageResult(name, result.rung, "exact", Status.PASS)
        if result.kind == "pixels" and reference.dtype == bool:
            _judge_pasted(context, probe, reference, candidate)
        else:
            _judge_exact(probe, reference, candidate)
        result.forced_status, result.forced_message = probe.status, probe.message
        return
    if array_of(name, context.table).judge == "keypoints":
        flips, worst = _keypoint_flips(context, name, reference, candidate, None)
        fine = flips.unexplained == 0 and worst <= keypoint_limits(context, name)[1]
        result.forced_status = Status.PASS if fine else Status.FAIL
        moved = f"{flips.flipped} of {flips.compared} keypoints moved, {flips.unexplained} unexplained"
        result.forced_message = f"{moved}; scores to {worst:.1e}"
        return
    assert context.inputs is not None
    if array_of(name, context.table).judge == "refined":
        candidate, note = _settled(reference, candidate)
        bound = forced_limit(context, name)
        result.forced_limit, result.forced_metrics = bound, measure(reference, candidate)
        result.forced_status, message = verdict_of(result, bound, forced=True)
        result.forced_message = "; ".join(text for text in (message, note) if text)
        return
    result.forced_errors = forced_errors(context.truth, context.inputs, name, reference, candidate)
    if result.forced_errors is not None and context.truth is not None:
        bound = truth_limit(
            context.profile, result.forced_errors.reference, forced=True, own=context.truth.own
        )
    else:
        bound = forced_limit(context, name)
    result.forced_limit, result.forced_metrics = bound, measure(reference, candidate)
    result.forced_status, result.forced_message = verdict_of(result, bound, forced=True)


def forced_limit(context: Context, name: str) -> Limit:
    """The limit of a stage on the reference's input. Noise that was measured end to end holds what came in as
    well, so that only noise measured on the same input may raise the ceiling."""
    stage = context.table.get(name)
    rounds = stage is not None and stage.kind == "float32" and context.profile.dtype == "float64"
    profile = STRICT if rounds else context.profile  # such a unit computes in float32 whatever the profile
    if name in context.forced_noise:
        return limit(profile, context.forced_noise[name], forced=True)
    return limit(profile, context.noise.get(name), forced=True)


def _is_cut(context: Context, name: str) -> bool:
    stage = context.table.get(name)
    return stage is not None and stage.roi_features


def _judge_origins(results: list[StageResult]) -> None:
    """LOCAL, INHERITED, AMPLIFIED or UNKNOWN for every bad stage (see ``Verdict``)."""
    by_name = {r.name: r for r in results}
    for result in results:
        errors = [e for i in result.inputs if i in by_name for e in [_error(by_name[i])] if e is not None]
        own = _error(result)
        if own is not None and errors and max(errors) > 0:
            result.factor = own / max(errors)
        if not result.bad:
            continue
        sources = [by_name[i] for i in result.inputs if i in by_name]
        if result.forced_status in (Status.FAIL, Status.ERROR):
            result.verdict = Verdict.LOCAL
        elif sources and all(not s.bad for s in sources) and result.forced_status is None:
            result.verdict = Verdict.LOCAL
        elif result.forced_status in (Status.PASS, Status.BORDERLINE):
            result.verdict = _not_local(sources)
        elif sources and any(s.bad for s in sources):
            result.verdict = Verdict.INHERITED
        else:
            result.verdict = Verdict.LOCAL if _has_no_inputs(result) else Verdict.UNKNOWN


def _not_local(sources: Sequence[StageResult]) -> Verdict:
    """The verdict of a bad stage that is right on the reference's input. Where its own inputs are not only
    within their limits but exactly the reference's, nothing came in, and the stage behaves differently by
    itself."""
    if any(s.bad for s in sources):
        return Verdict.INHERITED
    exact = all(s.kind == "exact" or (s.metrics is not None and s.metrics.max_abs == 0) for s in sources)
    return Verdict.LOCAL if exact else Verdict.AMPLIFIED


def _has_no_inputs(result: StageResult) -> bool:
    return result.name.startswith("input/")


def _error(result: StageResult) -> float | None:
    metrics = result.metrics
    return metrics.rel_l2 if metrics is not None and np.isfinite(metrics.rel_l2) else None


# ---- sets of detections ----------------------------------------------------------------------------------


def _set(context: Context, spec: SetSpec) -> StageResult:
    result = StageResult(spec.name, rung_of(spec.name), "set", Status.PASS)
    names = [n for n in (spec.boxes, spec.scores, spec.classes) if n]
    absent = [f"{n}: {t}" for n in names if (t := _absent(context, n))]
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
        context.matches[spec.name] = detections.compare_sets(reference, candidate, Rules(), Noise(0.0, 0.0))
        return result
    noise = decision_noise(context, spec)
    rules = rules_of(context.config, spec.rules)
    explain = _explain_with_traces(context, spec, noise)
    report = detections.compare_sets(
        reference, candidate, rules, noise, explain, _origins(context, spec, noise)
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


def items_of(trace: Arrays, spec: SetSpec, rename: Any = None) -> Items:
    """One set of a trace; ``rename`` gives the names of its arrays there."""
    get = (lambda n: trace[rename(n)]) if rename else (lambda n: trace[n])
    return Items(get(spec.boxes), get(spec.scores), get(spec.classes) if spec.classes else None)


def static_noise(context: Context, spec: SetSpec, forced: bool = False) -> Noise:
    """The profile's limits of corners and scores. Logits are relative to the largest one. What was computed
    from detectron2's float32 proposals is at float32 precision end to end, but not on the same input."""
    stage = context.table.get(spec.boxes)
    before = [] if stage is None or forced else [_free_profile(context, n) for n in stage.inputs]
    profile = STRICT if STRICT in before else context.profile
    score = profile.score
    if spec.rules == "rpn":
        score = profile.logit * max(float(np.abs(context.reference[spec.scores]).max(initial=0.0)), 1e-6)
    return Noise(profile.box_px, score)


def decision_noise(context: Context, spec: SetSpec) -> Noise:
    """How far the two sides' corners and scores may be apart, as far as decisions go: what the reference's own
    error or noise in this set allows where it was measured, else the profile's limits."""
    bounds = set_bounds(context, spec)
    if bounds is not None:
        return bounds.apart
    static, measured = static_noise(context, spec), context.set_noise.get(spec.name)
    if measured is None:
        return static
    return Noise(value_limit(static.box_px, measured.box_px), value_limit(static.score, measured.score))


def set_limits(context: Context, spec: SetSpec) -> Noise:
    """The most that matched boxes and scores may differ. Without a float64 run little noise in one picture's few
    detections does not tighten the profile's limits; logits of a thousand proposals do."""
    bounds = set_bounds(context, spec)
    if bounds is not None:
        return bounds.apart
    static, noise = static_noise(context, spec), decision_noise(context, spec)
    score = noise.score if spec.rules == "rpn" else max(static.score, noise.score)
    return Noise(max(static.box_px, noise.box_px), score)


@dataclass(frozen=True)
class SetBounds:
    """Limits of a set that a float64 run gives: ``own`` is the reference's distance from it, ``far`` what the
    candidate's may be, ``apart`` the two sides' distance from each other."""

    own: Noise
    far: Noise
    apart: Noise


def set_bounds(context: Context, spec: SetSpec) -> SetBounds | None:
    """The limits of a set by the reference's own error; None where that was not measured.

    A picture has few detections, so that theirs may be right by chance: the scores' error is the one of every class
    probability, the boxes' one is that of the proposals, too.
    """
    truth = context.truth
    if truth is None or spec.name not in truth.noise:
        return None
    static, own = static_noise(context, spec), truth.noise[spec.name]
    if spec.rules == "detect":
        most = TRUTH_FACTOR * static.score
        score = probability_noise(truth, context.reference, PROPOSALS.name, most)
        proposed = truth.noise.get(PROPOSALS.name, own).box_px * _enlarged(context, spec)
        own = Noise(max(own.box_px, proposed), max(own.score, score))
    floor = set_floor(context, spec)
    far = Noise(NOISE_FACTOR * own.box_px + floor.box_px, NOISE_FACTOR * own.score + floor.score)
    highest = TRUTH_FACTOR if truth.own else 1.0
    apart = Noise(
        min(highest * static.box_px, far.box_px + own.box_px),
        min(highest * static.score, far.score + own.score),
    )
    return SetBounds(own, far, apart)


def set_floor(context: Context, spec: SetSpec) -> Noise:
    """What float32 rounds where boxes are decoded (pixels) and scores computed."""
    static = static_noise(context, spec)
    if not context.profile.exact:
        return Noise(0.1 * static.box_px, 0.1 * static.score)
    largest = float(np.abs(context.reference[spec.boxes]).max(initial=1.0))
    score = ROUNDINGS * EPSILON
    if spec.rules == "rpn":  # logits, each of them a sum of its own
        score *= LARGEST * float(np.abs(context.reference[spec.scores]).max(initial=0.0))
    return Noise(BOX_ROUNDINGS * float(np.spacing(np.float32(largest))), score)


def _enlarged(context: Context, spec: SetSpec) -> float:
    """Pixels of the picture per pixel of the network input, for sets in the picture's pixels."""
    if spec is not RESULTS or any(f"input/{n}" not in context.reference for n in ("image", "resized")):
        return 1.0
    image, network = (context.reference[f"input/{n}"].shape for n in ("image", "resized"))
    return max(image[0] / network[0], image[1] / network[1])


def rules_of(config: Mapping[str, Any] | None, kind: str) -> Rules:
    """The thresholds that made a set, from detectron2's configuration; unknown ones stay None."""
    model = (config or {}).get("MODEL", {})
    try:
        if kind == "rpn":
            rpn = model["RPN"]
            return Rules(None, float(rpn["NMS_THRESH"]), int(rpn["POST_NMS_TOPK_TEST"]))
        heads = model["RETINANET" if model["META_ARCHITECTURE"] in ("RetinaNet", "FCOS") else "ROI_HEADS"]
        top = int((config or {})["TEST"]["DETECTIONS_PER_IMAGE"])
        return Rules(float(heads["SCORE_THRESH_TEST"]), float(heads["NMS_THRESH_TEST"]), top)
    except (KeyError, TypeError):
        return Rules()


def _judge_set(context: Context, result: StageResult, report: MatchReport, spec: SetSpec) -> None:
    profile, most = context.profile, set_limits(context, spec)
    px, score = (float(np.abs(a).max(initial=0.0)) for a in (report.box_px, report.score_difference))
    problems, explained = [], [c for c in report.certificates if c.certified]
    if not px <= most.box_px:
        problems.append(f"boxes differ by {px:.2e} px > {most.box_px:.1e}")
    if not score <= most.score:
        problems.append(f"scores differ by {score:.2e} > {most.score:.1e}")
    far = _set_errors(context, spec, report)
    bounds = set_bounds(context, spec) if far is not None else None
    if far is not None and bounds is not None:
        if not far.box_px <= bounds.far.box_px:
            text = f"(the reference's: {bounds.own.box_px:.1e})"
            problems.append(f"boxes are {far.box_px:.2e} px from float64 > {bounds.far.box_px:.1e} {text}")
        if not far.score <= bounds.far.score:
            text = f"(the reference's: {bounds.own.score:.1e})"
            problems.append(f"scores are {far.score:.2e} from float64 > {bounds.far.score:.1e} {text}")
    problems += [c.text for c in report.uncertified[:5]]
    budget = detections.limit_budget(report, profile.borderline_share)
    lonely = sum(1 for c in explained if c.reason != "order")
    if lonely > budget:
        problems.append(f"{lonely} differences explained by margins, more than the {budget} allowed")
    if not report.pairs:
        problems.append("no item of one side matches any of the other")
    result.status = Status.FAIL if problems else Status.BORDERLINE if explained else Status.PASS
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
    )
    result.details = _set_details(report, px, score) | {"box_limit": most.box_px, "score_limit": most.score}
    if own is not None:
        result.details |= {"box_noise": own.box_px, "score_noise": own.score}
    if far is not None:
        result.details |= {"box_error": far.box_px, "score_error": far.score}


def _set_errors(context: Context, spec: SetSpec, report: MatchReport) -> Noise | None:
    """How far the candidate's matched items are from the float64 run; None where that holds none of them."""
    rows = context.truth.rows.get(spec.name, {}) if context.truth else {}
    known = [(j, rows[i]) for i, j in report.pairs if i in rows]
    if not known or context.truth is None:
        return None
    own, exact = [j for j, _ in known], [t for _, t in known]
    gaps = [
        np.abs(context.candidate[n][own].astype(np.float64) - context.truth.arrays[n][exact])
        for n in (spec.boxes, spec.scores)
    ]
    return Noise(float(gaps[0].max(initial=0.0)), float(gaps[1].max(initial=0.0)))


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
    rules = replace(rules_of(context.config, spec.rules), score_threshold=None)
    rounding = Noise(set_floor(context, spec).box_px, 0.0)
    report = detections.compare_sets(reference, candidate, rules, rounding)
    px, score = (float(np.abs(a).max(initial=0.0)) for a in (report.box_px, report.score_difference))
    fine = not report.uncertified and px <= most.box_px and score <= most.score
    fine &= len(report.certificates) <= detections.limit_budget(report, context.profile.borderline_share)
    kept = len(reference) == len(candidate) and not report.certificates
    result.forced_status = (Status.PASS if kept else Status.BORDERLINE) if fine else Status.FAIL
    others = f", {len(report.certificates)} items differ" if report.certificates else ""
    counts = "" if len(reference) == len(candidate) else f", {len(reference)} items against {len(candidate)}"
    result.forced_message = f"replayed: worst {px:.1e} px, {score:.1e} score{others}{counts}"


def _explain_with_traces(context: Context, spec: SetSpec, noise: Noise) -> detections.Explain:
    """Reasons that need other arrays: the pre-NMS top-k of a level, and the proposal a detection came
    from."""

    cached = {"reference": Cached(context.reference), "candidate": Cached(context.candidate)}

    def explain(side: str, index: int) -> detections.Certificate | None:
        trace = cached[side]
        if spec.rules == "rpn":
            return _pre_nms_cut(context, trace, spec, side, index, noise)
        return _from_source(context, trace, spec, side, index)

    return explain


def _pre_nms_cut(
    context: Context, trace: Arrays, spec: SetSpec, side: str, index: int, noise: Noise
) -> detections.Certificate | None:
    """The item's logit lies at the cut of its level's pre-NMS top-k."""
    try:
        top = int((context.config or {})["MODEL"]["RPN"]["PRE_NMS_TOPK_TEST"])
    except (KeyError, TypeError):
        return None
    score = float(trace[spec.scores][index])
    head = f"{RPN_HEAD}/0/"
    for name in (n for n in trace if n.startswith(head)):
        logits = np.sort(trace[name].ravel())[::-1]
        if logits.size <= top or score not in logits:
            continue
        cut = float(logits[top - 1] if score < logits[top - 1] else logits[top])
        gap = abs(score - cut)
        text = f"logit {score:.7f} is {gap:.1e} from the cut of level {name[-1]}'s {top} best"
        return detections.Certificate(side, index, "pre-nms-cut", score, cut, gap, noise.score, text)
    return None


def _from_source(
    context: Context, trace: Arrays, spec: SetSpec, side: str, index: int
) -> detections.Certificate | None:
    """The item was computed from a proposal that is itself only on this side, with a certificate."""
    proposals = context.matches.get(PROPOSALS.name)
    row = provenance.source_row(trace, items_of(trace, spec), index) if proposals else None
    for proof in proposals.certificates if proposals else ():
        if proof.side == side and proof.index == row and proof.certified and proof.reason != "order":
            text = f"comes from proposal {row}, which is borderline itself: {proof.text}"
            return detections.Certificate(side, index, "source", proof.value, proof.threshold, 0.0, 0.0, text)
    return None


def _origins(context: Context, spec: SetSpec, noise: Noise) -> detections.Origin:
    """What an item was computed from, looked up in the dense outputs of both sides."""
    delta = PEAK_FACTOR * context.profile.free_ceiling

    cached = {"reference": Cached(context.reference), "candidate": Cached(context.candidate)}

    def origin(side: str, index: int) -> Hashable | None:
        own, other = cached[side], cached["candidate" if side == "reference" else "reference"]
        items = items_of(own, spec)
        if spec.rules == "rpn":
            head = RPN_HEAD
            return provenance.dense_origin(own, other, head, items, index, noise.score, delta)
        if f"{DENSE_HEAD}/0/0" in own:
            head = DENSE_HEAD
            return provenance.dense_origin(own, other, head, items, index, noise.score, delta)
        rows = provenance.row_map(context.matches.get(PROPOSALS.name), side)
        found = provenance.roi_origin(own, other, items, index, rows, noise.score, delta)
        if found is None:
            return None
        return (found[0] if side == "reference" else found[1], found[2])

    return origin


# ---- what is drawn ---------------------------------------------------------------------------------------


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


def _judge_masks(context: Context, result: StageResult, reference: np.ndarray, candidate: np.ndarray) -> None:
    report = context.matches[RESULTS.name]
    boxes = context.reference[RESULTS.boxes][[p[0] for p in report.pairs]]
    probabilities = []
    for i, j in report.pairs:
        own = _mask_probability(context.reference, i)
        probabilities.append(_mask_probability(context.candidate, j) if own is None else own)
    # A misplaced box is a fault of its own; it must not excuse its mask.
    shift = np.minimum(report.box_px, set_limits(context, RESULTS).box_px)
    flips = pixels.compare_masks(
        reference, candidate, boxes, shift, probabilities, probability_limit(context)
    )
    if flips.unexplained == 0:
        context.explained = (reference != candidate).any(axis=0)
    _finish_pixels(result, flips, "mask pixels")
    result.message += f"; worst mask IoU {flips.worst_iou:.6f}"


def _judge_pasted(context: Context, probe: StageResult, reference: np.ndarray, candidate: np.ndarray) -> None:
    """Masks pasted from the same probabilities into the same boxes: a pixel may differ only where its probability is
    a rounding away from the threshold."""
    if np.array_equal(reference, candidate):
        probe.message = "equal"
        return
    count = len(reference)
    boxes = context.reference[RESULTS.boxes][:count]
    behind = [_mask_probability(context.reference, k) for k in range(count)]
    flips = pixels.compare_masks(reference, candidate, boxes, np.zeros(count), behind, ROUNDINGS * EPSILON)
    _finish_pixels(probe, flips, "mask pixels")


def probability_limit(context: Context) -> float:
    """How far from its threshold the probability of a flipped mask pixel may lie."""
    static, name = context.profile.probability, MASK_LOGITS
    if context.truth is None or name not in context.reference:
        return static

    def lined() -> Lined | None:
        owner = next((o.name for o in row_owners(name, context.table) if o.name in context.truth.rows), "")  # pyright: ignore
        logits = context.reference[name]
        return Lined(logits, logits, np.arange(len(logits)), owner) if owner else None

    own = mask_noise(context.truth, name, lined, context.profile)
    if own is None:
        return static
    # A probability moves by at most a quarter of its logit.
    largest = max(1.0, float(np.abs(context.reference[name]).max(initial=0.0)) * LARGEST / 4)
    floor = ROUNDINGS * EPSILON * largest if context.profile.exact else 0.1 * static
    return min((TRUTH_FACTOR if context.truth.own else 1.0) * static, (NOISE_FACTOR + 1) * own + floor)


def _mask_probability(trace: Arrays, index: int) -> np.ndarray | None:
    """Probability map (M, M) behind an output mask; None where the trace does not hold it."""
    if MASK_LOGITS not in trace:
        return None
    logits, row = trace[MASK_LOGITS], _network_row(trace, index)
    if row is None or row >= len(logits):
        return None
    label = int(trace[RESULTS.classes or ""][index]) if logits.shape[1] > 1 else 0
    return pixels.sigmoid(logits[row, label])


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


def _judge_keypoints(
    context: Context, result: StageResult, reference: np.ndarray, candidate: np.ndarray
) -> None:
    spec = RESULTS if result.name.startswith("output") else DETECTIONS
    report = context.matches.get(spec.name) or context.matches[RESULTS.name]
    rows = [p[0] for p in report.pairs]
    flips, worst = _keypoint_flips(context, result.name, reference, candidate, rows)
    if not worst <= keypoint_limits(context, result.name)[1]:
        result.status, result.message = Status.FAIL, f"keypoint scores differ by {worst:.1e} relative"
    _finish_pixels(result, flips, "keypoints")


def _heat_maps(name: str) -> str:
    return f"{name}_heatmaps".replace("keypoints_", "keypoint_")


def keypoint_limits(context: Context, name: str) -> tuple[float, float]:
    """How far a keypoint of one heat map cell may move, in pixels, and by how much of the largest logit two cells
    may differ that change places."""
    profile, truth = context.profile, context.truth
    spec, heat = RESULTS if name.startswith("output") else DETECTIONS, _heat_maps(name)
    bounds = set_bounds(context, spec)
    if truth is None or bounds is None or heat not in context.reference:
        return profile.keypoint_px, profile.logit
    maps = context.reference[heat]
    errors = free_errors(truth, heat, Lined(maps, maps, np.arange(len(maps)), spec.name), profile)
    if errors is None:
        return profile.keypoint_px, profile.logit
    bound = truth_limit(profile, errors.reference, forced=False)
    # A cell is a bicubic mean of its neighbours, whose weights' magnitudes add up to less than two, and two of
    # them are compared.
    return 2 * bounds.apart.box_px, 4 * ((bound.peak or 0.0) + errors.reference.max_rel)


def _keypoint_flips(
    context: Context,
    name: str,
    reference: np.ndarray,
    candidate: np.ndarray,
    rows: Sequence[int] | None,
) -> tuple[pixels.FlipReport, float]:
    """Moved keypoints and the largest relative score difference. ``rows``: which of the reference's
    detections the arrays belong to; None for all of them in order."""
    final, (px, logit) = name.startswith("output"), keypoint_limits(context, name)
    spec, heat_name = RESULTS if final else DETECTIONS, _heat_maps(name)
    heat = context.reference[heat_name] if heat_name in context.reference else None
    image, network = (context.reference[f"input/{n}"].shape for n in ("image", "resized"))
    scale = (image[1] / network[1], image[0] / network[0]) if final else (1.0, 1.0)
    chosen = slice(None) if rows is None else list(rows)
    boxes = context.reference[spec.boxes][chosen] / np.array([*scale, *scale])
    heat = None if heat is None else heat[chosen]
    flips = pixels.compare_keypoints(reference, candidate, boxes, heat, px, logit, scale)
    scores = [a[..., 2].astype(np.float64) for a in (reference, candidate)]
    worst = (np.abs(scores[0] - scores[1]) / (np.abs(scores[0]) + 1e-3)).max(initial=0.0)
    # A score is a quotient of exponentials: its relative error is the logits' absolute one.
    largest = 1.0 if heat is None else max(1.0, float(np.abs(heat).max(initial=0.0)))
    return flips, float(worst) / largest


def _judge_argmax(
    context: Context, result: StageResult, reference: np.ndarray, candidate: np.ndarray
) -> None:
    flips = pixels.compare_argmax(reference, candidate, _argmax_limit(result))
    changed = reference.argmax(axis=0) != candidate.argmax(axis=0)
    if flips.unexplained == 0:
        context.explained = changed if context.explained is None else context.explained | changed
    _finish_pixels(result, flips, "pixel classes")


def _argmax_limit(result: StageResult) -> float:
    """The gap between a pixel's two best classes, over the largest logit, that rounding may close."""
    if result.limit is None:
        return 0.0
    if result.errors is None or result.limit.peak is None:
        return PEAK_FACTOR * result.limit.value
    return 2 * (result.limit.peak + result.errors.reference.max_rel)  # either class moves by as much


def _judge_panoptic(
    context: Context, result: StageResult, reference: np.ndarray, candidate: np.ndarray
) -> None:
    if not context.reference_segments or not context.candidate_segments:
        result.status, result.message = Status.NOT_COMPARED, "a side has no segment list"
        return
    explained = np.zeros(reference.shape, bool) if context.explained is None else context.explained
    flips = pixels.compare_panoptic(
        reference,
        candidate,
        context.reference_segments,
        context.candidate_segments,
        explained,
        context.profile.score if context.truth is None else set_limits(context, RESULTS).score,
    )
    _finish_pixels(result, flips, "pixels")
