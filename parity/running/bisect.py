"""``--bisect``: from the first bad stage to the smallest module that differs on the same input, and a script.

The modules inside the failing unit run one by one on the input that the PyTorch reference recorded for
each. If every one of them agrees, the fault is in what connects them. The script that is written runs
without this package: numpy and tf_d2 are enough.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from parity.core.metrics import measure
from parity.core.profiles import get_profile
from parity.core.results import Comparison
from parity.core.status import Verdict
from parity.core.trace import ImageTrace, Trace
from parity.core.units import Unit, units
from parity.running.sides import DEFAULT_TIMEOUT
from parity.running.worker import Program, call_worker
from weights.errors import UsageError

_SCRIPT = '''"""{headline}

Run: python {name}.py    (needs tf_d2 and numpy; exit status 1 while the difference is there)
"""

import sys
from pathlib import Path

import numpy as np

import tf_d2

CONFIG = {config!r}
WEIGHTS = {weights!r}
OP, ARGS = {op!r}, {args!r}
OUTPUTS = {outputs!r}
LIMIT = {limit!r}  # relative L2 on the same input

data = np.load(Path(__file__).with_suffix(".npz"), allow_pickle=False)
inputs = [data[f"input{{k}}"] for k in range({inputs})]
predictor = tf_d2.Predictor(CONFIG, WEIGHTS, dtype={dtype!r}, fold_norms=False)
{fold}{plant}results = predictor.run_op(OP, ARGS, inputs)
bad = False
for name, got in zip(OUTPUTS, results):
    if name not in data:
        continue
    want = data[name]
    if got.shape != want.shape:
        print(f"{{name}}: shape {{got.shape}}, expected {{want.shape}}")
        bad = True
        continue
    difference = np.abs(got.astype(np.float64) - want)
    error = np.linalg.norm(difference) / max(np.linalg.norm(want.astype(np.float64)), 1e-300)
    at = np.unravel_index(difference.argmax(), difference.shape)
    bad |= not error <= LIMIT
    print(f"{{name}}: relative L2 {{error:.2e}}, largest at {{tuple(map(int, at))}}: {{got[at]}} for {{want[at]}}")
sys.exit(bad)
'''


@dataclass(frozen=True)
class ModuleError:
    """One module on the reference's input: its relative L2 error, or why there is none."""

    name: str
    error: float | None
    note: str = ""


def bisect(
    comparisons: Sequence[Comparison],
    output: Path,
    torch_python: str | None = None,
    mutate: str = "",
    timeout: float = DEFAULT_TIMEOUT,
) -> str:
    """Narrow the first LOCAL stage of the first comparison that has one; what was found, as text.

    Needs the files that ``run`` left in ``output``. Raises ValueError when nothing can be narrowed.
    """
    index, comparison = next(
        ((k, c) for k, c in enumerate(comparisons) if any(s.verdict is Verdict.LOCAL for s in c.stages)),
        (-1, None),
    )
    if comparison is None:
        raise UsageError("no stage is wrong by itself, so there is nothing to narrow")
    setup_file = output / "setup.json"
    if not setup_file.is_file():
        raise UsageError(f"{setup_file} is missing: --bisect needs both sides to run, not two recordings")
    setup = json.loads(setup_file.read_text())
    config = yaml.safe_load(Path(setup["config"]).read_text())
    fault = Fault(comparison, *first_local(comparison, units(config)))
    unit = fault.unit
    profile = get_profile(comparison.profile)
    reference = (output / "reference.h5").resolve()
    if not reference.is_file():
        raise UsageError("the reference must be one that is run (torch, detectron2), not a recording")
    with Trace(reference) as trace:
        image = trace.images[index]
        lacking = [n for n in unit.inputs if n not in image]
        if lacking:
            raise UsageError(f"the reference does not hold the inputs of {unit.name}: {', '.join(lacking)}")
        script = write_script(fault, image, setup, output, mutate)
    errors: list[ModuleError] = []
    if unit.kind == "continuous":
        fed = {"feed": str(reference), "image": index}
        workers = _Workers(torch_python or sys.executable, mutate, timeout)
        errors = _modules(unit, setup | {"profile": comparison.profile}, fed, output, workers)
    return summary(unit, errors, profile.forced_ceiling, script)


class Fault(NamedTuple):
    """A stage of a comparison that differs, and the unit that computes it."""

    comparison: Comparison
    stage: str
    unit: Unit


def first_local(comparison: Comparison, table: Sequence[Unit]) -> tuple[str, Unit]:
    """The first stage that is wrong by itself and computed by a unit, and that unit. Raises ValueError
    where only files or weights are wrong."""
    local = [s.name for s in comparison.stages if s.verdict is Verdict.LOCAL]
    for name in local:
        if any(o == name or o.startswith(name + "/") for u in table for o in u.outputs):
            return name, unit_of(name, table)
    raise UsageError(f"{local[0]} differs, which no unit computes: compare files and weights (--keep-going)")


def unit_of(stage: str, table: Sequence[Unit]) -> Unit:
    """The unit that computes a stage or a set of stages. ValueError for what no unit computes."""
    for unit in table:
        if any(o == stage or o.startswith(stage + "/") for o in unit.outputs):
            return unit
    raise UsageError(f"{stage} is not computed by a unit of the model: compare files and weights instead")


