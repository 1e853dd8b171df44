"""Work on arrays in threads: all of them, each once, and errors are not lost."""

import numpy as np
import pytest

from weights._threads import each_array

ARRAYS = {f"a{size}": np.zeros(size, np.float32) for size in (3, 1, 1000, 0)}


def test_every_array_once():
    seen = []
    counts = list(each_array(lambda name, array: seen.append((name, array.size)), ARRAYS))
    assert counts == [4000, 12, 4, 0]  # the largest first
    assert sorted(seen) == [("a0", 0), ("a1", 1), ("a1000", 1000), ("a3", 3)]
    assert list(each_array(lambda name, array: None, {})) == []


def test_errors_arrive():
    def fail(name, array):
        if name == "a1":
            raise ValueError(name)

    with pytest.raises(ValueError, match="a1"):
        list(each_array(fail, ARRAYS))
