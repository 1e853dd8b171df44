"""What a candidate of a given scope must answer."""

import numpy as np

import parity

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
