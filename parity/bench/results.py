"""What a bench found: times and memory of every side, as a table, as JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

NAMES = {
    "torch": "PyTorch reference, eager",
    "detectron2": "detectron2, eager",
    "torchscript": "detectron2, TorchScript export",
    "onnx": "detectron2, ONNX Runtime",
    "openvino": "detectron2, OpenVINO, float32",
    "openvino-default": "detectron2, OpenVINO as it comes",
    "openvino-torch": "detectron2, OpenVINO's own PyTorch front end, float32",
    "compile": "detectron2, backbone compiled",
    "tf": "TensorFlow, tf.function",
    "tf-bfloat16": "TensorFlow, bfloat16",
    "savedmodel": "TensorFlow, SavedModel",
    "savedmodel-untuned": "TensorFlow, SavedModel, no variable set",
}


@dataclass
class Agreement:
    """A side's detections against the first side's: pairs of the same class, and how far the worst are apart."""

    reference: int
    found: int
    matched: int
    worst_px: float
    worst_score: float


@dataclass
class Competitor:
    """One competitor: what it said about itself and its runs. Peaks are resident memory: since the process
    started, and (``steady_mib``) in the rounds that count."""

    name: str
    load_seconds: float = 0.0
    first_seconds: float = 0.0
    base_mib: float = 0.0
    peak_mib: float = 0.0
    detections: int = 0
    version: str = ""
    seconds: list[float] = field(default_factory=list)
    error: str = ""
    steady_mib: float = 0.0
    accelerator: str = ""
    agreement: Agreement | None = None

    @property
    def median(self) -> float:
        """Median seconds of a run after the first."""
        return median(self.seconds) if self.seconds else float("nan")


@dataclass
class Bench:
    """Interleaved runs of several sides. ``seconds[k]`` of all sides belong to the same round."""

    sides: list[Competitor]
    title: str = ""
    threads: int = 0
    device: str = "cpu"
    machine: dict[str, Any] = field(default_factory=dict)
    command: str = ""

    def ratios(self, side: Competitor) -> list[float]:
        """Seconds of ``side`` over those of the first side, round by round."""
        return [a / b for a, b in zip(side.seconds, self.sides[0].seconds, strict=True)]


COLUMNS = (
    "side|ratio|median s|spread s|first s|load s|peak MiB|peak ratio|running MiB|same objects|worst px|"
    "worst score"
)


def table(bench: Bench) -> str:
    """The result in Markdown, ratios first."""
    first, facts, columns = bench.sides[0], bench.machine, COLUMNS.split("|")
    threads = bench.threads or facts.get("cores")
    lines = [
        f"## {bench.title}",
        "",
        f"{len(first.seconds)} interleaved rounds, batch 1, {threads} threads, {bench.device}; "
        f"{facts.get('cpu')}. Ratios are medians over rounds of seconds over those of {first.name}.",
        "",
        f"| {' | '.join(columns)} |",
        "| --- |" + " ---: |" * (len(columns) - 1),
    ]
    return "\n".join([*lines, *(_row(bench, s) for s in bench.sides)]) + "\n"


def _row(bench: Bench, side: Competitor) -> str:
    if not side.seconds:
        return f"| {side.name} | n/a: {side.error} |" + " |" * (len(COLUMNS.split("|")) - 2)
    first, same = bench.sides[0], side.agreement
    cells = [
        f"{side.name} ({side.version})",
        f"**{median(bench.ratios(side)):.2f}**",
        f"{side.median:.3f}",
        f"{min(side.seconds):.3f} to {max(side.seconds):.3f}",
        f"{side.first_seconds:.2f}",
        f"{side.load_seconds:.1f}",
        f"{side.peak_mib:.0f}",
        f"{side.peak_mib / first.peak_mib:.2f}" if first.peak_mib else "",
        f"{side.steady_mib:.0f}",
        f"{same.matched} of {same.reference}" if same else f"found {side.detections}",
        f"{same.worst_px:.1e}" if same else "",
        f"{same.worst_score:.1e}" if same else "",
    ]
    return f"| {' | '.join(cells)} |"


def to_json(bench: Bench) -> dict[str, Any]:
    """Plain data with everything measured."""
    body = asdict(bench)
    for entry, side in zip(body["sides"], bench.sides, strict=True):
        entry["median"] = side.median if side.seconds else None
        entry["ratio"] = median(bench.ratios(side)) if side.seconds else None
    return {"schema": "tf-d2-bench/1", **body}


def from_json(body: Mapping[str, Any]) -> Bench:
    """The inverse of :func:`to_json`."""
    sides = []
    for entry in body["sides"]:
        values = {k: v for k, v in entry.items() if k not in ("median", "ratio")}
        same = values.get("agreement")
        sides.append(Competitor(**{**values, "agreement": Agreement(**same) if same else None}))
    known = {f.name for f in fields(Bench)} - {"sides"}
    return Bench(sides, **{k: v for k, v in body.items() if k in known})


def write_results(benches: Sequence[Bench], output: Path) -> Path:
    """Write ``bench.md``, ``bench.json`` and ``bench.svg`` and return the first."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "bench.json").write_text(json.dumps([to_json(b) for b in benches], indent=1) + "\n")
    path = output / "bench.md"
    path.write_text("# Time and memory, side by side\n\n" + "\n".join(table(b) for b in benches))
    from parity.report.plots import bench_plot

    (output / "bench.svg").write_text(bench_plot(benches))
    return path
