"""Every op that TensorFlow makes of a model has a kernel for its types, whatever this machine's settings made of it.

Run under TF_ENABLE_ONEDNN_OPTS=0 and =1: the graph optimiser fuses different ops, and oneDNN replaces others. That the
picture gets an answer shows the rest (groups, strides, dilations) for the branches that it takes.
"""

import importlib.util
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from tensorflow.python.eager import context
from tensorflow.python.framework import kernels

import tf_d2
import weights
from tf_d2.config import load_config_text
from tf_d2.modeling import build_model

TESTS = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("variants", TESTS / "parity" / "variants.py")
assert SPEC is not None and SPEC.loader is not None
VARIANTS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(VARIANTS)

CASES = [
    pytest.param(name, dtype, marks=[] if (name, dtype) == ("grouped", "float64") else pytest.mark.slow)
    for name in VARIANTS.VARIANTS
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
    config = yaml.safe_dump(VARIANTS.tiny_config(VARIANTS.VARIANTS[name]) | {"VERSION": 2})
    (tmp_path / "config.yaml").write_text(config)
    with keras.StatelessScope(initialize_variables=False):
        specs = build_model(load_config_text(config)).variable_specs()
    keras.utils.clear_session()
    shapes = {
        weights.path_to_key(p): (s[-1], s[-2], *s[:-2]) if p.endswith("kernel") else s
        for p, s in specs.items()
    }
    weights.write_detectron2_pkl(tmp_path / "model.pkl", VARIANTS.tiny_state(shapes))
    predictor = tf_d2.Predictor(tmp_path / "config.yaml", tmp_path / "model.pkl", dtype=dtype)
    context.enable_run_metadata()
    try:
        result = predictor(
            VARIANTS.picture(), **({"proposals": VARIANTS.PROPOSALS} if name == "fast" else {})
        )
        nodes = list(nodes_of(context.export_run_metadata()))
    finally:
        context.disable_run_metadata()
    assert len(nodes) > 300
    assert {f"{n.op} {tf.as_dtype(n.attr['T'].type).name}" for n in nodes if not has_kernel(n)} == set()
    assert result and not any(np.isnan(v).any() for v in result.values() if isinstance(v, np.ndarray))
