"""Where the time of a TensorFlow model goes, from a trace of TensorFlow's own profiler.

An event of the host's trace is named "node name:Kind". Events nest (a function call holds the operations of its
body), so a kind's time is the events' own time, without what they contain.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Event = tuple[int, int, str]  # begin and end in picoseconds, name

_HEAVY = ("Conv2D", "MatMul", "DepthwiseConv2d", "Einsum")  # convolutions, products


def profile(run: Callable[[], Any], runs: int) -> dict[str, Any]:
    """Profile ``runs`` calls: rows [kind, milliseconds per run, calls per run], the largest first; the seconds of
    a run, of its convolutions and products, and of all its operations; and of a run without the profiler."""
    import tensorflow as tf

    run()
    plain = sorted(_seconds(run) for _ in range(runs))[runs // 2]
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        tf.profiler.experimental.start(folder)
        begin = time.perf_counter()
        for _ in range(runs):
            run()
        seconds = time.perf_counter() - begin
        tf.profiler.experimental.stop()
        space = _read_trace(Path(folder))
    times = own_times(line for plane in host_planes(space) for line in operation_lines(plane))
    rows = [[k, ms / runs, n / runs] for k, (ms, n) in times.items()]
    rows.sort(key=lambda row: -row[1])
    inside = sum(row[1] for row in rows) / 1e3
    heavy = sum(row[1] for row in rows if is_heavy(row[0])) / 1e3
    return {
        "rows": rows,
        "seconds": seconds / runs,
        "heavy_seconds": heavy,
        "inside_seconds": inside,
        "plain_seconds": plain,
    }


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def is_heavy(kind: str) -> bool:
    """Whether a kind of operation is a convolution or matrix product of the network, fused or not. Batches of small
    products are how pooling interpolates, so they are not."""
    return "Batch" not in kind and any(name in kind for name in _HEAVY)


def _read_trace(folder: Path) -> Any:
    """The newest trace below a folder, parsed."""
    files = sorted(folder.rglob("*.xplane.pb"))
    if not files:
        raise RuntimeError("TensorFlow's profiler wrote no trace")
    space = _messages().XSpace()
    space.ParseFromString(files[-1].read_bytes())
    return space


def _messages() -> Any:
    """The trace's message types, whose place differs between TensorFlow's versions."""
    for name in ("tensorflow.tsl.profiler.protobuf.xplane_pb2", "tsl.profiler.protobuf.xplane_pb2"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise RuntimeError("this TensorFlow has no xplane_pb2: its profiler's traces cannot be read")


def host_planes(space: Any) -> list[Any]:
    """The traces of the processor."""
    return [plane for plane in space.planes if "host" in plane.name.lower() and "CPU" in plane.name]


def operation_lines(plane: Any) -> Iterable[list[Event]]:
    """The events of operations, thread by thread."""
    for line in plane.lines:
        events = [
            (e.offset_ps, e.offset_ps + e.duration_ps, plane.event_metadata[e.metadata_id].name)
            for e in line.events
        ]
        found = [event for event in events if kind_of(event[2])]
        if found:
            yield found


def kind_of(name: str) -> str:
    """The operation's kind of an event, "" for events of other sorts."""
    node, colon, kind = name.rpartition(":")
    named = colon and node and "#" not in name and "::" not in name and kind.replace("_", "").isalnum()
    return kind if named else ""


def own_times(lines: Iterable[list[Event]]) -> dict[str, tuple[float, int]]:
    """Milliseconds without nested events, and number of events, by kind."""
    out: dict[str, tuple[float, int]] = {}
    for events in lines:
        stack: list[list[Any]] = []  # [end, kind, own picoseconds]
        for begin, end, name in sorted(events, key=lambda e: (e[0], -e[1])):
            _close(stack, begin, out)
            if stack:
                stack[-1][2] -= end - begin
            stack.append([end, kind_of(name), end - begin])
        _close(stack, None, out)
    return out


def _close(stack: list[list[Any]], until: int | None, out: dict[str, tuple[float, int]]) -> None:
    while stack and (until is None or stack[-1][0] <= until):
        _, kind, own = stack.pop()
        before = out.get(kind, (0.0, 0))
        out[kind] = (before[0] + max(own, 0) / 1e9, before[1] + 1)


def roi_align_launches() -> dict[str, Any]:
    """Kernels started on the GPU to pool 1000 boxes, 7x7, from the four levels of an 800x1216 picture."""
    import numpy as np
    import tensorflow as tf

    from tf_d2.ops.boxes import assign_levels
    from tf_d2.ops.roi_align import Pyramid, Regions, Sampling

    rng = np.random.default_rng(0)
    features = [
        tf.constant(rng.normal(size=(1, 800 // s, 1216 // s, 256)), tf.float32) for s in (4, 8, 16, 32)
    ]
    sides = np.exp(rng.uniform(np.log(16), np.log(600), (1000, 2)))
    low = rng.uniform(0, 1, (1000, 2)) * (np.array([1216, 800]) - sides)
    boxes = tf.constant(np.concatenate([low, low + sides], axis=1), tf.float32)

    @tf.function
    def pool() -> tf.Tensor:
        levels = assign_levels(boxes, 2, 5)
        index = tf.zeros([1000], tf.int32)
        pyramid = Pyramid(features, [1 / 4, 1 / 8, 1 / 16, 1 / 32])
        regions = Regions(pyramid, boxes, index, levels, Sampling(7))
        return regions.pool().in_order()

    pool().numpy()
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        tf.profiler.experimental.start(folder)
        begin = time.perf_counter()
        pool().numpy()
        seconds = time.perf_counter() - begin
        tf.profiler.experimental.stop()
        space = _read_trace(Path(folder))
    planes = [plane for plane in space.planes if plane.name.startswith("/device:GPU")]
    streams = [line for plane in planes for line in plane.lines if line.name.startswith("Stream")]
    return {"seconds": seconds, "launches": sum(len(line.events) for line in streams) if planes else None}
