"""How far arrays and sets may differ: by the profile, measured noise, or the reference's distance from float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
    allowed,
    chance_factor,
    limit,
    truth_limit,
    value_limit,
)
from parity.core.results import StageResult
from parity.core.units import row_owners
from parity.core.units.table import DETECTIONS, MASK_LOGITS, PROPOSALS, RESULTS, SetSpec, conventions_of
from parity.judge.context import Context
from parity.judge.detections import Noise
from parity.judge.truth import Lined, free_errors, mask_noise, probability_noise


def free_profile(context: Context, name: str) -> Profile:
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


def forced_limit(context: Context, name: str) -> Limit:
    """The limit of a stage on the reference's input. Noise that was measured end to end holds what came in as
    well, so that only noise measured on the same input may raise the ceiling."""
    stage = context.table.get(name)
    rounds = stage is not None and stage.kind == "float32" and context.profile.dtype == "float64"
    profile = STRICT if rounds else context.profile  # such a unit computes in float32 whatever the profile
    if name in context.forced_noise:
        return limit(profile, context.forced_noise[name], forced=True)
    return limit(profile, context.noise.get(name), forced=True)


def static_noise(context: Context, spec: SetSpec, forced: bool = False) -> Noise:
    """The profile's limits of corners and scores. Logits are relative to the largest one. What was computed
    from detectron2's float32 proposals is at float32 precision end to end, but not on the same input."""
    stage = context.table.get(spec.boxes)
    before = [] if stage is None or forced else [free_profile(context, n) for n in stage.inputs]
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


def set_limits(context: Context, spec: SetSpec, deciding: int = 0) -> Noise:
    """The most that matched boxes and scores may differ; ``deciding`` as for :func:`set_bounds`. Without a float64 run
    little noise in one picture's few detections does not tighten the profile's limits; logits of a thousand proposals
    do."""
    bounds = set_bounds(context, spec, deciding)
    if bounds is not None:
        return bounds.apart
    static, noise = static_noise(context, spec), decision_noise(context, spec)
    score = noise.score if spec.rules == "rpn" else max(static.score, noise.score)
    return Noise(max(static.box_px, noise.box_px), score)


@dataclass(frozen=True)
class _SetBounds:
    """Limits of a set that a float64 run gives: ``own`` is the reference's distance from it, ``far`` what the
    candidate's may be, ``apart`` the two sides' distance from each other."""

    own: Noise
    far: Noise
    apart: Noise


def set_bounds(context: Context, spec: SetSpec, deciding: int = 0) -> _SetBounds | None:
    """The limits of a set by the reference's own error; None where that was not measured.

    A picture has few detections, so that theirs may be right by chance: the scores' error is the one of every class
    probability, the boxes' one is that of the proposals, too. ``deciding``: by how many coordinates the largest error
    is decided (:func:`parity.judge.truth.effective_rows`); of few the factor is that of so few numbers, up to twice
    NOISE_FACTOR. 0: nobody counted.
    """
    truth = context.truth
    if truth is None or spec.name not in truth.noise:
        return None
    static, own = static_noise(context, spec), truth.noise[spec.name]
    if spec.rules == "detect":
        most = TRUTH_FACTOR * static.score
        scores = context.reference[spec.scores].astype(np.float64)
        score = probability_noise(truth, context.reference, scores, PROPOSALS.name, most)
        proposed = truth.noise.get(PROPOSALS.name, own).box_px * _enlarged(context, spec)
        own = Noise(max(own.box_px, proposed), max(own.score, score))
    floor = set_floor(context, spec)
    of_boxes = min(chance_factor(deciding), 2 * NOISE_FACTOR)
    far = Noise(of_boxes * own.box_px + floor.box_px, NOISE_FACTOR * own.score + floor.score)
    highest = TRUTH_FACTOR if truth.own else 1.0
    apart = Noise(
        min(highest * static.box_px, far.box_px + own.box_px),
        min(highest * static.score, far.score + own.score),
    )
    return _SetBounds(own, far, apart)


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
    model = (context.config or {}).get("MODEL", {})
    in_picture = spec is RESULTS or (spec is DETECTIONS and conventions_of(model) == "detectron")
    if not in_picture or any(f"input/{n}" not in context.reference for n in ("image", "resized")):
        return 1.0
    image, network = (context.reference[f"input/{n}"].shape for n in ("image", "resized"))
    return max(image[0] / network[0], image[1] / network[1])


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
    far = allowed(own, len(context.reference[name]), floor, static)
    return min((TRUTH_FACTOR if context.truth.own else 1.0) * static, far + own)


def heat_maps(name: str) -> str:
    return f"{name}_heatmaps".replace("keypoints_", "keypoint_")


def keypoint_limits(context: Context, name: str) -> tuple[float, float]:
    """How far a keypoint of one heat map cell may move, in pixels, and by how much of the largest logit two cells
    may differ that change places."""
    profile, truth = context.profile, context.truth
    spec, heat = RESULTS if name.startswith("output") else DETECTIONS, heat_maps(name)
    bounds = set_bounds(context, spec)
    if truth is None or bounds is None or heat not in context.reference:
        return profile.keypoint_px, profile.logit
    maps = context.reference[heat]
    lined = Lined(maps, maps, np.arange(len(maps)), spec.name)
    errors = free_errors(truth, heat, lined, profile)
    if errors is None:
        return profile.keypoint_px, profile.logit
    bound = truth_limit(profile, errors.reference, forced=False, numbers=errors.numbers)
    # A cell is a bicubic mean of its neighbours, whose weights' magnitudes add up to less than two, and two of
    # them are compared.
    return 2 * bounds.apart.box_px, 4 * ((bound.peak or 0.0) + errors.reference.max_rel)


def argmax_limit(result: StageResult) -> float:
    """The gap between a pixel's two best classes, over the largest logit, that rounding may close."""
    if result.limit is None:
        return 0.0
    if result.errors is None or result.limit.peak is None:
        return PEAK_FACTOR * result.limit.value
    return 2 * (result.limit.peak + result.errors.reference.max_rel)  # either class moves by as much
