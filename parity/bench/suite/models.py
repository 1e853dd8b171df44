"""The models and pictures of ``tf-d2 bench --all``: published configurations with random weights.

Trained checkpoints are not at hand everywhere, and what a bench times is arithmetic: the configurations are the
published ones, the weights are made so that the model behaves like a trained one (`parity.bench.suite.weights`),
and both are made again by one command, always the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.bench.bench import Options, Subject
from parity.running.worker import Program, call_worker
from weights.errors import UsageError

SEED = 1
_PREPARE_SECONDS = 3600.0


@dataclass(frozen=True)
class _Published:
    """A configuration of detectron2's model zoo. ``made_by``: what makes its weights, our compact PyTorch reference
    or detectron2 itself (with its projects), which alone has all parts. ``resized``: whether the picture's size is set
    as that of the network's input; else the configuration's own holds. ``opts``: overrides, KEY and value in turn."""

    name: str
    title: str
    made_by: str = "reference"
    resized: bool = True
    opts: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The name without its folder."""
        return self.name.rsplit("/", 1)[-1]


MASK_RCNN = _Published("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x", "Mask R-CNN R50-FPN")
# The average over the whole picture instead of over a crop of training, whose size must divide the picture's.
_WHOLE = ("INPUT.CROP.ENABLED", "False")
FAMILIES = (
    _Published("COCO-Detection/faster_rcnn_R_50_C4_3x", "Faster R-CNN R50-C4"),
    _Published("COCO-Detection/faster_rcnn_R_50_DC5_3x", "Faster R-CNN R50-DC5"),
    _Published("COCO-Detection/retinanet_R_50_FPN_3x", "RetinaNet R50-FPN"),
    _Published("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x", "Keypoint R-CNN R50-FPN"),
    _Published("Misc/cascade_mask_rcnn_R_50_FPN_3x", "Cascade Mask R-CNN R50-FPN"),
    _Published("COCO-PanopticSegmentation/panoptic_fpn_R_50_3x", "Panoptic FPN R50"),
    _Published("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x", "Faster R-CNN X101-32x8d-FPN"),
    _Published("Misc/mask_rcnn_R_50_FPN_3x_gn", "Mask R-CNN R50-FPN, GN"),
    _Published("projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep", "ViTDet-B", "detectron2", False),
    _Published("projects/ViTDet/configs/COCO/mask_rcnn_vitdet_l_100ep", "ViTDet-L", "detectron2", False),
    _Published("projects/ViTDet/configs/COCO/mask_rcnn_vitdet_h_75ep", "ViTDet-H", "detectron2", False),
    _Published(
        "projects/MViTv2/configs/cascade_mask_rcnn_mvitv2_t_3x", "MViTv2-T, cascade", "detectron2", False
    ),
    _Published(
        "projects/ViTDet/configs/COCO/cascade_mask_rcnn_swin_b_in21k_50ep",
        "Swin-B, cascade",
        "detectron2",
        False,
    ),
    _Published(
        "projects/PointRend/configs/InstanceSegmentation/pointrend_rcnn_R_50_FPN_3x_coco",
        "PointRend R50",
        "detectron2",
    ),
    _Published(
        "projects/DensePose/configs/densepose_rcnn_R_50_FPN_DL_s1x", "DensePose R50, DL", "detectron2"
    ),
    _Published(
        "projects/DeepLab/configs/Cityscapes-SemanticSegmentation/deeplab_v3_plus_R_103_os16_mg124_poly_90k_bs16",
        "DeepLab v3+ R103",
        "detectron2",
        opts=_WHOLE,
    ),
    _Published(
        "projects/Panoptic-DeepLab/configs/Cityscapes-PanopticSegmentation/"
        "panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024",
        "Panoptic-DeepLab R52",
        "detectron2",
        opts=_WHOLE,
    ),
    _Published("projects/TridentNet/configs/tridentnet_fast_R_50_C4_3x", "TridentNet R50-C4", "detectron2"),
    _Published("projects/TensorMask/configs/tensormask_R_50_FPN_6x", "TensorMask R50", "detectron2"),
)


def families_named(words: Sequence[str]) -> tuple[_Published, ...]:
    """Those of :data:`FAMILIES` whose name or title has one of the words, in any case; all for no words.

    Raises UsageError for a word that none has.
    """
    found = {w: [f for f in FAMILIES if w.lower() in f"{f.key} {f.title}".lower()] for w in words}
    unknown = [word for word, those in found.items() if not those]
    if unknown:
        titles = ", ".join(f.title for f in FAMILIES)
        raise UsageError(f"--families {','.join(unknown)}: no family is called so; there are {titles}")
    chosen = [f for those in found.values() for f in those]
    return tuple(f for f in FAMILIES if not words or f in chosen)


