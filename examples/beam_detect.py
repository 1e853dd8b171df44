"""Detections for every picture that a pattern matches, as Parquet, on any runner of Apache Beam.

    python beam_detect.py --model serving/my_model --pictures 'photos/**.jpg' --output results/part \
        [--runner DirectRunner --direct_num_workers 4 --direct_running_mode multi_processing]

`--model` must be readable by every worker (a shared disk, or in the workers' image). Files are those of `tf-d2 batch`.
"""

import argparse
import logging

import apache_beam as beam
from apache_beam.io import fileio
from apache_beam.io.parquetio import WriteToParquet
from apache_beam.options.pipeline_options import PipelineOptions

from tf_d2.batch.formats import parquet_schema
from tf_d2.beam import Detect


def run() -> None:
    """Build the pipeline and wait for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--pictures", "--output"):
        parser.add_argument(name, required=True)
    known, rest = parser.parse_known_args()
    with beam.Pipeline(options=PipelineOptions(rest, save_main_session=True)) as pipeline:
        rows = (
            pipeline
            | fileio.MatchFiles(known.pictures)
            | fileio.ReadMatches()
            | beam.Reshuffle()
            | beam.Map(lambda file: (file.metadata.path, file.read()))
            | Detect(known.model)
        )
        both = (rows.detections, rows.failed) | beam.Flatten()
        both | WriteToParquet(known.output, parquet_schema(), file_name_suffix=".parquet", codec="zstd")


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.INFO)
    run()
