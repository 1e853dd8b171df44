"""Full masks and panoptic maps in the graph, against their NumPy counterparts."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_d2.client import to_result
from tf_d2.config import PanopticConfig
from tf_d2.ops.mask_paste_numpy import paste_masks_numpy
from tf_d2.ops.panoptic import Things, combine_semantic_and_instance_outputs
from tf_d2.serving import maps

ROWS, LABELS = 6, 5


def scene(
    seed: int, count: int, height: int = 31, width: int = 40
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Overlapping things and a patchy semantic map."""
    rng = np.random.default_rng(seed)
    low = rng.random((ROWS, 2)) * [width * 0.7, height * 0.7]
    high = low + 2 + rng.random((ROWS, 2)) * [width * 0.5, height * 0.5]
    rows = {
        "detection_scores": np.sort(rng.random(ROWS).astype(np.float32))[::-1].copy(),
        "detection_classes": rng.integers(0, 4, ROWS),
        "detection_masks": rng.random((ROWS, 8, 8), dtype=np.float32) + np.float32(0.2),
        "detection_boxes": np.concatenate([low, np.minimum(high, [width, height])], 1).astype(np.float32),
        "num_detections": np.int32(count),
    }
    for name, value in rows.items():
        if name != "num_detections":
            value[count:] = 0
    labels = np.kron(rng.integers(0, LABELS, (4, 5)), np.ones((8, 8), np.int64))[:height, :width]
    return rows, labels.astype(np.int32)


def pasted(rows: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    count = rows["num_detections"]
    masks, boxes = rows["detection_masks"][:count], rows["detection_boxes"][:count]
    return paste_masks_numpy(masks, boxes, shape[0], shape[1])


@pytest.fixture(scope="module")
def panoptic():
    """One graph for all scenes."""
    config = PanopticConfig(overlap_thresh=0.5, stuff_area_limit=150.0, instances_confidence_thresh=0.3)
    specs = {
        "detection_scores": tf.TensorSpec([ROWS], tf.float32),
        "detection_classes": tf.TensorSpec([ROWS], tf.int64),
        "detection_masks": tf.TensorSpec([ROWS, 8, 8], tf.float32),
        "detection_boxes": tf.TensorSpec([ROWS, 4], tf.float32),
        "num_detections": tf.TensorSpec([], tf.int32),
    }
    return tf.function(
        lambda rows, labels: maps.panoptic(config, rows, labels, LABELS),
        input_signature=[specs, tf.TensorSpec([None, None], tf.int32)],
        autograph=False,
    )


@pytest.mark.parametrize("seed", range(12))
def test_panoptic_is_detectron2s_merge(panoptic, seed: int) -> None:
    count = seed % (ROWS + 1)
    rows, labels = scene(seed, count)
    found = {name: value.numpy()[None] for name, value in panoptic(rows, labels).items()}
    expected, segments = combine_semantic_and_instance_outputs(
        Things(
            rows["detection_scores"][:count], rows["detection_classes"][:count], pasted(rows, labels.shape)
        ),
        labels,
        overlap_threshold=0.5,
        stuff_area_thresh=150.0,
        instances_score_thresh=0.3,
    )
    head = {"image_size": np.array([labels.shape]), "image_status": np.zeros(1)}
    result, info = to_result(found | head, 0)["panoptic_seg"]
    np.testing.assert_array_equal(result, expected)
    assert info == segments
    areas = found["panoptic_segment_areas"][0]
    np.testing.assert_array_equal(areas, np.bincount(expected.ravel(), minlength=ROWS + LABELS)[1:])


def test_scenes_are_not_trivial(panoptic) -> None:
    """Things left out for overlap and for score, and stuff left out for its area, all occur above."""
    things = stuff = 0
    for seed in range(12):
        rows, labels = scene(seed, seed % (ROWS + 1))
        found = panoptic(rows, labels)
        is_thing = found["panoptic_segment_is_thing"].numpy()
        things += int(rows["num_detections"]) - is_thing.sum()
        stuff += LABELS - 1 - (int(found["num_panoptic_segments"]) - is_thing.sum())
    assert things > 3
    assert stuff > 3


@pytest.mark.parametrize("count", [0, 1, ROWS])
def test_full_and_png_masks(count: int) -> None:
    rows, labels = scene(3, count)
    size = tf.constant(labels.shape)
    found = maps.BoxMasks(*map(tf.constant, (rows["detection_masks"], rows["detection_boxes"], count)))
    expected = pasted(rows, labels.shape)
    full = maps.pasted_masks(found, size).numpy()
    assert full.dtype == np.uint8
    np.testing.assert_array_equal(full[:count], expected)
    assert not full[count:].any()
    files = maps.png_masks(found, size).numpy()
    assert [len(f) > 0 for f in files] == [True] * count + [False] * (ROWS - count)
    for data, mask in zip(files, expected, strict=False):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), mask * np.uint8(255))


def test_pad_map() -> None:
    padded = maps.pad_map(tf.ones([2, 3, 4]), tf.constant([5, 4]), axis=1)
    assert padded.shape == (2, 5, 4)
    np.testing.assert_array_equal(padded[0, :, 0], [1, 1, 1, 0, 0])
