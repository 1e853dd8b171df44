"""The files beside a SavedModel: server configuration, assets, a README on running and calling it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf

import tf_d2
from tf_d2.config import ModelConfig, category_ids, class_names, keypoint_names, stuff_names
from tf_d2.serving.decode import DECODED
from tf_d2.serving.graph import GraphOptions
from tf_d2.serving.saved_model import read_saved_model
from tf_d2.serving_contract import (
    NORMALISED_BOXES,
    NUMBERED_SEGMENTS,
    OTHER_CHANNELS,
    STATUS_TEXT,
    TENSORS,
    takes_files,
)

if TYPE_CHECKING:
    from tf_d2.serving.exporter import ExportReport

MAX_BATCH_SIZE = 8
_BATCH_TIMEOUT_MICROS = 5000

_STATUS = "0 = fine, " + ", ".join(f"{code} = {text}" for code, text in STATUS_TEXT.items())


def write_assets(
    folder: Path, config: ModelConfig, source: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """``assets/``: names, the resolved configuration, and where all of it comes from."""
    assets = folder / "assets"
    assets.mkdir(exist_ok=True)
    (assets / "config.yaml").write_text(source["config"])
    lists = {
        "class_names.txt": class_names(config),
        "stuff_names.txt": stuff_names(config),
        "keypoint_names.txt": keypoint_names(config),
    }
    for name, values in lists.items():
        if values:
            (assets / name).write_text("".join(f"{value}\n" for value in values))
    record = {
        "tf_d2": tf_d2.__version__,
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
        "meta_architecture": config.meta_architecture,
        "input_format_of_the_network": config.input.format,
        "min_size_test": config.input.min_size_test,
        "max_size_test": config.input.max_size_test,
        "class_names": list(class_names(config)),
        "category_ids": list(category_ids(config)),
        "weights": {"name": source["weights_name"], "sha256": source["weights_sha256"]},
        "precision": source["precision"],
        "options": dict(options),
    }
    if config.meta_architecture == "PanopticDeepLab":  # what the numbers of panoptic_seg mean
        model: Any = config.model
        record |= {"label_divisor": model.label_divisor, "thing_classes": list(model.thing_ids)}
    (assets / "export.json").write_text(json.dumps(record, indent=1) + "\n")


def write_server_files(
    root: Path, folder: Path, config: ModelConfig, options: GraphOptions, report: ExportReport
) -> None:
    """Everything beside the versions, and the per-model batching parameters inside this one."""
    (root / "models.config").write_text(models_config(report.name, report.version))
    (root / "batching_parameters.txt").write_text(batching_parameters())
    (folder / "batching_params.pbtxt").write_text(batching_parameters())
    (root / "monitoring.config").write_text(MONITORING)
    (root / "README.md").write_text(readme(folder, config, options, report))


def models_config(name: str, version: int) -> str:
    """``--model_config_file`` of the server; the container sees the export as ``/models/<name>``."""
    return f"""\
# tensorflow_model_server --model_config_file=/models/{name}/models.config \\
#     --allow_version_labels_for_unavailable_models
# To serve several versions, add `versions: N` and labels, then reload.
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: {version} }} }}
    version_labels {{ key: "stable" value: {version} }}
  }}
}}
"""


def batching_parameters() -> str:
    """``--batching_parameters_file``: merges requests, never pads (that would change images)."""
    # All sizes: otherwise the server fills up with copies of an image, and each costs as much as an image.
    allowed = "".join(f"allowed_batch_sizes: {size}\n" for size in range(1, MAX_BATCH_SIZE + 1))
    return f"""\
