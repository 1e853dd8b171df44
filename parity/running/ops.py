"""The ladder's rung of single operations: every one in PyTorch and in tf_d2.ops, on the same generated
inputs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from parity.core import opcases
from parity.core.metrics import Metrics, measure
from parity.core.profiles import PEAK_FACTOR, Limit
from parity.core.results import Comparison, StageResult
from parity.core.status import Status, Verdict
from parity.core.trace import Trace
from parity.running.runner import DEFAULT_TIMEOUT, call_worker

# An operation on the same input has no history: only its own rounding separates the two sides.
LIMITS = {"float32": Limit(1e-6, None, 1e-6, 1e-6), "float64": Limit(1e-12, None, 1e-12, 1e-12)}


def run_ops(
    output: Path | None = None,
    torch_python: str | None = None,
    device: str = "cpu",
    dtypes: tuple[str, ...] = ("float32", "float64"),
    mutate: str = "",
    only: Sequence[str] = (),
    timeout: float = DEFAULT_TIMEOUT,
) -> Comparison:
    """Run every case on both sides, in each dtype, and compare. ``output`` keeps inputs and results. Raises
    BackendError when a side cannot run at all; a case that fails on one side is an ERROR stage."""
    with tempfile.TemporaryDirectory(prefix="parity-ops-") as scratch:
        folder = Path(output) if output is not None else Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        cases = [c for c in opcases.all_cases() if not only or c.op in only]
        opcases.save(cases, folder / "op_inputs.npz")
        comparison = Comparison("torch", "tf", "ops", scope="single operations")
        comparison.noise_source = "none: the same input on both sides"
        comparison.command = f"tf-d2 parity --ops --device {device}"
        for dtype in dtypes:
            job = {"cases": str((folder / "op_inputs.npz").resolve()), "device": device, "dtype": dtype}
            paths = [folder / f"ops_{side}_{dtype}.h5" for side in ("torch", "tf")]
            call_worker("parity.backends.torch_ops", torch_python or sys.executable, job, paths[0], timeout)
            call_worker("parity.backends.tf_ops", sys.executable, job | {"mutate": mutate}, paths[1], timeout)
            with Trace(paths[0]) as reference, Trace(paths[1]) as candidate:
                comparison.reference_manifest = dict(reference.manifest)
                comparison.candidate_manifest = dict(candidate.manifest)
                comparison.stages += [compare_case(c, reference, candidate, dtype) for c in cases]
        return comparison


def compare_case(case: opcases.Case, reference: Trace, candidate: Trace, dtype: str) -> StageResult:
    """All outputs of one case. Shapes, integers, booleans and the places of NaN and infinity must be equal;
    finite numbers agree within the operation's rounding. Nothing returned on either side is NOT-COMPARED."""
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
    for k, (a, b) in enumerate(zip(*sides, strict=False)):
        # Boxes and keypoints are float32 by definition, whatever the inputs are.
        result.limit = LIMITS.get(str(a.dtype), LIMITS[dtype])
        problem, metrics = compare_output(a, b, result.limit.value)
        problems += [f"output {k}: {problem}"] if problem else []
        if metrics is not None and (result.metrics is None or metrics.rel_l2 > result.metrics.rel_l2):
            result.metrics = metrics
    if problems:
        result.status, result.message, result.verdict = Status.FAIL, "; ".join(problems), Verdict.LOCAL
    return result


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
