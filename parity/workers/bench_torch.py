"""PyTorch's side of the bench: detectron2 (eager, or its traced TorchScript), our reference, or an ONNX
file."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from parity import job as jobs
from parity.workers import bench_loop


def load(job: Mapping[str, Any]) -> tuple[bench_loop.Run, dict[str, Any]]:
    """The model of a job {"backend", "config_yaml", "weights", "image", "threads", "device", "target"}."""
    import torch

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    if job["device"] == "gpu" and not torch.cuda.is_available():
        raise RuntimeError(f"device gpu: torch {torch.__version__} sees no usable GPU")
    image = jobs.read_image(job["image"])
    makers = {
        "torch": _reference,
        "detectron2": _detectron2,
        "torchscript": _torchscript,
        "onnx": _onnx,
    }
    run = makers[job["backend"]](job, image)
    return run, {"version": f"torch {torch.__version__}"}


def _reference(job: Mapping[str, Any], image: np.ndarray) -> bench_loop.Run:
    from parity import torch_reference

    config, _ = jobs.read_config(job["config_yaml"])
    model = torch_reference.build(config)
    torch_reference.load_state(model, jobs.read_state(job["state"]))
    if job["device"] == "gpu":
        model.cuda()

    def run() -> int:
        values, _ = torch_reference.run_free(model, image, None)
        found = [
            v
            for n, v in values.items()
            if n in ("output/instances/scores", "output/proposals/objectness_logits")
        ]
        return len(found[0]) if found else 0

    return run


def _detectron2_predictor(job: Mapping[str, Any]) -> Any:
    import torch
    from detectron2.config import CfgNode, get_cfg
    from detectron2.engine import DefaultPredictor

    cfg = get_cfg()
    with open(job["config_yaml"], encoding="utf-8") as file:
        cfg.merge_from_other_cfg(CfgNode.load_cfg(file))
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cuda" if job["device"] == "gpu" else "cpu"
    predictor = DefaultPredictor(cfg)
    state = {k: torch.from_numpy(np.array(v)) for k, v in jobs.read_state(job["state"]).items()}
    missing = predictor.model.load_state_dict(state, strict=False)
    lacking = [k for k in missing.missing_keys if "num_batches_tracked" not in k and "anchor" not in k]
    if lacking or missing.unexpected_keys:
        raise RuntimeError(
            f"weights do not fit: missing {lacking[:3]}, unexpected {missing.unexpected_keys[:3]}"
        )
    return predictor


def _detectron2(job: Mapping[str, Any], image: np.ndarray) -> bench_loop.Run:
    predictor = _detectron2_predictor(job)

    def run() -> int:
        result = predictor(image)
        return next((len(result[k]) for k in ("instances", "proposals") if k in result), 0)

    return run


def _torchscript(job: Mapping[str, Any], image: np.ndarray) -> bench_loop.Run:
    """detectron2's own export path: TracingAdapter, frozen and optimised for inference. The network only,
    on the resized picture; results stay in network pixels, so it does a little less than the other sides."""
    import torch
    from detectron2.export import TracingAdapter

    predictor = _detectron2_predictor(job)
    resized = predictor.aug.get_transform(image).apply_image(image)
    tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
    model = predictor.model.eval()

    def infer(model: Any, inputs: Any) -> Any:
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapter = TracingAdapter(model, [{"image": tensor}], infer)
        traced = torch.jit.optimize_for_inference(
            torch.jit.freeze(torch.jit.trace(adapter, (tensor,), check_trace=False).eval())  # pyright: ignore
        )

    def run() -> int:
        with torch.no_grad():
            pixels = predictor.aug.get_transform(image).apply_image(image)
            outputs = traced(torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1)))
        return len(outputs[0])

    return run


def _onnx(job: Mapping[str, Any], image: np.ndarray) -> bench_loop.Run:
    """An ONNX file that takes the network image (3, H, W) float32, in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"] or 0
    session = onnxruntime.InferenceSession(job["target"], options, providers=["CPUExecutionProvider"])
    config, _ = jobs.read_config(job["config_yaml"])
    from parity.torch_reference.run import network_size

    size = network_size(image.shape[:2], config["INPUT"]["MIN_SIZE_TEST"], config["INPUT"]["MAX_SIZE_TEST"])
    name = session.get_inputs()[0].name

    def run() -> int:
        from PIL import Image

        resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))  # pyright: ignore
        outputs = session.run(None, {name: resized.astype(np.float32).transpose(2, 0, 1)})
        return len(outputs[0])

    return run


def main() -> int:
    """Run one job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = json.loads(Path(parser.parse_args().job).read_text())
    return bench_loop.serve(lambda: load(job))


if __name__ == "__main__":
    sys.exit(main())
