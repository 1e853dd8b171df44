"""Every op that TensorFlow makes of a model has a kernel for its types, whatever this machine's settings made of it.

Run under TF_ENABLE_ONEDNN_OPTS=0 and =1: the graph optimiser fuses different ops, and oneDNN replaces others. That the
picture gets an answer shows the rest (groups, strides, dilations) for the branches that it takes.
"""

from functools import cache

import numpy as np
import pytest
import tensorflow as tf
from support import variants
from support.variant_files import write_model
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels

import tf_d2

CASES = [
    pytest.param(
        name, dtype, marks=pytest.mark.wide if (name, dtype) == ("grouped", "float64") else pytest.mark.slow
    )
    for name in variants.VARIANTS
    for dtype in ("float32", "float64", "bfloat16")
]


@cache
def registered(op):
    return tuple(kernels.get_registered_kernels_for_op(op).kernel)


def has_kernel(node):
    """Whether a CPU kernel accepts the types of a node."""
    for kernel in registered(node.op):
        if kernel.device_type in ("CPU", "DEFAULT") and all(
            not node.attr[c.name].type or node.attr[c.name].type in c.allowed_values.list.type
            for c in kernel.constraint
        ):
            return True
    return False


def nodes_of(metadata):
    """The nodes of all graphs that were run, as they were after optimisation, calls of functions left out."""
    graphs = [*metadata.partition_graphs, *(g for f in metadata.function_graphs for g in f.partition_graphs)]
    for graph in graphs:
        functions = {f.signature.name for f in graph.library.function}
        for node in [*graph.node, *(n for f in graph.library.function for n in f.node_def)]:
            if node.op not in functions:
                yield node


def test_a_missing_kernel_is_seen():
    node = tf.compat.v1.NodeDef(name="n", op="_FusedConv2D")
    node.attr["T"].type = tf.int32.as_datatype_enum
    assert not has_kernel(node)
    node.attr["T"].type = tf.float32.as_datatype_enum
    assert has_kernel(node)


@pytest.mark.parametrize("name, dtype", CASES)
def test_every_op_has_a_kernel(name, dtype, tmp_path):
    write_model(tmp_path, name)
    predictor = tf_d2.Predictor(tmp_path / "config.yaml", tmp_path / "model.pkl", dtype=dtype)
    context.enable_run_metadata()
    try:
        result = predictor(
            variants.picture(), **({"proposals": variants.PROPOSALS} if name == "fast" else {})
        )
        nodes = list(nodes_of(context.export_run_metadata()))
    finally:
        context.disable_run_metadata()
    assert len(nodes) > 300
    assert {f"{n.op} {tf.as_dtype(n.attr['T'].type).name}" for n in nodes if not has_kernel(n)} == set()
    assert result and not any(np.isnan(v).any() for v in result.values() if isinstance(v, np.ndarray))
