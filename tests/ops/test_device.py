"""Which form of a computation a graph has, and which it takes."""

import pytest
import tensorflow as tf

from tf_d2.ops import device


def _chosen() -> tf.Tensor:
    return device.either(device.on_gpu(), lambda: tf.constant("GPU"), lambda: tf.constant("CPU"))


@pytest.mark.parametrize(("index", "expected"), [(1, b"CPU"), (0, b"GPU")])
def test_a_graph_asks_its_device_when_it_runs(monkeypatch, index, expected):
    """An export made without a GPU computes as suits a GPU where it is served by one."""
    asked = tf.Variable(1)
    if index == 0:  # tests run without a GPU
        monkeypatch.setattr(tf.raw_ops, "DeviceIndex", lambda device_names: asked.read_value())
    function = tf.function(_chosen)
    kinds = [op.type for op in function.get_concrete_function().graph.get_operations()]
    asked.assign(index)
    assert function().numpy() == expected
    assert ("DeviceIndex" in kinds) == (index == 1)


def test_a_graph_that_stays_here_has_only_what_runs_here(monkeypatch):
    with device.runs_here():
        function = tf.function(_chosen)
        graph = function.get_concrete_function().graph
        assert function().numpy() == b"CPU"
        assert not {"DeviceIndex", "If", "StatelessIf"} & {op.type for op in graph.get_operations()}
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind])
        assert not isinstance(device.on_gpu(), bool)
    assert not isinstance(device.on_gpu(), bool)
