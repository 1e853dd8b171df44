"""Octets and numbers of a file against struct."""

import struct

import numpy as np
import pytest
import tensorflow as tf

from tf_d2.ops.octets import length, number, octets, part, starts_with

DATA = bytes(range(250, 256)) + bytes(range(10))


@pytest.mark.parametrize("position", [0, 3, 14, 16, 2**40])
def test_parts_end_with_the_file_and_octets_go_on_with_zeros(position):
    data = tf.constant(DATA)
    expected = DATA[position : position + 4]
    assert length(data).numpy() == len(DATA)
    assert part(data, position, 4).numpy() == expected
    np.testing.assert_array_equal(octets(data, position, 4), [*expected, *bytes(4 - len(expected))])
    assert starts_with(data, position, expected).numpy()
    assert not starts_with(data, position, b"\x01\x01").numpy()


@pytest.mark.parametrize(("big_endian", "order"), [(True, ">"), (False, "<")])
@pytest.mark.parametrize(("count", "kind"), [(1, "B"), (2, "H"), (4, "I")])
def test_numbers_are_unsigned(count, kind, big_endian, order):
    values = octets(tf.constant(DATA), 0, 8)
    expected = struct.unpack(f"{order}{8 // count}{kind}", DATA[:8])
    np.testing.assert_array_equal(number(tf.reshape(values, [-1, count]), big_endian), expected)
