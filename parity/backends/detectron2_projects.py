"""The packages in detectron2's projects folder: which of them a model needs, where they are, and what one of them
lacks on a CPU.

PointRend, DeepLab and Panoptic-DeepLab are installed with detectron2 (`detectron2.projects`); the others are found
where the user has put them: installed, or on PYTHONPATH.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity.core.job import JobError

# Keys of MODEL, the package that adds them, and its function.
_SECTIONS = (
    ("POINT_HEAD", "point_rend", "add_pointrend_config"),
    ("ROI_DENSEPOSE_HEAD", "densepose", "add_densepose_config"),
)
# How the names of parts begin, for projects whose keys are not written where they have their defaults.
_PARTS = (
    ("PointRend", "point_rend", "add_pointrend_config"),
    ("ImplicitPointRend", "point_rend", "add_pointrend_config"),
    ("CoarseMaskHead", "point_rend", "add_pointrend_config"),
    ("DensePose", "densepose", "add_densepose_config"),
    ("build_trident", "tridentnet", "add_tridentnet_config"),
    ("Trident", "tridentnet", "add_tridentnet_config"),
    ("PanopticDeepLab", "panoptic_deeplab", "add_panoptic_deeplab_config"),
    ("build_resnet_deeplab", "deeplab", "add_deeplab_config"),
    ("DeepLab", "deeplab", "add_deeplab_config"),
    ("TensorMask", "tensormask", "add_tensormask_config"),
)


def projects_of(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Package and function of every project that a MODEL node needs, each once."""
    names = [section.get("NAME") for section in node.values() if isinstance(section, Mapping)]
    names.append(node.get("META_ARCHITECTURE"))
    found = [(package, add) for section, package, add in _SECTIONS if section in node]
    found += [(package, add) for start, package, add in _PARTS for n in names if str(n).startswith(start)]
    # One function calls the other, and each begins anew.
    overridden = ("deeplab", "add_deeplab_config")
    if ("panoptic_deeplab", "add_panoptic_deeplab_config") in found:
        found = [entry for entry in found if entry != overridden]
    return list(dict.fromkeys(found))


def add_config(cfg: Any, node: Mapping[str, Any]) -> None:
    """Add the keys of every project that a MODEL node needs. Raises JobError where one cannot be imported."""
    for package, add in projects_of(node):
        getattr(project(package), add)(cfg)
    if node.get("META_ARCHITECTURE") == "PanopticDeepLab":  # keys of this project, see `tell_things`
        cfg.MODEL.PANOPTIC_DEEPLAB.THING_IDS, cfg.MODEL.PANOPTIC_DEEPLAB.LABEL_DIVISOR = [], 1000


def tell_things(model: Any, cfg: Any) -> None:
    """Tell a Panoptic-DeepLab which classes are things, where the configuration says it and not a known data set."""
    section = cfg.MODEL.get("PANOPTIC_DEEPLAB", {})
    if things := section.get("THING_IDS"):
        known = {int(k): int(k) for k in things}
        model.meta = types.SimpleNamespace(
            thing_dataset_id_to_contiguous_id=known, label_divisor=int(section["LABEL_DIVISOR"])
        )


def project(name: str) -> Any:
    """The package. Raises JobError where it cannot be imported."""
    if name == "tensormask":
        _complete_tensormask()
    if name == "panoptic_deeplab":
        _do_without_panopticapi()
    problems = []
    for place in (f"detectron2.projects.{name}", name):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            problems.append(str(error))
    raise JobError(
        f"the package {name} of detectron2's projects cannot be imported by {sys.executable} "
        f"({'; '.join(problems)}): put its folder (projects/DensePose, projects/TridentNet ...) on PYTHONPATH"
    )


def _do_without_panopticapi() -> None:
    """Let Panoptic-DeepLab be imported where panopticapi is not installed, which only its training reads."""
    if "panopticapi" in sys.modules or importlib.util.find_spec("panopticapi"):
        return

    def rgb2id(*_: Any) -> Any:
        raise JobError("panopticapi is not installed; training needs it, inference does not")

    package, functions = types.ModuleType("panopticapi"), types.ModuleType("panopticapi.utils")
    setattr(functions, "rgb2id", rgb2id)  # noqa: B010  (a module has no such attribute for a type checker)
    sys.modules |= {package.__name__: package, functions.__name__: functions}


def beside(part: Any, name: str) -> Any:
    """The module called `name` in the package that the class of a part of the model is from."""
    package = type(part).__module__.rpartition(".")[0]
    return importlib.import_module(f"{package}.{name}")


# ---- TensorMask's operation --------------------------------------------------------------------------------


def _complete_tensormask() -> None:
    """Give TensorMask its operation where it was not compiled: it has a kernel for GPUs only."""
    spec = importlib.util.find_spec("tensormask")
    endings = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    if any(path.name.endswith(endings) for folder in folders for path in Path(folder).glob("_C*")):
        return
    module: Any = types.ModuleType("tensormask._C")
    module.swap_align2nat_forward = swap_align2nat
    sys.modules.setdefault("tensormask._C", module)


def swap_align2nat(x: Tensor, unit: int, outside: float) -> Tensor:
    """Aligned masks (N, V * U, H, W) -> natural ones (N, S_v * S_u, ceil(H / unit), ceil(W / unit)), S = unit * V.

    The operation of https://arxiv.org/abs/1903.12174, one direction after the other. outside: logit of what lies
    beyond the map or a window.
    """
    n, channels, height, width = x.shape
    side = round(channels**0.5)
    x = x.reshape(n, side, side, height, width).permute(0, 2, 4, 1, 3)  # n, u, w, v, h
    y = _swap_one(x.reshape(-1, side, height), unit, outside)
    new, rows = y.shape[1:]
    y = y.reshape(n, side, width, new, rows).permute(0, 3, 4, 1, 2)  # n, v, h, u, w
    y = _swap_one(y.reshape(-1, side, width), unit, outside)
    y = y.reshape(n, new, rows, new, y.shape[2]).permute(0, 1, 3, 2, 4)
    return y.reshape(n, new * new, rows, y.shape[4])


def _swap_one(x: Tensor, unit: int, outside: float) -> Tensor:
    """The same along one direction: lines of windows and of the map, (B, V, H) -> (B, unit * V, ceil(H / unit))."""
    side, height = x.shape[1:]
    new, rows = unit * side, -(-height // unit)
    v = torch.arange(new, dtype=torch.float64)
    # Lines of the finer windows lie between those of the given ones.
    inside = (v + 0.5) / unit - 0.5
    low = inside.floor()
    part = (inside - low).to(x.dtype)[:, None]
    padded = F.pad(x, (0, 0, 1, 1), value=outside)
    lines = padded[:, low.long() + 1] * (1 - part) + padded[:, low.long() + 2] * part
    # The window around a cell of the coarser map begins half a window before it.
    place = unit * torch.arange(rows, dtype=torch.float64) + v[:, None] - new / 2 + 0.5
    low = place.floor()
    part = (place - low).to(x.dtype)
    padded = F.pad(lines, (new, new + unit + 1), value=outside)
    index = (low.long() + new).expand(len(x), new, rows)
    return padded.gather(2, index) * (1 - part) + padded.gather(2, index + 1) * part
