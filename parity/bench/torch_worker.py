"""PyTorch's sides of the bench: detectron2 eager, its exports (TorchScript, ONNX), its backbone compiled, or our
reference where detectron2 is not installed.

Every side ends with what detectron2's predictor returns: boxes and full masks in pixels of the picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch

from parity.bench import common
from parity.bench import loop as bench_loop
from parity.core import job as jobs

_Facts = dict[str, Any]
Predict = Callable[[np.ndarray], Mapping[str, Any]]


class _TorchSide:
    """A loaded model and what can be asked of it."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = dict(job)
        if job["device"] == "gpu" and not torch.cuda.is_available():
            raise RuntimeError(f"device gpu: torch {torch.__version__} sees no usable GPU")
        self.images = common.pictures(job)
        self.predict: Predict = _MAKERS[job["backend"]](job)
        self.found: Mapping[str, Any] = {}

    def facts(self) -> _Facts:
        """Versions."""
        text = f"torch {torch.__version__}"
        if self.job["backend"] in _RUNTIMES:
            runtime = _RUNTIMES[self.job["backend"]]
            text = f"{runtime} {import_module(runtime).__version__}"
        device = torch.cuda.get_device_name() if self.job["device"] == "gpu" else ""
        return {"version": text, "accelerator": device}

    def load(self, config_yaml: str, weights: str) -> _Facts:
        """Another model in the place of this one."""
        self.job |= {"config_yaml": config_yaml, "weights": weights, "state": ""}
        self.predict, self.found = _MAKERS[self.job["backend"]](self.job), {}
        return {}

    def run(self, image: int = 0) -> _Facts:
        """One picture, from pixels to masks."""
        self.found = self.predict(self.images[image])
        self._wait()
        return {"detections": common.count_found(self.found)}

    def keep(self, path: str) -> _Facts:
        """Write the detections of the last run."""
        found = self.found["instances"]
        if isinstance(found, Mapping):
            return common.write_found(path, found["pred_boxes"], found["scores"], found["pred_classes"])
        fields = (found.pred_boxes.tensor, found.scores, found.pred_classes)
        return common.write_found(path, *(x.cpu().numpy() for x in fields))

    def batch(self, size: int) -> _Facts:
        """``size`` copies of the picture at once; resizing is done before and not counted."""
        predictor = self._detectron2()
        inputs = [_network_input(predictor, self.images[0]) for _ in range(size)]
        begin = time.perf_counter()
        with torch.no_grad():
            results = predictor.model(inputs)
        self._wait()
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "detections": sum(common.count_found(r) for r in results)}

    def files(self, paths: list[str]) -> _Facts:
        """detectron2's own loop over a data set, as its evaluation runs it: a loader with worker processes, the model
        on one picture after the other, COCO's results."""
        from detectron2.data import DatasetMapper, build_detection_test_loader
        from detectron2.evaluation.coco_evaluation import instances_to_coco_json

        predictor, found = self._detectron2(), 0
        given = [{"file_name": path, "image_id": k} for k, path in enumerate(paths)]
        loader = build_detection_test_loader(
            given,
            mapper=DatasetMapper(predictor.cfg, is_train=False),
            num_workers=predictor.cfg.DATALOADER.NUM_WORKERS,
        )
        begin = time.perf_counter()
        with torch.no_grad():
            for inputs in loader:
                for one, answer in zip(inputs, predictor.model(inputs), strict=True):
                    instances = answer["instances"].to("cpu")
                    json.dumps(instances_to_coco_json(instances, one["image_id"]))
                    found += len(instances)
        return {"seconds": time.perf_counter() - begin, "detections": found}

    def phases(self, path: str) -> _Facts:
        """From a JPEG file to detections, in parts (seconds)."""
        from detectron2.data.detection_utils import read_image

        predictor = self._detectron2()
        marks = [time.perf_counter()]
        image = read_image(path, format="BGR")
        marks.append(time.perf_counter())
        given = _network_input(predictor, image)
        marks.append(time.perf_counter())
        with torch.no_grad():
            raw = predictor.model.inference([given], do_postprocess=False)
            self._wait()
            marks.append(time.perf_counter())
            size = (given["image"].shape[1], given["image"].shape[2])
            found = predictor.model._postprocess(raw, [given], [size])
        marks.append(time.perf_counter())
        names = ("decode", "resize", "network", "post")
        parts = {n: b - a for n, a, b in zip(names, marks, marks[1:], strict=False)}
        return {"seconds": marks[-1] - marks[0], "parts": parts, "detections": common.count_found(found[0])}

    def paste(self, count: int, height: int, width: int) -> _Facts:
        """Masks of ``count`` detections pasted into a large picture."""
        from detectron2.layers import paste_masks_in_image
        from detectron2.structures import Boxes

        masks, boxes = (torch.from_numpy(a) for a in common.masks_to_paste(count, height, width))
        return common.extra_memory(lambda: paste_masks_in_image(masks, Boxes(boxes), (height, width), 0.5))

    def _detectron2(self) -> Any:
        predictor = getattr(self.predict, "predictor", None)
        if predictor is None:
            raise RuntimeError("this measurement needs detectron2 itself; give its interpreter")
        return predictor

    def _wait(self) -> None:
        if self.job["device"] == "gpu":
            torch.cuda.synchronize()


