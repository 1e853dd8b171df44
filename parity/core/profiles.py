"""The three numeric profiles and the rules that limits follow from.

Where a float64 run of the reference exists, a limit follows from it and from nothing else that was measured: the
candidate may be NOISE_FACTOR times as far from that run as the reference itself is, in the same metric, and the floor
(a head with the same weights on every pyramid level: as the reference is on the level where it rounds most).
The floor is what the dtype rounds in a sum of some thousand terms, where the reference happens to add them up in a
better order: ROUNDINGS machine epsilons in the mean, LARGEST times as many in a single element or channel (measured: a
right convolution of 2304 terms is up to 16 off, one that adds in blocks 4; boxes, which are decoded in several steps:
BOX_ROUNDINGS units in the last place of the largest coordinate). Of few numbers (a map of two cells, a feature that few
proposals have; the masks of three detections, each as wrong as its box is; a hundred boxes of which one, that its
features hardly determine, has nearly all of the reference's error) the reference's may all be right by chance:
the factor is then that of `chance_factor`, as far as it stays below the limit that would hold without a float64 run or
below twice NOISE_FACTOR (from 7 numbers on, so that the reference's own error may exceed that other limit).
The largest element of such rows, and the farthest corner of a set of boxes, is decided by fewer of them than their sum
is, and may then be up to twice NOISE_FACTOR times as far (a hundred rows of one error each, their sensitivities
lognormal with sigma 1, and two sides that round alike: NOISE_FACTOR alone is exceeded in 3 of a hundred, this limit in
3 of a thousand). How many decide is counted on the side where they are fewer: a sensitive row in which the reference
happens to be right does not show in its errors (a thousand rows, the candidate rounding 1.3 times as much: exceeded in
4 of a hundred, counted so in 2 of a thousand).
Both sides are run on this machine, so that such a verdict does not depend on the processor. The two sides may then be
apart by their two distances together, and never by more than the ceiling (TRUTH_FACTOR times as high as without that
run): where the reference itself is nothing but rounding, nothing can be proved.

Without a float64 run a limit is an estimate: ``min(ceiling, NOISE_FACTOR * noise + floor)`` on the difference of the
two sides. The noise is the reference's difference from a second run with another thread count. Such a run adds up
almost everything in the same order, so it shows a small part of the rounding only (in one channel of the embedded
model 3.7e-7, where detectron2 is 1.5e-5 from its float64 run) and yet lowers the limit towards the floor. The verdict
says that its limits are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass

from parity.core.metrics import Metrics
from weights.errors import UsageError

NOISE_FACTOR = 3.0
TRUTH_FACTOR = 30.0
EPSILON = 2.0**-23  # of float32
ROUNDINGS = 8.0
# Of 1 to 13 numbers: the root of the 0.9999 quantile of Fisher's F distribution, that of the quotient of two sums of
# as many squares.
_CHANCE = (6366.2, 100.0, 25.68, 13.11, 8.770, 6.701, 5.521, 4.765, 4.242, 3.860, 3.568, 3.338, 3.152)
LARGEST = 4.0  # the largest of many errors is about four standard deviations
BOX_ROUNDINGS = 8.0
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
    exact: bool = True  # nothing but rounding separates two right sides: floors of the dtype's rounding alone


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
    exact=False,
)
PROFILES = {p.name: p for p in (SEMANTIC, STRICT, PRODUCTION)}


def get_profile(name: str) -> Profile:
    """The profile called ``name``; ValueError lists the known ones."""
    if name not in PROFILES:
        raise UsageError(f"unknown profile {name!r}; choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


@dataclass(frozen=True)
class Limit:
    """A tolerance with its origin, for printing: ``noise`` is None where it was not measured.

    ``value`` bounds a relative L2: with ``peak`` and ``channel`` (those of the largest element and of the worst
    channel) the candidate's distance from the float64 run, without them the difference of the two sides.
    """

    value: float
    noise: float | None
    floor: float
    ceiling: float
    peak: float | None = None
    channel: float | None = None


def limit(profile: Profile, noise: float | None, forced: bool) -> Limit:
    """Relative L2 limit of a continuous stage without a float64 run. Without measured noise the static ceiling
    decides alone."""
    floor, ceiling = _static(profile, forced)
    return Limit(
        ceiling if noise is None else min(ceiling, NOISE_FACTOR * noise + floor), noise, floor, ceiling
    )


def chance_factor(numbers: int) -> float:
    """How many times as large the RMS of so many rounding errors may be as that of so many others: more than that
    comes by chance once in ten thousand times. NOISE_FACTOR covers 14 numbers and more. 0: nobody counted.
    """
    return _CHANCE[numbers - 1] if 0 < numbers <= len(_CHANCE) else NOISE_FACTOR


def truth_limit(
    profile: Profile,
    error: Metrics,
    forced: bool,
    own: bool = True,
    numbers: tuple[int, int, int] | None = None,
) -> Limit:
    """Limits of a candidate's distance from a float64 run from which the reference is ``error``.

    ``own``: that run is one of the reference itself, and not of another implementation of the model, which must not
    raise a ceiling. ``numbers``: how many independent ones the array and the candidate's worst channel hold, where
    that is not what ``error`` counts, and how many decide its largest element (0: as many as the array holds).
    """
    static, ceiling = _static(profile, forced)
    floor = ROUNDINGS * EPSILON if profile.exact else static
    peak_floor = floor * (LARGEST if profile.exact else PEAK_FACTOR)
    of_all, of_channel, of_peak = numbers or (error.count, error.channel_cells, 0)
    highest = PEAK_FACTOR * ceiling
    by_rows = min(chance_factor(of_peak), 2 * NOISE_FACTOR) * error.max_rel + peak_floor
    return Limit(
        allowed(error.rel_l2, of_all, floor, ceiling),
        error.rel_l2,
        floor,
        ceiling * (TRUTH_FACTOR if own else 1.0),
        max(allowed(error.max_rel, of_all, peak_floor, highest), by_rows),
        allowed(error.channel_rel_l2, of_channel, peak_floor, highest),
    )


def allowed(error: float, numbers: int, floor: float, without_truth: float) -> float:
    """How far a candidate's numbers may be from the truth where the reference's are ``error`` from it."""
    by_chance = chance_factor(numbers) * error + floor
    return max(
        NOISE_FACTOR * error + floor, min(by_chance, max(without_truth, 2 * NOISE_FACTOR * error + floor))
    )


def _static(profile: Profile, forced: bool) -> tuple[float, float]:
    if forced:
        return profile.forced_floor, profile.forced_ceiling
    return profile.free_floor, profile.free_ceiling


def value_limit(static: float, noise: float | None) -> float:
    """The estimate for pixels and scores, whose floor is a tenth of their static limit."""
    return static if noise is None else min(static, NOISE_FACTOR * noise + 0.1 * static)
