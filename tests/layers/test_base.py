"""Variables are named after the modules they live in."""

import keras
import numpy as np
import tensorflow as tf

from tf_d2.layers import base
from tf_d2.layers.base import Module, on_levels, sequence, walk
from tf_d2.layers.conv import Conv2d, Linear


class Parent(Module):
    def __init__(self, name):
        super().__init__(name)
        self.scale = self.parameter("scale", (2,), trainable=False)
        with self.scope():
            self.fc = Linear(2, 3, "fc")
            self.blocks = sequence("blocks", {str(i): (lambda key: Linear(2, 2, key)) for i in (0, 2)})


def test_paths_follow_attributes():
    parent = Parent("parent")
    paths = {v.path for v in parent.variables}
    leaves = ("kernel", "bias")
    expected = {f"parent/{m}/{leaf}" for m in ("fc", "blocks/0", "blocks/2") for leaf in leaves}
    assert paths == expected | {"parent/scale"}
    assert [v.path for v in parent.non_trainable_variables] == ["parent/scale"]
    assert len(list(walk(parent))) == 4


def test_variables_start_at_zero_in_the_policys_dtype(dtype):
    parent = Parent("parent")
    assert {v.dtype for v in parent.variables} == {dtype}
    assert not any(v.value.numpy().any() for v in parent.variables)


def test_inputs_are_never_cast():
    class Identity(Module):
        def call(self, x):
            return x

    for kind in (np.float64, np.float32, np.int32):
        assert Identity("same")(keras.ops.convert_to_tensor(np.ones(2, kind))).dtype == kind


def test_layers_write_nothing_of_their_own():
    store = {}
    Parent("parent").save_own_variables(store)
    assert store == {}


def test_variables_are_zeros_or_not_filled_at_all(monkeypatch):
    asked = []

    def rubbish(shape, dtype):
        asked.append((tuple(shape), dtype))
        return tf.fill(shape, tf.cast(7, dtype))

    monkeypatch.setattr(base, "_no_values", rubbish)
    with base.unfilled():
        blank = Conv2d(3, 4, 1, "conv")
    plain = Conv2d(3, 4, 1, "conv")
    assert asked == [((1, 1, 3, 4), "float32"), ((4,), "float32")]
    assert all((v.value.numpy() == 7).all() for v in blank.variables)
    assert not any(v.value.numpy().any() for v in plain.variables)


def test_what_is_not_filled_can_be_assigned():
    with base.unfilled():
        layer = Conv2d(3, 4, 1, "conv")
    for variable in layer.variables:
        variable.assign(np.ones(variable.shape))
        assert (variable.value.numpy() == 1).all()


def test_a_layer_on_several_levels_is_in_the_graph_once():
    conv = Conv2d(3, 4, 3, "conv", padding=1)
    conv.kernel.assign(np.random.default_rng(0).standard_normal((3, 3, 3, 4)).astype(np.float32))
    levels = [
        np.random.default_rng(n).standard_normal((1, n, n + 1, 3)).astype(np.float32) for n in (4, 7, 9)
    ]

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([1, None, None, 3])] * 3)
    def graph(*maps):
        return on_levels(conv, maps)

    eager = on_levels(conv, [tf.constant(x) for x in levels])
    for got, expected, x in zip(graph(*levels), eager, levels, strict=True):
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(got, conv(x))
    definition = graph.get_concrete_function().graph.as_graph_def()
    kinds = [node.op for function in definition.library.function for node in function.node_def]
    assert kinds.count("Conv2D") == 1 and "Conv2D" not in {node.op for node in definition.node}
    assert all(function.attr["_noinline"].b for function in definition.library.function)
    assert (
        graph.get_concrete_function().structured_outputs[0].shape.as_list()[0] == 1
    )  # a known batch stays known
