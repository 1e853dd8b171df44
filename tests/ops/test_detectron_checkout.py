"""Our operations against Detectron's own functions, run from a checkout that the user names, on random and adversarial
inputs.

    export DETECTRON_CHECKOUT=/path/to/Detectron DETECTRON_PYTHON=/path/to/python
    pytest -m slow tests/ops/test_detectron_checkout.py

The interpreter needs numpy below 2, OpenCV, pycocotools, and Cython with a C compiler; nothing in the checkout is
changed. Seen with numpy 1.26.4, OpenCV 4.11, Cython 3.3 and Detectron 04155a01.
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

from tf_d2.ops import anchors, boxes, keypoints, mask_paste_padded_numpy, nms, resize

CHECKOUT = os.environ.get("DETECTRON_CHECKOUT", "")
ORACLE = Path(__file__).parents[1] / "support" / "detectron_oracle.py"
EPS = float(np.finfo(np.float32).eps)
CASES = 40  # of each function

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHECKOUT, reason="DETECTRON_CHECKOUT does not name a checkout of Detectron"),
]
Case = dict[str, np.ndarray]


def given() -> dict[str, list[Case]]:
    rng = np.random.default_rng(19)
    made: dict[str, list[Case]] = {name: [] for name in CHECKS}
    for k in range(CASES):
        size = (int(rng.integers(20, 300)), int(rng.integers(20, 300)))
        n = int(rng.integers(1, 60))
        deltas = rng.normal(scale=[0.3, 3, 30][k % 3], size=(n, 12)).astype(np.float32)
        weights = np.array([(1.0,) * 4, (10.0, 10.0, 5.0, 5.0)][k % 2])
        made["decode"].append(
            {"boxes": some_boxes(rng, n, size), "deltas": deltas, "weights": weights, "hw": np.array(size)}
        )
        stride, ratios = 2 ** rng.integers(2, 8), np.exp(rng.uniform(-1.5, 1.5, int(rng.integers(1, 6))))
        made["anchors"].append(
            {
                "stride": stride,
                "sizes": stride * rng.uniform(1, 12, 3),
                "ratios": np.append(ratios, [0.5, 1, 2]),
            }
        )
        made["levels"].append({"rois": sides_near_powers(rng)})
        made["nms"].append({"dets": clustered(rng, k), "thresh": np.array([0.3, 0.5, 0.7][k % 3])})
        made["results"].append(box_results(rng, k))
        made["proposals"].append(proposals(rng, k))
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        target, longest = (int(rng.integers(30, 400)) for _ in range(2))
        made["network_input"].append(
            {"image": image, "target": np.array(target), "longest": np.array(max(target, longest))}
        )
        found = some_boxes(rng, 6, size, wild=False)
        maps = rng.normal(scale=3, size=(6, 4, 56, 56)).astype(np.float32)
        made["keypoints"].append({"maps": maps, "rois": found, "least": np.array([0, 32][k % 2])})
        logits = rng.normal(scale=2, size=(6, [14, 28][k % 2], [14, 28][k % 2]))
        masks = (1 / (1 + np.exp(-logits))).astype(np.float32)
        made["masks"].append({"masks": masks, "boxes": found, "hw": np.array(size)})
    return made


def clustered(rng: np.random.Generator, k: int) -> np.ndarray:
    """Overlapping boxes, some of them whole-numbered (IoUs exactly at a threshold), some with equal scores."""
    count = 80
    centre = rng.uniform(0, 100, (8, 2))[rng.integers(0, 8, count)]
    sides = rng.uniform(5, 60, (count, 2))
    found = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1) + rng.normal(0, 2, (count, 4))
    if k % 2:
        found = np.round(found / 4) * 4
    scores = np.arange(count)[::-1, None] / count  # different, so that no sort has a choice
    return np.concatenate([found, scores], axis=1).astype(np.float32)[rng.permutation(count)]


def box_results(rng: np.random.Generator, k: int) -> Case:
    scores = rng.dirichlet(np.full(5, 0.5), 50).astype(np.float32)
    if k % 2:  # ties between classes, at the limit too; within a class no sort has a choice
        scores = np.stack([rng.permutation(50) / 50 for _ in range(5)], axis=1).astype(np.float32)
    row = np.stack([np.roll(clustered(rng, k)[:50, :4], j, axis=0) for j in range(5)], axis=1)
    return {"scores": scores, "boxes": row.reshape(50, 20), "limit": np.array([0, 10, 30, 1000][k % 4])}


def proposals(rng: np.random.Generator, k: int) -> Case:
    height, width, stride = int(rng.integers(4, 14)), int(rng.integers(4, 14)), [4.0, 16.0][k % 2]
    probs = rng.permutation(3 * height * width).reshape(1, 3, height, width) / (3.0 * height * width)
    deltas = rng.normal(scale=[0.2, 1.0][k % 2], size=(1, 12, height, width)).astype(np.float32)
    cells = anchors.window_anchors(int(stride), [stride * 4], [0.5, 1.0, 2.0]).astype(np.float64)
    info = np.array([height * stride, width * stride, rng.uniform(0.5, 3)], np.float32)
    least = np.array([0.0, 3.0, 12.0][k % 3])
    return {
        "probs": probs.astype(np.float32),
        "deltas": deltas,
        "anchors": cells,
        "stride": np.array(stride),
        "im_info": info,
        "least": least,
    }


# ---- what each function's result is compared with; returns the largest difference ---------------------------


def check_decode(case: Case, out: Case) -> float:
    got = boxes.apply_deltas(case["deltas"], case["boxes"], list(case["weights"]), plus_one=True).numpy()
    size = np.abs(out["out"]).max(axis=1, keepdims=True)
    error = np.abs(got.astype(np.float64) - out["out"]) / (size + 1)
    assert error.max() <= 8 * EPS
    clipped = boxes.clip(tf.reshape(out["out"], [-1, 3, 4]), *case["hw"], last_pixel=True)
    np.testing.assert_array_equal(tf.reshape(clipped, [-1, 12]), out["clipped"])
    return float(error.max())


def check_anchors(case: Case, out: Case) -> float:
    got = anchors.window_anchors(int(case["stride"]), list(case["sizes"]), list(case["ratios"]))
    np.testing.assert_array_equal(got, out["out"].astype(np.float32))
    return 0.0


def check_levels(case: Case, out: Case) -> float:
    got = boxes.assign_levels(tf.constant(case["rois"]), 2, 5, plus_one=True, epsilon=1e-6).numpy() + 2
    np.testing.assert_array_equal(got, out["out"])
    return 0.0


def check_nms(case: Case, out: Case) -> float:
    dets = case["dets"]
    group = tf.zeros(len(dets), tf.int64)
    kept = nms.batched_nms_inclusive(dets[:, :4], dets[:, 4], group, float(case["thresh"])).numpy()
    np.testing.assert_array_equal(np.sort(kept), np.sort(out["out"]))
    return 0.0


def check_results(case: Case, out: Case) -> float:
    row, label = np.nonzero(case["scores"][:, 1:] > np.float32(0.05))
    chosen = case["boxes"].reshape(50, 5, 4)[row, label + 1]
    scores = case["scores"][row, label + 1]
    kept = nms.batched_nms_inclusive(chosen, scores, label, 0.5)
    kept = tf.gather(kept, nms.best_with_ties(tf.gather(scores, kept), int(case["limit"]))).numpy()
    by_class = kept[np.argsort(label[kept] * len(row) + kept)]
    np.testing.assert_array_equal(chosen[by_class], out["boxes"])
    np.testing.assert_array_equal(label[by_class] + 1, out["classes"])
    return 0.0


def check_proposals(case: Case, out: Case) -> float:
    scores = case["probs"].transpose(0, 2, 3, 1).reshape(-1)
    deltas = case["deltas"].transpose(0, 2, 3, 1).reshape(-1, 4)
    height, width = case["probs"].shape[2:]
    cells = anchors.grid_anchors(case["anchors"].astype(np.float32), height, width, int(case["stride"]), 0.0)  # pyright: ignore
    _, order = tf.math.top_k(scores, min(200, len(scores)))
    moved = boxes.apply_deltas(tf.gather(deltas, order), tf.gather(cells, order), [1.0] * 4, plus_one=True)
    tall, wide, factor = case["im_info"]
    moved = boxes.clip(moved, tall, wide, last_pixel=True)
    valid = tf.where(boxes.at_least(moved, float(case["least"]), tf.constant(factor)))[:, 0]
    moved, best = tf.gather(moved, valid), tf.gather(tf.gather(scores, order), valid)
    kept = nms.batched_nms_inclusive(moved, best, tf.zeros_like(valid), 0.7)[:60]
    np.testing.assert_array_equal(tf.gather(best, kept), out["probs"][:, 0])
    error = np.abs(tf.gather(moved, kept).numpy() - out["rois"]).max(initial=0.0)
    assert error <= 8 * EPS * max(tall, wide)
    return float(error)


def check_network_input(case: Case, out: Case) -> float:
    sides = case["image"].shape[:2]
    factor = resize.resize_factor(*sides, int(case["target"]), int(case["longest"]))
    assert float(factor) == out["factor"]
    got = resize.resize_by_factor(tf.constant(case["image"]), factor).numpy()
    got -= np.array([102.9801, 115.9465, 122.7717], np.float32)
    assert got.shape == out["out"].shape
    error = np.abs(got - out["out"]).max()
    # OpenCV interpolates in float32: positions below 512 have their last place at 2**-15 of a pixel
    assert error <= 255 * 512 * EPS / 4
    return float(error)


def check_keypoints(case: Case, out: Case) -> float:
    got = keypoints.decode_keypoints_with_logits(case["maps"], case["rois"], int(case["least"])).numpy()  # pyright: ignore
    wanted, largest = out["out"].transpose(0, 2, 1), np.abs(case["maps"]).max()
    np.testing.assert_allclose(got[..., 2], wanted[..., 2], rtol=0, atol=32 * EPS * largest)
    np.testing.assert_allclose(got[..., 3], wanted[..., 3], rtol=64 * EPS * largest)
    error = np.abs(got[..., :2] - wanted[..., :2]).max()
    assert error <= 4 * EPS * 300 + 1e-4
    return float(error)


def check_masks(case: Case, out: Case) -> float:
    size = int(case["hw"][0]), int(case["hw"][1])
    got = mask_paste_padded_numpy.paste_padded_masks_numpy(case["masks"], case["boxes"], *size)
    differing = int((got != out["out"]).sum())
    assert differing == 0
    return float(differing)


CHECKS: dict[str, Any] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[Case]], dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("detectron")
    cases = given()
    flat: dict[str, Any] = {
        f"{function}/{k}/{name}": array
        for function, several in cases.items()
        for k, case in enumerate(several)
        for name, array in case.items()
    }
    np.savez(folder / "given.npz", **flat)
    python = os.environ.get("DETECTRON_PYTHON", sys.executable)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "PYTHONDONTWRITEBYTECODE": "1"
    }
    command = [python, str(ORACLE), CHECKOUT, str(folder / "given.npz"), str(folder / "answers.npz")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "answers.npz") as file:
        return cases, dict(file)


@pytest.mark.parametrize("function", CHECKS)
def test_function(
    function: str, answers: tuple[dict[str, list[Case]], dict[str, np.ndarray]], record_property: Any
) -> None:
    cases, out = answers
    start = f"{function}/0/"
    if not any(name.startswith(start) for name in out):
        pytest.skip("DETECTRON_PYTHON could not compile Detectron's NMS (Cython below a numpy of 2)")
    worst = 0.0
    for k, case in enumerate(cases[function]):
        start = f"{function}/{k}/"
        found = {name.removeprefix(start): a for name, a in out.items() if name.startswith(start)}
        worst = max(worst, CHECKS[function](case, found))
    record_property("largest difference", worst)
    print(f"{function}: {CASES} cases, largest difference {worst:.3g}")
