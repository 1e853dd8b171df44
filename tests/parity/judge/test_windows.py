"""Where TensorMask's masks lie, found by the scores of detections."""

from __future__ import annotations

import numpy as np

from parity.judge.detections import Items
from parity.judge.pixels import sigmoid
from parity.judge.windows import has_windows, mask_window

CONFIG = {
    "MODEL": {
        "ANCHOR_GENERATOR": {"SIZES": [[44, 60], [88, 120]]},
        "TENSOR_MASK": {"IN_FEATURES": ["p2", "p3"]},
    }
}


def trace() -> dict[str, np.ndarray]:
    """Two levels of two anchors and three classes; the network sees the picture at half its size."""
    rng = np.random.default_rng(0)
    picture = np.zeros((40, 64, 3), np.uint8)
    arrays: dict[str, np.ndarray] = {"input/image": picture, "input/resized": picture[::2, ::2]}
    for level, (height, width) in enumerate(((5, 8), (3, 4))):
        arrays[f"steps/head/0/{level}"] = rng.normal(size=(1, 6, height, width)).astype(np.float32)
        arrays[f"steps/head/1/{level}"] = rng.normal(size=(1, 8, height, width)).astype(np.float32)
        for anchor, side in enumerate((2, 3)):
            shape = (1, side * side * 4**level, height, width)
            arrays[f"steps/head/2/{level}/{anchor}"] = rng.normal(size=shape).astype(np.float32)
    return arrays


def test_the_window_of_a_detection_is_its_anchor() -> None:
    arrays = trace()
    assert has_windows(arrays) and not has_windows({"steps/head/0/0": arrays["steps/head/0/0"]})
    # level 1, anchor 1, class 2, cell (y 2, x 3)
    score = np.float32(sigmoid(arrays["steps/head/0/1"][0, 1 * 3 + 2, 2, 3]))
    items = Items(np.zeros((1, 4)), np.array([score]), np.array([2]))
    found = mask_window(arrays, CONFIG, items, 0)
    assert found is not None
    probability, window = found
    np.testing.assert_array_equal(window, np.array([24 - 60, 16 - 60, 24 + 60, 16 + 60]) * 2.0)
    expected = sigmoid(arrays["steps/head/2/1/1"][0, :, 2, 3]).reshape(6, 6)
    np.testing.assert_array_equal(probability, expected)


def test_a_score_that_no_anchor_has() -> None:
    items = Items(np.zeros((1, 4)), np.array([0.999999], np.float32), np.array([0]))
    assert mask_window(trace(), CONFIG, items, 0) is None


def saturated() -> tuple[dict[str, np.ndarray], list[tuple[int, int, int, int]]]:
    """A trace in which four anchors of class 1 have the same score, and their places (level, anchor, y, x)."""
    arrays, places = trace(), [(0, 0, 1, 2), (0, 1, 3, 6), (1, 0, 0, 0), (1, 1, 2, 3)]
    for level, anchor, y, x in places:
        arrays[f"steps/head/0/{level}"][0, 3 * anchor + 1, y, x] = 30.0
    return arrays, places


def test_of_equal_scores_the_box_says_which() -> None:
    arrays, places = saturated()
    score = np.float32(sigmoid(np.array(30.0)))
    for level, anchor, y, x in places:
        size, stride = CONFIG["MODEL"]["ANCHOR_GENERATOR"]["SIZES"][level][anchor], (4, 8)[level]
        dx, dy, dw, dh = arrays[f"steps/head/1/{level}"][0, 4 * anchor : 4 * anchor + 4, y, x] / [
            1.5,
            1.5,
            0.75,
            0.75,
        ]
        centre = np.array([x * stride + dx * size, y * stride + dy * size])
        half = np.array([np.exp(dw), np.exp(dh)]) * size / 2
        box = np.concatenate([centre - half, centre + half]) * 2.0  # the network saw half the picture
        items = Items(box.clip(0, [64, 40, 64, 40])[None], np.array([score]), np.array([1]))
        found = mask_window(arrays, CONFIG, items, 0)
        assert found is not None
        low, high = np.array([x, y]) * stride - size / 2, np.array([x, y]) * stride + size / 2
        np.testing.assert_array_equal(found[1], np.concatenate([low, high]) * 2.0)
