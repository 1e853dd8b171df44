# pyright: reportArgumentType=false
"""Operations with the conventions of Detectron against what its own functions returned (``functions.h5``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf

from tf_d2.ops import anchors, boxes, keypoints, mask_paste_padded, mask_paste_padded_numpy, nms, resize
from tf_d2.ops.interpolate import double_unclamped

FILE = Path(__file__).parent.parent / "data" / "detectron1" / "functions.h5"
EPS = float(np.finfo(np.float32).eps)


def cases(group: str) -> list[str]:
    with h5py.File(FILE) as file:
        return sorted(file[group])


def recorded(name: str) -> dict[str, np.ndarray]:
    with h5py.File(FILE) as file:
        group: Any = file[name]
        return {key: group[key][()] for key in group}


@pytest.mark.parametrize("case", cases("generate_anchors"))
def test_anchors(case: str) -> None:
    r = recorded(f"generate_anchors/{case}")
    got = anchors.window_anchors(int(r["stride"]), list(r["sizes"]), list(r["aspect_ratios"]))
    np.testing.assert_array_equal(got, r["out"].astype(np.float32))


def test_anchors_by_size_first_are_the_same_anchors_in_the_other_order() -> None:
    sizes, ratios = [32.0, 40.0], [1.0, 2.0, 0.5]
    got = anchors.window_anchors(8, sizes, ratios, ratios_first=False)
    one_by_one = [anchors.window_anchors(8, [s], [r])[0] for s in sizes for r in ratios]
    np.testing.assert_array_equal(got, one_by_one)


@pytest.mark.parametrize("case", cases("bbox_transform"))
def test_decode_and_clip(case: str) -> None:
    r = recorded(f"bbox_transform/{case}")
    got = boxes.apply_deltas(r["deltas"], r["boxes"], list(r["weights"]), plus_one=True).numpy()
    # A box is made of four roundings of numbers of its own size, and of exp's of the last place.
    size = np.abs(r["out"]).max(axis=1, keepdims=True)
    assert (np.abs(got - r["out"]) <= 8 * EPS * (size + 1)).all()
    clipped = boxes.clip(tf.reshape(r["out"], [-1, 3, 4]), *r["hw"], last_pixel=True)
    np.testing.assert_array_equal(tf.reshape(clipped, [-1, 12]), r["clipped"])


def test_levels() -> None:
    r = recorded("map_rois_to_fpn_levels")
    got = boxes.assign_levels(r["rois"], 2, 5, plus_one=True, epsilon=1e-6).numpy() + 2
    np.testing.assert_array_equal(got, r["out"])
    without = boxes.assign_levels(r["rois"], 2, 5, plus_one=True, epsilon=1e-8).numpy() + 2
    assert (without != r["out"]).any(), "the epsilon decides for sides just under a power of two"
    assert (boxes.assign_levels(r["rois"], 2, 5, epsilon=1e-6).numpy() + 2 != r["out"]).any()


@pytest.mark.parametrize("case", cases("nms"))
def test_nms(case: str) -> None:
    r = recorded(f"nms/{case}")
    one_group = tf.zeros(len(r["dets"]), tf.int64)
    arguments = r["dets"][:, :4], r["dets"][:, 4], one_group, float(r["thresh"])
    kept = nms.batched_nms_inclusive(*arguments).numpy()
    np.testing.assert_array_equal(np.sort(kept), r["out"])
    assert (np.diff(r["dets"][kept, 4]) <= 0).all()


def test_nms_drops_at_the_threshold() -> None:
    r = recorded("nms/0.5")
    one_group = tf.zeros(len(r["dets"]), tf.int64)
    kept = nms.batched_nms(r["dets"][:, :4] + [0, 0, 1, 1], r["dets"][:, 4], one_group, 0.5).numpy()
    assert sorted(kept) != list(r["out"])


@pytest.mark.parametrize("case", cases("box_results"))
def test_box_results_keep_ties_at_the_limit(case: str) -> None:
    r = recorded(f"box_results/{case}")
    all_boxes = r["boxes"].reshape(len(r["boxes"]), -1, 4)
    row, label = np.nonzero(r["scores"][:, 1:] > np.float32(0.05))
    chosen, scores = all_boxes[row, label + 1], r["scores"][row, label + 1]
    kept = nms.batched_nms_inclusive(chosen, scores, label, 0.5)
    kept = tf.gather(kept, nms.best_with_ties(tf.gather(scores, kept), int(r["limit"]))).numpy()
    by_class = kept[np.argsort(label[kept] * len(row) + kept)]  # class by class, in the order of the rows
    np.testing.assert_array_equal(chosen[by_class], r["out_boxes"])
    np.testing.assert_array_equal(scores[by_class], r["out_scores"])
    np.testing.assert_array_equal(label[by_class] + 1, r["out_classes"])


@pytest.mark.parametrize("case", cases("generate_proposals"))
def test_generate_proposals(case: str) -> None:
    r = recorded(f"generate_proposals/{case}")
    scores = tf.reshape(tf.transpose(r["probs"], [0, 2, 3, 1]), [-1])
    deltas = tf.reshape(tf.transpose(r["deltas"], [0, 2, 3, 1]), [-1, 4])
    height, width, factor = r["im_info"][0]
    cells = anchors.grid_anchors(r["anchors"].astype(np.float32), 9, 11, int(r["stride"]), 0.0)
    _, order = tf.math.top_k(scores, 60)
    decoded = boxes.apply_deltas(tf.gather(deltas, order), tf.gather(cells, order), [1.0] * 4, plus_one=True)
    decoded = boxes.clip(decoded, height, width, last_pixel=True)
    min_size = float(case.removeprefix("min_size_"))
    valid = tf.where(boxes.at_least(decoded, min_size, tf.constant(factor)))[:, 0]
    decoded, best = tf.gather(decoded, valid), tf.gather(tf.gather(scores, order), valid)
    kept = nms.batched_nms_inclusive(decoded, best, tf.zeros_like(valid), 0.7)[:25]
    np.testing.assert_array_equal(tf.gather(best, kept), r["roi_probs"][:, 0])
    np.testing.assert_allclose(tf.gather(decoded, kept), r["rois"][:, 1:], rtol=0, atol=200 * 8 * EPS)


@pytest.mark.parametrize("case", cases("get_image_blob"))
def test_network_input(case: str) -> None:
    r = recorded(f"get_image_blob/{case}")
    height, width = r["image"].shape[:2]
    factor = resize.resize_factor(height, width, int(r["target"]), int(r["max_size"]))
    assert float(factor) == r["im_scale"]
    got = resize.resize_by_factor(tf.constant(r["image"]), factor).numpy()
    got -= np.array([102.9801, 115.9465, 122.7717], np.float32)
    wanted = r["out"][0].transpose(1, 2, 0)
    if case.endswith("c4"):
        assert got.shape == wanted.shape
    # OpenCV interpolates in float32: weights of the last place of positions below 256, times 255 levels
    atol = 255 * 256 * EPS / 4
    np.testing.assert_allclose(got, wanted[: got.shape[0], : got.shape[1]], rtol=0, atol=atol)


@pytest.mark.parametrize("case", cases("heatmaps_to_keypoints"))
def test_keypoints(case: str) -> None:
    r = recorded(f"heatmaps_to_keypoints/{case}")
    got = keypoints.decode_keypoints_with_logits(r["maps"], r["rois"], int(case)).numpy()
    wanted = r["out"].transpose(0, 2, 1)
    np.testing.assert_allclose(got[..., :2], wanted[..., :2], rtol=4 * EPS, atol=1e-4)
    np.testing.assert_allclose(got[..., 2], wanted[..., 2], rtol=0, atol=32 * EPS * np.abs(r["maps"]).max())
    np.testing.assert_allclose(got[..., 3], wanted[..., 3], rtol=64 * EPS * np.abs(r["maps"]).max())
    if case != "0":
        other = keypoints.decode_keypoints_with_logits(r["maps"], r["rois"]).numpy()
        assert np.abs(other - wanted).max() > 1e-3


@pytest.mark.parametrize("case", cases("segm_results"))
def test_masks(case: str) -> None:
    r = recorded(f"segm_results/{case}")
    chosen = r["masks"][np.arange(len(r["labels"])), r["labels"]]
    got = mask_paste_padded_numpy.paste_padded_masks_numpy(
        chosen, r["boxes"], int(r["hw"][0]), int(r["hw"][1]), float(r["threshold"])
    )
    np.testing.assert_array_equal(got, r["out"])
    for mask, box, wanted in zip(chosen, r["boxes"], r["out"], strict=True):
        graph = mask_paste_padded.paste_padded_mask(
            mask, box, int(r["hw"][0]), int(r["hw"][1]), float(r["threshold"])
        )
        np.testing.assert_array_equal(graph, wanted)


def test_doubling_is_the_stored_transposed_convolution() -> None:
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3))
    taps = np.array([0.25, 0.75, 0.75, 0.25])
    kernel = np.outer(taps, taps)
    wanted = np.zeros((2, 12, 16, 3))
    for i in range(5):
        for j in range(7):
            wanted[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += (
                x[:, i, j][:, None, None] * kernel[None, :, :, None]
            )
    np.testing.assert_allclose(double_unclamped(tf.constant(x)), wanted[:, 1:-1, 1:-1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(149, 197), (197, 149), (160, 160), (500, 100), (160, 211), (83, 333)])
def test_sizes_of_maskrcnn_benchmark_in_the_graph(size: tuple[int, int]) -> None:
    wanted = resize.truncated_edge_size(*size, 160, 250)
    assert tuple(int(v) for v in resize.truncated_edge_size_tf(*size, 160, 250)) == wanted
    assert resize.truncated_edge_size(149, 197, 160, 250) == (160, 211)  # 211.54 is cut


def test_nothing_is_suppressed_of_nothing() -> None:
    """Eagerly, too, where TensorFlow cannot concatenate an empty list."""
    empty = tf.zeros([0, 4]), tf.zeros([0]), tf.zeros([0], tf.int64)
    assert nms.batched_nms_inclusive(*empty, 0.5).shape == (0,)
    graph = tf.function(lambda *boxes: nms.batched_nms_inclusive(*boxes, 0.5))
    assert graph(*empty).shape == (0,)
