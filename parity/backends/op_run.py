"""What the two operation workers share: reading a job, running every case, writing the results."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity.core import opcases
from parity.core.trace import TraceWriter

Function = Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Sequence[np.ndarray]]


def say(event: str, **values: Any) -> None:
    """One line for the process that started this one."""
    print(json.dumps({"event": event, **values}), flush=True)


def main(
    functions: Mapping[str, Function],
    configure: Callable[[Mapping[str, Any]], dict[str, Any]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a job {"cases", "output", "device", "dtype", "only"}. ``configure`` sets the framework up and
    returns facts for the manifest. A case that raises is recorded by its error, so that the others still
    run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job = json.loads(Path(parser.parse_args(arguments).job).read_text())
    try:
        facts = configure(job)
        only = job.get("only") or ()
        cases = [c for c in opcases.load(job["cases"]) if not only or c.op in only]
        errors: dict[str, str] = {}
        with TraceWriter(job["output"]) as writer:
            for case in cases:
                try:
                    inputs = {k: _cast(v, job["dtype"]) for k, v in case.inputs.items()}
                    outputs = functions[case.op](inputs, case.args)
                except Exception as error:
                    errors[case.path] = f"{type(error).__name__}: {error}"
                    continue
                for k, value in enumerate(outputs):
                    writer.put(f"steps/{case.path}/{k}", np.asarray(value))
            writer.finish({**facts, "profile": job["dtype"], "device": job["device"], "errors": errors}, "{}")
    except Exception as error:
        if os.environ.get("PARITY_TRACEBACK"):
            raise
        say("error", message=f"{type(error).__name__}: {error}")
        return 2
    say("done", output=job["output"])
    return 0


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(dtype) if array.dtype.kind == "f" else array