class _Workers(NamedTuple):
    """How the two sides are run: PyTorch's interpreter, the bug to plant in ours, seconds each may take."""

    interpreter: str
    mutate: str
    timeout: float


def _modules(
    unit: Unit, setup: Mapping[str, str], fed: Mapping[str, Any], output: Path, workers: _Workers
) -> list[ModuleError]:
    """Every module inside the unit, on its recorded input. ``fed``: the reference's trace and which image of it."""
    recorded, replayed = (output / f"bisect_{n}.h5" for n in ("torch", "tf"))
    job = {"config_yaml": setup["config"], "profile": setup["profile"]}
    first = {"weights": setup["state"], "unit": unit.name, **fed}
    torch_modules = Program("parity.backends.torch_modules", workers.interpreter, workers.timeout)
    call_worker(torch_modules, job | first, recorded)
    with Trace(recorded) as trace:
        names = list(trace.manifest["modules"])
    second = {
        "mode": "modules",
        "weights": setup["weights"],
        "images": ["none"],
        "feed": str(recorded.resolve()),
        "modules": names,
        "mutate": workers.mutate,
    }
    tf_tools = Program("parity.backends.tf_tools", timeout=workers.timeout)
    call_worker(tf_tools, job | second, replayed)
    with Trace(recorded) as want, Trace(replayed) as got:
        skipped = got.manifest.get("skipped", {})
        return [_module_error(n, want.images[0], got.images[0], skipped.get(n, "")) for n in names]


def _module_error(name: str, want: ImageTrace, got: ImageTrace, note: str) -> ModuleError:
    key = f"steps/{name}@out"
    if key not in got:
        return ModuleError(name, None, note or "has no counterpart of that name")
    reference, candidate = want[key], got[key]
    if note == "relu":
        # Our layer includes the activation that PyTorch's block applies outside of the module.
        reference, candidate = np.maximum(reference, 0), np.maximum(candidate, 0)
    if reference.shape != candidate.shape:
        return ModuleError(name, float("inf"), f"shape {reference.shape} against {candidate.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        return ModuleError(name, float("inf"), "NaN or infinity")
    return ModuleError(name, measure(reference, candidate).rel_l2)


def smallest(errors: Sequence[ModuleError], limit: float) -> ModuleError | None:
    """The first failing module that has no failing module inside it."""
    bad = [e for e in errors if e.error is not None and not e.error <= limit]
    return next((e for e in bad if not any(o.name.startswith(e.name + ".") for o in bad)), None)


def summary(unit: Unit, errors: Sequence[ModuleError], limit: float, script: Path) -> str:
    """What bisecting found."""
    lines = [f"\nbisect: unit {unit.name} ({unit.op}) computes {unit.outputs[0]}"]
    fine = [e for e in errors if e.error is not None and e.error <= limit]
    if fine:
        worst = max(e.error or 0.0 for e in fine)
        lines.append(f"  {len(fine)} modules agree on their recorded input, to {worst:.1e} or better")
    for e in (e for e in errors if e not in fine):
        value = f"{e.error:.1e}" if e.error is not None else "-"
        mark = "" if e.error is None or e.error <= limit else "  <- differs on the same input"
        lines.append(f"  {e.name:50} {value:>8} {e.note if e.note != 'relu' else ''}{mark}")
    found = smallest(errors, limit)
    compared = sum(e.error is not None for e in errors)
    if found is not None:
        lines.append(f"smallest module that differs: {found.name}")
    elif compared:
        lines.append(f"all {compared} modules inside agree: the fault is in how {unit.name} connects them")
    else:
        lines.append(f"{unit.name} has no modules inside: it is the smallest part")
    lines.append(f"repro script: {script}")
    return "\n".join(lines)


def write_script(
    fault: Fault, image: ImageTrace, setup: Mapping[str, str], output: Path, mutate: str = ""
) -> Path:
    """A script and its .npz that show the difference without the harness."""
    comparison, stage, unit = fault
    name = "repro_" + "".join(c if c.isalnum() else "_" for c in unit.name)
    arrays = {f"input{k}": image[n] for k, n in enumerate(unit.inputs)}
    arrays |= {n: image[n] for n in unit.outputs if n in image}
    plain: dict[str, np.ndarray] = arrays
    np.savez(output / f"{name}.npz", allow_pickle=False, **plain)
    dtype = get_profile(comparison.profile).dtype
    fold = "" if dtype == "float64" else "predictor.model.fold_norms()  # as the comparison did\n"
    plant = ""
    if mutate:
        plant = (
            "from parity.selftest.tf_planters import plant  # the bug was planted\n"
            f"planted = plant({mutate!r}, predictor)\nplanted.__enter__()\n"
        )
    text = _SCRIPT.format(
        headline=f"{stage} differs from {comparison.reference} on the same input.",
        name=name,
        config=setup["config"],
        weights=setup["weights"],
        op=unit.op,
        args=unit.args,
        outputs=unit.outputs,
        limit=get_profile(comparison.profile).forced_ceiling,
        inputs=len(unit.inputs),
        dtype=dtype,
        fold=fold,
        plant=plant,
    )
    path = output / f"{name}.py"
    path.write_text(text)
    return path
