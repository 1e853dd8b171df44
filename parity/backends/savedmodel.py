"""An exported folder as a backend, loaded in this process: results only.

python -m parity.backends.savedmodel --job job.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parity.backends import driver
from parity.backends.driver import Arrays, Backend, Segments
from parity.backends.results import named_outputs
from parity.backends.tf import read_image, versions
from parity.backends.tf_environment import configure, set_flags
from parity.core.job import Job, JobError


class SavedModel(Backend):
    """``serving_default`` of an exported folder, called as a server would call it."""

    name = "savedmodel"
    scope = "served"

    def __init__(self, job: Job, config: Mapping[str, Any]) -> None:
        configure(job)
        import tensorflow as tf

        self.flags = set_flags(job)
        folder = Path(job.target) if job.target else export_beside(job)
        self.model: Any = tf.saved_model.load(str(version_folder(folder)))
        self.call = self.model.signatures["serving_default"]

    def run(self, image: np.ndarray, proposals: np.ndarray | None) -> tuple[Arrays, Segments]:
        """The results of one BGR image, by trace name, and the panoptic segments."""
        import tensorflow as tf

        from tf_d2.client.result import to_result

        if proposals is not None:
            raise JobError("backend savedmodel does not take proposals in network pixels")
        answer: Mapping[str, Any] = self.call(inputs=tf.constant(image[None, :, :, ::-1]))
        outputs, segments = named_outputs(to_result({k: v.numpy() for k, v in answer.items()}, 0))
        return {"input/image": image, **outputs}, segments

    def read(self, path: str, channels: int) -> np.ndarray:
        """A picture as tf_d2 reads it."""
        return read_image(path, channels)

    def facts(self) -> dict[str, Any]:
        """Versions and flags."""
        return {**self.flags, "versions": versions()}


def version_folder(folder: Path) -> Path:
    """The folder with ``saved_model.pb``: ``folder`` itself or its highest version."""
    if (folder / "saved_model.pb").is_file():
        return folder
    versions = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    if not versions:
        raise FileNotFoundError(f"{folder} holds no saved_model.pb, neither directly nor in a version folder")
    return max(versions, key=lambda p: int(p.name))


def export_beside(job: Job) -> Path:
    """Export the job's model next to the trace."""
    folder = Path(job.output).with_suffix(".export")
    if not folder.exists():
        export_for_comparison(job, folder)
    return folder


def export_for_comparison(job: Job, folder: str | Path) -> None:
    """Export the job's model to a folder so that all it computes can be compared: with the logits of a semantic
    segmentation where the model has one."""
    from tf_d2.config import load_config
    from tf_d2.serving.exporter import export

    config = load_config(job.config_yaml, job.opts)
    options: dict[str, Any] = {"sem_seg": "logits"} if config.sem_seg_head else {}
    export(job.config_yaml, job.weights, folder, opts=job.opts, **options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    return driver.main(SavedModel, arguments)


if __name__ == "__main__":
    sys.exit(main())
