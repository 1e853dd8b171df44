"""TensorFlow's sides of the bench: tf_d2.Predictor (a tf.function), also in bfloat16, or the exported model."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity.bench import common
from parity.bench import loop as bench_loop

_Facts = dict[str, Any]


class _PredictorSide:
    """tf_d2.Predictor and what can be asked of it."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.dtype: Any = job.get("dtype") or "float32"
        self.images = common.pictures(job)
        self.found: Mapping[str, Any] = {}
        self.post_seconds = 0.0
        self.load(job["config_yaml"], job["weights"])

    def load(self, config_yaml: str, weights: str) -> _Facts:
        """Another model in the place of this one."""
        import tf_d2

        self.predictor = None  # frees the last model before the next one is built
        self.found = {}
        self.predictor: Any = tf_d2.Predictor(config_yaml, weights, dtype=self.dtype)
        finish = self.predictor._result

        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = finish(*arguments)
            self.post_seconds = time.perf_counter() - begin
            return result

        self.predictor._result = timed
        return {}

    def run(self, image: int = 0) -> _Facts:
        """One picture, from pixels to masks."""
        self.found = self.predictor(self.images[image])
        return {"detections": common.count_found(self.found)}

    def keep(self, path: str) -> _Facts:
        """Write the detections of the last run."""
        found = self.found["instances"]
        return common.write_found(path, found.pred_boxes, found.scores, found.pred_classes)

    def files(self, paths: list[str]) -> _Facts:
        """A plain loop: read a picture, detect, make its row."""
        import tf_d2
        from tf_d2.batch.rows import detected

        found = 0
        begin = time.perf_counter()
        for path in paths:
            row = detected(path, self.predictor(tf_d2.read_image(path))["instances"])
            json.dumps(row)
            found += len(row["scores"])
        return {"seconds": time.perf_counter() - begin, "detections": found}

    def traces(self) -> _Facts:
        """How often the prediction has been traced so far."""
        import tensorflow as tf

        return {"traces": self.predictor._predict[tf.uint8].experimental_get_tracing_count()}

    def phases(self, path: str) -> _Facts:
        """From a JPEG file to detections, in parts (seconds). Resizing is part of the graph; it is measured
        again alone and taken out of the network's time."""
        import tf_d2

        begin = time.perf_counter()
        image = tf_d2.read_image(path)
        decoded = time.perf_counter()
        result = self.predictor(image)
        end = time.perf_counter()
        parts = {"decode": decoded - begin, "resize": self._resize_seconds(image), "post": self.post_seconds}
        parts["network"] = end - begin - sum(parts.values())
        return {"seconds": end - begin, "parts": parts, "detections": common.count_found(result)}

    def _resize_seconds(self, image: np.ndarray) -> float:
        import tensorflow as tf

        from tf_d2.ops.resize import resize_uint8

        if not hasattr(self, "_resize"):
            self._resize = tf.function(resize_uint8, reduce_retracing=True)
        size = [tf.constant(n) for n in self.predictor.network_size(*image.shape[:2])]
        tensor = tf.constant(image)
        self._resize(tensor, *size)
        begin = time.perf_counter()
        self._resize(tensor, *size).numpy()
        return time.perf_counter() - begin

    def paste(self, count: int, height: int, width: int) -> _Facts:
        """Masks of ``count`` detections pasted into a large picture."""
        from tf_d2.ops.mask_paste_numpy import paste_masks_numpy

        masks, boxes = common.masks_to_paste(count, height, width)
        return common.extra_memory(lambda: paste_masks_numpy(masks, boxes, height, width))

    def convert(self, source: str, config_yaml: str) -> _Facts:
        """Convert a checkpoint to .weights.h5, and read its bytes, both with a cold file cache."""
        from tf_d2.commands.convert import run

        size = Path(source).stat().st_size
        with tempfile.TemporaryDirectory(prefix="bench-", dir=Path(source).parent) as folder:
            _forget(source)
            begin = time.perf_counter()
            with open(source, "rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass
            read = time.perf_counter() - begin
            _forget(source)
            begin = time.perf_counter()
            tensors = run(source, Path(folder) / "model.weights.h5", config_yaml)
            seconds = time.perf_counter() - begin
        return {"seconds": seconds, "read_seconds": read, "bytes": size, "tensors": tensors}

    def profile(self, runs: int) -> _Facts:
        """Time by kind of operation over ``runs`` predictions (see bench_profile)."""
        from parity.bench.tf_profile import profile

        return profile(self.run, runs)

    def launches(self) -> _Facts:
        """Kernels on the GPU that pooling 1000 boxes from four levels takes."""
        from parity.bench.tf_profile import roi_align_launches

        return roi_align_launches()


class _Exported:
    """The exported model's ``serving_default``, answered as tf_d2.client does."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        import tensorflow as tf

        from parity.backends.savedmodel import version_folder
        from tf_d2.client.result import to_result

        self.images = common.pictures(job)
        self.found: Mapping[str, Any] = {}
        self.model: Any = tf.saved_model.load(str(version_folder(Path(job["target"]))))
        self.call = self.model.signatures["serving_default"]
        self.to_result = to_result

    def run(self, image: int = 0) -> _Facts:
        """One picture, from pixels to masks."""
        self.found = self._predict(self.images[image], 1)[0]
        return {"detections": common.count_found(self.found)}

    def batch(self, size: int) -> _Facts:
        """``size`` copies of the picture in one request."""
        results = self._predict(self.images[0], size)
        return {"detections": sum(common.count_found(r) for r in results)}

    def keep(self, path: str) -> _Facts:
        """Write the detections of the last run."""
        found = self.found["instances"]
        return common.write_found(path, found.pred_boxes, found.scores, found.pred_classes)

    def _predict(self, image: np.ndarray, size: int) -> list[Mapping[str, Any]]:
        import tensorflow as tf

        batch = np.repeat(image[None, :, :, ::-1], size, axis=0)
        answer = {k: v.numpy() for k, v in self.call(inputs=tf.constant(batch)).items()}
        return [self.to_result(answer, k) for k in range(size)]


def _forget(path: str) -> None:
    """Drop a file from the system's cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(job: Mapping[str, Any]) -> tuple[bench_loop.Actions, _Facts]:
    """The actions of a job (see `parity.bench.bench`)."""
    import tensorflow as tf

    if job["threads"]:
        tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
        tf.config.threading.set_inter_op_parallelism_threads(job.get("inter_threads") or job["threads"])
    gpus = tf.config.list_physical_devices("GPU")
    if job["device"] == "gpu" and not gpus:
        raise RuntimeError(f"device gpu: TensorFlow {tf.__version__} sees no GPU on this machine")
    if job.get("tf32") is not None:
        tf.config.experimental.enable_tensor_float_32_execution(job["tf32"])
    side: Any = (_Exported if job["backend"].startswith("savedmodel") else _PredictorSide)(job)
    names = ("load", "run", "keep", "batch", "files", "phases", "paste", "traces", "convert")
    names += ("profile", "launches")
    actions = {name: getattr(side, name) for name in names if hasattr(side, name)}
    device = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "") if gpus else ""
    return actions, {"version": f"TensorFlow {tf.__version__}", "accelerator": device}


def main() -> int:
    """Run one job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = common.read_job(parser.parse_args().job)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    if job["backend"] != "savedmodel-untuned":
        # As tf-d2 predict does: one model, run as a graph only, whose weights oneDNN may lay out once.
        os.environ.setdefault("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "1")
    if job["device"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    return bench_loop.serve(lambda: load(job))


if __name__ == "__main__":
    sys.exit(main())
