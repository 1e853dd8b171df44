"""Reading traces of TensorFlow's profiler: which events are operations, and the time that is a kind's own."""

from types import SimpleNamespace

import pytest

from parity.bench.tf_profile import host_planes, is_heavy, kind_of, operation_lines, own_times


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model/backbone/Conv2D:Conv2D", "Conv2D"),
        ("a/b:_FusedConv2D", "_FusedConv2D"),
        ("EagerExecute: __inference_run_12", ""),
        ("Executor::Process", ""),
        ("node:Cast#id=3#", ""),
        (":Conv2D", ""),
        ("plain", ""),
    ],
)
def test_kinds_of_events(name, kind):
    assert kind_of(name) == kind


def test_convolutions_and_products_are_told_from_the_rest():
    heavy = ("Conv2D", "_FusedConv2D", "MatMul", "_FusedMatMul", "_MklNativeFusedConv2D")
    assert [k for k in heavy if not is_heavy(k)] == []
    assert [k for k in ("Relu", "GatherV2", "ResizeBilinear", "_MklBatchMatMulV2") if is_heavy(k)] == []


def test_nested_time_is_counted_once():
    ms = 10**9
    line = [
        (0, 10 * ms, "call:PartitionedCall"),
        (1 * ms, 5 * ms, "a:Conv2D"),
        (5 * ms, 8 * ms, "b:Conv2D"),
        (6 * ms, 7 * ms, "c:Relu"),
    ]
    other = [(0, 2 * ms, "d:Relu")]
    times = own_times([line, other])
    assert times == {
        "PartitionedCall": (pytest.approx(3.0), 1),
        "Conv2D": (pytest.approx(6.0), 2),
        "Relu": (pytest.approx(3.0), 2),
    }
    assert sum(t for t, _ in times.values()) == pytest.approx(12.0)


def test_lines_of_the_processor_only():
    event = SimpleNamespace(offset_ps=5, duration_ps=7, metadata_id=1)
    noise = SimpleNamespace(offset_ps=5, duration_ps=7, metadata_id=2)
    names = {1: SimpleNamespace(name="x:Relu"), 2: SimpleNamespace(name="RunGraph")}
    lines = [SimpleNamespace(events=[event, noise]), SimpleNamespace(events=[noise])]
    host = SimpleNamespace(name="/host:CPU", lines=lines, event_metadata=names)
    space = SimpleNamespace(
        planes=[host, SimpleNamespace(name="/host:metadata"), SimpleNamespace(name="/device:GPU:0")]
    )
    assert host_planes(space) == [host]
    assert list(operation_lines(host)) == [[(5, 12, "x:Relu")]]
