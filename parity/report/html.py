"""One self-contained HTML page: the verdict first, then where a difference starts, then everything else.

Nothing is loaded from anywhere: pictures are inline, the JSON result is embedded and can be saved from the
page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from parity.core.profiles import get_profile
from parity.core.results import (
    Comparison,
    StageResult,
    headline,
    overall_exit_code,
    overall_status,
    to_json,
)
from parity.core.status import Status, Verdict, worst
from parity.core.trace import Trace
from parity.core.units import row_owners
from parity.report import plots
from parity.report.page import PAGE
from parity.report.terminal import advice, number, short

_VERDICT_TEXT = {
    Verdict.LOCAL: "Fed with the reference's own input, this stage still gives another result: "
    "the difference is made here.",
    Verdict.INHERITED: "Fed with the reference's input this stage agrees: the difference came from before.",
    Verdict.AMPLIFIED: "Its inputs agree and so does its own computation, yet a small incoming difference "
    "grows beyond the limit here.",
    Verdict.UNKNOWN: "There was no run on the reference's input, so it cannot be said where the difference "
    "was made.",
    Verdict.NONE: "",
}


@dataclass
class Node:
    """A module in the tree: its own arrays and its sub-modules."""

    name: str
    children: dict[str, Node] = field(default_factory=dict)
    stages: list[StageResult] = field(default_factory=list)

    @property
    def all_stages(self) -> list[StageResult]:
        """Every array below this module."""
        return self.stages + [s for c in self.children.values() for s in c.all_stages]

    @property
    def status(self) -> Status:
        """Worst status below."""
        return worst(s.overall for s in self.all_stages)


def write_report(comparisons: Sequence[Comparison], path: Path) -> Path:
    """Write the page and return its path. Traces that cannot be opened only cost the pictures made from
    them."""
    with ExitStack() as stack:
        opened: dict[str, Trace | None] = {f: _open(f, stack) for c in comparisons for f in c.traces}
        sections = [_section(c, [opened[f] for f in c.traces] or [None, None]) for c in comparisons]
        path.write_text(render(comparisons, sections), encoding="utf-8")
    return path


def _open(path: str, stack: ExitStack) -> Trace | None:
    try:
        return stack.enter_context(Trace(path))
    except (ValueError, OSError):
        return None


def render(comparisons: Sequence[Comparison], sections: Sequence[Mapping[str, Any]]) -> str:
    """The page's text."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"report.html": PAGE}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "short": short, "leaf": leaf, "colour": plots.status_colour}
    result = to_json(list(comparisons))
    return environment.get_template("report.html").render(
        sections=sections,
        status=overall_status(list(comparisons)),
        exit_code=overall_exit_code(list(comparisons)),
        Status=Status,
        Verdict=Verdict,
        json_text=json.dumps(result).replace("<", "\\u003c"),
    )


def _section(comparison: Comparison, traces: Sequence[Trace | None]) -> dict[str, Any]:
    """Everything the template shows about one comparison."""
    images = [_image(t, comparison.index) for t in traces]
    first = comparison.first_bad
    shown = first or _worst(comparison)
    instances = next(
        (s for s in comparison.stages if s.name in ("output/instances", "output/proposals")), None
    )
    return {
        "c": comparison,
        "headline": headline(comparison),
        "first": first,
        "first_text": _VERDICT_TEXT[first.verdict] if first else "",
        "advice": advice(first) if first else "",
        "worst": shown,
        "heat": _heat(comparison, shown, images),
        "growth": plots.growth(comparison),
        "cards": cards(comparison),
        "overlay": _overlay(comparison, instances, images),
        "masks": _masks(instances, images),
        "scatter": plots.score_scatter(instances.details) if instances else "",
        "certificates": [(s, c) for s in comparison.stages for c in s.details.get("certificates", [])],
        "notes": [(s, n) for s in comparison.stages for n in s.details.get("notes", [])],
        "tree": tree(comparison.stages),
        "environment": _environment_rows(comparison),
    }


def _image(trace: Trace | None, index: int) -> Mapping[str, np.ndarray]:
    return trace.images[index] if trace is not None and index < len(trace.images) else {}


def _worst(comparison: Comparison) -> StageResult | None:
    """The continuous stage nearest to its limit."""
    stages = [s for s in comparison.stages if s.metrics and s.limit and s.limit.value > 0]
    return max(stages, key=_used, default=None)


def _used(stage: StageResult) -> float:
    """The share of its limit that a stage takes."""
    measured = stage.errors.candidate if stage.errors else stage.metrics
    return measured.rel_l2 / stage.limit.value if measured and stage.limit else 0.0


