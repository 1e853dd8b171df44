"""The operation rung: its cases, and what counts as a difference. Both frameworks run in a command."""

import numpy as np
import pytest

from parity.core import opcases
from parity.core.status import Status
from parity.core.trace import Trace, TraceWriter
from parity.running.ops import LIMITS, compare_case, compare_output

LIMIT = LIMITS["float32"].value


def test_cases_are_always_the_same_and_survive_a_file(tmp_path):
    cases = opcases.all_cases()
    opcases.save(cases, tmp_path / "cases.npz")
    again = opcases.load(tmp_path / "cases.npz")
    assert [c.path for c in again] == [c.path for c in opcases.all_cases()]
    for a, b in zip(cases, again, strict=True):
        assert dict(a.args) == dict(b.args)
        for key in a.inputs:
            np.testing.assert_array_equal(a.inputs[key], b.inputs[key])


def test_every_operation_has_edge_cases():
    cases = opcases.all_cases()
    assert len({c.path for c in cases}) == len(cases) > 120
    ops = {c.op for c in cases}
    assert len(ops) >= 19
    for op in ("roi_align", "nms", "batched_nms", "paste_masks", "keypoints", "apply_deltas"):
        assert any(c.name == "none" for c in cases if c.op == op), f"{op} is not tried with nothing"


@pytest.mark.parametrize(
    ("reference", "candidate", "problem"),
    [
        (np.ones(3, np.float32), np.ones(3, np.float32), ""),
        (np.ones((0, 4), np.float32), np.ones((0, 4), np.float32), ""),
        (np.ones((0, 4), np.float32), np.ones((0, 5), np.float32), "shape"),
        (np.ones(3, np.float32), np.ones(3, np.float64), "dtype"),
        (np.ones(3, np.float32), np.float32([1, 1, 1.001]), "relative L2"),
        (np.arange(3), np.array([0, 1, 3]), "1 of 3 values differ"),
        (np.float32([1, np.nan]), np.float32([1, np.nan]), ""),
        (np.float32([1, np.nan]), np.float32([1, 2]), "NaN"),
        (np.float32([1, np.inf]), np.float32([1, -np.inf]), "NaN or infinity"),
    ],
)
def test_what_differs(reference, candidate, problem):
    text, _ = compare_output(reference, candidate, LIMIT)
    assert problem in text and bool(text) == bool(problem)


def write(path, outputs, errors=None):
    with TraceWriter(path) as writer:
        for k, value in enumerate(outputs):
            writer.put(f"steps/op/case/{k}", value)
        writer.finish({"backend": "x", "errors": errors or {}}, "{}")
    return Trace(path)


def test_a_case_that_fails_or_returns_nothing_never_passes(tmp_path):
    case = opcases.Case("op", "case", {})
    fine = [np.ones(3, np.float32)]
    with write(tmp_path / "a.h5", fine) as a, write(tmp_path / "e.h5", [], {"op/case": "boom"}) as e:
        assert compare_case(case, a, a, "float32").status is Status.PASS
        assert compare_case(case, a, e, "float32").status is Status.ERROR
    with write(tmp_path / "n.h5", []) as n, write(tmp_path / "b.h5", fine) as b:
        assert compare_case(case, n, n, "float32").status is Status.NOT_COMPARED
        assert compare_case(case, b, n, "float32").status is Status.FAIL


@pytest.mark.parametrize(("own", "other", "status"), [(3e-6, 3e-6, Status.PASS), (1e-7, 3e-6, Status.FAIL)])
def test_an_operation_may_be_as_far_from_float64_as_pytorch(tmp_path, own, other, status):
    """3e-6 is more than the estimate allows, and nothing but rounding where PyTorch rounds as much."""
    case = next(c for c in opcases.all_cases() if c.op == "conv2d")
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(1, 4, 9, 9))
    sides = {"exact": exact}
    for name, by in (("torch", own), ("tf", other)):
        sides[name] = (exact * (1 + by * rng.normal(size=exact.shape))).astype(np.float32)
    for name, array in sides.items():
        with TraceWriter(tmp_path / f"{name}.h5") as writer:
            writer.put(f"steps/{case.path}/0", array)
            writer.finish({}, "{}")
    with (
        Trace(tmp_path / "torch.h5") as torch,
        Trace(tmp_path / "tf.h5") as tf,
        Trace(tmp_path / "exact.h5") as truth,
    ):
        assert compare_case(case, torch, tf, "float32").status is Status.FAIL
        result = compare_case(case, torch, tf, "float32", truth)
    assert result.status is status and result.errors is not None
