"""The rules that limits follow from, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from parity.core.metrics import measure
from parity.core.profiles import (
    EPSILON,
    LARGEST,
    NOISE_FACTOR,
    PEAK_FACTOR,
    PRODUCTION,
    PROFILES,
    ROUNDINGS,
    SEMANTIC,
    STRICT,
    TRUTH_FACTOR,
    Profile,
    limit,
    truth_limit,
    value_limit,
)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_floors_lie_below_ceilings_and_the_same_input_is_judged_more_strictly(profile: Profile) -> None:
    assert 0 < profile.forced_floor < profile.forced_ceiling <= profile.free_ceiling
    assert profile.forced_floor <= profile.free_floor < profile.free_ceiling


def test_profiles_are_ordered_by_strictness() -> None:
    order = (SEMANTIC, STRICT, PRODUCTION)
    for name in (
        "forced_ceiling",
        "free_ceiling",
        "box_px",
        "score",
        "logit",
        "probability",
        "borderline_share",
    ):
        values = [getattr(p, name) for p in order]
        assert values == sorted(values), name


def test_estimates_use_noise_up_to_the_ceiling_only() -> None:
    assert value_limit(1.0, None) == 1.0 and value_limit(1.0, 10.0) == 1.0
    assert value_limit(1.0, 0.1) == pytest.approx(NOISE_FACTOR * 0.1 + 0.1)
    for noise in (None, 0.0, 1e-6, 1.0):
        bound = limit(STRICT, noise, forced=True)
        assert bound.value <= STRICT.forced_ceiling and bound.peak is None


def test_each_metric_has_a_limit_of_its_own_from_the_references_error() -> None:
    exact = np.random.default_rng(0).normal(size=(1, 8, 6, 6))
    reference = exact.copy()
    reference[0, 3, 2, 1] += 1e-3
    error = measure(exact, reference)
    bound = truth_limit(STRICT, error, forced=True)
    floor = ROUNDINGS * EPSILON
    assert bound.value == pytest.approx(NOISE_FACTOR * error.rel_l2 + floor)
    assert bound.peak == pytest.approx(NOISE_FACTOR * error.max_rel + LARGEST * floor)
    assert bound.channel == pytest.approx(NOISE_FACTOR * error.channel_rel_l2 + LARGEST * floor)
    assert bound.ceiling == TRUTH_FACTOR * STRICT.forced_ceiling and bound.noise == error.rel_l2


def test_an_exact_reference_leaves_roundings_only_and_less_than_the_static_limits() -> None:
    exact = np.ones((1, 2, 3, 3))
    bound = truth_limit(STRICT, measure(exact, exact), forced=True)
    assert bound.value < STRICT.forced_floor and (bound.peak or 1) < PEAK_FACTOR * STRICT.forced_floor
    assert bound.value >= EPSILON, "what float32 rounds is no difference"
