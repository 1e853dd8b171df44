"""torch as an oracle, in a process of its own: no process that runs tests has TensorFlow and torch in it.

    from support.torch_process import F, torch
    expected = F.conv2d(x_nchw, weight, None, 2, 1)    # NumPy arrays in, NumPy arrays out

Every call computes in one helper process, started at the first of them, with one thread.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import traceback
from functools import cache, reduce
from typing import Any

import numpy as np


class Remote:
    """A function of torch by its dotted name."""

    def __init__(self, path: str = "") -> None:
        self._path = path

    def __getattr__(self, name: str) -> Remote:
        if name.startswith("_"):  # pytest and others look for marks of their own
            raise AttributeError(name)
        return Remote(f"{self._path}.{name}".lstrip("."))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        process = _process()
        assert process.stdin is not None and process.stdout is not None
        pickle.dump((self._path, arguments, named), process.stdin)
        process.stdin.flush()
        worked, answer = pickle.load(process.stdout)
        if not worked:
            raise RuntimeError(f"torch.{self._path}: {answer}")
        return answer


torch = Remote()
F = torch.nn.functional


@cache
def _process() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    atexit.register(process.communicate)  # closes its input, at which it ends
    return process


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not mix with the answers

    def tensor(value: Any) -> Any:
        return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value

    while True:
        try:
            path, arguments, named = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            function: Any = reduce(getattr, path.split("."), torch)
            result = function(*map(tensor, arguments), **{k: tensor(v) for k, v in named.items()})
            answer = True, result.numpy()
        except Exception:
            answer = False, traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
