"""Writes detectron2's exports for the bench: the traced network as TorchScript, as ONNX at opset 16, or as OpenVINO's
own reading of the PyTorch model.

    python -m parity.bench.torch_export --job {"format", "config_yaml", "weights", "image", "output"}

All go through detectron2's TracingAdapter without its post-processing (the bench does that afterwards, on every
side). The ONNX file comes from torch's TorchScript-based exporter, in which ROIAlign is one standard node; "onnx-free"
is the same with the height and width of the picture left open.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from parity.bench.torch_worker import _network_input, make_predictor
from parity.core import job as jobs

_OPSET = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = json.loads(Path(parser.parse_args(arguments).job).read_text())
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _write(job)
    except Exception as error:
        jobs.say("error", message=f"{type(error).__name__}: {error}"[:2000])
        return 2
    jobs.say("done", megabytes=Path(job["output"]).stat().st_size / 1e6)
    return 0


def _write(job: dict[str, Any]) -> None:
    from detectron2.export import TracingAdapter

    predictor = make_predictor({**job, "device": "cpu"})
    tensor = _network_input(predictor, jobs.read_image(job["image"]))["image"]
    adapter = TracingAdapter(predictor.model, [{"image": tensor}], _infer).eval()
    if job["format"] in ("onnx", "onnx-free"):
        free = {"input_names": ["image"], "dynamic_axes": {"image": {1: "height", 2: "width"}}}
        settings: dict[str, Any] = free if job["format"] == "onnx-free" else {}
        torch.onnx.export(adapter, (tensor,), job["output"], opset_version=_OPSET, dynamo=False, **settings)
        return
    if job["format"] == "openvino":
        openvino: Any = import_module("openvino")
        model = openvino.convert_model(adapter, example_input=(tensor,), input=[[3, -1, -1]])
        openvino.save_model(model, job["output"], compress_to_fp16=False)
        return
    traced: Any = torch.jit.trace(adapter, (tensor,), check_trace=False)
    torch.jit.freeze(traced.eval()).save(job["output"])


def _infer(model: Any, inputs: Any) -> list[dict[str, Any]]:
    return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]


if __name__ == "__main__":
    sys.exit(main())
