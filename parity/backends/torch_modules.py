"""Records what every module inside one unit of the PyTorch reference gets and returns, for `--bisect`.

    python -m parity.backends.torch_modules --job {"config_yaml", "weights", "unit", "feed", "image", "output"}

The unit runs on the fed trace's arrays. For each module call: ``steps/<module>@in`` and
``steps/<module>@out``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from parity.backends import torch_reference
from parity.backends.torch_reference.run import run_unit
from parity.core import feed as feeds
from parity.core import job as jobs
from parity.core.trace import Trace, TraceWriter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = json.loads(Path(parser.parse_args(arguments).job).read_text())
    config, text = jobs.read_config(job["config_yaml"])
    model = torch_reference.build(config)
    torch_reference.load_state(model, jobs.read_state(job["weights"]))
    semantic = job["profile"] == "semantic"
    model.to(dtype=torch.float64 if semantic else torch.float32)
    with Trace(job["feed"]) as feed, TraceWriter(job["output"]) as writer:
        unit = next(u for u in model.units if u.name == job["unit"])
        given = feeds.given_to([unit], feed.images[int(job["image"])], job["profile"])
        names = record(model, job["unit"], given, writer)
        writer.finish({"backend": "torch", "modules": names}, text)
    print(json.dumps({"event": "done", "modules": len(names)}), flush=True)
    return 0


def record(model: Any, unit: str, feed: Any, writer: TraceWriter) -> list[str]:
    """Run one unit with hooks on every module; the names of the modules called, in order of completion. Only
    the first call of a module is recorded, and only tensors."""
    target = next(u for u in model.units if u.name == unit)
    inputs = [torch.from_numpy(feed[n].copy()) for n in target.inputs]
    seen: dict[str, torch.Tensor] = {}
    names: list[str] = []

    def before(name: str) -> Any:
        def store(module: Any, given: Any) -> None:
            if given and isinstance(given[0], torch.Tensor) and name not in seen:
                seen[name] = given[0].detach().clone()

        return store

    def after(name: str) -> Any:
        def store(module: Any, given: Any, output: Any) -> None:
            if name in seen and name not in names and isinstance(output, torch.Tensor):
                names.append(name)
                writer.put(f"steps/{name}@in", seen[name].numpy())
                writer.put(f"steps/{name}@out", output.detach().clone().numpy())

        return store

    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(before(name))
            module.register_forward_hook(after(name))
    run_unit(model, target, inputs)
    return names


if __name__ == "__main__":
    sys.exit(main())
