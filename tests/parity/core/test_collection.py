"""Rows of many pictures, put together in memory that does not grow."""

import json

import numpy as np
import pytest

from parity.core.collection import Spread, failed_row, read_rows, row_of, summarize
from parity.core.metrics import measure
from parity.core.results import Comparison, StageResult
from parity.core.status import Status


def row(index, status="PASS", px=(), score=(), counts=(0, 0, 0), **more):
    reference, candidate, matched = counts
    base = {"index": index, "picture": f"{index}.png", "status": status, "deterministic": True}
    numbers = {"box_px": list(px), "score": list(score), "rel_l2": 0.0}
    return (
        base
        | numbers
        | {"reference": reference, "candidate": candidate, "matched": matched, "headline": ""}
        | more
    )


def test_quantiles_within_a_step_and_the_largest_exactly():
    rng = np.random.default_rng(0)
    values = 10 ** rng.uniform(-9, 2, 5001)
    spread = Spread()
    for part in np.array_split(values, 7):
        spread.add(part)
    assert spread.count == 5001
    assert spread.largest == values.max()
    for share in (0.5, 0.99):
        exact = np.quantile(values, share, method="inverted_cdf")
        assert exact <= spread.quantile(share) <= exact * 10 ** (1 / Spread.PER_DECADE) * (1 + 1e-12)
    assert spread.quantile(1.0) <= spread.largest


def test_zero_is_zero_and_nothing_is_nothing():
    spread = Spread()
    assert spread.to_json() == {"count": 0, "median": 0.0, "p99": 0.0, "max": 0.0}
    spread.add([0.0, 0.0, 5.0])
    assert spread.quantile(0.5) == 0.0
    assert spread.to_json()["max"] == 5.0
    assert spread.by_decade() == [("0", 2), ("to 1e+01", 1)]
    spread.add([1e300, 1e-200])  # beyond the scale
    assert spread.count == 5
    assert spread.largest == 1e300
    assert sum(count for _, count in spread.by_decade()) == 5


def test_the_ten_worst_are_kept_in_order():
    rows = [row(k, px=[k / 1000], counts=(1, 1, 1)) for k in range(30)]
    rows[3] = row(3, px=[1e-6], counts=(5, 4, 4))  # a detection without a partner is worse than pixels
    rows[4] = row(4, status="BORDERLINE")
    rows[5] = failed_row(5, "5.png", "no memory")
    summary = summarize(rows)
    assert [r["index"] for r in summary.worst] == [5, 4, 3, 29, 28, 27, 26, 25, 24, 23]
    assert summary.worst[3]["worst_box_px"] == 0.029
    assert "box_px" not in summary.worst[3]
    assert (summary.pictures, summary.statuses) == (30, {"PASS": 28, "BORDERLINE": 1, "ERROR": 1})
    assert summary.headline == (
        "NOT COMPARED: 29 of 30 pictures agree, 1 of them explained by margins (1 ERROR)"
    )
    json.dumps(summary.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("statuses", "deterministic", "code", "word"),
    [
        (["PASS", "BORDERLINE"], True, 0, "SAME"),
        (["PASS", "FAIL"], True, 1, "DIFFERENT"),
        (["PASS", "FAIL", "ERROR"], True, 2, "NOT COMPARED"),
        (["PASS", "PASS"], False, 3, "NOT DETERMINISTIC"),
        ([], True, 2, "NOT COMPARED"),
    ],
)
def test_exit_code_as_of_one_comparison(statuses, deterministic, code, word):
    rows = [row(k, status=s, deterministic=deterministic) for k, s in enumerate(statuses)]
    summary = summarize(rows)
    assert (summary.exit_code, summary.headline.split(":")[0]) == (code, word)


def test_a_row_of_a_comparison():
    details = {
        "reference_count": 3,
        "candidate_count": 2,
        "matched": 2,
        "box_px": [0.00012345, float("nan")],
        "score_difference": [-0.25, 0.5],
    }
    metrics = measure(np.ones(4), np.ones(4) * 1.5)
    stages = [
        StageResult("steps/backbone/p2", "backbone", "continuous", Status.FAIL, metrics=metrics),
        StageResult("output/instances", "detections", "set", Status.PASS, details=details),
    ]
    made = row_of(7, "a.png", Comparison("torch", "tf", "strict", stages, command="again"))
    assert (made["reference"], made["candidate"], made["matched"]) == (3, 2, 2)
    assert made["box_px"] == [0.000123, 1e300]
    assert made["score"] == [0.25, 0.5]
    assert made["rel_l2"] == 0.5
    assert (made["status"], made["first_bad"], made["command"]) == ("FAIL", "steps/backbone/p2", "again")


def test_a_line_that_is_not_whole_is_no_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"index": 0}\n{"index": 1}\n{"ind')
    assert list(read_rows(tmp_path / "rows.jsonl")) == [{"index": 0}, {"index": 1}]
