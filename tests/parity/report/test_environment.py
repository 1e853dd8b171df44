"""The lines under a verdict that let somebody else repeat it."""

from __future__ import annotations

from parity.core.results import Comparison
from parity.report.environment import environment_lines

MACHINE = {
    "cpu": "AMD EPYC 7B13",
    "cores": 2,
    "system": "Linux x86_64",
    "instructions": ["avx2", "fma"],
    "settings": {"TF_ENABLE_ONEDNN_OPTS": "1"},
}
TF = {
    "backend": "tf",
    "machine": MACHINE,
    "flags": {"onednn": True},
    "threads": {"intra_op": 1},
    "versions": {"tensorflow": "2.21.0", "keras": "3.15.1"},
}
TORCH = {
    "backend": "torch",
    "machine": MACHINE,
    "flags": {"mkldnn": True, "cpu_capability": "AVX2"},
    "threads": 2,
    "versions": {"torch": "2.13.0"},
}


def test_processor_settings_kernels_and_versions_are_named_once() -> None:
    comparisons = [Comparison("torch", "tf", "strict", reference_manifest=TORCH, candidate_manifest=TF)] * 2
    assert environment_lines(comparisons) == [
        "processor: AMD EPYC 7B13, 2 cores, Linux x86_64; avx2 fma",
        "settings: TF_ENABLE_ONEDNN_OPTS=1",
        "tf: tensorflow 2.21.0, keras 3.15.1; oneDNN on; 1 thread",
        "torch: torch 2.13.0; oneDNN on, kernels for AVX2; 2 threads",
    ]


def test_a_recording_has_no_machine() -> None:
    recorded = {"backend": "recorded", "versions": {"detectron2": "0.6"}}
    off = TF | {"flags": {"onednn": False}}
    lines = environment_lines(
        [Comparison("recorded", "tf", "strict", [], reference_manifest=recorded, candidate_manifest=off)]
    )
    assert lines[-1] == "recorded: detectron2 0.6" and "oneDNN off" in lines[-2] and len(lines) == 4
