"""Given proposals against a loop in numpy, for one image and for a batch."""

import numpy as np
import tensorflow as tf

import tf_d2
from tf_d2.modeling.given import given_proposals, given_proposals_times


def by_hand(boxes, size, network, topk):
    """Box by box; the scale is a float64 product, rounded once."""
    kept = []
    for box in boxes.astype(np.float64):
        scaled = [box[i] * (network[1 - i % 2] / size[1 - i % 2]) for i in range(4)]
        scaled = [
            min(max(np.float32(v), np.float32(0)), np.float32(network[1 - i % 2]))
            for i, v in enumerate(scaled)
        ]
        if scaled[2] > scaled[0] and scaled[3] > scaled[1] and len(kept) < topk:
            kept.append(scaled)
    return np.array(kept, np.float32).reshape(-1, 4)


def test_one_image():
    boxes = np.array([(0, 0, 10, 10), (5, 5, 5, 9), (-5, 2, 400, 300), (90, 90, 99, 99)])
    got = tf_d2.transform_proposals(boxes, (100, 200), (50, 50), 2)
    assert got.dtype == np.float32
    # Scaled by 1/4 and 1/2, clipped; the second has no width and does not count.
    np.testing.assert_allclose(got, [(0, 0, 2.5, 5), (0, 1, 50, 50)])
    assert tf_d2.transform_proposals(np.zeros((0, 4)), (100, 200), (50, 50), 2).shape == (0, 4)


def test_a_batch_with_filling():
    rng = np.random.default_rng(0)
    sizes, network = np.array([[97, 211], [333, 64]]), np.array([[192, 418], [800, 154]])
    boxes = (rng.random((2, 40, 4)) * 300 - 40).astype(np.float32)
    counts = np.array([40, 17])
    arguments = ((boxes, "float32"), (counts, "int32"), (network, "int32"), (sizes, "int32"))
    found = given_proposals(*(tf.constant(value, dtype) for value, dtype in arguments), topk=8)
    expected = [by_hand(boxes[i, : counts[i]], sizes[i], network[i], 8) for i in range(2)]
    for i in range(2):
        one = tf_d2.transform_proposals(boxes[i, : counts[i]], tuple(sizes[i]), tuple(network[i]), 8)
        np.testing.assert_array_equal(one, expected[i])
    np.testing.assert_array_equal(found.boxes, np.concatenate(expected))
    np.testing.assert_array_equal(found.counts, [len(e) for e in expected])
    np.testing.assert_array_equal(found.image_index, np.repeat([0, 1], [len(e) for e in expected]))
    assert 0 < len(expected[1]) <= 8 == len(expected[0])


def test_proposals_that_are_not_numbers_are_dropped():
    """NaN and infinity of one user touch neither the other boxes nor the neighbour's."""
    good = np.array([[1, 2, 30, 40], [5, 6, 70, 80]], np.float32)
    bad = np.array([[np.nan] * 4, [1, np.nan, 9, 9], [np.inf] * 4, [-np.inf, 0, np.nan, 9]], np.float32)
    boxes = np.stack([np.concatenate([bad, good]), np.concatenate([good, good, good])])
    sizes = tf.constant([[100, 100]] * 2)
    found = given_proposals(tf.constant(boxes), tf.constant([6, 2]), sizes, sizes, topk=9)
    np.testing.assert_array_equal(found.boxes, np.concatenate([good, good]))
    assert found.counts.numpy().tolist() == [2, 2]


def test_with_detectrons_conventions_they_are_only_scaled():
    """Neither clipped nor dropped, whatever their extent."""
    boxes = np.array([(0, 0, 10, 10), (5, 5, 5, 9), (-5, 2, 400, 300), (1, 1, 2, 2)], np.float32)
    found = given_proposals_times(
        tf.constant(np.stack([boxes, boxes])), tf.constant([4, 2]), tf.constant([0.5, 2.0]), topk=3
    )
    np.testing.assert_array_equal(found.boxes, np.concatenate([boxes[:3] * 0.5, boxes[:2] * 2]))
    assert found.counts.numpy().tolist() == [3, 2]
    assert found.image_index.numpy().tolist() == [0, 0, 0, 1, 1]
