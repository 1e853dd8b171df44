"""Random weights that behave like trained ones, for timing models whose checkpoints are not at hand.

    python -m parity.bench.suite.weights --job {"config_yaml", "image", "output", "seed", "made_by"}

One pass of the PyTorch reference over the bench picture sets every layer's scale, in the order in which layers
run: batch norms get the statistics of what they see, layers without a norm are scaled and shifted to zero mean
and unit variance per channel. Predictors get the spread that keeps boxes near their anchors, and the background
score is moved until about ``_PAIRS`` (box, class) pairs pass the score threshold, so that suppression has
something to do and detections fill the image's quota. Numbers depend on configuration, picture and seed only
(and on rounding).

Models with parts that the reference lacks are made by detectron2 itself ("made_by"); there transformers keep the
numbers that detectron2 starts their training from.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from parity.backends import torch_reference
from parity.backends.torch_reference.layers import BatchNorm
from parity.core import job as jobs

_PAIRS = 130  # (box, class) pairs above the score threshold before suppression: about 100 remain
_PAIRS_OF_ONE_CLASS = 220  # more boxes of the same class suppress each other
_SPREAD = {  # standard deviation of a predictor's outputs; everything else has 1
    "objectness_logits": 1.0,
    "anchor_deltas": 0.07,
    "bbox_pred": 0.5,
    "head.bbox_pred": 0.15,
    "mask_head.predictor": 2.0,
    "score_lowres": 2.0,
    "sem_seg_head.predictor": 2.0,
}
# With an RPN coarse levels are louder, or the many cells of p2 would make nearly all proposals.
_LEVELS = {"fpn_output2": 0.25, "fpn_output3": 0.45, "fpn_output4": 0.7}
_CLASS_SPREAD = 2.5
_SMALLEST = 0.25  # of its mean: a channel that hardly varies is not blown up further, nor is its rounding
_Shift = Callable[[Tensor], Tensor]


def randomise(model: nn.Module, seed: int) -> None:
    """He-normal kernels, norms near the identity. The stages of a cascade get the same numbers, as their
    averaged scores would otherwise cancel."""
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for key, value in held.items():
        name = re.sub(r"(box_head|box_predictor)\.\d+\.", r"\1.", key)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        value.copy_(torch.from_numpy(_random(rng, key, tuple(value.shape)).astype(np.float32)))


def _random(rng: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of one tensor. The last norm of a residual branch is quiet: a deep random network would otherwise
    enlarge rounding errors far more than a trained one."""
    if len(shape) > 1:
        return rng.normal(0, np.sqrt(2.0 / max(1, int(np.prod(shape[1:])))), shape)
    if key.endswith("weight"):
        return rng.uniform(0.1, 0.2, shape) if "conv3" in key else rng.uniform(0.8, 1.2, shape)
    return np.ones(shape) if key.endswith("running_var") else rng.normal(0, 0.1, shape) * ("norm" in key)


def calibrate(
    model: Any, node: Any, run: Callable[[], Any], kept: str | None = None, pairs: int = _PAIRS
) -> None:
    """Set scales and shifts while ``run`` computes one picture. ``node``: MODEL of the configuration; modules whose
    names begin with ``kept`` stay as they are."""
    handles = []
    for name, module in model.named_modules():
        hook = None if kept and name.startswith(kept) else _hook(name, module, node, pairs)
        if hook is not None:
            handles.append(module.register_forward_pre_hook(hook))
    run()
    for handle in handles:
        handle.remove()


def _hook(name: str, module: nn.Module, node: Any, pairs: int) -> Callable[[nn.Module, Any], None] | None:
    """What to do before the first call of a module; None for modules that need nothing."""
    act: Callable[[Any, Tensor], None]
    if isinstance(module, (BatchNorm, nn.BatchNorm2d)) or type(module).__name__ == "FrozenBatchNorm2d":
        act = _take_statistics
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
        if getattr(module, "norm", None) is not None:
            return None
        spread, shift = _aim(name, node, pairs)
        act = partial(_standardise, spread=spread, shift=shift)
    else:
        return None
    done: list[bool] = []

    def hook(layer: nn.Module, inputs: Any) -> None:
        if not done:
            done.append(True)
            with torch.no_grad():
                act(layer, inputs[0])

    return hook


def _take_statistics(layer: Any, x: Tensor) -> None:
    layer.running_mean.copy_(x.mean(dim=(0, 2, 3)))
    layer.running_var.copy_(x.var(dim=(0, 2, 3)).clamp_min(1e-4))