def prepare(
    wanted: Sequence[tuple[_Published, Sequence[Any]]],
    size: tuple[int, int],
    work: Path,
    options: Options,
    weights_opts: Sequence[Any] = (),
) -> list[Subject]:
    """Configurations and weights of models with overrides, for a picture of ``size`` (height, width), in folders
    of ``work``. What is there already, made by the same code from the same configuration, is taken.

    ``weights_opts``: further overrides for making the weights only, so that models that differ in nothing but
    limits share them. Raises BackendError.
    """
    work.mkdir(parents=True, exist_ok=True)
    image = picture_file(work, size)
    resize = ["INPUT.MIN_SIZE_TEST", str(min(size)), "INPUT.MAX_SIZE_TEST", str(max(1333, *size))]
    entries, models = [], []
    for published, opts in wanted:
        given = [*(resize if published.resized else []), *published.opts, *map(str, opts)]
        folder = work / f"{published.key}-{_digest(given)}"
        folder.mkdir(exist_ok=True)
        shared = [*given, *map(str, weights_opts)]
        for name, words in (("config.yaml", given), ("weights.yaml", shared)):
            entries.append({"name": published.name, "opts": words, "output": str(folder / name)})
        models.append((published, folder))
    options.progress("writing configurations")
    program = Program("parity.bench.suite.configs", timeout=_PREPARE_SECONDS)
    call_worker(program, {"configs": entries}, work / "configs.txt")
    return [_with_weights(p, folder, image, work, options) for p, folder in models]


def _with_weights(published: _Published, folder: Path, image: Path, work: Path, options: Options) -> Subject:
    config = folder / "weights.yaml"
    recipe = Path(__file__).with_name("weights.py")
    digest = _digest([config.read_text(), recipe.read_text(), image.name])
    weights = work / f"{published.key}-{digest}.pkl"
    if not weights.exists():
        options.progress(f"{published.title}: making weights")
        job = {
            "config_yaml": str(config),
            "image": str(image),
            "seed": SEED,
            "made_by": published.made_by,
            "threads": options.threads,
        }
        program = Program("parity.bench.suite.weights", options.interpreter, _PREPARE_SECONDS)
        call_worker(program, job, weights)
    return Subject(str(folder / "config.yaml"), str(weights), [str(image)], folder, title=published.title)


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]


def picture_file(work: Path, size: tuple[int, int]) -> Path:
    """The bench picture of a size as .npy."""
    path = work / f"picture_{size[0]}x{size[1]}.npy"
    if not path.exists():
        np.save(path, bench_picture(*size))
    return path


def jpeg_file(work: Path, size: tuple[int, int]) -> Path:
    """The bench picture of a size as a JPEG file of quality 90."""
    from PIL import Image

    path = work / f"picture_{size[0]}x{size[1]}.jpg"
    if not path.exists():
        Image.fromarray(bench_picture(*size)[:, :, ::-1]).save(path, quality=90)
    return path


def bench_picture(height: int, width: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 of overlapping coloured shapes of all sizes on soft texture, always the same."""
    rng = np.random.default_rng(11)
    yy, xx = (np.mgrid[:height, :width] + 0.5) / min(height, width)
    base = 120 + 30 * np.sin(xx * 21) * np.cos(yy * 16) + 15 * np.sin(xx * 90 + 3 * np.sin(yy * 40))
    image = np.stack([base + 20, base, base - 25], axis=-1) + rng.normal(0, 6, (height, width, 3))
    aspect = width / min(height, width)
    for k in range(60):
        colour, size = rng.integers(0, 256, 3), np.exp(rng.uniform(np.log(0.02), np.log(0.5)))
        cy, cx = rng.uniform(0, height / min(height, width)), rng.uniform(0, aspect)
        inside = (yy - cy) ** 2 + (xx - cx) ** 2 < size**2 / 4
        if k % 2:
            inside = (abs(yy - cy) < size / 2) & (abs(xx - cx) < size * 0.35)
        image[inside] = colour + rng.normal(0, 8, (int(inside.sum()), 3))
    return np.clip(image, 0, 255).astype(np.uint8)
