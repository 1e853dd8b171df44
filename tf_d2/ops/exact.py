"""Constants that the graph optimiser leaves alone, for arithmetic that has to round as written.

Inside a `tf.function` (and in TensorFlow Serving) TensorFlow's optimiser treats float arithmetic as real
numbers where a constant is involved: `x / 7` becomes `x * (1 / 7)`, `(x * 2 - 1) + 1` becomes `x * 2`, `x *
0.1 * 3` becomes `x * 0.3`. The last bit changes, and then a `ceil`, `floor` or comparison: ceil(21 / 7) =
4. Eager mode is not affected, so the two would differ.
"""

import tensorflow as tf


def exact_constant(value: tf.Tensor | float | int, dtype: tf.DType | None = None) -> tf.Tensor:
    """`value` as a tensor that constant folding does not look into; a stock op, kept by export and
    serving."""
    value = tf.convert_to_tensor(value) if dtype is None else tf.cast(value, dtype)
    return tf.raw_ops.PlaceholderWithDefault(input=value, shape=value.shape)
