"""What a candidate of a given scope must answer, and which precision a profile can be judged at."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import parity
from parity.core.feed import hashes
from parity.core.trace import TraceWriter

HEAT = "output/instances/pred_keypoint_heatmaps"


def keypoint_trace() -> dict[str, np.ndarray]:
    """Three people with keypoints in one image."""
    rng = np.random.default_rng(0)
    corners = np.array([[10, 10], [60, 10], [110, 10]], np.float32)
    points = rng.uniform(0, 40, (3, 17, 3)).astype(np.float32)
    points[:, :, :2] += corners[:, None]
    picture = rng.integers(0, 255, (100, 160, 3), np.uint8)
    return {
        "input/image": picture,
        "input/resized": picture,
        "output/instances/pred_boxes": np.concatenate([corners, corners + 40], axis=1),
        "output/instances/scores": np.array([0.9, 0.8, 0.7], np.float32),
        "output/instances/pred_classes": np.zeros(3, np.int64),
        "output/instances/pred_keypoints": points,
        HEAT: rng.normal(size=(3, 17, 56, 56)).astype(np.float32),
    }


def test_an_exported_model_need_not_answer_with_heat_maps() -> None:
    reference, served = keypoint_trace(), keypoint_trace()
    del served[HEAT]
    (found,) = parity.compare(reference, served, scope="served")
    assert found.exit_code == 0, [(s.name, s.status, s.message) for s in found.stages]
    assert any(HEAT in note for note in found.notes)
    assert "output/instances/pred_keypoints" in [s.name for s in found.stages]
    (found,) = parity.compare(reference, served, scope="outputs")
    assert found.exit_code == 2
    served["output/instances/pred_keypoints"][1, 4, 0] += 9
    (found,) = parity.compare(reference, served, scope="served")
    assert found.exit_code == 1


POOLED, P2 = "steps/roi_heads.box_pooler", "steps/backbone/p2"


def make_recording(path: Path, *, float64: bool) -> dict[str, np.ndarray]:
    """A recording of detectron2 with or without its float64 pass; the arrays of that pass by stage."""
    rng = np.random.default_rng(0)
    exact = {P2: rng.normal(size=(1, 3, 4, 5)), POOLED: rng.normal(size=(4, 3, 2, 2))}
    with h5py.File(path, "w") as file:
        file.attrs["detectron2"], file.attrs["torch"], file.attrs["config"] = "0.6", "2.12", "{}"
        file["input/image"] = file["input/resized"] = np.zeros((4, 6, 3), np.uint8)
        for name, array in exact.items():
            file[name] = array.astype(np.float32)
            if float64:
                file[name.replace("steps", "steps64")] = array
        corners = rng.uniform(0, 9, (9, 2))
        boxes = np.concatenate([corners, corners + 5], axis=1).astype(np.float32)
        file["steps/proposal_generator/0/0/proposal_boxes"] = boxes
        file["steps/proposal_generator/0/0/objectness_logits"] = np.arange(9, 0, -1, np.float32)
        file["output/instances/scores"] = np.ones(1, np.float32)
    return exact


def make_candidate(path: Path, exact: dict[str, np.ndarray], changes: dict[str, np.ndarray | None]) -> Path:
    """A run in float64: other rows end to end, as its own proposals differ, but the same on the same input."""
    arrays = {"input/image": np.zeros((4, 6, 3), np.uint8), "input/resized": np.zeros((4, 6, 3), np.uint8)}
    arrays |= {name.replace("steps", "forced"): array for name, array in exact.items()}
    arrays |= {P2: exact[P2], POOLED: exact[POOLED][::-1], "output/instances/scores": np.ones(2, np.float32)}
    with TraceWriter(path) as writer:
        for name, array in {**arrays, **changes}.items():
            if array is not None:
                writer.put(name, array)
        fed = {n: arrays[n] for n in ("input/resized",)}
        forced = {"feed": {"backend": "recorded", "written": None}, "inputs": [hashes(fed)], "derived": [{}]}
        writer.finish({"backend": "tf", "dtype": "float64", "profile": "semantic", "forced": forced}, "{}")
    return path


def test_a_float32_recording_cannot_be_judged_in_float64(tmp_path: Path) -> None:
    exact = make_recording(tmp_path / "r.h5", float64=False)
    candidate = make_candidate(tmp_path / "c.h5", exact, {})
    with pytest.raises(ValueError, match=r"r\.h5 is float32; .* a recording with float64 steps.* strict"):
        parity.compare(tmp_path / "r.h5", candidate, profile="semantic")
    with pytest.raises(ValueError, match=r"r\.h5 is float32; the semantic profile needs a float64 candidate"):
        parity.compare(candidate, tmp_path / "r.h5", profile="semantic")


@pytest.mark.parametrize(
    ("name", "factor", "expected", "first"),
    [
        (P2, 1 + 1e-13, 0, None),
        (P2, 1 + 1e-11, 1, P2),  # no more than float32 would hide
        ("forced/backbone/p2", 1 + 1e-11, 1, P2),
        ("forced/roi_heads.box_pooler", 1 + 1e-11, 1, POOLED),
        (POOLED, 2.0, 0, None),  # the candidate's own rows follow its own proposals
        ("forced/roi_heads.box_pooler", None, 2, POOLED),
    ],
)
def test_float64_steps_of_a_recording_are_what_the_semantic_profile_compares(
    tmp_path: Path, name: str, factor: float | None, expected: int, first: str | None
) -> None:
    exact = make_recording(tmp_path / "r.h5", float64=True)
    stage = name.replace("forced", "steps")
    candidate = make_candidate(
        tmp_path / "c.h5", exact, {name: None if factor is None else exact[stage] * factor}
    )
    (found,) = parity.compare(tmp_path / "r.h5", candidate, profile="semantic")
    assert found.exit_code == expected, [(s.name, s.status, s.message) for s in found.stages]
    assert {s.name for s in found.stages} == {"input/image", "input/resized", P2, POOLED}
    assert (found.first_bad.name if found.first_bad else None) == first
    assert found.scope == "float64 steps of the recording"
    assert any("--profile strict" in note for note in found.notes)


def test_float64_steps_are_compared_only_with_stages_fed_by_that_recording(tmp_path: Path) -> None:
    exact = make_recording(tmp_path / "r.h5", float64=True)
    candidate = make_candidate(tmp_path / "c.h5", exact, {})
    with h5py.File(candidate, "r+") as file:
        manifest = json.loads(str(file.attrs["manifest"]))
        manifest["forced"]["inputs"] = [hashes({"input/resized": np.ones((4, 6, 3), np.uint8)})]
        file.attrs["manifest"] = json.dumps(manifest)
    with pytest.raises(ValueError, match="fed by another trace"):
        parity.compare(tmp_path / "r.h5", candidate, profile="semantic")
