"""Weights as constants, and the check that a graph needs nothing but a stock server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tf_d2.serving.stock_ops import STOCK_OPS


class ExportError(ValueError):
    """An export that cannot be made or would not be served. The message says why."""


def frozen(
    function: Callable[..., Any], specs: Iterable[tf.TensorSpec]
) -> Callable[..., dict[str, tf.Tensor]]:
    """A traced function with its weights as constants, which lets the runtime lay them out once.

    Loops and branches stay functional ops. The result takes the tensors of ``specs`` in order and returns the
    dict that ``function`` returned; it may be called inside other graphs any number of times and is stored
    once.
    """
    concrete = tf.function(function, autograph=False).get_concrete_function(*specs)
    names = sorted(concrete.structured_outputs)  # the order in which TensorFlow flattens a dict
    constant = convert_variables_to_constants_v2(concrete, lower_control_flow=False)

    def call(*arguments: tf.Tensor) -> dict[str, tf.Tensor]:
        results = constant(*arguments)
        values = [results[name] for name in names] if isinstance(results, dict) else list(results)
        return dict(zip(names, values, strict=True))

    return call


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
