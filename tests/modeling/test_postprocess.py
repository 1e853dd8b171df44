"""From network coordinates to the original image, against plain loops and torch."""

import numpy as np
import pytest
import tensorflow as tf
from support import loops
from support.torch_process import F

from tf_d2.modeling import postprocess
from tf_d2.modeling.batches import Detections
from tf_d2.ops.mask_paste_numpy import paste_masks_numpy

NETWORK, ORIGINAL = np.array([[60, 80], [64, 40]], np.int32), np.array([[331, 477], [48, 31]], np.int32)


def detections():
    """Three and two boxes of two images; one lies outside of its image, one has no width."""
    boxes = [[5, 6, 30, 40], [70, 10, 95, 70], [85, 5, 99, 20], [1, 2, 30, 33], [7, 9, 7, 20]]
    return {
        "boxes": np.array(boxes, np.float32),
        "scores": np.linspace(0.9, 0.5, 5, dtype=np.float32),
        "classes": np.arange(5),
        "image_index": np.array([0, 0, 0, 1, 1], np.int32),
        "counts": np.array([3, 2], np.int32),
    }


def exact(boxes, index):
    """Scaled by the float64 quotient rounded to float32, then clipped."""
    out = []
    for box, i in zip(boxes, index, strict=True):
        y, x = (np.float32(ORIGINAL[i] / NETWORK[i])).tolist()
        out.append(loops.clip(box * np.array([x, y, x, y], np.float32), ORIGINAL[i]))
    return np.array(out)


def test_boxes_are_scaled_clipped_and_dropped(run):
    given = detections()
    done, kept = run(
        lambda *arrays: postprocess.rescale(Detections(*arrays), tf.constant(NETWORK), tf.constant(ORIGINAL)),
        *given.values(),
    )
    assert kept.tolist() == [0, 1, 3] and done.counts.tolist() == [2, 1]
    np.testing.assert_allclose(done.boxes, exact(given["boxes"], given["image_index"])[kept], rtol=2e-7)
    assert done.boxes[1, 2] == 477  # at the edge
    assert done.classes.tolist() == [0, 1, 3] and done.image_index.tolist() == [0, 0, 1]


def test_the_scale_is_rounded_once():
    """A quotient of float32 numbers would differ from detectron2's float64 one in the last bit."""
    sizes = np.random.default_rng(0).integers(1, 1500, (2, 2000, 2)).astype(np.int32)
    got = postprocess.scales(tf.constant(sizes[0]), tf.constant(sizes[1]))
    np.testing.assert_array_equal(got, (sizes[1].astype(np.float64) / sizes[0]).astype(np.float32))


def test_keypoints_are_scaled_and_never_clipped(run):
    points = np.array([[[90.0, -5.0, 0.7], [10.0, 20.0, 0.2]]], np.float32)
    got = run(postprocess.rescale_keypoints, points, np.array([[2.0, 3.0]], np.float32))
    np.testing.assert_array_equal(got, [[[270, -10, np.float32(0.7)], [30, 40, np.float32(0.2)]]])


def test_semantic_logits_lose_their_padding_and_are_interpolated(run):
    logits = np.random.default_rng(1).normal(size=(1, 16, 20, 3)).astype(np.float32)
    size = np.array([23, 31], np.int32)
    got = run(postprocess.resize_sem_seg, logits, np.array([13, 17], np.int32), size)
    cut = logits[:, :13, :17].transpose(0, 3, 1, 2)
    expected = F.interpolate(cut, size=(23, 31), mode="bilinear", align_corners=False).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_semantic_logits_of_the_right_size_stay(run):
    logits = np.random.default_rng(2).normal(size=(1, 8, 9, 2)).astype(np.float32)
    size = np.array([6, 7], np.int32)
    np.testing.assert_array_equal(run(postprocess.resize_sem_seg, logits, size, size), logits[:, :6, :7])


def raw(**more):
    given = detections()
    first = {name: x[:3] for name, x in given.items() if name != "counts"}
    return {name: tf.constant(x) for name, x in {**first, "counts": np.array([3], np.int32), **more}.items()}


def test_fields_of_instances_follow_the_rows_that_stay():
    rng = np.random.default_rng(3)
    masks, points = rng.random((3, 7, 7), np.float32), rng.random((3, 2, 3), np.float32)
    heat = rng.random((3, 2, 4, 4), np.float32)
    given = raw(pred_masks=masks, pred_keypoints=points, pred_keypoint_heatmaps=heat)
    fields = postprocess.to_image(given, tf.constant(NETWORK[0]), tf.constant(ORIGINAL[0]))
    assert set(fields) == {
        *("pred_boxes", "scores", "pred_classes", "pred_masks", "pred_keypoints", "pred_keypoint_heatmaps")
    }
    np.testing.assert_array_equal(fields["pred_masks"], masks[:2])
    np.testing.assert_array_equal(fields["pred_keypoint_heatmaps"], heat[:2])
    scale = np.float32(ORIGINAL[0] / NETWORK[0])
    np.testing.assert_allclose(fields["pred_keypoints"][..., 0], points[:2, :, 0] * scale[1], rtol=1e-6)
    np.testing.assert_allclose(fields["pred_keypoints"][..., 1], points[:2, :, 1] * scale[0], rtol=1e-6)


