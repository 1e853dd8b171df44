"""What LazyConfigs of transformers say as Python objects: the norm of tokens and the activation."""

from __future__ import annotations

from typing import Any

from tf_d2.config.lazy import Node
from tf_d2.config.reading import Fields
from tf_d2.config.safe_yaml import PARTIAL

_NORM_EPS = 1e-5  # torch's nn.LayerNorm
_NORMS = ("python:torch.nn.modules.normalization.LayerNorm", "python:torch.nn.LayerNorm")
_GELUS = ("python:torch.nn.modules.activation.GELU", "python:torch.nn.GELU")


def put_norm_eps(node: Node, fields: Fields) -> None:
    """The epsilon of the argument ``norm_layer`` as the field ``norm_eps``.

    Absent it is torch's LayerNorm; given, that class or ``functools.partial(LayerNorm, eps=...)``. Another class, or a
    partial with other arguments, is a ConfigError.
    """
    value = node.take("norm_layer", None)
    where = f"{node.name}.norm_layer"
    arguments: dict[str, Any] = {}
    if isinstance(value, Node):
        arguments = {key: item for key, item in value.value.items() if key != PARTIAL}
        value = value.value.get(PARTIAL)
    if (value is not None and value not in _NORMS) or not arguments.keys() <= {"eps"}:
        fields.put("norm_eps", where, {"norm": value, **arguments})
        raise fields.fail("norm_eps", "expected torch.nn.LayerNorm, or functools.partial of it with eps")
    fields.put("norm_eps", where, arguments.get("eps", _NORM_EPS))


def put_activation(node: Node) -> None:
    """Refuse any ``act_layer`` but torch's GELU, which is the default."""
    value = node.take("act_layer", None)
    if value is not None and value not in _GELUS:
        fields = Fields()
        fields.put("act_layer", f"{node.name}.act_layer", value)
        raise fields.fail("act_layer", "expected torch.nn.GELU")
