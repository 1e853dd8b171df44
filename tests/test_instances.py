"""Instances: fields of one length, selected together."""

import numpy as np
import pytest

from tf_d2.instances import Instances


@pytest.fixture
def three():
    return Instances((10, 20), scores=np.array([0.9, 0.5, 0.1]), pred_boxes=np.arange(12.0).reshape(3, 4))


def test_fields_are_attributes(three):
    assert three.scores[0] == 0.9 and three.has("pred_boxes") and not three.has("pred_masks")
    assert three.image_size == (10, 20) and len(three) == 3
    assert three.get_fields().keys() == {"scores", "pred_boxes"}
    three.get_fields().clear()
    assert len(three) == 3  # that was a copy
    with pytest.raises(AttributeError, match="no field 'pred_masks'; they have scores, pred_boxes"):
        three.pred_masks  # noqa: B018


@pytest.mark.parametrize(
    "item, rows",
    [
        (np.array([True, False, True]), [0, 2]),
        (np.array([2, 0]), [2, 0]),
        (slice(1, None), [1, 2]),
        (0, [0]),
        (-1, [2]),
        (-3, [0]),
        (np.int64(1), [1]),
        (np.zeros(3, bool), []),
        (np.zeros(0, int), []),
        ([0, -1], [0, 2]),
        ([], []),
        (np.array(1), [1]),
    ],
)
def test_selection_applies_to_every_field(three, item, rows):
    chosen = three[item]
    assert chosen.image_size == (10, 20) and len(chosen) == len(rows)
    np.testing.assert_array_equal(chosen.scores, three.scores[rows])
    np.testing.assert_array_equal(chosen.pred_boxes, three.pred_boxes[rows])


@pytest.mark.parametrize("index", [3, -4])
def test_beyond_the_end(three, index):
    with pytest.raises(IndexError, match=f"instance {index} of 3"):
        three[index]


@pytest.mark.parametrize(
    "index", [None, "scores", 1.0, True, np.zeros((3, 1), int), np.zeros(0), (0, 1, None)]
)
def test_other_indices_are_refused(three, index):
    with pytest.raises((TypeError, ValueError), match=r"instances are indexed by|inhomogeneous"):
        three[index]


def test_iteration_and_repr(three):
    assert [float(one.scores[0]) for one in three] == [0.9, 0.5, 0.1]
    assert repr(three) == "Instances(3 in 10x20: scores float64[3], pred_boxes float64[3, 4])"


def test_fields_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"differ in length: {'a': 1, 'b': 2}"):
        Instances((1, 1), a=np.zeros(1), b=np.zeros(2))


def test_nothing():
    assert len(Instances((1, 1))) == 0 and list(Instances((1, 1))) == []


def test_survives_copying_and_pickling(three):
    import copy
    import pickle

    for other in (copy.deepcopy(three), pickle.loads(pickle.dumps(three))):
        np.testing.assert_array_equal(other.scores, three.scores)
