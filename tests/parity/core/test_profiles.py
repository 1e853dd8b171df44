"""The rules that limits follow from, by hand."""

from __future__ import annotations

from dataclasses import replace

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
    allowed,
    chance_factor,
    limit,
    truth_limit,
    value_limit,
)
from parity.core.results import Errors


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


def test_a_channel_of_few_numbers_may_differ_by_what_chance_makes_of_so_few() -> None:
    from scipy.special import fdtri

    for numbers in range(1, 30):
        expected = max(NOISE_FACTOR, float(fdtri(numbers, numbers, 0.9999)) ** 0.5)
        assert chance_factor(numbers) == pytest.approx(expected, rel=2e-3), numbers
    assert chance_factor(0) == NOISE_FACTOR  # a result of an older version does not say


def test_chance_counts_where_the_reference_itself_exceeds_the_estimate() -> None:
    """A feature of eleven proposals of which each is as wrong as its box: seen in a RegNet, 4.2e-5 and 1.3e-4, where
    1e-4 would hold without a float64 run. For fewer than seven chance allows no more than twice NOISE_FACTOR."""
    error, floor, estimate = 4.2e-5, 4e-6, 1e-4
    eleven = allowed(error, 11, floor, estimate)
    assert eleven == pytest.approx(chance_factor(11) * error + floor) and eleven > estimate
    assert allowed(error, 14, floor, estimate) == pytest.approx(NOISE_FACTOR * error + floor)
    for numbers in (1, 2, 6):
        assert allowed(error, numbers, floor, estimate) == pytest.approx(2 * NOISE_FACTOR * error + floor)
        assert allowed(1e-7, numbers, floor, estimate) == pytest.approx(
            min(chance_factor(numbers) * 1e-7 + floor, estimate)
        )


def test_rounding_of_a_map_of_two_cells_is_hardly_ever_called_wrong() -> None:
    """2048 channels, of which one rounds forty times as much as the others: whose error there is larger is chance."""
    rng, called = np.random.default_rng(0), {"as they are": 0, "with NOISE_FACTOR": 0}
    spread = np.where(np.arange(2048) == 7, 4e-6, 1e-7)[None, :, None, None]
    for _ in range(300):
        exact = rng.normal(size=(1, 2048, 1, 2))
        reference, candidate = (
            measure(exact, exact + spread * rng.normal(size=exact.shape)) for _ in range(2)
        )
        bound = truth_limit(STRICT, reference, False, numbers=Errors(reference, candidate).numbers)
        assert bound.channel is not None
        floor = LARGEST * ROUNDINGS * EPSILON
        called["as they are"] += candidate.channel_rel_l2 > bound.channel
        called["with NOISE_FACTOR"] += (
            candidate.channel_rel_l2 > NOISE_FACTOR * reference.channel_rel_l2 + floor
        )
    assert called["as they are"] == 0 < called["with NOISE_FACTOR"], called


def test_masks_of_few_detections_are_as_wrong_as_their_boxes_happen_to_be() -> None:
    """All numbers of a mask share one error: three masks are three numbers, however many cells they have."""
    rng, called = np.random.default_rng(0), {"rows": 0, "cells": 0}
    exact = rng.normal(size=(3, 1, 28, 28))
    slope = rng.normal(size=exact.shape)  # what a shift of the box does to each cell
    for _ in range(1000):
        sides = [exact + 1e-6 * rng.normal(size=(3, 1, 1, 1)) * slope for _ in range(2)]
        reference, candidate = (measure(exact, side) for side in sides)
        for kind, numbers in (("rows", (3, 3, 3)), ("cells", None)):
            called[kind] += candidate.rel_l2 > truth_limit(STRICT, reference, False, numbers=numbers).value
    assert called["rows"] <= 1 < called["cells"], called


def test_a_feature_that_few_proposals_have_is_of_few_numbers() -> None:
    """256 features of 20 proposals behind ReLU: of one that a single proposal has, chance decides who rounds less."""
    rng, called = np.random.default_rng(0), {"those above 0": 0, "all": 0}
    for _ in range(300):
        exact = rng.uniform(0.5, 1, size=(20, 256))
        exact[1:, 57] = 0
        exact[0, 57] = 0.3
        sides = []
        for _ in range(2):
            error = 1e-7 * rng.normal(size=exact.shape)
            error[0, 57] = 1e-6 * rng.normal()
            sides.append(measure(exact, exact + np.where(exact > 0, error, 0)))
        reference, candidate = sides
        for kind, numbers in (("those above 0", Errors(reference, candidate).numbers), ("all", (20, 20, 0))):
            bound = truth_limit(STRICT, reference, False, numbers=numbers)
            assert bound.channel is not None
            called[kind] += candidate.channel_rel_l2 > bound.channel
    assert called["those above 0"] == 0 < called["all"], called


def test_few_numbers_never_allow_more_than_without_a_float64_run_or_twice_as_much_as_many() -> None:
    for size in (1e-9, 1e-6, 1e-4):
        for forced, ceiling in ((True, STRICT.forced_ceiling), (False, STRICT.free_ceiling)):
            error = measure(np.ones((1, 4, 1, 1)), np.ones((1, 4, 1, 1)) + size)
            bound = truth_limit(STRICT, error, forced, numbers=(1, 1, 0))
            floor = ROUNDINGS * EPSILON
            plain = truth_limit(STRICT, replace(error, count=100, channel_cells=100), forced)
            twofold = 2 * NOISE_FACTOR * error.rel_l2 + floor
            assert bound.value == max(plain.value, min(max(ceiling, twofold), 6366.2 * error.rel_l2 + floor))
            assert plain.channel is not None and bound.channel is not None
            assert bound.channel <= max(2 * plain.channel, PEAK_FACTOR * ceiling)


def test_an_exact_reference_leaves_roundings_only_and_less_than_the_static_limits() -> None:
    exact = np.ones((1, 2, 3, 3))
    bound = truth_limit(STRICT, measure(exact, exact), forced=True)
    assert bound.value < STRICT.forced_floor and (bound.peak or 1) < PEAK_FACTOR * STRICT.forced_floor
    assert bound.value >= EPSILON, "what float32 rounds is no difference"
