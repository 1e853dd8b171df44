"""The ladder's rung of single operations: every one in PyTorch and in tf_d2.ops, on the same generated
inputs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity.core import opcases
from parity.core.metrics import Metrics, measure
from parity.core.profiles import PEAK_FACTOR, STRICT, Limit, truth_limit
from parity.core.results import Comparison, Errors, StageResult
from parity.core.status import Status, Verdict
from parity.core.trace import Trace
from parity.judge.values import verdict_of
from parity.running.sides import DEFAULT_TIMEOUT
from parity.running.worker import Program, call_worker

# An operation on the same input has no history: only its own rounding separates the two sides. Of float32 these are
# estimates, for which `truth_limit` stands in where PyTorch ran the case in float64, too.
LIMITS = {"float32": Limit(1e-6, None, 1e-6, 1e-6), "float64": Limit(1e-12, None, 1e-12, 1e-12)}


@dataclass(frozen=True)
class Cases:
    """Which operations are run (``only``: by name; none named: all) and on what. ``mutate`` plants a bug in ours."""

    only: Sequence[str] = ()
    dtypes: tuple[str, ...] = ("float32", "float64")
    device: str = "cpu"
    mutate: str = ""


def run_ops(
    output: Path | None = None,
    chosen: Cases = Cases(),
    *,
    torch_python: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Comparison:
    """Run the cases on both sides, in each dtype, and compare. ``output`` keeps inputs and results. Raises
    BackendError when a side cannot run at all; a case that fails on one side is an ERROR stage."""
    torch_ops = Program("parity.backends.torch_ops", torch_python or sys.executable, timeout)
    tf_ops = Program("parity.backends.tf_ops", timeout=timeout)
    with tempfile.TemporaryDirectory(prefix="parity-ops-") as scratch:
        folder = Path(output) if output is not None else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        cases = [c for c in opcases.all_cases() if not chosen.only or c.op in chosen.only]
        opcases.save(cases, folder / "op_inputs.npz")
        comparison = Comparison("torch", "tf", "ops", scope="single operations")
        comparison.noise_source = (
            "the same file of inputs on both sides; float32 limits follow from PyTorch in float64"
        )
        comparison.command = f"tf-d2 parity --ops --device {chosen.device}"
        job = {"cases": str((folder / "op_inputs.npz").resolve()), "device": chosen.device}
        for dtype in sorted({*chosen.dtypes, "float64"}, reverse=True):  # float64 first
            own = folder / f"ops_torch_{dtype}.h5"
            call_worker(torch_ops, job | {"dtype": dtype}, own)
        for dtype in chosen.dtypes:
            own, other, exact = (
                folder / f"ops_{n}.h5" for n in (f"torch_{dtype}", f"tf_{dtype}", "torch_float64")
            )
            call_worker(tf_ops, job | {"dtype": dtype, "mutate": chosen.mutate}, other)
            with Trace(own) as reference, Trace(other) as candidate, Trace(exact) as truth:
                comparison.reference_manifest = dict(reference.manifest)
                comparison.candidate_manifest = dict(candidate.manifest)
                precise = truth if dtype == "float32" else None
                comparison.stages += [compare_case(c, reference, candidate, dtype, precise) for c in cases]
        return comparison


def compare_case(
    case: opcases.Case, reference: Trace, candidate: Trace, dtype: str, truth: Trace | None = None
) -> StageResult:
    """All outputs of one case. ``truth``: the reference in float64.

    Shapes, integers, booleans and the places of NaN and
    infinity must be equal; finite numbers agree within the operation's rounding. Nothing returned on either side is
    NOT-COMPARED."""
    result = StageResult(f"{case.path} ({dtype})", "ops", "continuous", Status.PASS, limit=LIMITS[dtype])
    errors = {
        name: trace.manifest.get("errors", {}).get(case.path)
        for name, trace in (("torch", reference), ("tf", candidate))
    }
    if any(errors.values()):
        text = "; ".join(f"{k}: {v}" for k, v in errors.items() if v)
        result.status, result.message, result.verdict = Status.ERROR, text, Verdict.LOCAL
        return result
    sides = [_outputs(t.images[0], f"steps/{case.path}/") for t in (reference, candidate)]
    if not sides[0] and not sides[1]:
        result.status, result.message = Status.NOT_COMPARED, "neither side returned anything"
        return result
    problems = [] if len(sides[0]) == len(sides[1]) else [f"{len(sides[0])} outputs against {len(sides[1])}"]
    exact = _outputs(truth.images[0], f"steps/{case.path}/") if truth is not None else []
    for k, (a, b) in enumerate(zip(*sides, strict=False)):
        # Boxes and keypoints are float32 by definition, whatever the inputs are.
        result.limit = LIMITS.get(str(a.dtype), LIMITS[dtype])
        problem, metrics = compare_output(a, b, result.limit.value)
        errors = _errors(exact[k], a, b) if k < len(exact) and metrics is not None else None
        if errors is not None and metrics is not None:
            probe = StageResult(result.name, "ops", "continuous", Status.PASS, metrics=metrics, errors=errors)
            result.errors = errors
            result.limit = truth_limit(STRICT, errors.reference, forced=True, numbers=errors.numbers)
            problem = verdict_of(probe, result.limit)[1]
        problems += [f"output {k}: {problem}"] if problem else []
        if metrics is not None and (result.metrics is None or metrics.rel_l2 > result.metrics.rel_l2):
            result.metrics = metrics
    if problems:
        result.status, result.message, result.verdict = Status.FAIL, "; ".join(problems), Verdict.LOCAL
    return result


def _errors(exact: np.ndarray, reference: np.ndarray, candidate: np.ndarray) -> Errors | None:
    """Both sides' distances from the float64 run where all three are finite; None where it gave something else."""
    if exact.shape != reference.shape or exact.dtype.kind != "f" or exact.size == 0:
        return None
    known = np.isfinite(exact) & np.isfinite(reference) & np.isfinite(candidate)
    sides = [np.where(known, a, 0) for a in (exact, reference, candidate)]
    return Errors(measure(sides[0], sides[1]), measure(sides[0], sides[2]))


