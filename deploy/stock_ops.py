"""Which ops a TensorFlow wheel runs on a CPU; from several versions, the module tf_d2/serving/stock_ops.py.

    old219/bin/python deploy/stock_ops.py list > 219.json
    old220/bin/python deploy/stock_ops.py list > 220.json
    python deploy/stock_ops.py list > 221.json
    python deploy/stock_ops.py module 219.json 220.json 221.json > tf_d2/serving/stock_ops.py

An op counts when every version has a CPU kernel for it, the same tensors and at least the first one's attributes.
"""

from __future__ import annotations

import json
import sys
import textwrap

# In the Python wheel but not in the server (PyFunc), off there (Xla), or nothing for an export (files, prints).
EXCLUDED = ("PyFunc", "Xla", "Tpu", "ReadFile", "WriteFile", "MatchingFiles", "Print", "Summary", "Debug")

HEADER = '''"""Ops that an export may use: TensorFlow {versions} all have them, with a CPU kernel.

Written by deploy/stock_ops.py from those wheels. Ops that the Python wheel has and a server lacks (PyFunc),
that need XLA, or that touch files are left out.
"""

from __future__ import annotations

STOCK_OPS = frozenset(
    """
{names}
    """.split()
)
'''


Signature = dict[str, list[str]]


def ops() -> dict[str, Signature]:
    """Name -> attributes and tensors of every op with a CPU kernel."""
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session
    from tensorflow.python.framework import kernels

    everything = op_def_pb2.OpList.FromString(
        pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList())
    )
    found = {}
    for op in everything.op:
        devices = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(op.name).kernel}
        if devices & {"CPU", "DEFAULT"}:
            found[op.name] = {
                "attributes": [f"{a.name}:{a.type}" for a in op.attr],
                "tensors": [a.name for a in op.input_arg] + ["->"] + [a.name for a in op.output_arg],
            }
    return found


def compatible(old: Signature, new: Signature) -> bool:
    """Whether the newer version only added attributes, which a SavedModel leaves out at their defaults."""
    return old["tensors"] == new["tensors"] and set(old["attributes"]) <= set(new["attributes"])


def module(files: list[str]) -> str:
    """The text of tf_d2/serving/stock_ops.py."""
    lists = []
    for path in files:
        with open(path) as file:
            lists.append(json.load(file))
    first, *others = (entry["ops"] for entry in lists)
    names = [
        name
        for name, signature in sorted(first.items())
        if not name.startswith("_")
        and not any(word in name for word in EXCLUDED)
        and all(name in other and compatible(signature, other[name]) for other in others)
    ]
    text = textwrap.fill(" ".join(names), 106, initial_indent=" " * 4, subsequent_indent=" " * 4)
    return HEADER.format(versions=", ".join(entry["tensorflow"] for entry in lists), names=text)


if __name__ == "__main__":
    if sys.argv[1:] == ["list"]:
        import tensorflow

        json.dump({"tensorflow": tensorflow.__version__, "ops": ops()}, sys.stdout)
    elif sys.argv[1:2] == ["module"] and len(sys.argv) > 2:
        sys.stdout.write(module(sys.argv[2:]))
    else:
        raise SystemExit(__doc__)
