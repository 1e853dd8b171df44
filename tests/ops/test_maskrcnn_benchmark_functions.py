"""Our operations against maskrcnn-benchmark's own functions on random and adversarial inputs.

What they returned is recorded in tests/data for the first cases of each. All of them, and fresh answers:

    export MASKRCNN_BENCHMARK_CHECKOUT=/path/to/maskrcnn-benchmark MASKRCNN_BENCHMARK_PYTHON=/path/to/python
    pytest tests/ops/test_maskrcnn_benchmark_functions.py

The interpreter needs torch, torchvision, Pillow and OpenCV, the checkout its extension, built in place without CUDA (on
today's torch after renaming ``.type()`` and ``.data<`` in csrc/cpu to ``.scalar_type()`` and ``.data_ptr<``). Seen with
torch 2.14.1, OpenCV 5.0 and maskrcnn-benchmark 57eec25.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.older_boxes import sides_near_powers, some_boxes

from parity.judge.pixels import padded_probability
from tf_d2.ops import anchors, boxes, keypoints, mask_paste_padded_numpy, nms, resize, roi_align

CHECKOUT = os.environ.get("MASKRCNN_BENCHMARK_CHECKOUT", "")
ORACLE = Path(__file__).parents[1] / "support" / "maskrcnn_benchmark_oracle.py"
RECORDED = Path(__file__).parents[1] / "data" / "maskrcnn_benchmark_functions.npz"
EPS = float(np.finfo(np.float32).eps)
CASES = 40 if CHECKOUT else 8  # of each function
Case = dict[str, np.ndarray]


def clustered(rng: np.random.Generator, whole: bool) -> np.ndarray:
    """Overlapping boxes; ``whole``: of whole numbers, so that many overlap by exactly the threshold."""
    centre = rng.uniform(0, 100, (8, 2))[rng.integers(0, 8, 80)]
    sides = rng.uniform(5, 60, (80, 2))
    found = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1) + rng.normal(0, 2, (80, 4))
    return (np.round(found / 4) * 4 if whole else found).astype(np.float32)


def case_of(k: int) -> dict[str, Case]:
    """The k-th input of every function."""
    rng = np.random.default_rng([19, k])
    size = (int(rng.integers(20, 200)), int(rng.integers(20, 200)))
    hw, count = np.array(size), int(rng.integers(2, 40))
    within = some_boxes(rng, 6, size, wild=False)
    weights = np.array([(1.0,) * 4, (10.0, 10.0, 5.0, 5.0)][k % 2])
    deltas = rng.normal(scale=[0.3, 3, 30][k % 3], size=(count, 12)).astype(np.float32)
    stride, ratios = 2 ** int(rng.integers(2, 7)), np.exp(rng.uniform(-1.5, 1.5, 2))
    cells = rng.integers(1, 9, 2)
    probabilities = 1 / (1 + np.exp(-rng.normal(scale=2, size=(6, 14 * (1 + k % 2), 14 * (1 + k % 2)))))
    picture = rng.integers(0, 256, (*(int(s) // 2 + 8 for s in size), 3)).astype(np.uint8)
    target = int(rng.integers(16, 140))
    return {
        "decode": {"boxes": some_boxes(rng, count, size), "deltas": deltas, "weights": weights},
        "anchors": {
            "stride": np.array(stride),
            "sizes": stride * rng.uniform(1, 12, 3),
            "ratios": np.append(ratios, [0.5, 1, 2]),
            "cells": cells,
        },
        "levels": {"boxes": sides_near_powers(rng)},
        "clipped": {
            "boxes": some_boxes(rng, count, size),
            "hw": hw,
            "least": np.array([0.0, 1.0, 12.0][k % 3]),
        },
        "nms": {
            "boxes": clustered(rng, bool(k % 2)),
            "scores": (rng.permutation(80) / 80).astype(
                np.float32
            ),  # different, so that no sort has a choice
            "thresh": np.array([0.3, 0.5, 0.7][k % 3]),
        },
        "roi_align": {
            "features": rng.normal(size=(1, 4, 20, 24)).astype(np.float32),
            "boxes": some_boxes(rng, 12, (80, 96)),
            "scale": np.array(0.25),
            "ratio": np.array([0, 2][k % 2]),
        },
        "keypoints": {"maps": rng.normal(scale=3, size=(6, 4, 56, 56)).astype(np.float32), "boxes": within},
        "masks": {"masks": probabilities.astype(np.float32), "boxes": within, "hw": hw},
        "resized": {
            "image": picture,
            "target": np.array(target),
            "longest": np.array(max(target, int(rng.integers(30, 160)))),
        },
    }


# ---- what each function's result is compared with; returns the largest difference ---------------------------


def check_decode(case: Case, out: Case) -> float:
    got = boxes.apply_deltas(case["deltas"], case["boxes"], case["weights"].tolist(), plus_one=True).numpy()
    size = np.abs(out["out"]).max(axis=1, keepdims=True)
    error = np.abs(got.astype(np.float64) - out["out"]) / (size + 1)
    assert error.max() <= 8 * EPS
    return float(error.max())


def check_anchors(case: Case, out: Case) -> float:
    stride, (rows, columns) = int(case["stride"]), case["cells"].tolist()
    cell = anchors.window_anchors(stride, case["sizes"].tolist(), case["ratios"].tolist())
    got = anchors.grid_anchors(tf.constant(cell, tf.float32), rows, columns, stride, 0.0)
    np.testing.assert_array_equal(got, out["out"])
    return 0.0


def check_levels(case: Case, out: Case) -> float:
    got = boxes.assign_levels(tf.constant(case["boxes"]), 2, 5, plus_one=True, epsilon=1e-6)
    np.testing.assert_array_equal(got, out["out"])
    return 0.0


def check_clipped(case: Case, out: Case) -> float:
    height, width = case["hw"].tolist()
    got = boxes.clip(tf.constant(case["boxes"]), height, width, last_pixel=True)
    np.testing.assert_array_equal(got, out["out"])
    large = boxes.at_least(got, float(case["least"]))
    np.testing.assert_array_equal(np.flatnonzero(large), out["rows"])
    return 0.0


def check_nms(case: Case, out: Case) -> float:
    group = tf.zeros(len(case["boxes"]), tf.int64)
    kept = nms.batched_nms_inclusive(case["boxes"], case["scores"], group, float(case["thresh"]))
    np.testing.assert_array_equal(np.sort(kept), np.sort(out["out"]))
    return 0.0


def check_roi_align(case: Case, out: Case) -> float:
    features = tf.constant(case["features"].transpose(0, 2, 3, 1))
    index = tf.zeros(len(case["boxes"]), tf.int32)
    got = roi_align.roi_align(
        features, case["boxes"], index, 7, float(case["scale"]), int(case["ratio"]), aligned=False
    )
    wanted = out["out"].transpose(0, 2, 3, 1)
    # a mean of values up to max|features|, whose positions carry the rounding of a coordinate up to 24 cells
    allowed = 32 * EPS * np.abs(case["features"]).max()
    error = np.abs(got.numpy() - wanted).max()
    assert error <= allowed
    return float(error)


def check_keypoints(case: Case, out: Case) -> float:
    got = keypoints.decode_keypoints_with_logits(case["maps"], case["boxes"]).numpy()  # pyright: ignore
    largest = np.abs(case["maps"]).max()
    np.testing.assert_allclose(got[..., 2], out["logits"], rtol=0, atol=32 * EPS * largest)
    error = np.abs(got[..., :2] - out["out"][..., :2]).max()
    assert error <= 4 * EPS * 300 + 1e-4
    return float(error)


def check_masks(case: Case, out: Case) -> float:
    height, width = case["hw"].tolist()
    got = mask_paste_padded_numpy.paste_padded_masks_numpy(case["masks"], case["boxes"], height, width)
    worst = 0.0
    for k, y, x in np.argwhere(got != out["out"]):
        # torch's positions along both axes are float32 numbers of up to M + 2 cells; ours are float64
        pixel = np.array([x]), np.array([y])
        exact = float(padded_probability(case["masks"][k], case["boxes"][k], *pixel)[0])
        assert abs(exact - 0.5) <= 2 * (case["masks"].shape[1] + 2) * EPS
        assert got[k, y, x] == (exact > 0.5)
        worst = max(worst, abs(exact - 0.5))
    return worst


def check_resized(case: Case, out: Case) -> float:
    height, width = case["image"].shape[:2]
    size = resize.truncated_edge_size(height, width, int(case["target"]), int(case["longest"]))
    np.testing.assert_array_equal(resize.resize_uint8(tf.constant(case["image"]), *size), out["out"])
    return 0.0


CHECKS: dict[str, Any] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    if not CHECKOUT:
        with np.load(RECORDED) as file:
            return dict(file)
    folder = tmp_path_factory.mktemp("maskrcnn_benchmark")
    flat: dict[str, Any] = {
        f"{function}/{k}/{name}": array
        for k in range(CASES)
        for function, case in case_of(k).items()
        for name, array in case.items()
    }
    np.savez(folder / "given.npz", **flat)
    python = os.environ.get("MASKRCNN_BENCHMARK_PYTHON", sys.executable)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [python, str(ORACLE), CHECKOUT, str(folder / "given.npz"), str(folder / "answers.npz")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "answers.npz") as file:
        return dict(file)


@pytest.mark.parametrize("function", CHECKS)
def test_function(function: str, answers: dict[str, np.ndarray], record_property: Any) -> None:
    worst = 0.0
    for k in range(CASES):
        start = f"{function}/{k}/"
        found = {name.removeprefix(start): a for name, a in answers.items() if name.startswith(start)}
        worst = max(worst, CHECKS[function](case_of(k)[function], found))
    record_property("largest difference", worst)
    print(f"{function}: {CASES} cases, largest difference {worst:.3g}")
