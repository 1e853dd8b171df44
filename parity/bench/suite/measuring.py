"""What the parts of the suite share: with what they measure, and how two sides take turns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parity.bench.bench import Options, Subject, Worker, start
from parity.running.sides import BackendError, auto_reference


@dataclass(frozen=True)
class Suite:
    """What to measure with. ``size``: (height, width) of the picture and of the network's input; ``work``: folder
    for models, pictures and exports, kept; ``rounds``: of the main table, other parts run fewer; ``scale``
    multiplies the sizes, batches, proposals and classes of the curves (small for a trial run)."""

    output: Path
    work: Path
    options: Options
    size: tuple[int, int] = (800, 1216)
    compiled: bool = False
    families: Sequence[str] = ()
    scale: float = 1.0
    command: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def reference(self) -> str:
        """detectron2 where the interpreter has it, else our own PyTorch reference."""
        return auto_reference(self.options.interpreter).name

    def fewer(self, share: float, warmup: int = 1) -> Options:
        """Options for a part that takes a share of the rounds, at least two."""
        return replace(self.options, rounds=max(2, round(self.options.rounds * share)), warmup=warmup)

    def note(self, text: str) -> None:
        """Something a reader of the results must know."""
        self.notes.append(text)
        self.say(text)

    def say(self, text: str) -> None:
        """Progress."""
        self.options.progress(text)


def pair(
    stack: contextlib.ExitStack, model: Subject, options: Options, suite: Suite, ours: str = "tf"
) -> dict[str, Worker]:
    """The reference and one of our sides, loaded. The reference is left out, and a note says so, where it cannot be
    started."""
    workers: dict[str, Worker] = {}
    for name in (suite.reference, ours):
        try:
            workers[name] = start(stack, name, model, options)
        except BackendError as error:
            if name == ours:
                raise
            suite.note(f"{name} is left out: {error}")
    return workers


def interleave(
    suite: Suite, workers: dict[str, Worker], options: Options, act: Callable[[Worker], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """``act`` on every worker in turn, round by round, beginning with the next one each time; the answers of the
    rounds that count. A reference that cannot do it leaves, with a note; ours must."""
    out: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for k in range(options.warmup + options.rounds):
        names = list(workers)
        for name in names[k % len(names) :] + names[: k % len(names)]:
            try:
                answer = act(workers[name])
            except BackendError as error:
                if name == names[-1]:
                    raise
                workers.pop(name)
                out.pop(name)
                suite.note(f"{name} is left out: {error}")
                continue
            if k >= options.warmup:
                out[name].append(answer)
    return out