class Detectron2:
    """detectron2's own predictor as a function, with the predictor at hand."""

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor

    def __call__(self, image: np.ndarray) -> Mapping[str, Any]:
        return self.predictor(image)


class BuiltPredictor:
    """detectron2's model of a configuration that DefaultPredictor cannot read, one of its projects' or a LazyConfig
    dump, with what that predictor does around a model."""

    def __init__(self, config_yaml: str, device: torch.device) -> None:
        from detectron2.data.transforms import ResizeShortestEdge

        from parity.backends.detectron2 import build, library

        node = jobs.read_config(config_yaml)[0]["INPUT"]
        self.model = build(library(), config_yaml, device).eval()
        self.input_format = node["FORMAT"]
        self.aug = ResizeShortestEdge([node["MIN_SIZE_TEST"]] * 2, node["MAX_SIZE_TEST"])

    def __call__(self, image: np.ndarray) -> Mapping[str, Any]:
        with torch.no_grad():
            return self.model([_network_input(self, image)])[0]


def make_predictor(job: Mapping[str, Any]) -> Any:
    """detectron2's DefaultPredictor with the job's weights, every one of which must fit, or what stands for it."""
    from parity.backends.detectron2 import needs_more

    config, _ = jobs.read_config(job["config_yaml"])
    predictor: Any = None
    if needs_more(config):
        device = torch.device("cuda" if job["device"] == "gpu" else "cpu")
        predictor = BuiltPredictor(job["config_yaml"], device)
    else:
        predictor = _default_predictor(job)
    state = {k: torch.from_numpy(np.array(v)) for k, v in common.read_state(job).items()}
    missing = predictor.model.load_state_dict(state, strict=False)
    needless = ("num_batches_tracked", "anchor", "pixel_mean", "pixel_std")
    lacking = [k for k in missing.missing_keys if not any(part in k for part in needless)]
    if lacking or missing.unexpected_keys:
        raise RuntimeError(
            f"weights do not fit: missing {lacking[:3]}, unexpected {missing.unexpected_keys[:3]}"
        )
    return predictor


def _default_predictor(job: Mapping[str, Any]) -> Any:
    from detectron2.config import CfgNode, get_cfg
    from detectron2.engine import DefaultPredictor

    cfg = get_cfg()
    with open(job["config_yaml"], encoding="utf-8") as file:
        cfg.merge_from_other_cfg(CfgNode.load_cfg(file))
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cuda" if job["device"] == "gpu" else "cpu"
    return DefaultPredictor(cfg)


def _reference(job: Mapping[str, Any]) -> Predict:
    from parity.backends import torch_reference

    config, _ = jobs.read_config(job["config_yaml"])
    model = torch_reference.build(config)
    torch_reference.load_state(model, common.read_state(job))
    if job["device"] == "gpu":
        model.cuda()
    return lambda image: _lengths(torch_reference.predict(model, image))


def _lengths(result: Mapping[str, Any]) -> dict[str, Any]:
    """The reference's dictionary of fields, which counts its rows as Instances do."""
    return {k: Rows(v) if isinstance(v, Mapping) else v for k, v in result.items()}


class Rows(dict[str, Any]):
    """Fields of equal length; ``len`` is the number of rows."""

    def __len__(self) -> int:
        return len(next(iter(self.values()), ()))


def _detectron2(job: Mapping[str, Any]) -> Predict:
    return Detectron2(make_predictor(job))


def _compiled(job: Mapping[str, Any]) -> Predict:
    """detectron2 with its backbone under torch.compile, weights frozen into the code."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    predictor = make_predictor(job)
    predictor.model.requires_grad_(False)
    predictor.model.backbone = _CompiledBackbone(predictor.model.backbone)
    return Detectron2(predictor)


class _CompiledBackbone(torch.nn.Module):
    """A backbone behind torch.compile that keeps the attributes other modules read from it."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.size_divisibility = backbone.size_divisibility
        self.padding_constraints = backbone.padding_constraints
        self.compiled = torch.compile(backbone)

    def forward(self, x: torch.Tensor) -> Any:
        """Feature maps by name."""
        return self.compiled(x)


