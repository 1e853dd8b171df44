"""The real detectron2 as a backend; for an interpreter that has detectron2.

    python -m parity.backends.detectron2 --job job.json

In the float32 profiles the model is called as a user calls it, and forward hooks record what its modules
return. In the semantic profile and for teacher-forced arrays detectron2's own modules and functions are
called one unit at a time (`parity.backends.detectron2_units`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from parity.backends import detectron2_lazy as lazy
from parity.backends import detectron2_tokens as tokens
from parity.backends import driver
from parity.backends.detectron2_project_units import size
from parity.backends.detectron2_projects import add_config as add_projects
from parity.backends.detectron2_projects import projects_of, tell_things
from parity.backends.detectron2_units import OPS, panoptic
from parity.backends.driver import Arrays, Segments
from parity.backends.torch_backend import TorchBackend, flatten, recorder
from parity.core import job as jobs
from parity.core.extensions import load_extensions
from parity.core.job import Job, JobError
from parity.core.units import Unit, is_harmless
from parity.core.units import units as units_of


def library() -> SimpleNamespace:
    """The parts of detectron2 that are used. Raises JobError where detectron2 cannot be imported."""
    names = {
        "layers": "detectron2.layers",
        "modeling": "detectron2.modeling",
        "postprocessing": "detectron2.modeling.postprocessing",
        "fast_rcnn": "detectron2.modeling.roi_heads.fast_rcnn",
        "mask_head": "detectron2.modeling.roi_heads.mask_head",
        "panoptic": "detectron2.modeling.meta_arch.panoptic_fpn",
        "structures": "detectron2.structures",
        "keypoints": "detectron2.structures.keypoints",
        "transforms": "detectron2.data.transforms",
        "config": "detectron2.config",
    }
    try:
        return SimpleNamespace(**{key: importlib.import_module(name) for key, name in names.items()})
    except ImportError as error:
        raise JobError(f"detectron2 cannot be imported by {sys.executable}: {error}") from error


def needs_more(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one that detectron2's DefaultPredictor cannot read: it is a LazyConfig dump, or needs
    one of detectron2's projects or keys of our own."""
    return lazy.is_lazy(config) or "REGNETS" in config["MODEL"] or bool(projects_of(config["MODEL"]))


def read_config(library: SimpleNamespace, path: str) -> Any:
    """detectron2's configuration of a resolved YAML file."""
    cfg = library.config.get_cfg()
    node = yaml.safe_load(Path(path).read_text(encoding="utf-8"))["MODEL"]
    if "REGNETS" in node:
        importlib.import_module("parity.backends.detectron2_regnet").add_regnet(cfg)
    add_projects(cfg, node)
    for extension in load_extensions():
        getattr(extension, "prepare", lambda _: None)(cfg)
    cfg.merge_from_file(path)
    return cfg


def build(library: SimpleNamespace, path: str, device: torch.device) -> Any:
    """The module of a resolved configuration, be it of keys or a LazyConfig dump."""
    data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if lazy.is_lazy(data):
        return lazy.build_model(library, data).to(device)
    cfg = read_config(library, path)
    cfg.MODEL.DEVICE = str(device)
    cfg.MODEL.WEIGHTS = ""
    model = library.modeling.build_model(cfg)
    tell_things(model, cfg)
    return model


