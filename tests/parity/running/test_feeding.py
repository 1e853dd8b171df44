"""A recorded candidate that another reference fed: fed again where the very same run can be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.core.feed import hashes
from parity.core.trace import TraceWriter
from parity.running.feeding import feed_again

P2 = "steps/backbone/p2"


def write(path: Path, feed: np.ndarray | None = None, scale: float = 1.0) -> Path:
    """A trace of one picture; ``feed``: the picture its teacher-forced stage was given."""
    picture = np.zeros((4, 6, 3), np.uint8)
    with TraceWriter(path) as writer:
        writer.put("input/image", picture)
        writer.put(P2, np.full((1, 2, 3, 4), scale, np.float32))
        manifest: dict[str, Any] = {"backend": "tf"}
        if feed is not None:
            writer.put("forced/backbone/p2", np.full((1, 2, 3, 4), scale, np.float32))
            manifest["forced"] = {"inputs": [hashes({"input/image": feed})]}
        writer.finish(manifest, "{}")
    return path


def test_a_candidate_fed_by_this_reference_stays(tmp_path: Path) -> None:
    reference, own = write(tmp_path / "r.h5"), write(tmp_path / "c.h5", np.zeros((4, 6, 3), np.uint8))

    def never(manifest: Mapping[str, Any], target: Path) -> Path:
        raise AssertionError("nothing has to run")

    assert feed_again(reference, own, "strict", tmp_path / "again.h5", never) == (own, "")


@pytest.mark.parametrize(("scale", "same"), [(1.0, True), (1.0000001, False)])
def test_the_run_fed_again_counts_only_if_it_is_the_same_run(
    tmp_path: Path, scale: float, same: bool
) -> None:
    reference, other = write(tmp_path / "r.h5"), write(tmp_path / "c.h5", np.ones((4, 6, 3), np.uint8))

    def run(manifest: Mapping[str, Any], target: Path) -> Path:
        assert manifest["backend"] == "tf"
        return write(target, np.zeros((4, 6, 3), np.uint8), scale)

    path, note = feed_again(reference, other, "strict", tmp_path / "again.h5", run)
    assert path == (tmp_path / "again.h5" if same else other)
    assert ("was fed again" in note) == same and ("not the same run" in note) != same


def test_a_candidate_that_cannot_run_here_stays_and_says_so(tmp_path: Path) -> None:
    reference, other = write(tmp_path / "r.h5"), write(tmp_path / "c.h5", np.ones((4, 6, 3), np.uint8))

    def run(manifest: Mapping[str, Any], target: Path) -> Path:
        raise RuntimeError("no such backend here")

    path, note = feed_again(reference, other, "strict", tmp_path / "again.h5", run)
    assert path == other and "could not be fed again: no such backend here" in note
