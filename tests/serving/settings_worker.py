"""Run under other settings of TensorFlow than the tests: a Predictor, an export, and an export made elsewhere.

`python settings_worker.py FOLDER SERVED`: FOLDER holds config.yaml, model.pkl, picture.png; SERVED is a version of an
export of that model. Writes FOLDER/predicted.npz, FOLDER/served.npz and FOLDER/export/1.
"""

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

import tf_d2
from tf_d2.client import to_result
from tf_d2.serving import export, exporter


def answers(folder: Path) -> dict[str, np.ndarray]:
    """What a Predictor gives for the picture."""
    predictor = tf_d2.Predictor(folder / "config.yaml", folder / "model.pkl")
    instances = predictor(tf_d2.read_image(folder / "picture.png", "BGR"))["instances"]
    return {name: np.asarray(value) for name, value in instances.get_fields().items()}


def served(version: Path, picture: Path) -> dict[str, np.ndarray]:
    """What a server gives for it."""
    loaded = tf.saved_model.load(str(version))
    pixels = tf.constant(tf_d2.read_image(picture, "RGB")[None])
    outputs = loaded.signatures["serving_default"](inputs=pixels)
    instances = to_result({name: value.numpy() for name, value in outputs.items()}, 0)["instances"]
    return {name: np.asarray(value) for name, value in instances.get_fields().items()}


def main(folder: Path, version: Path) -> None:
    np.savez(folder / "served.npz", **served(version, folder / "picture.png"))
    np.savez(folder / "predicted.npz", **answers(folder))
    # As in conftest.py: neither the signature that decodes files nor timing, half of an export's time.
    exporter.takes_files, exporter.measure = lambda channels: False, lambda *arguments: (0.0, 0.0, 0.0)
    export(folder / "config.yaml", folder / "model.pkl", folder / "export")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
