"""What all tests share: TensorFlow's settings, running a function eagerly and in a graph, the demo model.

TensorFlow is imported by the fixtures that need it, so that tests of `weights` and of the
parity core start at once.
"""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

# Start-up notices only; errors are still shown.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # expectations are those of the CPU
# The command line sets this for processes of its own; a command tested in this one must not change what later tests,
# and the processes they start, compute with.
os.environ.setdefault("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "0")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes: each computes with one thread
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")

DEMO = Path(str(files("tf_d2"))) / "data" / "demo"


def pytest_configure(config: pytest.Config) -> None:
    """Of several processes each takes the next file in order. xdist would sort files by their number of tests: the
    few that take a minute each would come last, and one process would wait for the other."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def as_graph(function: Callable[..., Any], *tensors: Any) -> Callable[..., Any]:
    """A tf.function that knows the last axis of its arguments and no other size."""
    import tensorflow as tf

    def spec(tensor: tf.Tensor) -> tf.TensorSpec:
        rank = len(tensor.shape)
        return tf.TensorSpec(
            [None] * (rank - 1) + [tensor.shape[-1] if rank > 1 else None][:rank], tensor.dtype
        )

    return tf.function(function, input_signature=[spec(t) for t in tensors], autograph=False)


@pytest.fixture(params=["eager", "graph"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``run(function, *arrays)``: numpy results, computed eagerly and by a graph of unknown sizes."""
    import tensorflow as tf

    def call(function: Callable[..., Any], *arrays: Any) -> Any:
        tensors = [tf.constant(array) for array in arrays]
        if request.param == "graph":
            function = as_graph(function, *tensors)
        return tf.nest.map_structure(lambda t: t.numpy(), function(*tensors))

    return call


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Any:
    """Keras' dtype policy for the length of a test."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.fixture
def bfloat16() -> None:
    """Skips where TensorFlow has no bfloat16 kernels: its products end the process there instead of failing."""
    from tf_d2.kernels import bfloat16_runs

    if not bfloat16_runs():
        pytest.skip("TensorFlow has no bfloat16 kernels under these settings (ONEDNN_MAX_CPU_ISA)")


@pytest.fixture(scope="session")
def demo_files() -> Path:
    """The folder of the embedded model: shapes.yaml, shapes.pkl, shapes.png."""
    return DEMO


@pytest.fixture(scope="session")
def demo_predictor() -> Any:
    """The embedded model as a user gets it (float32, norms folded)."""
    import tf_d2

    return tf_d2.Predictor(DEMO / "shapes.yaml", DEMO / "shapes.pkl")


@pytest.fixture(scope="session")
def exported_demo(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """``report`` and ``root`` of the exported embedded model, made once for all processes of a run: nobody changes it.

    It is measured when it is made.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    root, report = folder / "exported" / "shapes", folder / "exported" / "report.pickle"
    report.parent.mkdir(exist_ok=True)
    with open(report.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not report.exists():
            from tf_d2.serving import export

            report.write_bytes(pickle.dumps(export(DEMO / "shapes.yaml", DEMO / "shapes.pkl", root)))
    return SimpleNamespace(report=pickle.loads(report.read_bytes()), root=root)


@pytest.fixture(scope="session")
def demo_reference() -> SimpleNamespace:
    """What detectron2 recorded on the embedded picture: ``config`` (YAML text) and ``arrays`` by name."""
    import h5py

    arrays: dict[str, np.ndarray] = {}

    def add(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = item[()]

    with h5py.File(DEMO / "shapes_detectron2.h5") as file:
        file.visititems(add)
        return SimpleNamespace(config=str(file.attrs["config"]), arrays=arrays)
