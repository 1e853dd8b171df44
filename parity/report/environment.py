"""On what a comparison was made, in a few lines: with them a report can be repeated elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from parity.core.results import Comparison

_PACKAGES = ("tensorflow", "keras", "tf-d2", "torch", "torchvision", "detectron2", "numpy", "python")


def environment_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Processor, instruction sets, settings, oneDNN, threads and versions of everything that computed."""
    return side_lines([m for c in comparisons for m in (c.candidate_manifest, c.reference_manifest)])


def side_lines(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same of manifests."""
    ran = [m for m in manifests if isinstance(m.get("machine"), Mapping)]
    lines = list(dict.fromkeys(_machine(m["machine"]) for m in ran))
    settings = {k: v for m in ran for k, v in dict(m["machine"].get("settings", {})).items()}
    lines += (
        ["settings: " + (" ".join(f"{k}={v}" for k, v in sorted(settings.items())) or "none")] if ran else []
    )
    return lines + list(dict.fromkeys(_side(m) for m in manifests))


def _machine(facts: Mapping[str, Any]) -> str:
    sets = " ".join(facts.get("instructions", ())) or "instruction sets unknown"
    return f"processor: {facts.get('cpu')}, {facts.get('cores')} cores, {facts.get('system')}; {sets}"


def _side(manifest: Mapping[str, Any]) -> str:
    versions = manifest.get("versions", {})
    held = ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if versions.get(name))
    return "; ".join([f"{manifest.get('backend', 'unknown')}: {held}", *_kernels(manifest)])


def _kernels(manifest: Mapping[str, Any]) -> Iterator[str]:
    flags, threads = manifest.get("flags", {}), manifest.get("threads")
    if "onednn" in flags:
        yield {True: "oneDNN on", False: "oneDNN off"}.get(flags["onednn"], "oneDNN unknown")
    if "mkldnn" in flags:
        yield f"oneDNN {'on' if flags['mkldnn'] else 'off'}, kernels for {flags.get('cpu_capability')}"
    count = threads.get("intra_op") if isinstance(threads, Mapping) else threads
    if count:
        yield f"{count} thread{'' if count == 1 else 's'}"
    if manifest.get("accelerator"):
        yield str(manifest["accelerator"].get("name"))
