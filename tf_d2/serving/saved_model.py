"""One traced function for all signatures, and the check that a graph needs nothing but a stock server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from tf_d2.ops import winograd
from tf_d2.serving.stock_ops import STOCK_OPS
from weights.errors import UserError


class ExportError(UserError, ValueError):
    """An export that cannot be made or would not be served. The message says why."""


def traced(
    function: Callable[..., dict[str, tf.Tensor]], specs: Iterable[tf.TensorSpec]
) -> tuple[Callable[..., dict[str, tf.Tensor]], tuple[tf.Variable, ...]]:
    """``function`` as one graph function, and the variables it reads, to be saved with it.

    The function takes the tensors of ``specs`` in order. It may be called inside other graphs any number of times and
    is stored once. The weights stay variables: as constants, a server would keep a dozen copies of them in the
    graphs it makes of one (measured in deploy/README.md). Raises ExportError where a large tensor is no variable.
    """
    with winograd.for_answers():
        concrete = tf.function(function, autograph=False).get_concrete_function(*specs)
    stray = [t for t in concrete.captured_inputs if t.dtype != tf.resource]
    if stray:
        shapes = sorted({str(tensor.shape) for tensor in stray})
        raise ExportError(f"{len(stray)} weights are not variables (shapes {', '.join(shapes)})")
    return lambda *arguments: concrete(*arguments), tuple(concrete.graph.variables)


def read_saved_model(saved_model_pb: str | os.PathLike[str]) -> SavedModel:
    """The parsed ``saved_model.pb``."""
    proto = SavedModel()
    with open(saved_model_pb, "rb") as file:
        proto.ParseFromString(file.read())
    return proto


def ops_of(saved_model_pb: str | os.PathLike[str]) -> set[str]:
    """Names of all ops in a ``saved_model.pb``, those of its functions included."""
    graph = read_saved_model(saved_model_pb).meta_graphs[0].graph_def
    functions = {function.signature.name for function in graph.library.function}
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return {node.op for node in nodes} - functions


def check_ops(saved_model_pb: str | os.PathLike[str]) -> set[str]:
    """Refuse a graph with ops beyond :data:`STOCK_OPS`, or one that asks for XLA, which a stock server has
    off.

    Raises ExportError. Returns the ops.
    """
    ops = ops_of(saved_model_pb)
    unknown = sorted(ops - STOCK_OPS)
    if unknown:
        raise ExportError(
            f"the graph uses ops that are not on the list of ops that stock servers are known to run: "
            f"{', '.join(unknown)} (tf_d2/serving/stock_ops.py)"
        )
    for function in read_saved_model(saved_model_pb).meta_graphs[0].graph_def.library.function:
        if function.attr["_XlaMustCompile"].b:
            raise ExportError(
                f"function {function.signature.name} must be compiled by XLA: stock servers refuse it"
            )
    return ops