def cards(comparison: Comparison) -> list[tuple[str, str, str]]:
    """The numbers one wants to know first: (value, what, remark)."""
    counts = comparison.counts
    out = [(f"{counts['PASS'] + counts['BORDERLINE']} / {len(comparison.stages)}", "checks agree", "")]
    if counts["BORDERLINE"]:
        out.append((str(counts["BORDERLINE"]), "explained by margins", "within the noise of a threshold"))
    for stage in comparison.stages:
        if stage.name in ("output/instances", "output/proposals") and stage.details:
            d = stage.details
            total = f"{d['reference_count']} and {d['candidate_count']}"
            out.append((f"{d['matched']}", "detections matched", f"of {total}"))
            for key, what in (("box_px", "worst box, px"), ("score", "worst score")):
                noise = d.get(f"{key.removesuffix('_px')}_noise")
                remark = "" if noise is None else f"the reference's own: {number(noise)}"
                out.append((number(d[f"worst_{key}"]) or "0", what, remark))
        if stage.name.endswith("pred_masks") and stage.details:
            out.append(
                (str(stage.details["flipped"]), "mask pixels differ", f"of {stage.details['compared']:,}")
            )
    worst = _worst(comparison)
    if worst is not None and worst.metrics is not None:
        out.append((number(worst.metrics.rel_l2), "worst relative L2", short(worst.name)))
    return out


def tree(stages: Sequence[StageResult]) -> Node:
    """Stages as a tree of modules."""
    root = Node("")
    for stage in stages:
        node = root
        parts = [
            p for group in stage.name.split("/") for p in (group.split(".") if "." in group else [group])
        ]
        for part in parts[:-1] or ["checks"]:
            node = node.children.setdefault(part, Node(part))
        node.stages.append(stage)
    return root


def leaf(name: str) -> str:
    """The last part of a stage's name; the two sets of the model also by what they are."""
    known = {"steps/proposal_generator/0/0": "proposals", "steps/roi_heads/0/0": "detections"}
    last = name.split("/")[-1].split(".")[-1]
    return f"{last} {known[name]}" if name in known else last


def _environment_rows(comparison: Comparison) -> list[tuple[str, str, str, bool]]:
    """(what, reference, candidate, whether they differ) for every fact of the two manifests."""
    sides = [_flat(m) for m in (comparison.reference_manifest, comparison.candidate_manifest)]
    rows = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        a, b = (s.get(key, "") for s in sides)
        rows.append((key, a, b, a != b))
    return rows


def _flat(manifest: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in manifest.items():
        if key in ("tensors", "forced", "format"):
            continue
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, str) else json.dumps(_rounded(value))
    return out


def _rounded(value: Any) -> Any:
    """Floats at four digits: these are facts about a run (times, memory), not results."""
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


# ---- pictures --------------------------------------------------------------------------------------------


def _heat(
    comparison: Comparison, stage: StageResult | None, images: Sequence[Mapping[str, np.ndarray]]
) -> str:
    if stage is None or any(stage.name not in i for i in images):
        return ""
    reference, candidate = (i[stage.name] for i in images)
    owners = {o.name for o in row_owners(stage.name)}
    sets = [s for s in comparison.stages if s.name in owners and s.details.get("pairs")]
    if sets:
        pairs = [p for p in sets[0].details["pairs"] if p[0] < len(reference) and p[1] < len(candidate)]
        reference, candidate = reference[[p[0] for p in pairs]], candidate[[p[1] for p in pairs]]
    if (
        reference.shape != candidate.shape
        or reference.dtype.kind not in "fiu"
        or reference.ndim not in (2, 4)
    ):
        return ""
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()) or reference.size == 0:
        return ""
    return plots.heat(reference, candidate)


def _overlay(
    comparison: Comparison, stage: StageResult | None, images: Sequence[Mapping[str, np.ndarray]]
) -> str:
    if stage is None or not stage.details or "input/image" not in images[0]:
        return ""
    field_name = "pred_boxes" if stage.name == "output/instances" else "proposal_boxes"
    boxes = [i.get(f"{stage.name}/{field_name}") for i in images]
    if boxes[0] is None or boxes[1] is None:
        return ""
    sides = [
        plots.Labelled(b, _labels(i, stage.name, len(b)))
        for i, b in zip(images, boxes, strict=True)
        if b is not None
    ]
    limit = stage.details.get("box_limit", get_profile(comparison.profile).box_px)
    return plots.overlay(images[0]["input/image"], sides[0], sides[1], stage.details, limit)


def _labels(image: Mapping[str, np.ndarray], name: str, count: int) -> list[str]:
    classes, scores = image.get(f"{name}/pred_classes"), image.get(f"{name}/scores")
    if classes is None or scores is None:
        return [""] * count
    return [f"{int(c)} {float(s):.2f}" for c, s in zip(classes, scores, strict=True)]


def _masks(stage: StageResult | None, images: Sequence[Mapping[str, np.ndarray]]) -> str:
    name = "output/instances/pred_masks"
    if stage is None or not stage.details.get("pairs") or any(name not in i for i in images):
        return ""
    pairs = stage.details["pairs"]
    sides = [i[name][[p[k] for p in pairs]] for k, i in enumerate(images)]
    return plots.mask_difference(images[0]["input/image"], *sides) if sides[0].shape == sides[1].shape else ""
