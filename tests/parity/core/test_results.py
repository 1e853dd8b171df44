"""Statuses of a whole comparison, what is named first, and the JSON form."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from parity.core.metrics import measure
from parity.core.profiles import Limit
from parity.core.results import (
    SCHEMA,
    Comparison,
    Errors,
    StageResult,
    from_json,
    headline,
    overall_exit_code,
    to_json,
)
from parity.core.status import Status, Verdict


def stage(name: str, status: Status = Status.PASS, **more: Any) -> StageResult:
    return StageResult(name, "backbone", "continuous", status, **more)


def comparison(*stages: StageResult, **more: Any) -> Comparison:
    return Comparison("torch", "tf", "strict", list(stages), **more)


def test_the_worse_of_both_comparisons_counts() -> None:
    assert stage("a", forced_status=Status.FAIL).overall is Status.FAIL
    assert stage("a", Status.FAIL, forced_status=Status.PASS).bad
    assert stage("a", forced_status=Status.NOT_COMPARED).bad
    assert not stage("a", Status.BORDERLINE).bad


def test_a_waived_stage_is_borderline_unless_it_passes() -> None:
    assert stage("a", Status.FAIL, waiver="known").overall is Status.BORDERLINE
    assert stage("a", waiver="known").overall is Status.PASS


def test_the_first_local_fault_is_named_before_what_it_causes() -> None:
    found = comparison(
        stage("a"),
        stage("b", Status.FAIL, verdict=Verdict.INHERITED),
        stage("c", Status.FAIL, verdict=Verdict.LOCAL),
    )
    assert found.first_bad is not None and found.first_bad.name == "c"
    assert headline(found) == "DIFFERENT: 2 of 3 checks do not agree, first at c (LOCAL)"


@pytest.mark.parametrize(
    ("stages", "more", "code", "text"),
    [
        ([stage("a")], {}, 0, "SAME: 1 of 1 checks agree (all stages, strict profile)"),
        ([stage("a")], {"estimated": True}, 0, "strict profile; limits are estimates)"),
        ([stage("a", Status.FAIL)], {"estimated": True}, 1, "first at a; limits are estimates"),
        ([stage("a", Status.NOT_COMPARED)], {"estimated": True}, 2, "NOT COMPARED: 1 of 1"),
        ([], {}, 2, "NOT COMPARED: 0 of 0 checks do not agree, nothing was compared"),
        ([stage("a", Status.ERROR), stage("b", Status.FAIL)], {}, 2, "ERROR"),
        ([stage("a")], {"deterministic": False, "nondeterministic": ["tf: a"]}, 3, "NOT DETERMINISTIC"),
        ([stage("a", Status.BORDERLINE), stage("b")], {}, 0, "1 explained by margins"),
    ],
)
def test_headlines_and_exit_codes(
    stages: list[StageResult], more: dict[str, Any], code: int, text: str
) -> None:
    found = comparison(*stages, **more)
    assert found.exit_code == code and text in headline(found)


def test_the_worst_of_several_comparisons_is_the_exit_code() -> None:
    fine, bad, none = comparison(stage("a")), comparison(stage("a", Status.FAIL)), comparison()
    assert [overall_exit_code(c) for c in ([fine], [fine, none], [none, bad], [])] == [0, 2, 1, 2]


def test_json_keeps_everything_and_has_no_bare_infinity() -> None:
    numbers = measure(np.zeros((1, 2)), np.ones((1, 2)))
    assert numbers.rel_l2 == np.inf
    full = stage(
        "a",
        Status.FAIL,
        metrics=numbers,
        errors=Errors(numbers, numbers),
        limit=Limit(1.0, 0.5, 0.1, 2.0, 3.0, 4.0),
        forced_status=Status.PASS,
        verdict=Verdict.LOCAL,
        inputs=("b",),
        shape=(1, 2),
        details={"array": np.float32(1.5)},
    )
    text = json.dumps(to_json([comparison(full, estimated=True)]), allow_nan=False)
    (again,) = from_json(json.loads(text))
    kept = again.stages[0]
    assert again.estimated and kept.limit == full.limit and kept.inputs == ("b",) and kept.shape == (1, 2)
    assert kept.errors is not None and repr(kept.errors) == repr(full.errors), "NaN is not equal to itself"
    assert kept.errors.candidate.rel_l2 == np.inf
    assert (kept.status, kept.forced_status, kept.verdict) == (Status.FAIL, Status.PASS, Verdict.LOCAL)


def test_results_of_before_are_read_and_others_are_refused() -> None:
    old = to_json([comparison(stage("a"))])
    for key in ("errors", "forced_errors"):
        del old["comparisons"][0]["stages"][0][key]
    del old["comparisons"][0]["estimated"]
    assert from_json(old)[0].stages[0].errors is None
    with pytest.raises(ValueError, match="tf-d2-parity/9"):
        from_json({"schema": "tf-d2-parity/9"})
    assert old["schema"] == SCHEMA
