"""Detections for every picture of a folder, as Parquet, by Ray Data (`pip install 'tf-d2[batch]' 'ray[data]'`).

    python ray_detect.py --model serving/my_model --pictures photos/ --output results [--workers 2]

`--model`, `--pictures` and `--output` must be readable by every node. Columns are those of `tf-d2 batch`.
"""

import argparse

import numpy as np
import pyarrow as pa
import ray

from tf_d2.batch.formats import parquet_schema
from tf_d2.batch.model import Detector


class Detect:
    """One per worker process; the model is loaded once in each."""

    def __init__(self, model: str) -> None:
        self.detector = Detector(model)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        """Pictures -> rows. A broken picture is a row with its `failure`."""
        pictures = zip(batch["path"], batch["bytes"], strict=True)
        rows = [self.detector.row(str(path), bytes(data)) for path, data in pictures]
        return pa.Table.from_pylist(rows, schema=parquet_schema())


def run() -> None:
    """Read, detect, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--pictures", "--output"):
        parser.add_argument(name, required=True)
    parser.add_argument("--workers", type=int, default=1, help="processes, each with the model in its memory")
    given = parser.parse_args()
    pictures = ray.data.read_binary_files(given.pictures, include_paths=True)
    # num_cpus is what Ray reserves for a worker (TensorFlow itself takes every core it sees): less than 1, so that
    # with a worker for every core the tasks that read files still get one.
    options = {"concurrency": given.workers, "batch_size": 16, "num_cpus": 0.5}
    rows = pictures.map_batches(Detect, fn_constructor_kwargs={"model": given.model}, **options)
    rows.write_parquet(given.output)


if __name__ == "__main__":
    run()
