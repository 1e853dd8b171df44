"""Narrowing to a module: which one is named, and what the script holds."""

import ast
import subprocess
import sys

import numpy as np
import pytest
import yaml

import parity
import tf_d2
from parity.core.trace import Trace, TraceWriter
from parity.core.units import Unit, units
from parity.running.bisect import (
    Fault,
    ModuleError,
    bisect,
    first_local,
    smallest,
    summary,
    unit_of,
    write_script,
)

FPN = Unit("fpn", "fpn", ("steps/backbone.bottom_up/res2",), ("steps/backbone/p2",), "continuous", ("p2",))
RPN = Unit(
    "rpn_proposals", "rpn_proposals", ("x",), ("steps/proposal_generator/0/0/proposal_boxes",), "discrete"
)


def test_the_unit_of_a_stage_and_of_a_set():
    assert unit_of("steps/backbone/p2", [FPN, RPN]) is FPN
    assert unit_of("steps/proposal_generator/0/0", [FPN, RPN]) is RPN
    with pytest.raises(ValueError, match="weights"):
        unit_of("weights", [FPN, RPN])


def test_weights_are_passed_over_for_the_stage_they_spoil():
    from parity.core.results import Comparison, StageResult
    from parity.core.status import Status, Verdict

    stages = [
        StageResult(n, "heads", "exact", Status.FAIL, verdict=Verdict.LOCAL)
        for n in ("weights", "steps/backbone/p2")
    ]
    assert first_local(Comparison("a", "b", "strict", stages), [FPN, RPN]) == ("steps/backbone/p2", FPN)
    with pytest.raises(ValueError, match="weights"):
        first_local(Comparison("a", "b", "strict", stages[:1]), [FPN, RPN])


def test_the_smallest_failing_module_is_the_innermost_first_one():
    errors = [
        ModuleError("res4.0.conv1", 1e-7),
        ModuleError("res4.0.conv2", 1e-2),
        ModuleError("res4.0", 1e-2),
        ModuleError("res4.1", 1e-3),
    ]
    assert smallest(errors, 2e-6).name == "res4.0.conv2"
    assert smallest(errors[:1], 2e-6) is None
    assert smallest([ModuleError("a", float("nan"))], 2e-6).name == "a"


def test_what_is_said_when_all_modules_agree(tmp_path):
    text = summary(FPN, [ModuleError("backbone.fpn_output2", 1e-7)], 2e-6, tmp_path / "x.py")
    assert "the fault is in how fpn connects them" in text
    assert "smallest part" in summary(RPN, [], 2e-6, tmp_path / "x.py")


def test_the_script_is_valid_and_complete(tmp_path):
    path = tmp_path / "reference.h5"
    with TraceWriter(path) as writer:
        writer.put("steps/backbone.bottom_up/res2", np.ones((1, 2, 3, 3), np.float32))
        writer.put("steps/backbone/p2", np.ones((1, 2, 3, 3), np.float32))
        writer.finish({"backend": "torch"}, "{}")
    reference, candidate = {"steps/backbone/p2": np.ones(3)}, {"steps/backbone/p2": np.zeros(3)}
    (comparison,) = parity.compare(reference, candidate)
    with Trace(path) as trace:
        setup = {"config": "it's.yaml", "weights": "w.pkl"}
        fault = Fault(comparison, "steps/backbone/p2", FPN)
        script = write_script(fault, trace.images[0], setup, tmp_path)
    ast.parse(script.read_text())
    with np.load(script.with_suffix(".npz")) as data:
        assert sorted(data) == ["input0", "steps/backbone/p2"]


def test_two_recordings_cannot_be_narrowed(tmp_path):
    reference, candidate = {"input/resized": np.ones(3)}, {"input/resized": np.zeros(3)}
    comparisons = parity.compare(reference, candidate)
    with pytest.raises(ValueError, match="both sides"):
        bisect(comparisons, tmp_path)
    with pytest.raises(ValueError, match="nothing to narrow"):
        bisect(parity.compare(reference, reference), tmp_path)


@pytest.mark.parametrize(
    ("mutate", "code"), [pytest.param("", 0, marks=pytest.mark.wide), ("kernel_rows_columns_swapped", 1)]
)
def test_the_script_runs(demo_files, demo_predictor, demo_reference, tmp_path, mutate, code):
    """A bug may be planted in weights that a Predictor has merged with norms."""
    (unit,) = (u for u in units(yaml.safe_load(demo_reference.config)) if u.name == "res4")
    trace = demo_predictor.trace(tf_d2.read_image(demo_files / "shapes.png"))
    path = tmp_path / "reference.h5"
    with TraceWriter(path) as writer:
        for name in (*unit.inputs, *unit.outputs):
            writer.put(name, trace[name])
        writer.finish({"backend": "tf"}, "{}")
    (stage,) = unit.outputs
    (comparison,) = parity.compare({stage: np.ones(3)}, {stage: np.zeros(3)})
    setup = {"config": str(demo_files / "shapes.yaml"), "weights": str(demo_files / "shapes.pkl")}
    with Trace(path) as reference:
        fault = Fault(comparison, stage, unit)
        script = write_script(fault, reference.images[0], setup, tmp_path, mutate)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    assert "relative L2" in done.stdout
    print(done.stdout)
