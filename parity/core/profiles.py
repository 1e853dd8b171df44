"""The three numeric profiles and the tolerance rule.

A limit is ``min(ceiling, NOISE_FACTOR * noise + floor)``: the noise is the reference's own (its error
against a float64 run, or its difference from a second run with another thread count), the floor covers
rounding where the reference happens to repeat itself bit for bit, and the ceiling is the most that a stage
may differ. A noisy reference therefore never excuses a candidate beyond the ceiling.

Badly conditioned weights (random ones, for instance) enlarge rounding beyond every fixed number: there the
reference in float32 is itself farther than the ceiling from the reference in float64. Only where such a
float64 run says so, the ceiling is TRUTH_FACTOR times as high; the limit is still NOISE_FACTOR times the
reference's own error.

Without a float64 run a limit is an estimate. A second run with another thread count adds up almost everything in
the same order, so it shows a small part of the rounding only (in one channel of the embedded model 3.7e-7, where
detectron2 is 1.5e-5 from its float64 run) and yet lowers the limit towards the floor. `parity.judge.judge` says so
beside a difference that is small enough.
"""

from __future__ import annotations

from dataclasses import dataclass

NOISE_FACTOR = 3.0
TRUTH_FACTOR = 30.0
PEAK_FACTOR = (
    10.0  # a single element may differ by more than the RMS does: limit of max|d|/max|r| and per channel
)


@dataclass(frozen=True)
class Profile:
    """Dtype of the network on both sides and every limit that depends on it.

    ``forced_*`` and ``free_*`` are relative L2 limits of continuous stages, fed with the reference's input
    and end to end. ``box_px`` is in pixels of the image, ``score`` in units of probability, ``logit``
    relative to the largest logit, ``probability`` bounds how far from a threshold a flipped pixel may lie,
    ``keypoint_px`` in pixels. ``borderline_share`` is the share of detections (at least 2) that certificates
    may explain.
    """

    name: str
    dtype: str
    forced_floor: float
    forced_ceiling: float
    free_floor: float
    free_ceiling: float
    box_px: float
    score: float
    logit: float
    probability: float
    keypoint_px: float
    borderline_share: float


# detectron2 decodes, clips, ranks and suppresses boxes in float32 even in a float64 model: at those steps a few
# units in the last place of a float32 coordinate or probability are all that can be asked for.
SEMANTIC = Profile(
    name="semantic",
    dtype="float64",
    forced_floor=3e-13,
    forced_ceiling=1e-12,
    free_floor=3e-13,
    free_ceiling=1e-12,
    box_px=5e-4,
    score=1e-6,
    logit=5e-7,
    probability=1e-6,
    keypoint_px=1e-3,
    borderline_share=0.0,
)
STRICT = Profile(
    name="strict",
    dtype="float32",
    forced_floor=1e-6,
    forced_ceiling=2e-6,
    free_floor=2e-6,
    free_ceiling=1e-5,
    box_px=1e-3,
    score=1e-5,
    logit=1e-4,
    probability=1e-5,
    keypoint_px=1e-2,
    borderline_share=0.05,
)
PRODUCTION = Profile(
    name="production",
    dtype="float32",
    forced_floor=2e-3,
    forced_ceiling=1e-2,
    free_floor=1e-2,
    free_ceiling=5e-2,
    box_px=1.0,
    score=2e-2,
    logit=5e-2,
    probability=5e-2,
    keypoint_px=1.0,
    borderline_share=0.25,
)
PROFILES = {p.name: p for p in (SEMANTIC, STRICT, PRODUCTION)}


def get_profile(name: str) -> Profile:
    """The profile called ``name``; ValueError lists the known ones."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


@dataclass(frozen=True)
class Limit:
    """A tolerance with its origin, for printing: ``noise`` is None where it was not measured."""

    value: float
    noise: float | None
    floor: float
    ceiling: float


def limit(profile: Profile, noise: float | None, forced: bool, truth: bool = False) -> Limit:
    """Relative L2 limit of a continuous stage. Without measured noise the static ceiling decides alone.
    ``truth``: the noise is the reference's error against a float64 run of itself."""
    floor = profile.forced_floor if forced else profile.free_floor
    ceiling = profile.forced_ceiling if forced else profile.free_ceiling
    return _bounded(noise, floor, ceiling, truth)


def value_limit(static: float, noise: float | None, truth: bool) -> float:
    """The same rule for pixels and scores, whose floor is a tenth of their static limit."""
    return _bounded(noise, 0.1 * static, static, truth).value


def _bounded(noise: float | None, floor: float, ceiling: float, truth: bool) -> Limit:
    highest = ceiling * TRUTH_FACTOR if truth else ceiling
    value = ceiling if noise is None else min(highest, NOISE_FACTOR * noise + floor)
    return Limit(value, noise, floor, highest)
