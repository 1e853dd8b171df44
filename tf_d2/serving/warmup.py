"""Warm-up records: requests that TensorFlow Serving runs on itself before it takes the first real one.

The file is a TFRecord of ``tensorflow.serving.PredictionLog`` messages:

    PredictionLog  { PredictLog predict_log = 6; }
    PredictLog     { PredictRequest request = 1; }

Source: tensorflow_serving/apis/prediction_log.proto.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_d2.client.wire import field, predict_request
from tf_d2.serving_contract import takes_files
from weights.errors import UsageError

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
_MAX_RECORDS = 1000  # the server refuses more

# Shapes (height, width) of one request per bucket: the common proportions of cameras, both ways round. Small
# pictures do, because every image is resized to the network size first.
BUCKETS = ((96, 128), (128, 96), (96, 96), (90, 160))


def prediction_log(request: bytes) -> bytes:
    """A serialised ``PredictionLog`` that holds one predict request."""
    return field(6, field(1, request))


def warmup_requests(
    model: str, needs_proposals: bool, buckets: Sequence[tuple[int, int]] = BUCKETS, channels: int = 3
) -> list[bytes]:
    """One request per signature and bucket, as ``PredictionLog`` messages."""
    logs = []
    for height, width in buckets:
        extra: dict[str, np.ndarray] = {}
        if needs_proposals:
            extra["proposal_boxes"] = np.array([[[0, 0, width, height]]], np.float32)
            extra["num_proposals"] = np.array([1], np.int32)
        for signature, key, value in sample_inputs(height, width, channels):
            logs.append(prediction_log(predict_request(model, signature, {key: value, **extra})))
    return logs


def sample_inputs(height: int, width: int, channels: int) -> list[tuple[str, str, np.ndarray]]:
    """One picture for every signature of an export: its name, the name of the input, the value."""
    image = sample_image(height, width, channels)
    inputs = [("serving_default", "inputs", image[None])]
    if takes_files(channels):
        encoded = tf.io.encode_jpeg(image).numpy()
        inputs.append(("serving_bytes", "image_bytes", np.array([encoded], object)))
    return inputs


def write_warmup(folder: Path, logs: Sequence[bytes]) -> None:
    """Write the records below the folder of a version."""
    if len(logs) > _MAX_RECORDS:
        raise UsageError(f"{len(logs)} warm-up records; TensorFlow Serving reads at most {_MAX_RECORDS}")
    path = folder / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for log in logs:
            writer.write(log)


def sample_image(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture with some structure: uint8 ``[height, width, channels]``."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin((x * (i + 1) + y * (3 - i)) / 9.0) for i in range(channels)]
    return np.stack(waves, axis=-1).astype(np.uint8)