def test_proposals_have_names_of_their_own():
    given = raw(objectness_logits=np.array([3.0, 2.0, 1.0], np.float32))
    fields = postprocess.to_image(given, tf.constant(NETWORK[0]), tf.constant(ORIGINAL[0]))
    assert set(fields) == {"proposal_boxes", "objectness_logits"}
    assert fields["objectness_logits"].numpy().tolist() == [3, 2]


@pytest.mark.parametrize("instances", [True, False])
def test_semantic_labels_come_with_instances(instances):
    logits = np.random.default_rng(4).normal(size=(1, 64, 96, 5)).astype(np.float32)
    given = raw(sem_seg=logits) if instances else {"sem_seg": tf.constant(logits)}
    fields = postprocess.to_image(given, tf.constant(NETWORK[0]), tf.constant(ORIGINAL[0]))
    assert fields["sem_seg"].shape == (331, 477, 5) and ("sem_seg_labels" in fields) == instances
    if instances:
        np.testing.assert_array_equal(fields["sem_seg_labels"], np.asarray(fields["sem_seg"]).argmax(axis=-1))


def test_masks_are_pasted_where_there_are_some():
    rng = np.random.default_rng(5)
    boxes = np.array([[3, 4, 20, 25], [10.5, 2.2, 33.3, 30]], np.float32)
    fields = {"pred_boxes": boxes, "pred_masks": rng.random((2, 7, 7), np.float32)}
    got = postprocess.paste(fields, (40, 50))
    np.testing.assert_array_equal(got["pred_masks"], paste_masks_numpy(fields["pred_masks"], boxes, 40, 50))
    assert postprocess.paste({"pred_boxes": boxes}, (40, 50)) == {"pred_boxes": boxes}


@pytest.mark.parametrize("limit", [postprocess.PASTE_BYTES, 100])
def test_masks_pasted_in_the_graph_are_those_that_numpy_pastes(monkeypatch, limit):
    """Where there is a GPU; what would be too large is left to NumPy."""
    monkeypatch.setattr(postprocess, "PASTE_BYTES", limit)
    rng = np.random.default_rng(0)
    boxes = np.array([[3, 4, 30, 20], [0, 0, 40, 33], [np.nan, 0, 4, 4]], np.float32)
    fields = {"pred_masks": rng.random((3, 28, 28)).astype(np.float32), "pred_boxes": boxes}
    in_graph = tf.function(postprocess.paste_on_gpu)(
        {k: tf.constant(v) for k, v in fields.items()}, tf.constant([33, 40])
    )
    pasted = in_graph[postprocess.PASTED]
    assert pasted.shape == ((3, 33, 40) if limit > 100 else (0, 0, 0))
    result = postprocess.paste({k: v.numpy() for k, v in in_graph.items()}, (33, 40))
    assert set(result) == {"pred_masks", "pred_boxes"}
    np.testing.assert_array_equal(result["pred_masks"], postprocess.paste(fields, (33, 40))["pred_masks"])
    assert result["pred_masks"].any() and result["pred_masks"].flags.writeable


def test_masks_with_sides_and_windows_of_their_own():
    """TensorMask's: padded to one size, each pasted over its own window, in the order of the rows."""
    rng = np.random.default_rng(6)
    sides, windows = (
        np.array([5, 9, 5]),
        np.array([[2, 2, 30, 28], [0, 5, 44, 39], [9, 1, 20, 20]], np.float32),
    )
    masks = np.zeros((3, 9, 9), np.float32)
    for k, side in enumerate(sides):
        masks[k, :side, :side] = rng.random((side, side))
    fields = {"pred_boxes": windows + 1, "pred_masks": masks, "mask_boxes": windows, "mask_sides": sides}
    got = postprocess.paste(fields, (40, 50))
    assert set(got) == {"pred_boxes", "pred_masks"} and got["pred_masks"].shape == (3, 40, 50)
    for k, side in enumerate(sides):
        alone = paste_masks_numpy(masks[k : k + 1, :side, :side], windows[k : k + 1], 40, 50)
        np.testing.assert_array_equal(got["pred_masks"][k], alone[0])
    assert "mask_boxes" in fields  # what was given stays as it is
