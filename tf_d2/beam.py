"""Apache Beam: detections for a PCollection of encoded pictures (``pip install 'tf-d2[beam]'``).

Beam's own handlers for TensorFlow load Keras models or call a SavedModel with stacked tensors: neither reads an
export of today, and pictures of different sizes cannot be stacked. :class:`DetectorHandler` answers each picture with
one row (the columns of ``tf-d2 batch``), so that a broken picture is a row with its ``failure`` and not a lost batch.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from weights.errors import UsageError

try:
    import apache_beam as beam
    from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler, RunInference
except ImportError as error:
    raise ImportError("tf_d2.beam needs Apache Beam: pip install 'tf-d2[beam]'") from error

from tf_d2.batch.model import Detector, version_folder
from tf_d2.batch.rows import Row

_NAMESPACE = "tf_d2"
# Pixels of the pictures of one batch together. A batch only saves Beam's own work per call: pictures go through
# the network one by one, since their answers must not depend on their neighbours.
_MAX_BATCH_PIXELS = 2**25
_THREADS = 3  # while one picture is in the network, others are decoded or encoded


class DetectorHandler(ModelHandler[bytes, Row, Detector]):
    """Encoded pictures -> rows, as ``tf_d2.Predictor`` detects, bit for bit, whatever the batches.

    Works alone (``path`` is None) and under ``KeyedModelHandler`` (elements ``(key, bytes)``, answers ``(key, row)``).
    The model is loaded once per process and shared by its threads; with ``large_model=True``, once per machine.
    """

    def __init__(
        self, export_dir: str, *, max_batch_weight: int = _MAX_BATCH_PIXELS, large_model: bool = False
    ) -> None:
        """``export_dir``: folder that ``tf-d2 export`` wrote, readable under this path by every worker.
        ``max_batch_weight``: pixels of the pictures of one batch together.

        Raises ValueError at once where this machine sees another thing than an export there.
        """
        super().__init__(large_model=large_model)
        self._max_batch_weight = max_batch_weight
        if os.path.exists(export_dir):  # a folder that only the workers see is theirs to check
            version_folder(Path(export_dir))
        self._export_dir = export_dir

    def load_model(self) -> Detector:
        """The export, from ``tf.saved_model.load``."""
        return Detector(self._export_dir)

    def run_inference(
        self, batch: Sequence[bytes], model: Detector, inference_args: dict[str, Any] | None = None
    ) -> Iterable[Row]:
        """One row per picture, in order."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(lambda data: model.row(None, bytes(data)), batch))

    def batch_elements_kwargs(self) -> dict[str, Any]:
        """Batches by pixels. (Beam 2.77 hands its own ``max_batch_weight`` to BatchElements, which does not know it;
        with sizes of elements given, ``max_batch_size`` limits their sum. An element beyond the limit, or beyond what
        it begins with, would make an empty batch: so the limit holds from the start, and no size is above it.)"""
        limit = self._max_batch_weight
        return {
            "min_batch_size": limit,
            "max_batch_size": limit,
            "element_size_fn": partial(_pixels_of, limit=limit),
        }

    def get_num_bytes(self, batch: Sequence[bytes]) -> int:
        """Bytes of the files."""
        return sum(len(data) for data in batch)

    def get_metrics_namespace(self) -> str:
        """Where RunInference's metrics appear."""
        return _NAMESPACE

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """There are none: what an export does was settled by ``tf-d2 export``."""
        if inference_args:
            raise UsageError(f"DetectorHandler takes no inference_args, got {sorted(inference_args)}")

    def share_model_across_processes(self) -> bool:
        """As ``large_model`` says."""
        return self._share_across_processes


def _pixels_of(element: Any, limit: int = _MAX_BATCH_PIXELS) -> int:
    """Pixels of an encoded picture by its header, at most ``limit``; 1 where it has no readable one.

    ``element``: the bytes, or ``(key, bytes)``.
    """
    from PIL import Image

    data = element[1] if isinstance(element, tuple) else element
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return min(max(picture.width * picture.height, 1), limit)
    except Exception:  # broken pictures become rows with a failure later
        return 1


class Detect(beam.PTransform):
    """``(path, bytes)`` -> rows with their path, in two outputs: ``.detections`` and ``.failed``.

    rows = files | Detect("serving/my_model")
    rows.detections | ...
    rows.failed | ...
    """

    def __init__(self, export_dir: str, **options: Any) -> None:
        """Arguments of :class:`DetectorHandler`."""
        super().__init__()
        self._handler = DetectorHandler(export_dir, **options)

    def expand(self, pcoll: Any) -> Any:
        """RunInference, then the two outputs."""
        rows = pcoll | RunInference(KeyedModelHandler(self._handler))
        return rows | beam.ParDo(_Tagged()).with_outputs("failed", main="detections")


class _Tagged(beam.DoFn):
    """``(path, row)`` -> rows with a path, the failed ones tagged; counts both."""

    def __init__(self) -> None:
        self._detections = beam.metrics.Metrics.counter(_NAMESPACE, "pictures")
        self._failed = beam.metrics.Metrics.counter(_NAMESPACE, "failed_pictures")

    def process(self, element: tuple[str, Any]) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One element."""
        path, row = element
        row = row | {"path": path}
        if row["failure"] is None:
            self._detections.inc()
            yield row
        else:
            self._failed.inc()
            yield beam.pvalue.TaggedOutput("failed", row)


def write_parquet(export_dir: str, patterns: Sequence[str], output: str, options: Sequence[str] = ()) -> None:
    """Run a pipeline: every file that one of Beam's ``patterns`` matches becomes a row of ``output-*.parquet``, with
    the columns of ``tf-d2 batch``, bad pictures among them. ``options``: Beam's own, as words (``["--runner",
    "FlinkRunner"]``). Waits for the end.

    Raises ValueError where this machine sees another thing than an export in ``export_dir``.
    """
    from apache_beam.io import fileio
    from apache_beam.io.parquetio import WriteToParquet
    from apache_beam.options.pipeline_options import PipelineOptions

    from tf_d2.batch.formats import parquet_schema

    detect = Detect(export_dir)
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        matched = pipeline | beam.Create(list(patterns)) | fileio.MatchAll() | fileio.ReadMatches()
        rows = matched | beam.Reshuffle() | beam.Map(_named_bytes) | detect
        both = (rows.detections, rows.failed) | beam.Flatten()
        _ = both | WriteToParquet(output, parquet_schema(), file_name_suffix=".parquet", codec="zstd")


def _named_bytes(file: Any) -> tuple[str, bytes]:
    """Path and content of what a pattern matched."""
    return file.metadata.path, file.read()