# Only serving_bytes can be batched across image sizes. Leave pad_variable_length_inputs off:
# it fills smaller images with their first pixel, which changes their detections.
max_batch_size {{ value: {MAX_BATCH_SIZE} }}
batch_timeout_micros {{ value: {_BATCH_TIMEOUT_MICROS} }}
max_enqueued_batches {{ value: 100 }}
num_batch_threads {{ value: 2 }}
{allowed}"""


MONITORING = """\
# --monitoring_config_file: metrics for Prometheus on the REST port
prometheus_config { enable: true path: "/monitoring/prometheus/metrics" }
"""


# === README ===


def signature_table(folder: Path, signature: str) -> str:
    """Inputs and outputs of a signature as a Markdown table, read back from the SavedModel."""
    definition = read_saved_model(folder / "saved_model.pb").meta_graphs[0].signature_def[signature]
    meaning = {name: tensor.meaning for name, tensor in TENSORS.items()} | {"image_status": _STATUS}
    if "panoptic_seg" in definition.outputs and "num_panoptic_segments" not in definition.outputs:
        meaning |= NUMBERED_SEGMENTS
    if "detection_boxes_xyxy" in definition.outputs:
        meaning["detection_boxes"] = NORMALISED_BOXES
    if "inputs" in definition.inputs and definition.inputs["inputs"].tensor_shape.dim[3].size != 3:
        meaning["inputs"] = OTHER_CHANNELS
    lines = ["| | name | dtype | shape | meaning |", "|---|---|---|---|---|"]
    for kind, infos in (("in", definition.inputs), ("out", definition.outputs)):
        for name in sorted(infos):
            info = infos[name]
            dims = [
                "B" if i == 0 else str(d.size) if d.size >= 0 else "?"
                for i, d in enumerate(info.tensor_shape.dim)
            ]
            dtype = tf.as_dtype(info.dtype).name
            lines.append(f"| {kind} | `{name}` | {dtype} | [{', '.join(dims)}] | {meaning[name]} |")
    return "\n".join(lines)


_RESIZED = {
    "pillow": "with the bytes that Pillow gives",
    "truncated": "with the bytes that Pillow gives and the longer side cut as maskrcnn-benchmark cuts it",
    "factor": "by one factor and without rounding to whole levels, as Detectron does it",
}


def readme(folder: Path, config: ModelConfig, options: GraphOptions, report: ExportReport) -> str:
    """What a person needs who has only this folder."""
    name, sizes = report.name, config.input
    resize = (
        "Images are not resized."
        if sizes.min_size_test == 0
        else f"Images are resized in the graph, shorter side {sizes.min_size_test}, longer side at most "
        f"{sizes.max_size_test}, {_RESIZED[config.conventions.resize]}."
    )
    batch = (
        "Every image is computed on its own canvas: its answer does not depend on the rest of the batch."
        if options.pad_independent
        else "Images of a batch share a canvas as large as the largest of them, as in detectron2. Next to "
        "a larger neighbour, an image is padded, which changes what is found in it, mostly near its right and bottom "
        "edge. Where a server merges requests of several users, prefer `tf-d2 export --pad-independent`: every image "
        "gets the answer it gets alone."
    )
    bad = (
        "An image that cannot be used gets `num_detections` -1 and an `image_status`, its neighbours answers."
        if options.bad_images == "status"
        else "One image that cannot be used fails the whole request (and everything the server merged with it)."
    )
    precision = "The network computes in float32."
    if report.precision == "bfloat16":
        precision = (
            "The network computes in bfloat16: it finds nearly the objects of the float32 model, boxes differ "
            "by about a pixel and scores by about 0.01; weak objects may appear or vanish. Check it on your pictures."
        )
    channels = len(sizes.pixel_mean)
    decoded = f"`serving_bytes`: {DECODED}"
    if takes_files(channels):
        encoded = _MERGE + signature_table(folder, "serving_bytes")
        if channels == 1:
            decoded += " A picture with colours becomes grey as Pillow makes it."
    else:
        decoded = encoded = (
            f"There is no `serving_bytes`: an image file does not hold the {channels} channels of this model. Send "
            "arrays to `serving_default` (`tf_d2.client.Client.predict_batch`)."
        )
    photo, argument, setup = '{\\"b64\\": \\"$(base64 -w0 photo.jpg)\\"}', "", ""
    if config.needs_proposals:
        box = "[[10, 20, 200, 150]]"
        argument, setup = ", boxes", f"boxes = {box}   # x1 y1 x2 y2 in pixels of the photo, best first\n"
        photo = f'{{\\"image_bytes\\": {photo}, \\"proposal_boxes\\": {box}, \\"num_proposals\\": 1}}'
    return README.replace("{call}", _CALL_FILES if takes_files(channels) else _CALL_ARRAYS).format(
        decoded=decoded,
        photo=photo,
        argument=argument,
        setup=setup,
        precision=precision,
        name=name,
        version=report.version,
        architecture=config.meta_architecture,
        default=signature_table(folder, "serving_default"),
        encoded=encoded,
        resize=resize,
        batch=batch,
        bad=bad,
        pixels=f"{options.max_image_pixels:,}",
        size=f"{report.size / 1e6:.1f} MB",
        load=f"{report.load_seconds:.1f} s",
        first=f"{report.first_request_seconds:.1f} s",
        second=f"{report.second_request_seconds:.2f} s",
        tensorflow=tf.__version__,
        tf_d2=tf_d2.__version__,
    )


_MERGE = "Merge requests of any sizes here (`--enable_batching`).\n\n"
_CALL_FILES = """\
```python
from tf_d2.client import Client                         # REST; Client("grpc://localhost:8500", ...) for gRPC
client = Client("http://localhost:8501", "{name}")
{setup}result = client.predict_file("photo.jpg"{argument})     # as tf_d2.Predictor gives it, of what is exported
```

