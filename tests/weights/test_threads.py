"""Work on arrays in threads: all of them, each part once, and errors are not lost."""

import numpy as np
import pytest

from weights import _threads
from weights._threads import each_part

ARRAYS = {f"a{size}": np.arange(size, dtype=np.float32) for size in (3, 1, 1000, 0)}
ARRAYS["scalar"] = np.array(5, np.int64)


@pytest.mark.parametrize("limit", [1 << 20, 1600, 16, 1])
def test_every_part_once(monkeypatch, limit):
    monkeypatch.setattr(_threads, "_PART", limit)
    seen = {name: np.full_like(array, -1) for name, array in ARRAYS.items()}
    sizes = []

    def work(name, rows, part):
        assert (seen[name][rows] == -1).all()
        seen[name][rows] = part
        sizes.append(part.nbytes)

    counts = list(each_part(work, ARRAYS))
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(seen[name], array)
    assert sorted(counts) == sorted(sizes) and sum(counts) == sum(a.nbytes for a in ARRAYS.values())
    assert counts == sorted(counts, reverse=True)  # the largest first
    assert max(counts) <= max(limit, 8)  # a number is not divided
    assert list(each_part(lambda name, rows, part: None, {})) == []


def test_errors_arrive():
    def fail(name, rows, part):
        if name == "a1":
            raise ValueError(name)

    with pytest.raises(ValueError, match="a1"):
        list(each_part(fail, ARRAYS))
