"""Metrics on arrays whose numbers can be checked by hand."""

import math

import numpy as np
import pytest

from parity.core.metrics import measure, relative_l2
from parity.core.profiles import NOISE_FACTOR, STRICT, get_profile, limit
from parity.core.status import Status, exit_code, worst


def test_numbers_by_hand():
    reference = np.array([3.0, 4.0])
    metrics = measure(reference, np.array([3.0, 4.5]))
    assert metrics.rel_l2 == pytest.approx(0.1) and metrics.max_rel == pytest.approx(0.125)
    assert metrics.bias == pytest.approx(0.25 / math.sqrt(12.5)) and metrics.worst_index == (1,)


def test_bias_is_signed():
    reference = np.ones(5)
    assert measure(reference, reference - 0.1).bias == pytest.approx(-0.1)


def test_border_ring_and_channel_point_at_the_fault():
    reference = np.ones((1, 4, 6, 6))
    candidate = reference.copy()
    candidate[0, 2, 0, :] = 0
    metrics = measure(reference, candidate)
    assert metrics.worst_channel == 2 and metrics.inner_rel_l2 == 0 and metrics.ring_rel_l2 > 0.2


def test_a_zero_reference_gives_infinity_unless_both_are_zero():
    assert relative_l2(np.ones(3), np.zeros(3)) == math.inf
    assert relative_l2(np.zeros(3), np.zeros(3)) == 0.0
    assert measure(np.zeros((2, 2)), np.ones((2, 2))).channel_rel_l2 == math.inf


@pytest.mark.parametrize(
    ("a", "b"),
    [(np.ones(2), np.ones(3)), (np.ones(0), np.ones(0)), (np.array([np.nan]), np.array([np.nan]))],
)
def test_what_has_no_number_raises(a, b):
    with pytest.raises(ValueError):
        measure(a, b)


def test_limit_is_noise_relative_below_the_ceiling():
    assert limit(STRICT, None, forced=False).value == STRICT.free_ceiling
    assert limit(STRICT, 1e-6, forced=False).value == pytest.approx(NOISE_FACTOR * 1e-6 + STRICT.free_floor)
    assert limit(STRICT, 1.0, forced=False).value == STRICT.free_ceiling
    assert limit(STRICT, 0.0, forced=True).value == STRICT.forced_floor


def test_unknown_profile_lists_the_known_ones():
    with pytest.raises(ValueError, match="semantic, strict, production"):
        get_profile("loose")


def test_worst_of_nothing_is_not_a_pass():
    assert worst([]) is Status.NOT_COMPARED
    assert worst([Status.PASS, Status.BORDERLINE]) is Status.BORDERLINE
    assert worst([Status.NOT_COMPARED, Status.FAIL]) is Status.FAIL


@pytest.mark.parametrize(
    ("status", "deterministic", "code"),
    [
        (Status.PASS, True, 0),
        (Status.BORDERLINE, True, 0),
        (Status.FAIL, True, 1),
        (Status.NOT_COMPARED, True, 2),
        (Status.ERROR, True, 2),
        (Status.PASS, False, 3),
        (Status.ERROR, False, 2),
    ],
)
def test_exit_codes(status, deterministic, code):
    assert exit_code(status, deterministic) == code
