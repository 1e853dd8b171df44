"""A state dict of random numbers for a configuration, lively enough that every stage has something to
compare.

    python -m parity.backends.torch_random --job {"config_yaml", "output", "seed", "reference"}

``reference`` is the backend whose model has the state dict: "torch", or "detectron2" for an interpreter that has it.
Convolutions keep the scale of what passes through them, norms are near but not at the identity, and
predictors are loud, so that scores spread and thresholds cut somewhere. The file is a .safetensors.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parity.backends import torch_reference
from parity.core import job as jobs
from parity.core.units import is_harmless
from weights.writers import write_safetensors

# A picture's pixels are tens away from the mean and residual sums grow to tens again: stem, laterals and p6 bring
# their outputs back to about one, so that boxes stay near their anchors and scores spread without saturating.
STEM = 0.03
_BLOCKS = 16  # of residual blocks; what more of them add is quieter, or scores of a deep network are all 1
_LOUD = {
    "cls_score": 3.0,
    "objectness_logits": 3.0,
    "predictor": 3.0,
    "score_lowres": 3.0,
    "anchor_deltas": 0.3,
    "bbox_pred": 1.0,
    "fpn_lateral2": 0.5,
    "fpn_lateral3": 0.3,
    "fpn_lateral4": 0.2,
    "fpn_lateral5": 0.2,
    "p6": 0.2,
    "conv2_offset": 0.3,  # where dozens of deformable layers look pixels away, rounding grows past any limit
}


def _random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Arrays of the given shapes, always the same for a seed."""
    rng = np.random.default_rng(seed)
    state = {key: _random(rng, key, shape).astype(np.float32) for key, shape in sorted(shapes.items())}
    last = [key for key in state if key.endswith("conv3.weight")]
    if len(last) > _BLOCKS:
        for key in last:
            state[key] *= np.float32(np.sqrt(_BLOCKS / len(last)))
    return state


def _random(rng: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    leaf = key.rsplit(".", 1)[1]
    if leaf == "pos_embed":  # beside patches of about one
        return rng.normal(0, 0.3, shape)
    if leaf == "running_var":
        return rng.uniform(0.6, 1.6, shape)
    if leaf == "weight" and len(shape) == 1:
        return rng.uniform(0.6, 1.2, shape)
    if leaf in ("bias", "running_mean"):
        return rng.normal(0, 0.1, shape)
    fan_in = max(1, int(np.prod(shape[1:])))
    layer = key.split(".")[-2]
    gain = STEM if "stem" in key else _LOUD.get(layer, 0.7 if "conv3" in key or "shortcut" in key else 1.4)
    return rng.normal(0, gain / np.sqrt(fan_in), shape)


def _shapes(path: str, reference: str) -> dict[str, tuple[int, ...]]:
    """The shape of every array that the model of a configuration holds."""
    if reference == "detectron2":
        import torch

        from parity.backends import detectron2

        state = detectron2.build(detectron2.library(), path, torch.device("cpu")).state_dict()
        return {key: tuple(value.shape) for key, value in state.items() if not is_harmless(key)}
    config, _ = jobs.read_config(path)
    model = torch_reference.build(config)
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {key: tuple(value.shape) for key, value in held.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = json.loads(Path(parser.parse_args(arguments).job).read_text())
    shapes = _shapes(job["config_yaml"], job.get("reference", "torch"))
    write_safetensors(job["output"], _random_state(shapes, int(job.get("seed", 0))))
    print(json.dumps({"event": "done", "tensors": len(shapes)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
