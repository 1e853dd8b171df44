"""Detections for every picture that a pattern matches, as Parquet, by Spark (`pip install 'tf-d2[batch]' pyspark`).

    spark-submit spark_detect.py --model serving/my_model --pictures 'photos/*.jpg' --output results

`--model` must be readable by every executor. Columns are those of `tf-d2 batch`; a broken picture is a row with its
`failure`.
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.functions import col, from_json
from pyspark.sql.types import StringType

RLE = "size: array<int>, counts: string"
TOLD = "isthing: boolean, score: float, instance: int, area: bigint"
SCHEMA = f"""path string, height int, width int, boxes array<array<float>>, scores array<float>, classes array<bigint>,
masks array<struct<{RLE}>>, keypoints array<array<array<float>>>, sem_seg array<struct<class: bigint, {RLE}>>,
panoptic array<struct<id: bigint, class: bigint, {TOLD}, {RLE}>>, failure string"""


def run() -> None:
    """Read, detect, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--pictures", "--output"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    model = given.model

    def load() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """The model, once per Python process of Spark. Spark's nested columns do not come out of a UDF of batches, so
        that each row travels as JSON."""
        from tf_d2.batch.model import Detector

        detector = Detector(model)

        def detect(paths: np.ndarray, contents: np.ndarray) -> np.ndarray:
            pictures = zip(paths, contents, strict=True)
            rows = [json.dumps(detector.row(str(path), bytes(data))) for path, data in pictures]
            return np.array(rows, dtype=object)

        return detect

    spark = SparkSession.builder.appName("tf-d2").getOrCreate()
    detect = predict_batch_udf(load, return_type=StringType(), batch_size=16)
    files = spark.read.format("binaryFile").load(given.pictures)
    rows = files.select(from_json(detect(col("path"), col("content")), SCHEMA).alias("row")).select("row.*")
    rows.write.parquet(given.output)
    spark.stop()


if __name__ == "__main__":
    run()