class Detectron2(TorchBackend):
    """The real model."""

    name = "detectron2"

    def __init__(self, job: Job, config: Mapping[str, Any]) -> None:
        super().__init__(job, deterministic_or_error=False)
        self.library = library()
        self.model: Any = build(self.library, job.config_yaml, self.device).eval().requires_grad_(False)
        load_state(self.model, jobs.read_state(job.weights))
        self.config = config
        for module in self.model.modules():
            if type(module).__name__ == "RoIPool":  # unlike ROIAlign it does not cast the boxes itself
                module.register_forward_pre_hook(_cast_boxes)
        self.units = units_of(config)
        # Normalisation happens in float32 in every profile, but the module is cast as a whole.
        self.pixels = (self.model.pixel_mean.clone(), self.model.pixel_std.clone())
        self.module = self.model.to(self.torch_dtype)
        packages = ("detectron2", "torchvision", "fvcore", "pillow")
        self.packages = {name: _version(name) for name in packages}

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[Arrays, Segments]:
        """Every array of one image by name, and its panoptic segments."""
        given: Arrays = {"input/image": image}
        if proposals is not None:
            limit = self.config["DATASETS"]["PRECOMPUTED_PROPOSAL_TOPK_TEST"]
            given["steps/input_proposals"] = proposals[:limit].astype(np.float32)
        if self.dtype == "float64":
            return driver.run_units(self, self.units, given)
        with torch.inference_mode():
            return self._run_model(given)

    def compute(self, unit: Unit, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """One unit by detectron2's modules and functions; inputs cast as the unit's kind says."""
        with torch.inference_mode():
            given = [torch.from_numpy(np.array(x)) for x in inputs]
            dtype = self.torch_dtype if unit.kind == "continuous" else torch.float32
            cast = [x.to(dtype) if x.is_floating_point() else x for x in given]
            if unit.op == "roi_pool":
                cast[-1] = given[-1].float()
            # Copies, because detectron2 changes some of what it is given.
            cast = [x.to(self.device, copy=True) for x in cast]
            if unit.op == "panoptic":
                result, segments = panoptic(self, cast)
                return [result.cpu().numpy(), np.array(json.dumps(segments))]
            outputs = OPS[unit.op](self, unit, cast)
            return [x.cpu().numpy().copy() for x in outputs]

    def _run_model(self, arrays: Arrays) -> tuple[Arrays, Segments]:
        image = arrays["input/image"]
        resized = OPS["resize"](self, _GIVEN, [torch.from_numpy(image)])[0]
        given = {
            "image": resized.permute(2, 0, 1).float(),
            "height": image.shape[0],
            "width": image.shape[1],
        }
        arrays["input/resized"] = resized.numpy()
        if "steps/input_proposals" in arrays:
            boxes = torch.from_numpy(arrays["steps/input_proposals"])
            given["proposals"] = self.instances(resized, proposal_boxes=boxes)
        with self._hooks(arrays):
            (result,) = self.module([given])
        panoptic, segments = result.pop("panoptic_seg", (None, None))
        result |= {} if panoptic is None else {"panoptic_seg": panoptic}
        arrays |= {f"output{suffix}": value.cpu().numpy() for suffix, value in flatten(result)}
        wanted = {name for unit in self.units for name in (*unit.inputs, *unit.outputs)}
        return {name: array for name, array in arrays.items() if name in wanted}, segments or []

    @contextlib.contextmanager
    def _hooks(self, into: Arrays) -> Iterator[None]:
        """Record the outputs of the modules that the stage table names, the network input, and the boxes that
        the later stages of a cascade pool."""
        outputs = [stage for unit in self.units for stage in unit.outputs]
        stages = [stage for stage in outputs if stage.startswith("steps/") and stage != "steps/input"]
        modules = dict(self.module.named_modules())
        names = tokens.hooked(modules, stages)
        handles = [modules[name].register_forward_hook(recorder(name, into)) for name in names]

        def network_input(module: nn.Module, inputs: Any) -> None:
            into["steps/input"] = inputs[0].cpu().numpy().copy()

        handles.append(modules["backbone"].register_forward_pre_hook(network_input))
        if "roi_heads.box_pooler" in modules:
            handles.append(modules["roi_heads.box_pooler"].register_forward_pre_hook(_box_recorder(into)))
        try:
            with tokens.recording(self.module, stages, into):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def instances(self, resized: Tensor, **fields: Tensor) -> Any:
        """detectron2's Instances in network pixels; fields whose name ends in `boxes` become Boxes."""
        structures = self.library.structures
        made = {k: structures.Boxes(v) if k.endswith("boxes") else v for k, v in fields.items()}
        return structures.Instances(size(resized), **made)


_GIVEN = Unit("resize", "resize", (), (), "discrete")


def load_state(module: nn.Module, state: Mapping[str, np.ndarray]) -> None:
    """Copy every array into the real model. Raises JobError listing missing, unexpected and misshapen
    entries."""
    given = {key: torch.from_numpy(np.array(value)) for key, value in state.items() if not is_harmless(key)}
    held = {key: value for key, value in module.state_dict().items() if not is_harmless(key)}
    problems = [f"missing {key}" for key in held if key not in given]
    problems += [f"unexpected {key}" for key in given if key not in held]
    problems += [
        f"shape of {key} is {tuple(given[key].shape)}, the model has {tuple(held[key].shape)}"
        for key in held
        if key in given and given[key].shape != held[key].shape
    ]
    if problems:
        raise JobError("the state dict does not fit the configuration:\n  " + "\n  ".join(sorted(problems)))
    module.load_state_dict(given, strict=False)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cast_boxes(module: nn.Module, inputs: Any) -> Any:
    features, boxes = inputs
    return features, boxes.to(features.dtype)


def _box_recorder(into: Arrays) -> Callable[[nn.Module, Any], None]:
    """A hook on the box pooler that records what its second and later calls pool."""
    calls = 0

    def hook(module: nn.Module, inputs: Any) -> None:
        nonlocal calls
        if calls:
            into[f"steps/roi_heads/cascade_boxes/{calls}"] = inputs[1][0].tensor.cpu().numpy().copy()
        calls += 1

    return hook


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    return driver.main(Detectron2, arguments)


if __name__ == "__main__":
    sys.exit(main())
