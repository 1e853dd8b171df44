"""Post-processing of Panoptic-DeepLab, against the same rules written pixel by pixel in NumPy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_d2.ops.panoptic_deeplab import find_centers, find_segments, nearest_center, segment_instances

CLASSES, DIVISOR = 6, 100


def rules(**changes: Any) -> Any:
    values = {
        "center_threshold": 0.1,
        "nms_kernel": 3,
        "top_k_instance": 20,
        "stuff_area": 12,
        "thing_ids": (1, 3, 4),
        "label_divisor": DIVISOR,
        "num_classes": CLASSES,
    }
    return SimpleNamespace(**{**values, **changes})


def numpy_centers(heat: np.ndarray, threshold: float, kernel: int, top_k: int) -> list[tuple[int, int]]:
    height, width = heat.shape
    hot = np.where(heat > np.float32(threshold), heat, np.float32(-1))
    reach, peaks = (kernel - 1) // 2, np.full_like(hot, -1)
    for y in range(height):
        for x in range(width):
            window = hot[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
            if hot[y, x] == window.max():
                peaks[y, x] = hot[y, x]
    limit = max(np.sort(peaks, axis=None)[::-1][top_k - 1], 0)
    return [(int(y), int(x)) for y, x in np.argwhere(peaks > limit)]


def numpy_segments(settings: Any, labels: np.ndarray, heat: np.ndarray, offset: np.ndarray) -> np.ndarray:
    centers = numpy_centers(heat, settings.center_threshold, settings.nms_kernel, settings.top_k_instance)
    ids = np.zeros(labels.shape, int)
    for y, x in np.argwhere(np.isin(labels, settings.thing_ids)) if centers else ():
        target = np.array([y, x], np.float32) + offset[y, x]
        apart = np.array(centers, np.float32) - target
        ids[y, x] = np.argmin(np.sqrt(np.sum(apart * apart, axis=1, dtype=np.float32))) + 1
    segments = np.full(labels.shape, -1, np.int64)
    counts = [0] * CLASSES
    for k in range(1, len(centers) + 1):
        if np.any(ids == k):
            label = int(np.argmax(np.bincount(labels[ids == k])))
            counts[label] += 1
            segments[ids == k] = label * settings.label_divisor + counts[label]
    for label in np.unique(labels):
        if label not in settings.thing_ids and np.sum(labels == label) >= settings.stuff_area:
            segments[labels == label] = label * settings.label_divisor
    return segments


def numpy_instances(segments: np.ndarray, things: Any, logits: np.ndarray, heat: np.ndarray) -> list[Any]:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probability = powers / powers.sum(axis=-1, keepdims=True)
    found = []
    for number in np.unique(segments):
        label = number // DIVISOR
        if number >= 0 and label in things:
            y, x = np.nonzero(segments == number)
            score = probability[y, x, label].mean() * heat[int(y.mean()), int(x.mean())]
            found.append((number, (x.min(), y.min(), x.max() + 1, y.max() + 1), score, label))
    return found


def random_case(seed: int, dtype: type = np.float32) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(9, 24, 2)
    logits = rng.normal(size=[height, width, CLASSES])
    # Values on a grid, so that peaks, plateaus, distances and votes are often equal.
    heat = np.round(rng.uniform(-0.3, 1, [height, width]) * 8) / 8
    offset = np.round(rng.normal(scale=4, size=[height, width, 2]) * 2) / 2
    return logits.astype(dtype), heat.astype(dtype), offset.astype(dtype)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("change", [{}, {"top_k_instance": 4}, {"nms_kernel": 7}, {"center_threshold": 2.0}])
def test_segments_and_instances(seed: int, change: dict[str, Any]) -> None:
    logits, heat, offset = random_case(seed)
    settings, labels = rules(**change), logits.argmax(axis=-1)
    expected = numpy_segments(settings, labels, heat, offset)
    segments, ids = find_segments(
        settings, tf.constant(labels, tf.int32), tf.constant(heat), tf.constant(offset)
    )
    np.testing.assert_array_equal(segments, expected)
    assert segments.dtype == tf.int64
    rows = segment_instances(DIVISOR, segments, ids, tf.constant(logits), tf.constant(heat))
    wanted = numpy_instances(expected, settings.thing_ids, logits, heat)
    assert len(wanted) == len(ids)
    if wanted:
        numbers, boxes, scores, classes = (np.array(values) for values in zip(*wanted, strict=True))
        np.testing.assert_array_equal(rows["panoptic_ids"], numbers)
        np.testing.assert_array_equal(rows["pred_boxes"], boxes)
        np.testing.assert_array_equal(rows["pred_classes"], classes)
        np.testing.assert_allclose(rows["scores"], scores, rtol=0, atol=8 * np.finfo(np.float32).eps)


def test_every_cell_of_a_plateau_is_a_center_and_top_k_keeps_one_fewer() -> None:
    heat = np.zeros([5, 8], np.float32)
    heat[1, 1], heat[3, 4:6], heat[0, 7] = 0.5, 0.75, 0.1  # 0.1 is not above the threshold
    assert find_centers(tf.constant(heat), 0.1, 3, 20).numpy().tolist() == [[1, 1], [3, 4], [3, 5]]
    assert find_centers(tf.constant(heat), 0.1, 3, 3).numpy().tolist() == [[3, 4], [3, 5]]
    assert find_centers(tf.constant(heat), 0.1, 3, 2).numpy().tolist() == []


def test_the_first_of_equally_near_centers() -> None:
    centers, pixels = tf.constant([[2, 0], [2, 4], [0, 2]]), tf.constant([[2, 2], [2, 3]])
    assert nearest_center(tf.zeros([2, 2]), pixels, centers).numpy().tolist() == [1, 2]
    assert nearest_center(tf.zeros([2, 2]), pixels, centers[:0]).numpy().tolist() == [0, 0]


def test_a_picture_smaller_than_top_k() -> None:
    heat = tf.constant([[0.5, 0.2], [0.2, 0.2]])
    assert find_centers(heat, 0.1, 3, 200).numpy().tolist() == [[0, 0]]
