"""The model of tf_d2 as a backend: `tf` (a tf.function) and `tf-eager`.

python -m parity.backends.tf --job job.json
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parity.backends import driver
from parity.backends.driver import Arrays, Backend, Segments
from parity.backends.results import named_outputs
from parity.backends.tf_environment import configure, set_flags
from parity.core import job as jobs
from parity.core.job import Job
from parity.core.units import Unit, units

DTYPES = {"semantic": "float64", "strict": "float32", "production": "float32"}


class TensorFlowModel(Backend):
    """tf_d2.Predictor, as a tf.function or eagerly; in float64 with its norms unfolded."""

    scope = "all"

    def __init__(self, job: Job, config: Mapping[str, Any]) -> None:
        configure(job)
        import tensorflow as tf

        import tf_d2

        self.flags = set_flags(job)
        self.name = job.backend or "tf"
        eager = bool(self.name == "tf-eager" or job.mutate or job.mutations)
        tf.config.run_functions_eagerly(eager)
        self.dtype: Any = job.dtype or DTYPES[job.profile]
        as_shipped = self.dtype != "float64"
        self.predictor = tf_d2.Predictor(
            job.config_yaml,
            job.weights,
            dtype=self.dtype,
            opts=job.opts,
            fold_norms=False,
            constant_weights=as_shipped and not eager,
        )
        if as_shipped:  # now, so that the variables still hold what was loaded and can be hashed
            self.predictor.model.fold_norms()
        self.known = {name for unit in units(config) for name in (*unit.inputs, *unit.outputs)}

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[Arrays, Segments]:
        """Every array and the results of one image, by trace name, and the panoptic segments."""
        given = {} if proposals is None else {"proposals": proposals}
        traced = self.predictor.trace(image, rescaled=False, **given)
        arrays = {"input/image": image}
        for name, value in traced.items():
            arrays[name if name.startswith("input/") else f"steps/{name}"] = value
        outputs, segments = named_outputs(self.predictor(image, **given))
        # A model may record more than the table has (every step of PointRend), which the other side does not.
        return {k: v for k, v in (arrays | outputs).items() if k in self.known}, segments

    def compute(self, unit: Unit, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """One unit on given inputs."""
        return list(self.predictor.run_op(unit.op, unit.args, inputs))

    def read(self, path: str, channels: int) -> np.ndarray:
        """A picture, read by tf_d2 itself; .npy files hold the pixels already."""
        return read_image(path, channels)

    def tensors(self) -> dict[str, str]:
        """Hash of every weight as the model holds it now, under detectron2's keys and in its layout."""
        import weights

        held = variables(self.predictor.model)
        arrays = {path: np.asarray(value, np.float32) for path, value in held.items()}
        return {k: jobs.tensor_hash(v) for k, v in weights.to_state_dict(arrays).items()}

    def facts(self) -> dict[str, Any]:
        """Versions and flags."""
        return {**self.flags, "versions": versions()}


def read_image(path: str, channels: int) -> np.ndarray:
    """A picture as tf_d2 reads it; .npy files hold the pixels already."""
    import tf_d2

    if path.endswith(".npy") or channels not in (1, 3):
        return jobs.read_image(path, channels)
    return tf_d2.read_image(path, "L" if channels == 1 else "BGR")


def versions() -> dict[str, str]:
    """Versions of what computes."""
    import keras
    import tensorflow as tf

    import tf_d2

    return {"tensorflow": tf.__version__, "keras": keras.__version__, "tf-d2": tf_d2.__version__}


def variables(model: Any) -> dict[str, np.ndarray]:
    """Every variable of a tf_d2 model by its path."""
    return {v.path.removeprefix("model/"): np.asarray(v) for v in model._all_variables()}


def planted(name: str, model: TensorFlowModel) -> contextlib.AbstractContextManager[None]:
    """The model with the bug called ``name`` ("": none)."""
    if not name:
        return contextlib.nullcontext()
    from parity.selftest.tf_planters import plant

    return plant(name, model.predictor)


def run_job(job: Job) -> None:
    """Run a job and write its trace, with the planted bug that it names."""
    with contextlib.ExitStack() as bugs:

        def load(job: Job, config: Mapping[str, Any]) -> Backend:
            model = TensorFlowModel(job, config)
            bugs.enter_context(planted(job.mutate, model))
            return model

        driver.run_job(job, load)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    return driver.do_job(run_job, arguments)


if __name__ == "__main__":
    sys.exit(main())