def _torchscript(job: Mapping[str, Any]) -> Predict:
    """The traced model that bench_export wrote, frozen and optimised for inference."""
    import torchvision  # noqa: F401 - registers the operations that the file names

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.optimize_for_inference(torch.jit.load(job["target"]).eval())

    def network(pixels: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [x.numpy() for x in model(torch.from_numpy(pixels)) if isinstance(x, torch.Tensor)]

    return _exported(job, network)


def _onnx(job: Mapping[str, Any]) -> Predict:
    """An ONNX file that takes the network image (3, H, W) float32, in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"] or 0
    # Threads that wait actively would disturb whichever side runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(job["target"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return _exported(job, lambda pixels: [np.asarray(x) for x in session.run(None, {name: pixels})])


def _openvino(job: Mapping[str, Any]) -> Predict:
    """The same ONNX file, or what OpenVINO's PyTorch front end made of the model, in OpenVINO on the CPU: in float32,
    or as it comes (bfloat16 where the processor has it)."""
    openvino: Any = import_module("openvino")
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": job["threads"]} if job["threads"] else {}
    if job["backend"] != "openvino-default":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    model = openvino.Core().compile_model(job["target"], "CPU", settings)

    def network(pixels: np.ndarray) -> list[np.ndarray]:
        answer = model([pixels])
        return [np.array(answer[output]) for output in model.outputs]

    return _exported(job, network)


def _exported(job: Mapping[str, Any], network: Callable[[np.ndarray], list[np.ndarray]]) -> Predict:
    """Resizing before and detectron2's post-processing after an exported network."""
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.modeling.postprocessing import detector_postprocess

    config, _ = jobs.read_config(job["config_yaml"])
    node = config["INPUT"]
    shorter = node["MIN_SIZE_TEST"]
    resize = ResizeShortestEdge([shorter, shorter], node["MAX_SIZE_TEST"])

    def predict(image: np.ndarray) -> Mapping[str, Any]:
        pixels = resize.get_transform(image).apply_image(image).astype(np.float32).transpose(2, 0, 1)
        found = _as_instances(network(np.ascontiguousarray(pixels)), (pixels.shape[1], pixels.shape[2]))
        return {"instances": detector_postprocess(found, *image.shape[:2])}

    return predict


def _as_instances(outputs: list[np.ndarray], size: tuple[int, int]) -> Any:
    """The flat outputs of a traced model, told apart by shape and dtype, as detectron2's Instances."""
    from detectron2.structures import Boxes, Instances

    made: dict[str, Any] = {}
    for array in outputs:
        tensor = torch.from_numpy(array)
        if array.ndim == 4:
            made["pred_masks"] = tensor
        elif array.ndim == 2 and array.shape[1] == 4:
            made["pred_boxes"] = Boxes(tensor)
        elif array.ndim == 1 and array.dtype.kind == "f":
            made["scores"] = tensor
        elif array.ndim == 1 and "pred_classes" not in made:
            made["pred_classes"] = tensor  # the size of the image, also whole numbers, comes last
    return Instances(size, **made)


def _network_input(predictor: Any, image: np.ndarray) -> dict[str, Any]:
    """What detectron2's predictor hands to its model."""
    pixels = image[:, :, ::-1] if predictor.input_format == "RGB" else image
    pixels = predictor.aug.get_transform(pixels).apply_image(pixels)
    tensor = torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1))
    return {"image": tensor, "height": image.shape[0], "width": image.shape[1]}


_MAKERS: dict[str, Callable[[Mapping[str, Any]], Predict]] = {
    "torch": _reference,
    "detectron2": _detectron2,
    "compile": _compiled,
    "torchscript": _torchscript,
    "onnx": _onnx,
    "openvino": _openvino,
    "openvino-default": _openvino,
    "openvino-torch": _openvino,
}
_RUNTIMES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "openvino-default": "openvino",
    "openvino-torch": "openvino",
}


def load(job: Mapping[str, Any]) -> tuple[bench_loop.Actions, _Facts]:
    """The actions of a job (see `parity.bench.bench`)."""
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    if job.get("tf32") is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = job["tf32"]
    side = _TorchSide(job)
    names = ("load", "run", "keep", "batch", "files", "phases", "paste")
    return {name: getattr(side, name) for name in names}, side.facts()


def main() -> int:
    """Run one job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = common.read_job(parser.parse_args().job)
    return bench_loop.serve(lambda: load(job))


if __name__ == "__main__":
    sys.exit(main())
