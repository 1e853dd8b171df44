"""The first two rungs: were both sides run alike, and do they hold the same weights?"""

from __future__ import annotations

from typing import Any

from parity.core.results import Comparison, StageResult
from parity.core.status import Status, Verdict
from parity.core.units import is_harmless
from parity.judge.sides import Request


def manifest_stages(job: Request, comparison: Comparison) -> list[StageResult]:
    """Both sides must have read the same weights, configuration and pictures, at the same precision."""
    out = []
    for key in ("weights_sha256", "config_file_sha256", "images_sha256", "profile", "dtype"):
        values = [side.manifest.get(key) for side in (job.reference, job.candidate)]
        if None in values:
            if values != [None, None] and not job.reference.recorded:
                comparison.notes.append(f"manifest: only one side states {key}")
            continue
        same = values[0] == values[1]
        text = f"{_short(values[0])}" if same else f"{_short(values[0])} against {_short(values[1])}"
        status = Status.PASS if same else Status.FAIL
        verdict = Verdict.NONE if same else Verdict.LOCAL
        out.append(StageResult(f"manifest/{key}", "manifest", "exact", status, text, verdict=verdict))
    return out


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else text[:16] + "…"


def weight_stages(job: Request, comparison: Comparison) -> list[StageResult]:
    """Every tensor bit-equal after the layout change, none missing, none extra."""
    ref, cand = job.reference.tensors, job.candidate.tensors
    if not ref or not cand:
        if ref or cand:
            side = job.reference.name if cand else job.candidate.name
            comparison.notes.append(f"weights: {side} gives no tensor hashes, so tensors were not compared")
        return []
    ref, cand = ({k: v for k, v in t.items() if not is_harmless(k)} for t in (ref, cand))
    missing, extra = sorted(set(ref) - set(cand)), sorted(set(cand) - set(ref))
    unequal = sorted(k for k in set(ref) & set(cand) if ref[k] != cand[k])
    result = StageResult("weights", "weights", "exact", Status.PASS, f"{len(ref)} tensors bit-equal")
    parts = {"differ": unequal, "missing in the candidate": missing, "extra in the candidate": extra}
    broken = [f"{len(k)} {what}: {', '.join(k[:4])}" for what, k in parts.items() if k]
    if broken:
        result.status, result.message, result.verdict = Status.FAIL, "; ".join(broken), Verdict.LOCAL
        result.details = parts
    return [result]
