"""What a worker is asked to do, and what it says about itself: read by every worker, written by the runner.

A job is a JSON object:
    config_yaml   path of a resolved detectron2 configuration (full dump: every inference key present)
    weights       path of the state dict with detectron2's keys: .npz, or .h5 with group `weights/<key>`
    images        paths of pictures: .npy (BGR uint8 (H, W, 3)) or image files (read as detectron2 reads them)
    output        path of the trace to write
    profile       semantic (float64), strict (float32, no TF32, deterministic) or production; default strict
    device        cpu or gpu; default cpu
    threads       number of threads inside an operation; default: what the framework chooses
    proposals     paths of .npy files, one per image, for models with precomputed proposals: (N, 4) xyxy
                  in pixels of the network input, best first
    feed          path of another trace; its arrays are the inputs of the teacher-forced stages
    repeat        how often to run; later runs are compared with the first bit for bit; default 1
    roi_rows      keep only that many rows of ROI features; default all
    modules       names of further modules to record (`backbone.bottom_up.res2`), or ["all"]
    weights_sha256  hash of the checkpoint that `weights` was made from, for the manifest
    backend       which backend it is for, and its target: the folder or URL of an exported model, an ONNX file
    mode          "trace"; "keep": traces of what standard input names, see `backends.driver`; or what a program
                  beside the backends is to do (`parity.backends.tf_tools`)
    opts, dtype   of the TensorFlow model: changes of its configuration; a dtype that is not the profile's
    mutate        name of the bug to plant in the TensorFlow model; mutations: several, one after the other
    ignore_keys, ignore_tensors, prefix   what to leave out of the user's files (see `tf_d2.Predictor`)
    folder        of the user, who names files relative to it
numpy and h5py only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from PIL import Image, ImageOps

from weights.errors import UserError

PROFILES = ("semantic", "strict", "production")
DEVICES = ("cpu", "gpu")


# HOST:PORT[/PREFIX]/MODEL, also as TensorFlow Serving's documentation writes it for REST: with v1/models/ before
# the name and a version or label after it. PREFIX is what a proxy may want, and never holds v1/models itself.
_SERVED = re.compile(
    r"(?P<server>(?:(?!/v1/models(?:/|$)).)+?)/(?:v1/models/)?(?P<model>[^/:]+)"
    r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
)


class JobError(UserError, ValueError):
    """A job that cannot be done as written; the message says what to change."""


@dataclass(frozen=True)
class Job:
    """See the module's text for the fields."""

    config_yaml: str
    weights: str
    images: tuple[str, ...]
    output: str
    profile: str = "strict"
    device: str = "cpu"
    threads: int | None = None
    proposals: tuple[str, ...] = ()
    feed: str | None = None
    repeat: int = 1
    roi_rows: int | None = None
    modules: tuple[str, ...] = ()
    weights_sha256: str | None = None
    mode: str = "trace"
    backend: str = ""
    target: str = ""
    opts: tuple[Any, ...] = ()
    dtype: str = ""
    mutate: str = ""
    mutations: tuple[str, ...] = ()
    folder: str = "."
    ignore_keys: tuple[str, ...] = ()
    ignore_tensors: tuple[str, ...] = ()
    prefix: str | None = None

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise JobError(f"profile {self.profile!r} is not one of {', '.join(PROFILES)}")
        if self.device not in DEVICES:
            raise JobError(f"device {self.device!r} is not one of {', '.join(DEVICES)}")
        if not self.images:
            raise JobError("a job needs at least one image")
        if self.proposals and len(self.proposals) != len(self.images):
            raise JobError(f"{len(self.proposals)} proposal files for {len(self.images)} images")
        for name in ("repeat", "threads", "roi_rows"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise JobError(f"{name} must be a whole number of at least 1, not {value!r}")


def read_job(path: str | os.PathLike[str]) -> Job:
    """The job in a JSON file. Raises JobError naming what is missing, unknown or wrong."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"cannot read job {path}: {error}") from error
    if not isinstance(value, dict):
        raise JobError(f"job {path} is not a JSON object")
    known = {field.name for field in fields(Job)}
    if unknown := sorted(set(value) - known):
        raise JobError(
            f"job {path} has unknown entries: {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    if missing := sorted({"config_yaml", "weights", "images", "output"} - set(value)):
        raise JobError(f"job {path} lacks {', '.join(missing)}")
    given: dict[str, Any] = {
        key: tuple(item) if isinstance(item, list) else item for key, item in value.items()
    }
    return Job(**given)


def read_config(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """(configuration, its text) of a resolved YAML file; safe YAML only."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise JobError(f"cannot read configuration {path}: {error}") from error
    if not isinstance(config, dict) or "MODEL" not in config:
        raise JobError(f"{path} is not a resolved detectron2 configuration: it has no MODEL node")
    return config, text


def channels_of(config: Mapping[str, Any]) -> int:
    """How many channels the pictures of a model have: as many as it has means."""
    means = config["MODEL"].get("PIXEL_MEAN")
    return len((config.get("model") or {}).get("pixel_mean", (0, 0, 0)) if means is None else means)


def read_image(path: str | os.PathLike[str], channels: int = 3) -> np.ndarray:
    """A picture as uint8 (H, W, channels), turned upright as its EXIF data say: BGR; one channel is grey as Pillow
    makes it. Other numbers of channels are read from .npy files only."""
    try:
        if Path(path).suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as picture:
                upright = ImageOps.exif_transpose(picture)
                array = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
                array = array[:, :, None] if channels == 1 else array[:, :, ::-1]
    except (OSError, ValueError) as error:
        raise JobError(f"cannot read image {path}: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != channels or 0 in array.shape:
        raise JobError(
            f"image {path} is {array.dtype} {array.shape}; needed: uint8 (H, W, {channels}), not empty"
            + (
                f"; as a .npy file, as no image file holds {channels} channels"
                if channels not in (1, 3)
                else ""
            )
        )
    return np.ascontiguousarray(array)


def read_proposals(path: str | os.PathLike[str]) -> np.ndarray:
    """Boxes of one picture, float32 (N, 4) xyxy in pixels of the network input."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise JobError(f"cannot read proposals {path}: {error}") from error
    if array.ndim != 2 or array.shape[1] != 4:
        raise JobError(f"proposals {path} have shape {array.shape}; needed: (N, 4)")
    return array.astype(np.float32)


def read_state(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """A state dict with detectron2's keys from .npz or from the `weights` group of an .h5 file or trace."""
    suffix = Path(path).suffix
    try:
        if suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        if suffix in (".h5", ".hdf5"):
            return _read_h5(path)
    except (OSError, ValueError, KeyError) as error:
        raise JobError(f"cannot read weights {path}: {error}") from error
    raise JobError(f"weights {path}: needed .npz or .h5; convert the checkpoint first")


def _read_h5(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    state: dict[str, np.ndarray] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            state[name] = np.asarray(item[()])

    with h5py.File(path, "r") as file:
        link = file.get("weights", getlink=True) if "weights" in file else None
        group: Any = file["weights"] if isinstance(link, h5py.HardLink) else None
        if not isinstance(group, h5py.Group):
            raise KeyError("it has no group 'weights'")
        group.visititems(visit)
    return state


@dataclass(frozen=True)
class ServedModel:
    """A model on a server, as `tf_d2.client.Client` wants it: the server's URL ends before `/v1/models`."""

    server: str
    model: str
    version: int | None = None
    label: str | None = None


def read_served(text: str) -> ServedModel:
    """The model that `serving:` is followed by. Raises JobError with the forms that are known."""
    scheme, _, rest = text.partition("://")
    found = _SERVED.fullmatch(rest.removesuffix("/").removesuffix(":predict"))
    if scheme not in ("http", "https", "grpc") or found is None:
        raise JobError(
            f"serving:{text}: expected serving:http://HOST:8501/MODEL (REST; .../v1/models/MODEL and "
            "/versions/N after it are understood too) or serving:grpc://HOST:8500/MODEL"
        )
    version = found["version"]
    server = f"{scheme}://{found['server']}"
    return ServedModel(server, found["model"], int(version) if version else None, found["label"])


# ------------------------------------------------------------------------------- what a worker says of itself


def say(event: str, **values: Any) -> None:
    """One line of progress (a JSON object) for the process that started this one."""
    print(json.dumps({"event": event, **values}), flush=True)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tensor_hash(array: np.ndarray) -> str:
    """Hash of a weight's shape and float32 values in detectron2's layout, the same as `parity.judge.sides` has.

    Defined here too so that a worker's interpreter needs nothing that judging needs.
    """
    values = np.ascontiguousarray(array, dtype=np.float32)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()[:32]


def differing(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the arrays that are not bit for bit the same in two runs."""
    names = sorted(set(first) | set(second))
    return [
        name
        for name in names
        if name not in first or name not in second or not _same(first[name], second[name])
    ]


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
