"""Load an export with the TensorFlow at hand, the way a server does, and compare its answers with recorded ones.

    python deploy/check_load.py record EXPORT_VERSION_DIR answers.npz IMAGE...     # with the TensorFlow that exported
    old/bin/python deploy/check_load.py check EXPORT_VERSION_DIR answers.npz IMAGE...   # with the server's TensorFlow

Needs TensorFlow and NumPy only, so that it runs in an environment with nothing but an older wheel. Exit status 1 if
an answer differs by more than 1e-3 px or 1e-5 of a score, or in its count or classes.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf

TOLERANCES = {"detection_boxes": 1e-3, "detection_scores": 1e-5, "detection_masks": 1e-4}


def answer(folder: str, images: list[str]) -> dict[str, Any]:
    """``serving_bytes`` on all files as one batch, through the TF1 loader and a Session."""
    files = []
    for path in images:
        with open(path, "rb") as file:
            files.append(file.read())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        start = time.perf_counter()
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder)
        print(f"TensorFlow {tf.__version__}: loaded in {time.perf_counter() - start:.1f} s", flush=True)
        signature = loaded.signature_def["serving_bytes"]
        start = time.perf_counter()
        outputs = session.run(
            {name: info.name for name, info in signature.outputs.items()},
            {signature.inputs["image_bytes"].name: files},
        )
        print(f"first request in {time.perf_counter() - start:.1f} s", flush=True)
    return outputs


def main(mode: str, folder: str, record: str, images: list[str]) -> int:
    outputs = answer(folder, images)
    if mode == "record":
        np.savez(record, **{name: value for name, value in outputs.items() if value.dtype != object})
        return 0
    worst = 0
    with np.load(record) as expected:
        for name in sorted(expected.files):
            found, wanted = outputs[name].astype(np.float64), expected[name].astype(np.float64)
            same_shape = found.shape == wanted.shape
            difference = float(np.abs(found - wanted).max()) if same_shape and found.size else np.inf
            failed = not difference <= TOLERANCES.get(name, 0.0)
            worst = max(worst, int(failed))
            print(f"{'DIFFERS' if failed else 'same':8s}{name:24s} largest difference {difference:.2e}")
    return worst


if __name__ == "__main__":
    if len(sys.argv) < 5 or sys.argv[1] not in ("record", "check"):
        raise SystemExit(__doc__)
    raise SystemExit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