```sh
curl -s localhost:8501/v1/models/{name}:predict -d "{{\\"signature_name\\": \\"serving_bytes\\",
  \\"instances\\": [{photo}]}}"
```

"""
_CALL_ARRAYS = """\
```python
from tf_d2.client import Client
client = Client("grpc://localhost:8500", "{name}")
result = client.predict_batch(array[None])[0]     # uint8, as tf_d2.Predictor takes it
```

"""
README = """\
# {name}

A {architecture} trained in detectron2, exported by tf_d2 {tf_d2} with TensorFlow {tensorflow} for stock
TensorFlow Serving 2.19 or newer. {size}; on the machine that exported it: loaded in {load}, first request
{first}, then {second} (a picture of 4:3).

## Run

```sh
docker run --rm -p 8500:8500 -p 8501:8501 -v "$PWD:/models/{name}:ro" -e MODEL_NAME={name} \\
  -e TF_ENABLE_ONEDNN_OPTS=1 -e TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1 tensorflow/serving:2.20.0

# with labels, metrics and batching
docker run --rm -p 8500:8500 -p 8501:8501 -v "$PWD:/models/{name}:ro" \\
  -e TF_ENABLE_ONEDNN_OPTS=1 -e TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1 tensorflow/serving:2.20.0 \\
  --model_config_file=/models/{name}/models.config --allow_version_labels_for_unavailable_models \\
  --enable_batching --batching_parameters_file=/models/{name}/batching_parameters.txt \\
  --monitoring_config_file=/models/{name}/monitoring.config --rest_api_timeout_in_ms=60000

# without docker
export TF_ENABLE_ONEDNN_OPTS=1 TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1
tensorflow_model_server --port=8500 --rest_api_port=8501 --model_name={name} --model_base_path="$PWD"
```

`TF_ENABLE_ONEDNN_OPTS=1` chooses the faster CPU kernels also on processors where TensorFlow would not by itself (those
without AVX512_VNNI), and `TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1` lets them lay the weights out once instead of in every
request, for a second copy of the weights in memory: set both or neither. The answers are the same, up to rounding.
The server warms up with `{version}/assets.extra/tf_serving_warmup_requests` before it answers.

## Call

{call}
Over gRPC, raise the client's message limit (`grpc.max_receive_message_length`); `tf_d2.client` does.

## Signatures

B images per request. {resize} Channels are put into the network's order in the graph.
{precision}
{batch}
{bad}

{decoded}
Images of more than {pixels} pixels are refused before they are decoded. Files are turned as their EXIF orientation
says (JPEG, PNG, WebP); boxes, masks and `image_size` are those of the upright picture.

### serving_bytes

{encoded}

### serving_default

{default}

Do not use `--enable_batching` with images of different sizes here, and never `pad_variable_length_inputs`.
"""