def _outputs(image: Mapping[str, np.ndarray], prefix: str) -> list[np.ndarray]:
    names = sorted((n for n in image if n.startswith(prefix)), key=lambda n: int(n.rsplit("/", 1)[1]))
    return [image[n] for n in names]


def compare_output(reference: np.ndarray, candidate: np.ndarray, limit: float) -> tuple[str, Metrics | None]:
    """What is wrong with one output ("" when nothing), and its metrics."""
    if reference.shape != candidate.shape:
        return f"shape {reference.shape} against {candidate.shape}", None
    if reference.dtype != candidate.dtype:
        return f"dtype {reference.dtype} against {candidate.dtype}", None
    if reference.dtype.kind != "f":
        unequal = int((reference != candidate).sum())
        return (f"{unequal} of {reference.size} values differ" if unequal else ""), None
    codes = [np.where(np.isnan(a), 2, np.isinf(a) * np.sign(a)) for a in (reference, candidate)]
    if not np.array_equal(codes[0], codes[1]):
        return f"NaN or infinity in {int((codes[0] != codes[1]).sum())} other places", None
    if reference.size == 0:
        return "", None
    metrics = measure(*(np.where(np.isfinite(a), a, 0) for a in (reference, candidate)))
    if not metrics.rel_l2 <= limit:
        return f"relative L2 {metrics.rel_l2:.1e} > {limit:.0e}", metrics
    if not metrics.max_rel <= PEAK_FACTOR * limit:
        return (
            f"largest difference {metrics.max_rel:.1e} > {PEAK_FACTOR * limit:.0e} of the largest value",
            metrics,
        )
    return "", metrics
