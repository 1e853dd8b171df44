"""VoVNet and its pyramid in PyTorch, by hand from a state dict: ``python vovnet_torch.py shapes.json out.npz``.

Makes a state dict of random numbers for the shapes (name -> torch shape), runs the network in float64 on a random
picture and writes state, picture and features.
"""

import json
import sys

import numpy as np
import torch
from torch.nn import functional

EPS = 1e-5


def random_state(shapes, seed=3):
    generator = np.random.default_rng(seed)
    state = {}
    for name, shape in shapes.items():
        scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        value = generator.normal(0, scale, shape)
        if name.endswith(("norm.weight", "running_var")):
            value = 1 + np.abs(value)
        state[name] = value.astype(np.float32)
    return state


class Net:
    def __init__(self, state):
        self.state = {k: torch.tensor(v, dtype=torch.float64) for k, v in state.items()}

    def cnr(self, x, prefix, stride=1):
        """Convolution, batch norm, ReLU under ``prefix``/conv and ``prefix``/norm."""
        weight = self.state[f"{prefix}/conv.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        gamma, beta, mean, var = (
            self.state[f"{prefix}/norm.{k}"][:, None, None]
            for k in ("weight", "bias", "running_mean", "running_var")
        )
        return ((x - mean) / torch.sqrt(var + EPS) * gamma + beta).clamp(min=0)

    def plain(self, x, name, padding=0):
        return functional.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], padding=padding)

    def block(self, x, prefix, name, convolutions, residual):
        seen = [x]
        for i in range(convolutions):
            seen.append(self.cnr(seen[-1], f"{prefix}.layers.{i}.{name}_{i}"))
        y = self.cnr(torch.cat(seen, 1), f"{prefix}.concat.{name}_concat")
        gate = self.plain(y.mean((2, 3), keepdim=True), f"{prefix}.ese.fc")
        y = y * ((gate + 3).clamp(0, 6) / 6)
        return y + x if residual else y

    def run(self, x, blocks, convolutions):
        found, root = {}, "backbone.bottom_up"
        for i, stride in enumerate((2, 1, 2)):
            x = self.cnr(x, f"{root}.stem.stem_{i + 1}", stride)
        found["backbone.bottom_up.stem"] = x
        for stage, count in enumerate(blocks, 2):
            if stage > 2:
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            for k in range(count):
                name = f"OSA{stage}_{k + 1}"
                x = self.block(x, f"{root}.stage{stage}.{name}", name, convolutions, k > 0)
            found[f"backbone.bottom_up/stage{stage}"] = x
        above = None
        for level in (5, 4, 3, 2):
            y = self.plain(found[f"backbone.bottom_up/stage{level}"], f"backbone.fpn_lateral{level}")
            if above is not None:
                y = y + above.repeat_interleave(2, 2).repeat_interleave(2, 3)
            above = y
            found[f"backbone/p{level}"] = self.plain(y, f"backbone.fpn_output{level}", 1)
        found["backbone/p6"] = found["backbone/p5"][:, :, ::2, ::2]
        return found


def main():
    job = json.loads(open(sys.argv[1]).read())
    state = random_state(job["shapes"])
    image = np.random.default_rng(1).normal(0, 1, (1, 3, *job["size"]))
    with torch.no_grad():
        features = Net(state).run(torch.tensor(image), job["blocks"], job["convolutions"])
    arrays = {f"state/{k}": v for k, v in state.items()}
    arrays |= {f"features/{k}": v.numpy() for k, v in features.items()}
    np.savez(sys.argv[2], image=image, **arrays)


if __name__ == "__main__":
    main()