def _aim(name: str, node: Any, pairs: int) -> tuple[float, _Shift]:
    """Spread of a layer's outputs, and what is added to them per channel, given (samples, channels)."""
    tail = name.rsplit(".", 1)[-1]
    if tail == "cls_score" and name.startswith("roi_heads"):
        threshold = node["ROI_HEADS"]["SCORE_THRESH_TEST"]
        pairs = pairs if node["ROI_HEADS"]["NUM_CLASSES"] > 1 else pairs * _PAIRS_OF_ONE_CLASS // _PAIRS
        return _CLASS_SPREAD, lambda x: background_shift(x, threshold, pairs)
    if tail == "cls_score":
        dense = "TENSOR_MASK" if node["META_ARCHITECTURE"] == "TensorMask" else "RETINANET"
        threshold = node[dense]["SCORE_THRESH_TEST"]
        return _CLASS_SPREAD, lambda x: sigmoid_shift(x, threshold, pairs)
    levels = _LEVELS if node["META_ARCHITECTURE"] != "RetinaNet" else {}
    known = [spread for key, spread in {**_SPREAD, **levels}.items() if name.endswith(key)]
    return known[-1] if known else 1.0, lambda x: torch.zeros(x.shape[1])


def _standardise(layer: Any, x: Tensor, spread: float, shift: _Shift) -> None:
    """Scale the layer so that its outputs on ``x`` have mean 0 and deviation ``spread`` per channel."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    rows = _rows(layer, x)
    mean, deviation = rows.mean(dim=0), rows.std(dim=0, unbiased=False)
    scale = spread / torch.maximum(deviation, _SMALLEST * mean.abs()).clamp_min(1e-6)
    shape = [1] * layer.weight.ndim
    shape[1 if transposed else 0] = -1
    layer.weight.mul_(scale.view(shape))
    if layer.bias is None:
        return
    layer.bias.copy_((layer.bias - mean) * scale)
    layer.bias.add_(shift((rows - mean) * scale))


def _rows(layer: Any, x: Tensor) -> Tensor:
    """The layer's outputs without what follows it, (samples, channels)."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, layer.weight, layer.bias).flatten(0, -2)
    if isinstance(layer, nn.ConvTranspose2d):
        y = nn.ConvTranspose2d.forward(layer, x)
    else:
        y = layer._conv_forward(x, layer.weight, layer.bias)
    return y.movedim(1, -1).flatten(0, 2)


def background_shift(logits: Tensor, threshold: float, pairs: int) -> Tensor:
    """What to add to the last channel (background) so that ``pairs`` softmax scores pass the threshold."""
    low, high = -20.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        moved = torch.cat([logits[:, :-1], logits[:, -1:] + middle], dim=1)
        passing = int((moved.softmax(dim=1)[:, :-1] > threshold).sum())
        low, high = (middle, high) if passing > pairs else (low, middle)
    out = torch.zeros(logits.shape[1])
    out[-1] = high
    return out


def sigmoid_shift(logits: Tensor, threshold: float, pairs: int) -> Tensor:
    """What to add to all channels so that ``pairs`` sigmoid scores pass the threshold."""
    edge = float(np.log(threshold / (1 - threshold)))
    values = logits.flatten()
    reached = torch.topk(values, min(pairs, values.numel())).values[-1]
    return torch.full((logits.shape[1],), edge - float(reached))


def _made_by_reference(config_yaml: str, image: np.ndarray, seed: int) -> dict[str, Tensor]:
    """Weights of a model that our compact reference has; ``image``: (H, W, 3) BGR uint8."""
    config, _ = jobs.read_config(config_yaml)
    model = torch_reference.build(config)
    with torch.no_grad():
        randomise(model, seed)
    calibrate(model, config["MODEL"], lambda: torch_reference.run_free(model, image, None))
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _made_by_detectron2(config_yaml: str, image: np.ndarray, seed: int) -> dict[str, Tensor]:
    """Weights of any model that detectron2 has; ``image``: (H, W, 3) BGR uint8. Position tables that start at zero get
    small random numbers, so that they are computed with."""
    from parity.bench.torch_worker import BuiltPredictor

    torch.manual_seed(seed)
    predictor = BuiltPredictor(config_yaml, torch.device("cpu"))
    model = predictor.model
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "rel_pos" in key or "relative_position" in key:
                value.normal_(0, 0.02)
    attends = any(isinstance(module, nn.LayerNorm) for module in model.backbone.modules())
    node = jobs.read_config(config_yaml)[0]["MODEL"]
    kept = ("backbone.net." if hasattr(model.backbone, "net") else "backbone.bottom_up.") if attends else None
    calibrate(model, node, lambda: predictor(image), kept)
    return model.state_dict()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job."""
    from weights import write_detectron2_pkl

    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = json.loads(Path(parser.parse_args(arguments).job).read_text())
    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    make = _made_by_detectron2 if job.get("made_by") == "detectron2" else _made_by_reference
    state = make(job["config_yaml"], jobs.read_image(job["image"]), int(job.get("seed", 0)))
    write_detectron2_pkl(job["output"], {k: v.detach().numpy() for k, v in state.items()})
    jobs.say("done", tensors=len(state))
    return 0


if __name__ == "__main__":
    sys.exit(main())
