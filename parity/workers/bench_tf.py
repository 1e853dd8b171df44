"""TensorFlow's side of the bench: tf_d2.Predictor (a tf.function) or the exported model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parity.workers import bench_loop


def load(job: Mapping[str, Any]) -> tuple[bench_loop.Run, dict[str, Any]]:
    """The model of a job {"backend", "config_yaml", "weights", "image", "threads", "device", "target",
    "dtype"}."""
    import tensorflow as tf

    from parity import job as jobs

    if job["threads"]:
        tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
        tf.config.threading.set_inter_op_parallelism_threads(job["threads"])
    if job["device"] == "gpu" and not tf.config.list_physical_devices("GPU"):
        raise RuntimeError(f"device gpu: TensorFlow {tf.__version__} sees no GPU on this machine")
    image = jobs.read_image(job["image"])
    facts = {"version": f"TensorFlow {tf.__version__}"}
    if job["backend"] == "savedmodel":
        from parity.workers.tf_served import version_folder
        from tf_d2.client.result import to_result

        model: Any = tf.saved_model.load(str(version_folder(Path(job["target"]))))
        call = model.signatures["serving_default"]

        def run_exported() -> int:
            answer = call(inputs=tf.constant(image[None, :, :, ::-1]))
            return _count(to_result({k: v.numpy() for k, v in answer.items()}, 0), keep=model)

        return run_exported, facts
    import tf_d2

    dtype: Any = job.get("dtype") or "float32"
    predictor = tf_d2.Predictor(job["config_yaml"], job["weights"], dtype=dtype)
    return lambda: _count(predictor(image)), facts


def _count(result: Mapping[str, Any], keep: Any = None) -> int:
    return next((len(result[k]) for k in ("instances", "proposals") if k in result), 0)


def main() -> int:
    """Run one job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = json.loads(Path(parser.parse_args().job).read_text())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    # As tf-d2 predict does: one model, run as a graph only, whose weights oneDNN may lay out once.
    os.environ.setdefault("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "1")
    if job["device"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    return bench_loop.serve(lambda: load(job))


if __name__ == "__main__":
    sys.exit(main())
