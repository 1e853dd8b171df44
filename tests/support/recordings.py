"""Recordings of the real detectron2 in tests/data: models of reduced width with random weights, a picture, the answer
and some stages.

A float32 answer is held against the float64 run of the same model: it may be FACTOR times as far from it as
detectron2's own float32 answer is, which added up in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tf_d2
import weights
from tf_d2.stages import StageArrays, stage_array

DATA = Path(__file__).parents[1] / "data"
FACTOR = 3.0  # parity.core.profiles.NOISE_FACTOR
ROUNDING = 8 * 2.0**-23
FLOAT64 = 1e-12


class Recording:
    """One .npz file: arrays by name, among them ``config``, ``weights/<key>``, ``input/image``, ``output/...``."""

    def __init__(self, path: str) -> None:
        """``path``: below tests/data."""
        self.path = DATA / path

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path) as file:
            return {key: file[key] for key in file.files}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    @property
    def config(self) -> str:
        """YAML."""
        return str(self.arrays["config"])

    @property
    def image(self) -> np.ndarray:
        return self.arrays["input/image"]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays whose names begin so, without that beginning."""
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def files(self, folder: Path, state: dict[str, np.ndarray] | None = None) -> tuple[Path, Path]:
        """Configuration and weights (or those of ``state``) written to a folder."""
        config, model = folder / "config.yaml", folder / "model.pkl"
        config.write_text(self.config)
        weights.write_detectron2_pkl(model, self.group("weights/") if state is None else state)
        return config, model

    def predictor(
        self,
        folder: Path,
        opts: Sequence[Any] = (),
        state: dict[str, np.ndarray] | None = None,
        **options: Any,
    ) -> tf_d2.Predictor:
        """The model, its files written to ``folder``."""
        return tf_d2.Predictor(*self.files(folder, state), opts=["MODEL.WEIGHTS", "", *opts], **options)


@cache
def recording(path: str) -> Recording:
    """The recording at a path below tests/data, read once."""
    return Recording(path)


@contextmanager
def eagerly() -> Iterator[None]:
    """Functions run eagerly inside. Making and optimising the graph of a model takes ten times as long as computing a
    model this narrow once: so for what is only the truth that others are held against, or not about graphs.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def answer_and_trace(predictor: tf_d2.Predictor, image: np.ndarray) -> tuple[dict[str, Any], StageArrays]:
    """``predictor(image)`` and ``predictor.trace(image)`` out of one graph, where those two make one each; inside
    :func:`eagerly` without a graph."""
    arguments, size = predictor._arguments(image, None, None)

    def function(image: Any, network: Any, original: Any, *proposals: Any) -> tuple[Any, Any]:
        stages: dict[str, tf.Tensor] = {}
        raw, _ = predictor._forward(image, network, *proposals, stages)
        return predictor.model.to_image(raw, network, original), stages

    signature = predictor._predict[arguments[0].dtype].input_signature
    outputs, stages = tf.function(function, input_signature=signature, autograph=False)(*arguments)
    trace = StageArrays({name: stage_array(name, value.numpy()) for name, value in stages.items()})
    return predictor._result({name: value.numpy() for name, value in outputs.items()}, size), trace


def error(got: Any, expected: Any) -> float:
    """Relative L2 distance."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def stage(trace: Any, name: str) -> np.ndarray:
    """A stage of a trace as a recording names it: ``backbone/res2@3`` holds the first three channels only."""
    name, _, channels = name.partition("@")
    return trace[name][:, : int(channels)] if channels else trace[name]


def assert_near(got: Any, theirs: Any, truth: Any, name: str = "", factor: float = FACTOR) -> None:
    """``got`` is at most ``factor`` times as far from the float64 ``truth`` as detectron2's float32 ``theirs`` is.

    What float32 rounds a few times is always allowed: a handful of detections may be right by chance.
    """
    own, other = error(got, truth), error(theirs, truth)
    assert own <= factor * other + ROUNDING, f"{name} is {own:.2e} from float64, detectron2's {other:.2e}"
