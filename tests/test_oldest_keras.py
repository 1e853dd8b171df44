"""What of Keras is used is there in the oldest Keras that pyproject.toml lets in, which the tests seldom run with."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "tf_d2"
# Looked up in Keras 3.0.0. `keras.config.dtype_policy`, for one, came later.
OF_KERAS_3_0_0 = {
    "keras.KerasTensor",
    "keras.Model",
    "keras.Operation.compute_output_spec",
    "keras.StatelessScope",
    "keras.Variable",
    "keras.layers.Layer",
    "keras.mixed_precision.dtype_policy",
    "keras.mixed_precision.set_dtype_policy",
    "keras.name_scope",
    "keras.saving.register_keras_serializable",
}


def keras_names(source: str) -> set[str]:
    """Dotted names that begin with ``keras``, the longest ones, and what is imported from Keras."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "keras":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id == "keras":
            names.add(".".join(["keras", *reversed(parts)]))
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


def test_nothing_newer_is_used() -> None:
    used = set().union(*(keras_names(path.read_text()) for path in PACKAGE.rglob("*.py")))
    whole = {name for name in used if not any(other.startswith(f"{name}.") for other in used)}
    newer = sorted(whole - OF_KERAS_3_0_0)
    assert not newer, f"see that Keras 3.0.0 has {', '.join(newer)}, then list it here"
    assert whole == OF_KERAS_3_0_0, "no longer used"


def test_names_are_found() -> None:
    source = "import keras\nfrom keras.ops import cast\nkeras.config.dtype_policy()\nclass A(keras.layers.Layer): pass"
    expected = {"keras.ops.cast", "keras.config.dtype_policy", "keras.layers.Layer"}
    assert keras_names(source) == expected
