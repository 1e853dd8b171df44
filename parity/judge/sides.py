"""The two sides of a comparison, opened: traces or arrays; and what is asked of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import yaml

from parity.core import feed as feeds
from parity.core.job import tensor_hash
from parity.core.profiles import Profile
from parity.core.trace import ImageTrace, Trace
from parity.core.units import forced_name, row_owners
from parity.core.units.table import PANOPTIC, SET_MEMBERS
from parity.judge.context import Arrays, stage_table
from parity.judge.waivers import Waiver
from weights.errors import UsageError


@dataclass(frozen=True)
class Side:
    """One opened trace: images in order, the manifest, the configuration and per-tensor weight hashes."""

    name: str
    images: Sequence[Arrays]
    manifest: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)
    segments: Sequence[Sequence[Mapping[str, Any]]] = ()
    precisions: frozenset[str] = frozenset()

    @property
    def recorded(self) -> bool:
        """Whether this is a recording of detectron2 without a manifest of its own."""
        return self.manifest.get("backend") == "recorded"


TraceLike = str | os.PathLike[str] | Mapping[str, np.ndarray] | Side


def open_side(source: TraceLike, stack: ExitStack) -> Side:
    """A trace file or a mapping of arrays (one image, no manifest) as a ``Side``; files close with
    ``stack``."""
    if isinstance(source, Side):
        return source
    if isinstance(source, Mapping):
        return Side("arrays", [source])
    trace = stack.enter_context(Trace(source))
    config = yaml.safe_load(trace.config) if trace.config else None
    name = str(trace.manifest.get("backend", "trace"))
    segments = [_segments(i) for i in trace.images]
    return Side(
        name, trace.images, trace.manifest, config, _tensor_hashes(trace), segments, trace.precisions()
    )


def _segments(image: ImageTrace) -> list[dict[str, Any]]:
    return image.segments_info() if PANOPTIC in image else []


def _tensor_hashes(trace: Trace) -> dict[str, str]:
    """Key -> hash of each weight: as the backend wrote it into the manifest, or of a recording's own
    weights."""
    stated = trace.manifest.get("tensors")
    if isinstance(stated, dict):
        return {str(k): str(v) for k, v in stated.items()}
    return {k: tensor_hash(v) for k, v in trace.weights().items()}


def name_of(source: TraceLike, side: Side) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else side.name


_FLOAT64_SIDES = {
    "reference": "torch, detectron2, or a recording with float64 steps",
    "candidate": "tf, tf-eager, or a trace of one in this profile",
}


def check_precision(role: str, name: str, precisions: frozenset[str], profile: Profile) -> None:
    """Raise ValueError where a side's network ran in float32 and the profile judges float64: every stage of a right
    model would seem wrong. (The other way round the manifests show it, as no recording is float64 alone.)"""
    # A recording may hold both; only as a reference its float64 steps are what is compared.
    wrong = "float32" in precisions if role == "candidate" else precisions == {"float32"}
    if profile.dtype == "float64" and wrong:
        raise UsageError(
            f"{name} is float32; the {profile.name} profile needs a float64 {role} "
            f"({_FLOAT64_SIDES[role]}): take one, or use --profile strict"
        )


def float64_steps(reference: Side, candidate: Side, given: Sequence[Arrays]) -> tuple[Side, Side]:
    """Both sides of a comparison with the float64 pass that a recording of detectron2 holds beside its float32 run.

    That pass starts from the network input and from the recorded float32 proposals, and has no results. So only its
    stages are compared: those up to the proposals as the candidate ran them, those behind only as it computed them
    on the recording's input.
    """
    views = [_float64_view(r, c) for r, c in zip(reference.images, candidate.images, strict=True)]
    table = stage_table(reference.config)
    for k, (own, other) in enumerate(views):
        inputs, fed = feeds.Inputs(given[k], table), feeds.read(candidate.manifest, k)
        if any(inputs.problem(fed, name) for name in own if forced_name(name) in other):
            raise UsageError(
                "the candidate was fed by another trace than this recording, so that its stages behind the proposals "
                "cannot be compared: run tf-d2 parity with the recording as --reference"
            )
    return replace(reference, images=[v[0] for v in views]), replace(candidate, images=[v[1] for v in views])


def _float64_view(reference: Arrays, candidate: Arrays) -> tuple[Arrays, Arrays]:
    assert isinstance(reference, ImageTrace)  # only a file can be a recording
    own = reference.float64() | {n: reference[n] for n in ("input/image",) if n in reference}
    # The proposals were given to that pass, not computed by it.
    own = {n: a for n, a in own.items() if n not in SET_MEMBERS}
    forced = {forced_name(n): candidate[forced_name(n)] for n in own if forced_name(n) in candidate}
    free = {n: forced.get(forced_name(n)) if row_owners(n) else candidate.get(n) for n in own}
    return own, {n: a for n, a in free.items() if a is not None} | forced


@dataclass(frozen=True)
class Request:
    reference: Side
    candidate: Side
    noise: Sequence[Side]
    profile: Profile
    waivers: Sequence[Waiver]
    scope: str
    early_stop: bool
    config: Mapping[str, Any] | None
    given: Sequence[Arrays]  # per image: the reference's arrays as inputs of teacher-forced stages
