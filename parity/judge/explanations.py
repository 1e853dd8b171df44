"""Why an item of a set has no partner: reasons that need other arrays than the set's own."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from parity.core.profiles import PEAK_FACTOR
from parity.core.units.table import DENSE_HEAD, PROPOSALS, RPN_HEAD, SetSpec
from parity.judge import detections, provenance
from parity.judge.context import Arrays, Cached, Context, items_of
from parity.judge.detections import Noise


def explain_with_traces(context: Context, spec: SetSpec, noise: Noise) -> detections.Explain:
    """Reasons that need other arrays: the pre-NMS top-k of a level, and the proposal a detection came
    from."""

    cached = {"reference": Cached(context.reference), "candidate": Cached(context.candidate)}

    def explain(side: str, index: int) -> detections.Certificate | None:
        trace = cached[side]
        if spec.rules != "rpn":
            return _from_source(context, trace, spec, side, index)
        top, score = _pre_nms_top(context), float(trace[spec.scores][index])
        found = None if top is None else _pre_nms_cut(trace, score, top)
        if found is None:
            return None
        level, cut = found
        gap = abs(score - cut)
        text = f"logit {score:.7f} is {gap:.1e} from the cut of level {level}'s {top} best"
        return detections.Certificate(side, index, "pre-nms-cut", score, cut, gap, noise.score, text)

    return explain


def _pre_nms_top(context: Context) -> int | None:
    """How many of each level's proposals come to NMS; None where the configuration does not say."""
    try:
        return int((context.config or {})["MODEL"]["RPN"]["PRE_NMS_TOPK_TEST"])
    except (KeyError, TypeError):
        return None


def _pre_nms_cut(trace: Arrays, score: float, top: int) -> tuple[str, float] | None:
    """The level that has a logit of ``score``, and the logit beyond its cut at the ``top`` best; None without a cut."""
    head = f"{RPN_HEAD}/0/"
    for name in (n for n in trace if n.startswith(head)):
        logits = np.sort(trace[name].ravel())[::-1]
        if logits.size > top and score in logits:
            return name[-1], float(logits[top - 1] if score < logits[top - 1] else logits[top])
    return None


def _from_source(
    context: Context, trace: Arrays, spec: SetSpec, side: str, index: int
) -> detections.Certificate | None:
    """The item was computed from a proposal that is itself only on this side, with a certificate."""
    proposals = context.matches.get(PROPOSALS.name)
    row = provenance.source_row(trace, items_of(trace, spec), index) if proposals else None
    for proof in proposals.certificates if proposals else ():
        if proof.side == side and proof.index == row and proof.certified and proof.reason != "order":
            text = f"comes from proposal {row}, which is borderline itself: {proof.text}"
            return detections.Certificate(side, index, "source", proof.value, proof.threshold, 0.0, 0.0, text)
    return None


def origins_of(context: Context, spec: SetSpec, noise: Noise) -> detections.Origin:
    """What an item was computed from, looked up in the dense outputs of both sides."""
    within = provenance.Within(noise.score, PEAK_FACTOR * context.profile.free_ceiling)

    cached = {"reference": Cached(context.reference), "candidate": Cached(context.candidate)}

    def origin(side: str, index: int) -> Hashable | None:
        own, other = cached[side], cached["candidate" if side == "reference" else "reference"]
        items = items_of(own, spec)
        if spec.rules == "rpn":
            head = RPN_HEAD
            return provenance.dense_origin(own, other, head, (items, index), within)
        if f"{DENSE_HEAD}/0/0" in own:
            head = DENSE_HEAD
            return provenance.dense_origin(own, other, head, (items, index), within)
        rows = provenance.row_map(context.matches.get(PROPOSALS.name), side)
        found = provenance.roi_origin(own, other, (items, index), rows, within)
        if found is None:
            return None
        return (found[0] if side == "reference" else found[1], found[2])

    return origin
